"""What becomes of a message between its final dot and the 250."""

from __future__ import annotations

import email
from collections.abc import Sequence

import pytest
from ptt_queue.types import PutResult, Refusal

from ptt.config import Config
from ptt.log import Log
from ptt.message import Envelope, Recipient
from ptt.metrics import Counters
from ptt.plan import UNCONDITIONAL, Conditions
from ptt.spool import SpoolUnavailable
from ptt.submission import accept
from ptt.submission.accept import Accept, Offer


class FakeQueue:
    """Keeps what it is given; refuses or is away when told so."""

    def __init__(self, refuse: Refusal | None = None, away: bool = False) -> None:
        self.refuse, self.away = refuse, away
        self.stored: list[tuple[bytes, Envelope, list[Recipient], bytes]] = []

    def accept(
        self,
        id: bytes,
        envelope: Envelope,
        recipients: Sequence[Recipient],
        body: bytes,
        *,
        conditions: Conditions = UNCONDITIONAL,
    ) -> PutResult:
        if self.away:
            raise SpoolUnavailable("away")
        self.stored.append((id, envelope, list(recipients), body))
        return PutResult(self.refuse, [])


class FakeDirectory:
    commit = "c" * 40

    def may_send_as(self, user: str, address: str) -> bool:
        return address.startswith("u@")

    def expand(self, address: str) -> list[str] | None:
        return {"all@ours.test": ["a@ours.test", "b@else.test"], "none@ours.test": []}.get(address)

    def signing_domain(self, address_domain: str) -> str:
        return address_domain if address_domain in ("ours.test", "second.test") else ""

    def our_domain(self, name: str) -> object | None:
        raise AssertionError("not asked after the content")

    route = our_domain

    def may_post(self, user: str, address: str) -> bool:
        raise AssertionError("not asked after the content")

    def limits(self, user: str) -> None:
        return None


def offer(
    content: bytes, queue: FakeQueue, recipients: Sequence[str] = ("x@else.test",), service: str = "submission"
) -> tuple[int, str]:
    made = Accept(Config(hostname="mail.ours.test"), queue, FakeDirectory(), Log("t", "error"), Counters(), lambda: 1e9)
    given = [Recipient(r) for r in recipients]
    envelope = Envelope("u@ours.test", 0, user="u@ours.test", client="127.0.0.1", helo="pc")
    chunks = [content[:7], content[7:]] if content else []
    reply = made.offer(Offer(envelope, given, chunks, service, "ESMTPSA", "TLSv1.3 X"))
    return reply.code, reply.enhanced


def body_of(content: bytes, service: str = "submission") -> bytes:
    queue = FakeQueue()
    assert offer(content, queue, service=service)[0] == 250
    return queue.stored[0][3]


def test_the_content_follows_what_is_added_unchanged() -> None:
    content = b"From: <u@ours.test>\r\nSubject: x\r\n\r\n.dot\r\nbody\r\n"
    body = body_of(content)
    assert body.endswith(b"\r\n" + content)
    head = body[: -len(content)]
    assert head.startswith(b"Received: from pc ([127.0.0.1])")
    assert b"\r\nMessage-ID: <" in head
    assert b"\r\nDate: Sun, 09 Sep 2001 01:46:40 -0000\r\n" in head
    relayed = body_of(b"Bcc: x@y.test\r\nReturn-Path: <>\r\nno field\r\n\r\n", service="relay")
    assert b"Message-ID" not in relayed  # what comes from another role stays as it is
    assert relayed.endswith(b"\r\nBcc: x@y.test\r\nReturn-Path: <>\r\nno field\r\n\r\n")


@pytest.mark.parametrize("content", [b"just text, no header\r\n", b" starts folded: x\r\n"])
def test_content_without_a_header_does_not_become_one(content: bytes) -> None:
    header, _, rest = body_of(content).partition(b"\r\n\r\n")
    assert rest == content
    assert content.strip() not in header


def test_a_message_that_begins_with_the_blank_line_keeps_it() -> None:
    header, _, rest = body_of(b"\r\ntext behind an empty header\r\n").partition(b"\r\n\r\n")
    assert rest == b"text behind an empty header\r\n"
    assert header.startswith(b"Received:")


def test_who_signs() -> None:
    for header, domain in [
        ("From: <u@second.test>", "second.test"),
        ("From: <u@foreign.test>", "ours.test"),
        ("Sender: <u@second.test>\r\nFrom: <u@foreign.test>", "second.test"),
        ("Sender: <u@second.test>\r\nFrom: <u@ours.test>", "ours.test"),
        ("Sender: <u@foreign.test>\r\nFrom: <u@foreign.test>", "ours.test"),
    ]:
        queue = FakeQueue()
        offer(f"{header}\r\n\r\n".encode(), queue)
        assert queue.stored[0][1].signing_domain == domain
        assert queue.stored[0][1].commit == "c" * 40


def test_from_belongs_to_the_user() -> None:
    queue = FakeQueue()
    assert offer(b"From: <u@ours.test>, <boss@ours.test>\r\n\r\n", queue) == (550, "5.7.1")
    assert offer(b"From: <u@ours.test>\r\nFrom: <boss@ours.test>\r\n\r\n", queue) == (550, "5.6.0")
    assert offer(b"From: boss\r\n\r\n", queue) == (550, "5.6.0")
    for hidden in (b'"<boss@else.test>" u@ours.test', b"u@ours.test boss@else.test", b"u@else.test@ours.test"):
        assert offer(b"From: " + hidden + b"\r\n\r\n", queue)[0] == 550  # two programs read two addresses in it
        assert offer(b"From: <u@ours.test>\r\nSender: " + hidden + b"\r\n\r\n", queue)[0] == 550
    for field in (b"Sender", b"Resent-From", b"Resent-Sender"):
        assert offer(b"From: <u@ours.test>\r\n" + field + b": <boss@ours.test>\r\n\r\n", queue) == (550, "5.7.1")
    resent = b"Resent-From: " + b"<" * 900 + b"\r\n"  # what is slow to parse
    assert offer(b"From: <u@ours.test>\r\n" + resent * 20 + b"\r\n", queue) == (550, "5.6.0")
    assert queue.stored == []
    assert offer(b"From: <u@ours.test>\r\n" + b"Resent-Sender: u@ours.test\r\n" * 20 + b"\r\n", queue)[0] == 250
    assert offer(b"From: <u@ours.test>\r\nSender: U <u@second.test>\r\n\r\n", queue) == (250, "2.0.0")
    assert offer(b"From: <boss@ours.test>\r\n\r\n", queue, service="relay") == (250, "2.0.0")


def test_who_names_nobody_is_named() -> None:
    assert b"\r\nFrom: <u@ours.test>\r\nSubject: x\r\n" in body_of(b"Subject: x\r\n\r\nhi\r\n")
    assert b"\r\nFrom: <u@ours.test>\r\n\r\ntext\r\n" in body_of(b"text\r\n")


def test_what_names_hidden_recipients_is_taken_out_and_nothing_else() -> None:
    fields = b"From: u@ours.test\r\nX-Bcc: stays\r\nSubject: Bcc: x\r\n bcc: y\r\n"
    hidden = b"BCC : a@b.test,\r\n\tc@d.test,\r\n \r\n e@f.test\r\nResent-Bcc:\r\nReturn-Path: <u@ours.test>\r\n"
    text = b"\r\nBcc: this is text\r\n"
    for header in (
        hidden + fields,
        fields + hidden,
        fields.replace(b"Subject", hidden + b"Subject"),
        hidden * 3 + fields,
    ):
        assert body_of(header + text).endswith(b"\r\n" + fields + text)
    assert body_of(hidden + text).endswith(b"From: <u@ours.test>\r\n" + text)


def test_aliases_are_expanded_and_every_address_is_kept_once() -> None:
    queue = FakeQueue()
    offer(b"A: b\r\n\r\n", queue, ["all@ours.test", "b@ELSE.test", "B@else.test", "none@ours.test"])
    assert [r.address for r in queue.stored[0][2]] == ["a@ours.test", "b@else.test", "B@else.test"]


@pytest.mark.parametrize(
    ("queue", "answer"),
    [
        (FakeQueue(Refusal.FULL), (452, "4.3.1")),
        (FakeQueue(Refusal.FAILED), (451, "4.3.0")),
        (FakeQueue(Refusal.DUPLICATE), (451, "4.3.0")),
        (FakeQueue(away=True), (451, "4.3.0")),
    ],
)
def test_what_is_not_stored_is_not_acknowledged(queue: FakeQueue, answer: tuple[int, str]) -> None:
    assert offer(b"A: b\r\n\r\n", queue) == answer


def test_refusals_before_anything_is_stored() -> None:
    queue = FakeQueue()
    assert offer(b"Received: x\r\n" * 51 + b"\r\n", queue) == (554, "5.4.6")
    assert offer(b"X: " + b"y" * accept.MAX_HEADER_BYTES + b"\r\n\r\n", queue) == (552, "5.3.4")
    assert offer(b"A: b\r\n\r\n", queue, ["none@ours.test"]) == (550, "5.1.1")
    assert queue.stored == []


BINARY = (
    b"From: u@ours.test\r\nMIME-Version: 1.0\r\nContent-Type: image/png\r\nContent-Transfer-Encoding: binary\r\n"
    b"\r\n\x89PNG\r\n\x1a\n\x00\xff" + b"\xfe" * 2000
)


def test_binary_mail_is_stored_as_ordinary_mail() -> None:
    queue = FakeQueue()
    made = Accept(Config(hostname="mail.ours.test"), queue, FakeDirectory(), Log("t", "error"), Counters(), lambda: 1e9)
    envelope = Envelope("u@ours.test", 0, user="u@ours.test", binary=True)
    one = Offer(envelope, [Recipient("x@else.test")], [BINARY[:9], BINARY[9:]], "submission", "ESMTPSA", "TLSv1.3 X")
    assert made.offer(one).code == 250
    [(_, about, _, body)] = queue.stored
    assert (about.binary, about.eightbit) == (False, False)
    parsed = email.message_from_bytes(body)
    assert parsed["Content-Transfer-Encoding"] == "base64"
    assert parsed.get_payload(decode=True) == BINARY.partition(b"\r\n\r\n")[2]
    broken = BINARY.replace(b"image/png", b"message/partial")
    reply = made.offer(Offer(envelope, [Recipient("x@else.test")], [broken], "submission", "ESMTPSA", "TLSv1.3 X"))
    assert (reply.code, reply.enhanced) == (554, "5.6.3")
    assert len(queue.stored) == 1
