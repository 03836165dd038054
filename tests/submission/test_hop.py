"""What a signer takes from the role before it."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest

from ptt.config import Config
from ptt.log import Log
from ptt.message import Envelope
from ptt.metrics import Counters
from ptt.net.handshakes import Handshakes
from ptt.net.memory import memory_pair
from ptt.relay.hop import KEYWORD, encode
from ptt.smtp.events import MailFrom
from ptt.smtp.params import MailParams
from ptt.submission import census
from ptt.submission.admission import Admission
from ptt.submission.census import Census
from ptt.submission.limits import Budget, Seldom
from ptt.submission.listener import server_configs
from ptt.submission.session import Service, Session

CARRIED = encode(Envelope("me@example.org", 1, "example.org", "me@example.org"))


def session(role: str, domains: list[str]) -> Session:
    settings = {
        "hostname": "mail.example.org",
        "role": role,
        "listen": [{"address": "127.0.0.1:1", "service": "relay"}],
        "signer": {"domains": domains},
    }
    config = msgspec.convert(settings, Config)
    nothing: Any = None
    plain, hop = server_configs(config, config.listen[0])
    log = Log("test", "error")
    admission = Admission(config.connections, Census(census.make(1), 0), time.monotonic)
    shared: Any = ((), Budget(), admission, Handshakes(), Seldom(log))
    service = Service(
        config, config.listen[0], plain, hop, nothing, nothing, nothing, nothing, log, Counters(), *shared
    )
    made = Session(service, memory_pair()[0], "192.0.2.1")
    made.roles = frozenset({"submission" if role == "signer" else "signer"})  # of its certificate
    return made


@pytest.mark.parametrize(
    ("role", "domains", "extra", "code"),
    [
        ("signer", [], ((KEYWORD, CARRIED),), 0),
        ("signer", ["example.org"], ((KEYWORD, CARRIED),), 0),
        ("signer", ["example.net"], ((KEYWORD, CARRIED),), 550),
        ("signer", [], ((KEYWORD, "nonsense"),), 501),
        ("signer", [], (), 550),  # it would go on unsigned
        ("relay", [], (), 0),
    ],
)
def test_who_signs_is_said_and_allowed(role: str, domains: list[str], extra: Any, code: int) -> None:
    one = session(role, domains)
    refusal = one._mail(MailFrom("me@example.org", MailParams(extra=extra)))
    assert (refusal.code if refusal else 0) == code
    assert (one.envelope is None) == bool(code)
    if extra and not code:
        assert one.envelope is not None
        assert one.envelope.signing_domain == "example.org"
        assert one.envelope.client == "192.0.2.1"
