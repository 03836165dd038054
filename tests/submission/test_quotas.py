"""Quotas of users and domains, and submission keys: decided by a real queue, told by the reply."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence

import msgspec
import pytest
from ptt_queue.client import QueueClient
from ptt_queue.in_process import SETTINGS, InProcess
from ptt_queue.types import Filter, PutResult, State

from ptt import plan
from ptt.config import Config
from ptt.directory.records import Limits
from ptt.log import Log
from ptt.message import Envelope, Recipient, decode_note
from ptt.metrics import Counters
from ptt.plan import UNCONDITIONAL, Conditions
from ptt.smtp.reply import Reply
from ptt.submission import quotas
from ptt.submission.accept import ONCE_MS, Accept, Offer

FULL_HOUR = 1_800_000_000.0  # 08:00 UTC
CONFIG = Config(hostname="mail.ours.test")
SMALL = b"From: <anna@ours.test>\r\n\r\nhi\r\n"


class Place:
    """Submission in front of a queue. ``limits``: user -> those of the user and of the domain."""

    def __init__(self, path: str) -> None:
        self.time = FULL_HOUR
        self.queue = InProcess(path, msgspec.structs.replace(SETTINGS, limited=()), lambda: self.time)
        self.client: QueueClient = self.queue.client()
        self.table: dict[str, quotas.Pair] = {}
        self.counters = Counters()
        self.made = Accept(CONFIG, self, self, Log("t", "error"), self.counters, lambda: self.time)

    # what Accept asks of the pipeline

    def accept(
        self,
        id: bytes,
        envelope: Envelope,
        recipients: Sequence[Recipient],
        body: bytes,
        *,
        conditions: Conditions = UNCONDITIONAL,
    ) -> PutResult:
        message = plan.new_message(id, envelope, recipients, len(body), CONFIG, int(self.time * 1000))
        message = msgspec.structs.replace(message, **msgspec.structs.asdict(conditions))
        return self.client.put(message, body, lease=False)

    # what it asks of the git database

    commit = "c" * 40

    def may_send_as(self, user: str, address: str) -> bool:
        return True

    def expand(self, address: str) -> list[str] | None:
        return [f"r{n}@else.test" for n in range(5)] if address == "five@ours.test" else None

    def signing_domain(self, address_domain: str) -> str:
        return ""

    def our_domain(self, name: str) -> object | None:
        return None

    def route(self, domain: str) -> object | None:
        return None

    def may_post(self, user: str, address: str) -> bool:
        return True

    def limits(self, user: str) -> quotas.Pair | None:
        return self.table.get(user)

    # what a test asks

    def send(self, user: str = "anna@ours.test", to: Sequence[str] = ("x@else.test",), content: bytes = SMALL) -> Reply:
        envelope = Envelope(user, 0, user=user, client="127.0.0.1", helo="pc")
        return self.made.offer(Offer(envelope, [Recipient(r) for r in to], [content], "submission", "ESMTPSA", ""))

    def stored(self) -> int:
        return self.client.stats().messages

    def counted(self, name: str) -> float:
        return sum(value for (found, _), value in self.counters.counters.items() if found == name)


@pytest.fixture
def place(tmp_path: pathlib.Path) -> Iterator[Place]:
    made = Place(str(tmp_path / "queue"))
    yield made
    made.client.close()
    made.queue.close()


def test_over_quota_says_when_to_try_again(place: Place) -> None:
    place.table["anna@ours.test"] = (Limits(messages_per_hour=2), None)
    assert [place.send().code for _ in range(2)] == [250, 250]
    place.time += 59 * 60
    refused = place.send()
    assert (refused.code, refused.enhanced) == (452, "4.7.1")
    assert refused.text == "quota of 2 messages per hour for user anna@ours.test is used up: try again after 09:00 UTC"
    assert place.send("bob@ours.test").code == 250
    place.time += 60
    assert place.send().code == 250
    assert place.stored() == 4
    assert place.counted("ptt_over_quota_total") == 1


def test_the_domain_counts_for_all_its_users(place: Place) -> None:
    domain = Limits(recipients_per_day=7)
    place.table = {"anna@ours.test": (None, domain), "bob@ours.test": (Limits(messages_per_hour=1), domain)}
    assert place.send(to=["five@ours.test"]).code == 250
    assert place.send("bob@ours.test").code == 250
    assert "1 messages per hour for user bob@ours.test" in place.send("bob@ours.test").text
    refused = place.send(to=["a@else.test", "b@else.test"])  # 6 of 7: what was refused has counted nowhere
    assert refused.code == 452
    assert "7 recipients per day for domain ours.test is used up: try again after 00:00 UTC" in refused.text
    assert place.send().code == 250


def test_bytes(place: Place) -> None:
    place.table["anna@ours.test"] = (Limits(bytes_per_hour=3000), None)
    assert place.send(content=SMALL + b"x" * 2000 + b"\r\n").code == 250
    assert place.send(content=SMALL + b"x" * 2000 + b"\r\n").code == 452
    never = place.send(content=SMALL + b"x" * 4000 + b"\r\n")
    assert (never.code, never.enhanced) == (550, "5.7.1")  # waiting does not help


def test_one_message(place: Place) -> None:
    place.table["anna@ours.test"] = (Limits(max_message_bytes=1000), None)
    assert place.send().code == 250
    assert place.send(content=SMALL + b"x" * 1000).code == 552
    assert quotas.fits((Limits(max_recipients=1), Limits(max_message_bytes=9)), 1, 9) is None
    assert quotas.fits((Limits(max_recipients=1), None), 2, None) is not None
    assert quotas.fits((None, Limits(max_message_bytes=0)), 1, 1) is not None


def test_held_over_quota(place: Place) -> None:
    place.table["anna@ours.test"] = (Limits(messages_per_day=1, over="hold"), Limits(messages_per_day=10, over="hold"))
    place.send()
    held = place.send()
    assert held.code == 250
    assert held.text.startswith("over quota, held")
    entries = place.client.list(Filter(state=State.HELD)).entries
    assert [note.held for e in entries if (note := decode_note(e.note))] == ["quota"]
    assert place.stored() == 2
    strict = Limits(messages_per_day=1, over="hold"), Limits(messages_per_day=1, over="refuse")
    place.table["bob@other.test"] = strict
    assert [place.send("bob@other.test").code for _ in range(2)] == [250, 452]  # one that refuses is enough


def test_the_same_submission_is_stored_once(place: Place) -> None:
    keyed = b"From: <anna@ours.test>\r\nPTT-Submission-Key: invoice 17\r\n\r\nhi\r\n"
    place.table["anna@ours.test"] = (Limits(messages_per_day=2), None)
    first = place.send(content=keyed)
    assert first.code == 250
    assert place.send(content=keyed) == first
    assert place.stored() == 1
    assert place.counted("ptt_repeated_total") == 1
    other = place.send("bob@ours.test", content=keyed)  # keys are each user's own
    assert other.code == 250
    assert other.text != first.text
    place.time += ONCE_MS / 1000
    later = place.send(content=keyed)
    assert later.text not in (first.text, other.text)
    assert place.send(content=SMALL.replace(b"\r\n", b"\r\nPTT-Submission-Key:\r\n", 1)).code == 550
    [stored] = [e for e in place.client.list(Filter()).entries if first.text.endswith(plan.show_id(e.message))]
    assert b"Submission-Key" not in place.client.body(stored)
