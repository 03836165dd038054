"""Aliases that stand for more than a message may have."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from ptt_queue.types import PutResult

from ptt.config import Config
from ptt.log import Log
from ptt.message import Envelope, Recipient
from ptt.metrics import Counters
from ptt.plan import UNCONDITIONAL, Conditions
from ptt.submission.accept import MAX_EXPANDED, Accept, Offer


class Directory:
    """Every local part ``lN`` is an alias of 1,000 addresses."""

    commit = "c0"
    asked = 0

    def may_send_as(self, user: str, address: str) -> bool:
        return True

    def expand(self, address: str) -> list[str] | None:
        self.asked += 1
        return [f"u{n}.{address}" for n in range(1000)]

    def signing_domain(self, address_domain: str) -> str:
        return ""

    def our_domain(self, name: str) -> object | None:
        return None

    route = our_domain

    def may_post(self, user: str, address: str) -> bool:
        return True

    def limits(self, user: str) -> None:
        return None


class Queue:
    def __init__(self) -> None:
        self.recipients = 0

    def accept(
        self,
        id: bytes,
        envelope: Envelope,
        recipients: Sequence[Recipient],
        body: bytes,
        *,
        conditions: Conditions = UNCONDITIONAL,
    ) -> PutResult:
        self.recipients = len(recipients)
        return PutResult(None, [])


@pytest.mark.parametrize(("aliases", "code"), [(MAX_EXPANDED // 1000, 250), (1000, 552)])
def test_what_aliases_stand_for_is_bounded(aliases: int, code: int) -> None:
    config = msgspec.convert({"hostname": "mail.example.org"}, Config)
    queue, directory = Queue(), Directory()
    accept = Accept(config, queue, directory, Log("test", "error"), Counters())
    recipients = [Recipient(f"l{n}@example.org") for n in range(aliases)]
    offer = Offer(Envelope("me@example.org", 1), recipients, [b"Subject: x\r\n\r\ny\r\n"], "submission", "ESMTPSA", "")
    assert accept.offer(offer).code == code
    assert queue.recipients == (MAX_EXPANDED if code == 250 else 0)
    assert directory.asked <= MAX_EXPANDED // 1000 + 1
