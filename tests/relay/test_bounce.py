"""Bounces, read back by Python's own parser of mail."""

from __future__ import annotations

import email
import email.policy
from email.message import EmailMessage
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptt.message import Envelope, Recipient
from ptt.relay.bounce import MAX_DETAILED, MAX_ORIGINAL, bounce, notices, report
from ptt.relay.outcome import Deferred, Delivered, Failed, Outcome

NOW = 1_700_000_000_000
ENVELOPE = Envelope("me@example.net", NOW - 60_000, "example.net")
ORIGINAL = b"From: me@example.net\r\nSubject: original\r\n\r\nbody of the original\r\n"
NO = Failed("550 5.1.1 unknown user", "RCPT", "mx.example.org[192.0.2.1]:25", "5.1.1", reply=True)
HOST = "us.example.net"


def make(
    outcome: Failed | Deferred = NO, original: bytes = ORIGINAL, recipient: Recipient | None = None, **changes: Any
) -> tuple[EmailMessage, bytes, Envelope]:
    envelope = msgspec.structs.replace(ENVELOPE, **changes)
    made = bounce(envelope, "0abc", [(recipient or Recipient("you@example.org"), outcome)], original, HOST, NOW)
    assert made is not None
    about, to, body = made
    assert to == Recipient(envelope.sender)
    assert about.sender == ""
    assert about.bounce
    assert b"\r" not in body.replace(b"\r\n", b"")
    assert b"\n" not in body.replace(b"\r\n", b"")
    parsed = cast(EmailMessage, email.message_from_bytes(body, policy=email.policy.SMTP))
    assert not parsed.defects
    return parsed, body, about


def parts(message: EmailMessage) -> tuple[EmailMessage, list[Any], EmailMessage]:
    text, status, original = list(message.iter_parts())
    return cast(EmailMessage, text), cast(list[Any], status.get_payload()), cast(EmailMessage, original)


def test_report() -> None:
    message, body, about = make()
    assert message.get_content_type() == "multipart/report"
    assert message.get_param("report-type") == "delivery-status"
    assert message["Auto-Submitted"] == "auto-replied"
    assert message["To"].addresses[0].addr_spec == "me@example.net"
    assert message["From"].addresses[0].addr_spec == f"MAILER-DAEMON@{HOST}"
    assert message["Date"].datetime.timestamp() == NOW / 1000
    text, (about_message, about_recipient), original = parts(message)
    assert "you@example.org" in text.get_content()
    assert "550 5.1.1 unknown user" in " ".join(text.get_content().split())
    assert about_message["Reporting-MTA"] == f"dns; {HOST}"
    assert about_message["X-PTT-Queue-ID"] == "0abc"
    assert about_recipient["Final-Recipient"] == "rfc822;you@example.org"
    assert about_recipient["Action"] == "failed"
    assert about_recipient["Status"] == "5.1.1"
    assert about_recipient["Remote-MTA"] == "dns; mx.example.org"
    assert about_recipient["Diagnostic-Code"] == "smtp; 550 5.1.1 unknown user"
    assert original.get_content_type() == "message/rfc822"
    assert ORIGINAL in body
    assert not about.eightbit
    assert body.isascii()


def test_expired() -> None:
    gave_up = Deferred("192.0.2.1:25: Connection refused", "connect", "mx.example.org[192.0.2.1]:25", "4.4.1")
    text, (_, status), _ = parts(make(gave_up)[0])
    assert status["Status"] == "4.4.1"
    assert status["Action"] == "failed"
    assert status["Diagnostic-Code"] == "X-PTT; 192.0.2.1:25: Connection refused"
    assert status["Remote-MTA"] is None
    assert "delivery time expired" in " ".join(text.get_content().split())
    _, (_, status), _ = parts(make(Deferred("450 later", "RCPT", "x[1.2.3.4]:25", reply=True))[0])
    assert status["Status"] == "4.4.7"


def test_nobody_to_tell() -> None:
    pair = [(Recipient("you@example.org"), NO)]
    for changes in ({"sender": ""}, {"bounce": True}):
        assert bounce(msgspec.structs.replace(ENVELOPE, **changes), "id", pair, ORIGINAL, HOST, NOW) is None
    for notify in ("NEVER", "SUCCESS", "DELAY,SUCCESS"):
        silent = [(Recipient("you@example.org", notify), NO)]
        assert bounce(ENVELOPE, "id", silent, ORIGINAL, HOST, NOW) is None
    for notify in ("", "FAILURE", "SUCCESS,FAILURE"):
        assert bounce(ENVELOPE, "id", [(Recipient("you@example.org", notify), NO)], ORIGINAL, HOST, NOW) is not None


def test_only_those_who_asked_are_named() -> None:
    pairs = [(Recipient("silent@example.org", "NEVER"), NO), (Recipient("told@example.org"), NO)]
    made = bounce(ENVELOPE, "id", pairs, ORIGINAL, HOST, NOW)
    assert made is not None
    assert b"told@example.org" in made[2]
    assert b"silent@example.org" not in made[2]


def test_dsn_parameters_come_back() -> None:
    recipient = Recipient("you@example.org", "FAILURE", "rfc822;first@example.com")
    _, (about, status), original = parts(make(recipient=recipient, ret="HDRS", envid="e 1")[0])
    assert about["Original-Envelope-Id"] == "e 1"
    assert status["Original-Recipient"] == "rfc822;first@example.com"
    assert original.get_content_type() == "text/rfc822-headers"
    assert "Subject: original" in original.get_content()
    assert "body of the original" not in original.get_content()


@pytest.mark.parametrize("ret", ["", "FULL"])
def test_large_messages_are_cut_to_their_header(ret: str) -> None:
    large = ORIGINAL + b"x" * 70 + b"\r\n" + b"y\r\n" * MAX_ORIGINAL
    message, body, _ = make(original=large, ret=ret)
    assert parts(message)[2].get_content_type() == "text/rfc822-headers"
    assert len(body) < 5000


def test_large_header_is_cut_at_a_line() -> None:
    large = b"".join(b"X-%d: %s\r\n" % (n, b"z" * 60) for n in range(2000))
    message, body, _ = make(original=large)
    assert len(body) < MAX_ORIGINAL + 5000
    assert parts(message)[2].get_content().rstrip().endswith("z" * 60)
    assert len(make(original=b"z" * 100_000)[1]) < 5000


def test_eight_bits_pass() -> None:
    original = "Subject: gr\u00fc\u00df\r\n\r\n\u00e4\u00f6\u00fc\r\n".encode() + b"\xff\xfe\r\n"
    message, body, about = make(original=original)
    assert about.eightbit
    assert original in body
    assert message["Content-Transfer-Encoding"] == "8bit"
    assert list(message.iter_parts())[2]["Content-Transfer-Encoding"] == "8bit"


def test_international_addresses() -> None:
    """RFC 6533: in UTF-8 where the sender's side knows SMTPUTF8."""
    recipient = Recipient("jos\u00e9@example.org", orcpt="utf-8;\u00e9@example.org")
    original = "Subject: gr\u00fc\u00df\r\n\r\nx\r\n".encode()
    message, body, about = make(recipient=recipient, sender="\u00fc@example.net", original=original)
    assert about.smtputf8
    text, status, returned = message.iter_parts()
    assert status.get_content_type() == "message/global-delivery-status"
    assert "\r\nFinal-Recipient: utf-8;jos\u00e9@example.org\r\n".encode() in body
    assert "\r\nOriginal-Recipient: utf-8;\u00e9@example.org\r\n".encode() in body
    assert returned.get_content_type() == "message/global"
    assert "jos\u00e9@example.org" in cast(EmailMessage, text).get_content()
    message, body, about = make(recipient=recipient, smtputf8=True, ret="HDRS", original=original)
    assert not about.smtputf8  # its own header and addresses are ASCII
    assert [p.get_content_type() for p in message.iter_parts()][1:] == [
        "message/global-delivery-status",
        "message/global-headers",
    ]


def test_international_addresses_for_a_sender_who_may_not_know_them() -> None:
    recipient = Recipient("jos\u00e9@example.org", orcpt="utf-8;\u00e9+@example.org")
    message, _, about = make(recipient=recipient)
    _, (_, status), _ = parts(message)
    assert status["Final-Recipient"] == "utf-8;jos\\x{E9}@example.org"
    assert status["Original-Recipient"] == "utf-8;\\x{E9}\\x{2B}@example.org"
    assert not about.smtputf8


YES = Delivered("250 2.1.5 taken", "end of DATA", "mx.example.org[192.0.2.1]:25", "2.1.5")
LATER = Deferred("450 4.2.1 busy", "RCPT", "mx.example.org[192.0.2.1]:25", "4.2.1", reply=True)


@pytest.mark.parametrize(
    ("action", "outcome", "asked", "status", "words"),
    [
        ("delayed", LATER, "DELAY", "4.2.1", "You need not send it again"),
        ("delayed", LATER, "", "4.2.1", "until Tue, 14 Nov 2023 22:14:20 +0000"),
        ("relayed", YES, "SUCCESS", "2.1.5", "do not report deliveries"),
        ("failed", LATER, "FAILURE", "4.2.1", "delivery time expired"),
    ],
)
def test_reports_of_each_kind(action: Any, outcome: Outcome, asked: str, status: str, words: str) -> None:
    envelope = msgspec.structs.replace(ENVELOPE, envid="e1")
    recipient = Recipient("you@example.org", asked, "rfc822;first@example.org")
    made = report(action, envelope, "0abc", [(recipient, outcome)], ORIGINAL, HOST, NOW, NOW + 60_000)
    assert made is not None
    message = cast(EmailMessage, email.message_from_bytes(made[2], policy=email.policy.SMTP))
    assert not message.defects
    text, (about, group), original = parts(message)
    assert words in " ".join(text.get_content().split())
    assert about["Original-Envelope-Id"] == "e1"
    assert (group["Action"], group["Status"]) == (action, status)
    assert group["Original-Recipient"] == "rfc822;first@example.org"
    assert group["Remote-MTA"] == "dns; mx.example.org"
    assert group["Diagnostic-Code"] == f"smtp; {outcome.text}"
    assert (group["Will-Retry-Until"] is not None) == (action == "delayed")
    whole = "message/rfc822" if action == "failed" else "text/rfc822-headers"
    assert original.get_content_type() == whole


@pytest.mark.parametrize("notify", ["", "NEVER", "FAILURE", "DELAY", "SUCCESS", "SUCCESS,FAILURE,DELAY"])
def test_who_is_told_of_what(notify: str) -> None:
    words = notify.split(",") if notify else ["FAILURE", "DELAY"]
    recipient = Recipient("you@example.org", notify)
    for action, outcome, word in (("failed", NO, "FAILURE"), ("delayed", LATER, "DELAY"), ("relayed", YES, "SUCCESS")):
        made = report(action, ENVELOPE, "id", [(recipient, outcome)], ORIGINAL, HOST, NOW)  # type: ignore[arg-type]
        assert (made is not None) == (word in words)
        for changes in ({"sender": ""}, {"bounce": True}):
            null = msgspec.structs.replace(ENVELOPE, **changes)
            assert report(action, null, "id", [(recipient, outcome)], ORIGINAL, HOST, NOW) is None  # type: ignore[arg-type]


def test_what_has_happened() -> None:
    there = msgspec.structs.replace(YES, dsn=True)
    wanted = [(n, Recipient(f"{n}@example.org", "SUCCESS,FAILURE,DELAY")) for n in range(1, 5)]
    outcomes: dict[int, Outcome] = {1: YES, 2: there, 3: LATER, 4: NO}

    def told(expired: bool, late: bool) -> dict[str, list[str]]:
        return {k: [r.address[0] for r, _ in v] for k, v in notices(wanted, outcomes, expired, late).items()}

    assert told(False, False) == {"relayed": ["1"], "failed": ["4"]}
    assert told(False, True) == {"relayed": ["1"], "delayed": ["3"], "failed": ["4"]}
    assert told(True, False) == {"relayed": ["1"], "failed": ["3", "4"]}


HOSTILE = "550 a\r\nFinal-Recipient: rfc822;evil@example.org\r\n\r\n--=_0abc.x\r\n\x00\x1b[2J\u2028" + "long" * 500


def test_hostile_replies_stay_in_their_place() -> None:
    message, body, _ = make(Failed(HOSTILE, "RCPT", "mx\r\nX: y[1.2.3.4]:25", "5.0.0", reply=True))
    _, groups, _ = parts(message)
    assert len(groups) == 2
    assert groups[1].get_all("Final-Recipient") == ["rfc822;you@example.org"]
    assert groups[1]["X"] is None
    assert not set(body) & (set(range(32)) - {10, 13})
    assert max(map(len, body.split(b"\r\n"))) <= 998


@given(st.text(max_size=600), st.text(max_size=50), st.binary(max_size=300), st.text(max_size=40))
def test_any_text_gives_a_report(text: str, peer: str, tail: bytes, address: str) -> None:
    original = ORIGINAL + tail.replace(b"\r", b"").replace(b"\n", b"") + b"\r\n"
    outcome = Failed(text, "RCPT", peer, "5.0.0", reply=True)
    message, body, _ = make(outcome, original, Recipient(address or "x"))
    assert len(parts(message)[1]) == 2
    assert original in body


def test_boundary_is_not_in_the_original() -> None:
    _, body, _ = make()
    boundary = body.partition(b'boundary="')[2].partition(b'"')[0]
    message, _, _ = make(original=ORIGINAL + b"--" + boundary + b"\r\n--" + boundary + b"--\r\n")
    assert len(list(message.iter_parts())) == 3
    assert message.get_boundary() != boundary.decode()


def test_a_thousand_recipients() -> None:
    pairs = [(Recipient(f"u{n}@example.org"), NO) for n in range(1000)]
    made = bounce(ENVELOPE, "id", pairs, ORIGINAL, HOST, NOW)
    assert made is not None
    message = cast(EmailMessage, email.message_from_bytes(made[2], policy=email.policy.SMTP))
    text, groups, _ = parts(message)
    assert len(groups) == 1001
    assert text.get_content().count("@example.org>") == MAX_DETAILED
    assert "and 900 more" in text.get_content()
