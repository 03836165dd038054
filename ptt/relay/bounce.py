"""Bounces: multipart/report with a delivery status (RFC 3462, 3464), from the null sender to the sender. Pure.

What peers and clients wrote ends up in here; so each text of theirs is cleaned (no controls, bounded length), the
machine-readable part is ASCII, and the boundary is one that the original does not contain.
"""

from __future__ import annotations

import datetime
import email.utils
import re
import textwrap
from collections.abc import Sequence

from ptt.message import Envelope, Recipient
from ptt.relay.outcome import Deferred, Failed

MAX_ORIGINAL = 50_000
"""Octets of the original that are sent back; of a larger one only the header. Postfix's bounce_size_limit is 50,000."""

MAX_TEXT = 500  # characters of one peer's text
MAX_LINE = 76  # RFC 5322 2.1.1 recommends 78
MAX_DETAILED = 100  # recipients explained in words; the delivery status names them all

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_NOT_PLAIN = re.compile(r"[^\x21-\x7e]|[\\+=]")

Given = tuple[Recipient, Failed | Deferred]


def bounce(
    envelope: Envelope, shown_id: str, given_up: Sequence[Given], content: bytes, hostname: str, now: int
) -> tuple[Envelope, Recipient, bytes] | None:
    """The bounce for recipients that were given up, as envelope, recipient and content.

    ``given_up``: with their last outcome; Deferred for those whose time ran out. ``content``: the original message.
    ``now``: ms since the epoch. None when nobody is to be told: a null sender, a bounce, or NOTIFY without FAILURE.
    """
    told = [(r, o) for r, o in given_up if not r.notify or "FAILURE" in r.notify.split(",")]
    if not told or not envelope.sender or envelope.bounce:
        return None
    text = _in_words(envelope, told, hostname)
    status = _status(envelope, shown_id, told, hostname, now)
    kind, original = _original(envelope, content)
    eightbit = not (text.isascii() and original.isascii() and envelope.sender.isascii())
    boundary = f"=_{shown_id}.{now:x}"
    while boundary.encode() in original:
        boundary += "_"
    parts = [
        _part("text/plain; charset=utf-8", text.encode(), "Notification"),
        _part("message/delivery-status", status.encode("ascii"), "Delivery report"),
        _part(kind, original, "Undelivered message"),
    ]
    head = _header(envelope, shown_id, hostname, now, boundary, eightbit)
    delimiter = f"\r\n--{boundary}\r\n".encode()
    body = head + b"".join(delimiter + part for part in parts) + f"\r\n--{boundary}--\r\n".encode()
    about = Envelope("", now, eightbit=eightbit, smtputf8=not envelope.sender.isascii(), bounce=True)
    return about, Recipient(envelope.sender), body


def clean(text: str, most: int = MAX_TEXT) -> str:
    """A stranger's text on one line of at most ``most`` characters, without controls."""
    return _CONTROL.sub(" ", text)[:most].strip()


def _header(envelope: Envelope, shown_id: str, hostname: str, now: int, boundary: str, eightbit: bool) -> bytes:
    lines = [
        f"Date: {_date(now)}",
        f"From: Mail Delivery System <MAILER-DAEMON@{hostname}>",
        f"To: <{clean(envelope.sender)}>",
        "Subject: Undelivered mail returned to sender",
        f"Message-ID: <{shown_id}.{now:x}@{hostname}>",
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


def _in_words(envelope: Envelope, told: Sequence[Given], hostname: str) -> str:
    sent = _date(envelope.received)
    lines = [
        f"This is the mail system at {hostname}.",
        "",
        f"Your message of {sent} could not be delivered to",
        "the following recipients. It will not be tried again.",
        "",
    ]
    for recipient, outcome in told[:MAX_DETAILED]:
        lines.append(f"<{clean(recipient.address)}>")
        lines += textwrap.wrap(_because(outcome), MAX_LINE - 4, initial_indent="    ", subsequent_indent="    ")
        lines.append("")
    if len(told) > MAX_DETAILED:
        lines += [f"... and {len(told) - MAX_DETAILED} more, named in the delivery report.", ""]
    return "\r\n".join(lines) + "\r\n"


def _because(outcome: Failed | Deferred) -> str:
    said = clean(outcome.text)
    if outcome.reply:
        said = f"host {clean(outcome.peer)} said: {said} (in reply to {outcome.phase})"
    elif outcome.peer:
        said = f"{said} (at {clean(outcome.peer)}, {outcome.phase})"
    return f"delivery time expired; last: {said}" if isinstance(outcome, Deferred) else said


def _status(envelope: Envelope, shown_id: str, told: Sequence[Given], hostname: str, now: int) -> str:
    """RFC 3464: one group of fields about the message, one for each recipient."""
    lines = [f"Reporting-MTA: dns; {hostname}", f"Arrival-Date: {_date(envelope.received)}"]
    if envelope.envid:
        lines.append(_field("Original-Envelope-Id", envelope.envid))
    lines.append(f"X-PTT-Queue-ID: {shown_id}")
    for recipient, outcome in told:
        lines.append("")
        if recipient.orcpt:
            kind, _, address = recipient.orcpt.partition(";")
            lines.append(f"Original-Recipient: {_ascii(kind)};{_address(address)}")
        kind = "rfc822" if recipient.address.isascii() else "utf-8"
        lines += [f"Final-Recipient: {kind};{_address(recipient.address)}", "Action: failed"]
        lines.append(f"Status: {_status_code(outcome)}")
        host = outcome.peer.partition("[")[0]
        if outcome.reply and host:
            lines += [f"Remote-MTA: dns; {_ascii(host)}", _field("Diagnostic-Code", f"smtp; {outcome.text}")]
        else:
            lines.append(_field("Diagnostic-Code", f"X-PTT; {outcome.text}"))
        lines.append(f"Last-Attempt-Date: {_date(now)}")
    return "\r\n".join(lines) + "\r\n"


def _status_code(outcome: Failed | Deferred) -> str:
    """A time that ran out keeps the 4 of its last reply (RFC 3464 2.3.4): it was never refused for good."""
    if isinstance(outcome, Deferred) and outcome.enhanced == "4.0.0":
        return "4.4.7"
    return outcome.enhanced


def _field(name: str, text: str) -> str:
    """A field of ASCII, folded."""
    wrapped = textwrap.wrap(_ascii(text), MAX_LINE - len(name) - 2, break_on_hyphens=False) or [""]
    return f"{name}: " + "\r\n ".join(wrapped)


def _ascii(text: str) -> str:
    return clean(text).encode("ascii", "replace").decode("ascii")


def _address(address: str) -> str:
    """As it is, or with \\x{...} for what ASCII does not have (RFC 6533 3)."""
    address = clean(address)
    if address.isascii():
        return address
    return _NOT_PLAIN.sub(lambda m: f"\\x{{{ord(m[0]):X}}}", address)


def _original(envelope: Envelope, content: bytes) -> tuple[str, bytes]:
    """What is sent back: the message, or its header if RET says so or it is large. At most MAX_ORIGINAL octets."""
    if envelope.ret != "HDRS" and len(content) <= MAX_ORIGINAL:
        return "message/rfc822", content
    end = content.find(b"\r\n\r\n", 0, MAX_ORIGINAL)
    if end < 0:  # no body, or a header that is too large: cut at the end of a line
        end = content.rfind(b"\r\n", 0, MAX_ORIGINAL)
    return "text/rfc822-headers", content[: end + 2] if end >= 0 else b""


def _date(ms: int) -> str:
    return email.utils.format_datetime(datetime.datetime.fromtimestamp(ms / 1000, datetime.UTC))
