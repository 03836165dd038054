"""Mail that an alias sends on: whose sender strangers are told, and where a bounce goes."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import pytest
from ptt_queue.types import PutResult

from ptt.config import Config
from ptt.log import Log
from ptt.message import Envelope, Recipient
from ptt.metrics import Counters
from ptt.plan import UNCONDITIONAL, Conditions
from ptt.relay import srs
from ptt.relay.attempt import Job, compose, verp
from ptt.smtp import Reply
from ptt.smtp.capabilities import Capabilities
from ptt.submission.accept import Accept, Offer

NOW = 1e9
REWRITER = srs.Srs([b"0123456789abcdef"], lambda: NOW)
CONTENT = b"From: <anna@example.org>\r\n\r\nx\r\n"


class Queue:
    def __init__(self) -> None:
        self.stored: list[tuple[Envelope, list[str]]] = []
        self.bodies: list[bytes] = []

    def accept(
        self,
        id: bytes,
        envelope: Envelope,
        recipients: Sequence[Recipient],
        body: bytes,
        *,
        conditions: Conditions = UNCONDITIONAL,
    ) -> PutResult:
        self.stored.append((envelope, [r.address for r in recipients]))
        self.bodies.append(body)
        return PutResult(None, [])


class Directory:
    """``ours.test`` is ours; three aliases."""

    commit = ""
    ALIASES = {  # noqa: RUF012
        "out@ours.test": ["bob@else.test"],
        "in@ours.test": ["bob@ours.test"],
        "both@ours.test": ["bob@ours.test", "carl@else.test"],
    }

    def may_send_as(self, user: str, address: str) -> bool:
        return True

    def expand(self, address: str) -> list[str] | None:
        return self.ALIASES.get(address)

    def signing_domain(self, address_domain: str) -> str:
        return ""

    def our_domain(self, name: str) -> object | None:
        return name if name == "ours.test" else None

    def route(self, domain: str) -> None:
        return None

    def may_post(self, user: str, address: str) -> bool:
        return True

    def limits(self, user: str) -> None:
        return None


def stored(sender: str, *recipients: str, rewriter: srs.Srs | None = REWRITER) -> tuple[Envelope, list[str]]:
    queue = Queue()
    config = Config(hostname="mail.ours.test")
    accept = Accept(config, queue, Directory(), Log("t", "error"), Counters(), lambda: NOW, srs=rewriter)
    offer = Offer(Envelope(sender, 0, helo="x"), [Recipient(r) for r in recipients], [CONTENT], "relay", "ESMTP", "")
    assert accept.offer(offer).code == Reply(250).code
    return queue.stored[0]


@pytest.mark.parametrize("alias", ["out@ours.test", "both@ours.test"])
def test_a_foreign_sender_to_a_foreign_address(alias: str) -> None:
    envelope, _ = stored("anna@example.org", alias)
    assert envelope.sender == "anna@example.org"  # our own reports go there
    assert envelope.return_path.startswith("SRS0=")
    assert envelope.return_path.endswith("=example.org=anna@ours.test")


@pytest.mark.parametrize(
    ("sender", "recipients"),
    [
        ("anna@ours.test", ["out@ours.test"]),
        ("", ["out@ours.test"]),
        ("anna@example.org", ["in@ours.test"]),
        ("anna@example.org", ["bob@else.test"]),  # relayed, not forwarded
    ],
)
def test_senders_that_stay(sender: str, recipients: list[str]) -> None:
    assert stored(sender, *recipients)[0].return_path == ""


def test_without_a_secret_nothing_is_rewritten() -> None:
    assert stored("anna@example.org", "out@ours.test", rewriter=None)[0].return_path == ""


def test_a_bounce_finds_the_first_sender() -> None:
    envelope, _ = stored("anna@example.org", "out@ours.test")
    assert stored("", envelope.return_path)[1] == ["anna@example.org"]
    forged = envelope.return_path.replace("anna", "dora")
    assert stored("", forged)[1] == [forged]
    assert stored("", envelope.return_path, rewriter=None)[1] == [envelope.return_path]


def test_strangers_are_told_the_new_sender_and_our_roles_the_first() -> None:
    envelope, _ = stored("anna@example.org", "out@ours.test")
    job = Job("shown", "else.test", envelope, [b"", CONTENT], len(CONTENT), lambda: None)
    wanted = [(1, Recipient("bob@else.test"))]
    message, _ = compose(job, wanted, Capabilities(Reply(250, "", "x\nSIZE")), False, "peer")
    assert message is not None
    assert message.sender == envelope.return_path
    role, _ = compose(job, wanted, Capabilities(Reply(250, "", "x\nXPTT")), True, "peer")
    assert role is not None
    assert role.sender == "anna@example.org"


def test_the_secret_is_for_nobody_else(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "srs"
    file.write_text("x" * 32 + "\n")
    file.chmod(0o644)
    with pytest.raises(ValueError, match="0600"):
        srs.from_file(str(file), lambda: NOW)
    file.chmod(0o600)
    assert srs.from_file(str(file), lambda: NOW) is not None
    assert srs.from_file("", lambda: NOW) is None


# --- VERP -------------------------------------------------------------------------------------------------------


def submitted(field: bytes) -> tuple[int, Queue]:
    queue = Queue()
    accept = Accept(Config(hostname="mail.ours.test"), queue, Directory(), Log("t", "error"), Counters(), lambda: NOW)
    envelope = Envelope("anna@ours.test", 0, user="anna@ours.test", helo="x")
    content = b"From: <anna@ours.test>\r\n" + field + b"\r\nx\r\n"
    offer = Offer(envelope, [Recipient("bob@else.test")], [content], "submission", "ESMTPSA", "")
    return accept.offer(offer).code, queue


def test_verp_on_request() -> None:
    code, queue = submitted(b"PTT-VERP: yes\r\n")
    assert code == 250
    assert queue.stored[0][0].verp
    assert b"ptt-verp" not in queue.bodies[0].lower()
    assert not submitted(b"")[1].stored[0][0].verp
    assert submitted(b"PTT-VERP: maybe\r\n")[0] == 550
    assert submitted(b"PTT-VERP: yes\r\nPTT-VERP: yes\r\n")[0] == 550


@pytest.mark.parametrize(
    ("sender", "recipient", "made"),
    [
        ("anna@ours.test", "bob@example.org", "anna+bob=example.org@ours.test"),
        ("anna@ours.test", "b+o=b@example.org", "anna+b+o=b=example.org@ours.test"),
        ("", "bob@example.org", ""),
        ("anna@ours.test", '"b b"@example.org', "anna@ours.test"),
        ("anna@ours.test", "b\u00f6b@example.org", "anna@ours.test"),
        ("anna@ours.test", "bob@[192.0.2.1]", "anna@ours.test"),
        ("anna@ours.test", f"{'b' * 60}@example.org", "anna@ours.test"),
    ],
)
def test_the_sender_names_the_recipient(sender: str, recipient: str, made: str) -> None:
    assert verp(sender, recipient) == made
