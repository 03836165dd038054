"""Reports to the sender: multipart/report with a delivery status (RFC 3462, 3464), from the null sender. Pure.

Who is told of what: RFC 3461. What peers and clients wrote ends up in here; so each text of theirs is cleaned (no
controls, bounded length), and the boundary is one that the original does not contain. The machine-readable part is
ASCII, or UTF-8 (RFC 6533) when an address is not ASCII and the sender's side has shown that it knows SMTPUTF8.
"""

from __future__ import annotations

import datetime
import email.utils
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from ptt.message import Envelope, Recipient
from ptt.relay.outcome import Deferred, Delivered, Failed, Outcome

MAX_ORIGINAL = 50_000
"""Octets of the original that are sent back; of a larger one only the header. Postfix's bounce_size_limit is 50,000."""

MAX_TEXT = 500  # characters of one peer's text
MAX_LINE = 76  # RFC 5322 2.1.1 recommends 78
MAX_DETAILED = 100  # recipients explained in words; the delivery status names them all

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_NOT_PLAIN = re.compile(r"[^\x21-\x7e]|[\\+=]")

Action = Literal["failed", "delayed", "relayed"]
"""RFC 3464 2.3.3. We never deliver into a mailbox, and aliases are expanded without a report."""

Given = tuple[Recipient, Outcome]


class _Words(NamedTuple):
    """What people read. ``{sent}``: the date of the message, ``{until}``: of its expiry."""

    subject: str
    original: str
    text: tuple[str, ...]


_WORDS: dict[Action, _Words] = {
    "failed": _Words(
        "Undelivered mail returned to sender",
        "Undelivered message",
        (
            "Your message of {sent} could not be delivered to",
            "the following recipients. It will not be tried again.",
        ),
    ),
    "delayed": _Words(
        "Delayed mail (still being tried)",
        "Delayed message",
        (
            "Your message of {sent} has not been delivered yet to",
            "the following recipients. You need not send it again: it will be tried",
            "until {until}.",
        ),
    ),
    "relayed": _Words(
        "Mail passed on",
        "Message passed on",
        (
            "Your message of {sent} was taken by the mail servers of",
            "the following recipients. These servers do not report deliveries: you will not be told",
            "when it arrives, though perhaps if it does not.",
        ),
    ),
}
_WANTED = {"failed": "FAILURE", "delayed": "DELAY", "relayed": "SUCCESS"}


def notices(
    recipients: Sequence[tuple[int, Recipient]], outcomes: Mapping[int, Outcome], expired: bool, late: bool
) -> dict[Action, list[Given]]:
    """What has happened to whom that a sender may want to be told of. Who does want it is decided by ``report``.

    ``expired``: those who are deferred are given up. ``late``: they are not, and it is time to say that they wait.
    A success is ours to report only where the peer does not offer DSN (RFC 3461 5.2.2).
    """
    found: dict[Action, list[Given]] = {}
    for item, recipient in recipients:
        outcome = outcomes[item]
        if isinstance(outcome, Delivered):
            if not outcome.dsn and recipient.notify and _wants(recipient, "relayed"):
                found.setdefault("relayed", []).append((recipient, outcome))
        elif expired or isinstance(outcome, Failed):
            found.setdefault("failed", []).append((recipient, outcome))
        elif late:
            found.setdefault("delayed", []).append((recipient, outcome))
    return found


def _wants(recipient: Recipient, action: Action) -> bool:
    """RFC 3461 4.1. Without NOTIFY: failures and delays, as it allows and most servers do."""
    words = recipient.notify.split(",") if recipient.notify else ("FAILURE", "DELAY")
    return _WANTED[action] in words


def bounce(
    envelope: Envelope, shown_id: str, given_up: Sequence[Given], content: bytes, hostname: str, now: int
) -> tuple[Envelope, Recipient, bytes] | None:
    """The report on recipients that were given up; as ``report``."""
    return report("failed", envelope, shown_id, given_up, content, hostname, now)


def report(
    action: Action,
    envelope: Envelope,
    shown_id: str,
    given: Sequence[Given],
    content: bytes,
    hostname: str,
    now: int,
    until: int = 0,
) -> tuple[Envelope, Recipient, bytes] | None:
    """A report as envelope, recipient and content.

    ``given``: recipients with their last outcome; of failures, Deferred for those whose time ran out. ``content``: the
    original message. ``now``, ``until`` (when a delayed message expires; 0: never): ms since the epoch. None when
    nobody is to be told: a null sender, a report, or NOTIFY does not ask for it.
    """
    told = [pair for pair in given if _wants(pair[0], action)]
    if not told or not envelope.sender or envelope.bounce:
        return None
    utf8 = envelope.smtputf8 or not envelope.sender.isascii()
    text = _in_words(action, envelope, told, hostname, until)
    status_kind, status = _status(action, envelope, shown_id, told, hostname, now, until, utf8)
    kind, original = _original(action, envelope, content, utf8)
    eightbit = not (text.isascii() and status.isascii() and original.isascii() and envelope.sender.isascii())
    boundary = f"=_{shown_id}.{now:x}"
    while boundary.encode() in original:
        boundary += "_"
    parts = [
        _part("text/plain; charset=utf-8", text.encode(), "Notification"),
        _part(status_kind, status.encode(), "Delivery report"),
        _part(kind, original, _WORDS[action].original),
    ]
    head = _header(action, envelope, shown_id, hostname, now, boundary, eightbit)
    delimiter = f"\r\n--{boundary}\r\n".encode()
    body = head + b"".join(delimiter + part for part in parts) + f"\r\n--{boundary}--\r\n".encode()
    about = Envelope("", now, eightbit=eightbit, smtputf8=not envelope.sender.isascii(), bounce=True)
    return about, Recipient(envelope.sender), body


def clean(text: str, most: int = MAX_TEXT) -> str:
    """A stranger's text on one line of at most ``most`` characters, without controls."""
    return _CONTROL.sub(" ", text)[:most].strip()


def _header(
    action: Action, envelope: Envelope, shown_id: str, hostname: str, now: int, boundary: str, eightbit: bool
) -> bytes:
    lines = [
        f"Date: {_date(now)}",
        f"From: Mail Delivery System <MAILER-DAEMON@{hostname}>",
        f"To: <{clean(envelope.sender)}>",
        f"Subject: {_WORDS[action].subject}",
        f"Message-ID: <{shown_id}.{now:x}.{action}@{hostname}>",
        "Auto-Submitted: auto-replied",
        "MIME-Version: 1.0",
        f'Content-Type: multipart/report; report-type=delivery-status;\r\n boundary="{boundary}"',
        f"Content-Transfer-Encoding: {'8bit' if eightbit else '7bit'}",
        "",
        "This is a delivery status notification in MIME format.",
        "",
    ]
    return "\r\n".join(lines).encode()


def _part(kind: str, content: bytes, description: str) -> bytes:
    encoding = "7bit" if content.isascii() else "8bit"
    head = (
        f"Content-Type: {kind}\r\nContent-Description: {description}\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n"
    )
    return head.encode() + content


def _in_words(action: Action, envelope: Envelope, told: Sequence[Given], hostname: str, until: int) -> str:
    dates = {"sent": _date(envelope.received), "until": _date(until) if until else "it is delivered"}
    said = [line.format(**dates) for line in _WORDS[action].text]
    lines = [f"This is the mail system at {hostname}.", "", *said, ""]
    for recipient, outcome in told[:MAX_DETAILED]:
        lines.append(f"<{clean(recipient.address)}>")
        lines += textwrap.wrap(_because(action, outcome), MAX_LINE - 4, initial_indent="    ", subsequent_indent="    ")
        lines.append("")
    if len(told) > MAX_DETAILED:
        lines += [f"... and {len(told) - MAX_DETAILED} more, named in the delivery report.", ""]
    return "\r\n".join(lines) + "\r\n"


def _because(action: Action, outcome: Outcome) -> str:
    said = clean(outcome.text)
    if isinstance(outcome, Delivered) or outcome.reply:
        said = f"host {clean(outcome.peer)} said: {said} (in reply to {outcome.phase})"
    elif outcome.peer:
        said = f"{said} (at {clean(outcome.peer)}, {outcome.phase})"
    expired = action == "failed" and isinstance(outcome, Deferred)
    return f"delivery time expired; last: {said}" if expired else said


def _status(
    action: Action,
    envelope: Envelope,
    shown_id: str,
    told: Sequence[Given],
    hostname: str,
    now: int,
    until: int,
    utf8: bool,
) -> tuple[str, str]:
    """Its type and text (RFC 3464, 6533): one group of fields about the message, one for each recipient."""
    utf8 = utf8 and not all(r.address.isascii() and r.orcpt.isascii() for r, _ in told)
    lines = [f"Reporting-MTA: dns; {hostname}", f"Arrival-Date: {_date(envelope.received)}"]
    if envelope.envid:
        lines.append(_field("Original-Envelope-Id", envelope.envid))
    lines.append(f"X-PTT-Queue-ID: {shown_id}")
    for recipient, outcome in told:
        lines += ["", *_group(action, recipient, outcome, now, utf8)]
        if action == "delayed" and until:
            lines.append(f"Will-Retry-Until: {_date(until)}")
    kind = "message/global-delivery-status" if utf8 else "message/delivery-status"
    return kind, "\r\n".join(lines) + "\r\n"


def _group(action: Action, recipient: Recipient, outcome: Outcome, now: int, utf8: bool) -> list[str]:
    """The fields about one recipient."""
    lines = []
    if recipient.orcpt:
        kind, _, address = recipient.orcpt.partition(";")
        lines.append(f"Original-Recipient: {_ascii(kind)};{_address(address, utf8)}")
    kind = "rfc822" if recipient.address.isascii() else "utf-8"
    lines += [f"Final-Recipient: {kind};{_address(recipient.address, utf8)}", f"Action: {action}"]
    lines.append(f"Status: {_status_code(outcome)}")
    host = outcome.peer.partition("[")[0]
    if host and (isinstance(outcome, Delivered) or outcome.reply):
        lines += [f"Remote-MTA: dns; {_ascii(host)}", _field("Diagnostic-Code", f"smtp; {outcome.text}")]
    else:
        lines.append(_field("Diagnostic-Code", f"X-PTT; {outcome.text}"))
    lines.append(f"Last-Attempt-Date: {_date(now)}")
    return lines


def _status_code(outcome: Outcome) -> str:
    """A time that ran out keeps the 4 of its last reply (RFC 3464 2.3.4): it was never refused for good."""
    if isinstance(outcome, Delivered):
        return outcome.enhanced or "2.0.0"
    if isinstance(outcome, Deferred) and outcome.enhanced == "4.0.0":
        return "4.4.7"
    return outcome.enhanced


def _field(name: str, text: str) -> str:
    """A field of ASCII, folded."""
    wrapped = textwrap.wrap(_ascii(text), MAX_LINE - len(name) - 2, break_on_hyphens=False) or [""]
    return f"{name}: " + "\r\n ".join(wrapped)


def _ascii(text: str) -> str:
    return clean(text).encode("ascii", "replace").decode("ascii")


def _address(address: str, utf8: bool) -> str:
    """As it is, or with \\x{...} for what ASCII does not have (RFC 6533 3)."""
    address = clean(address)
    return address if utf8 else encode_address(address)


def encode_address(address: str) -> str:
    """An address in ASCII: as it is, or as RFC 6533 3 has it (utf-8-addr-xtext) where it is not."""
    if address.isascii():
        return address
    return _NOT_PLAIN.sub(lambda m: f"\\x{{{ord(m[0]):X}}}", address)


def _original(action: Action, envelope: Envelope, content: bytes, utf8: bool) -> tuple[str, bytes]:
    """The type and text of what is sent back, at most MAX_ORIGINAL octets: the message, or its header where RET says
    so, where it is large, and where nothing has failed (RFC 3461 4.3).
    """
    whole = action == "failed" and envelope.ret != "HDRS" and len(content) <= MAX_ORIGINAL
    end = content.find(b"\r\n\r\n", 0, MAX_ORIGINAL)
    if end < 0:  # no body, or a header that is too large: cut at the end of a line
        end = content.rfind(b"\r\n", 0, MAX_ORIGINAL)
    header = content[: end + 2] if end >= 0 else b""
    international = utf8 and not header.isascii() and _is_utf8(header)
    if whole:
        return "message/global" if international else "message/rfc822", content
    return "message/global-headers" if international else "text/rfc822-headers", header


def _is_utf8(header: bytes) -> bool:
    try:
        header.decode()
    except UnicodeDecodeError:
        return False
    return True


def _date(ms: int) -> str:
    return email.utils.format_datetime(datetime.datetime.fromtimestamp(ms / 1000, datetime.UTC))
