"""What submission refuses in a header, and what it takes out of it: pure functions (RFC 5322 3.6, RFC 6409 8).

Refused is what recipients' servers refuse or read in two ways, with a reason that names the place. 8-bit octets are
carried as they are, with or without SMTPUTF8, as Postfix and Exim do: programs have written them so for decades.
"""

from __future__ import annotations

import re

from ptt.message import Envelope
from ptt.smtp.reply import Reply
from ptt.submission.headers import Header, field, of

KEY = b"ptt-submission-key"
"""The field that makes a submission repeatable: it is ours, and goes no further."""
MAX_KEY = 200  # octets
BAD_KEY = Reply(550, "5.6.0", f"PTT-Submission-Key has 1 to {MAX_KEY} octets")
VERP = b"ptt-verp"
"""The field that asks for a sender of its own for each recipient: it is ours, and goes no further."""
BAD_VERP = Reply(550, "5.6.0", "PTT-VERP can only be yes")

# RFC 5322 3.6: at most one. Bcc and Return-Path are taken out, however many there are.
SINGLE = (
    b"from",
    b"sender",
    b"reply-to",
    b"to",
    b"cc",
    b"message-id",
    b"in-reply-to",
    b"references",
    b"subject",
    b"date",
    KEY,
    VERP,
)
TAKEN_OUT = frozenset({b"bcc", b"resent-bcc", b"return-path", KEY, VERP})
SHOWN = 40  # characters of a malformed line that the reply quotes

# All C0 controls and DEL but TAB, CR, LF (the content has them as CRLF only) and ESC, of which raw ISO-2022-JP is full.
_CONTROLS = bytes(sorted({*range(0x20), 0x7F} - {0x09, 0x0A, 0x0D, 0x1B}))
_CONTROL = re.compile(rb"[" + re.escape(_CONTROLS) + rb"]")
_BAD_LINE = re.compile(rb"\n(?![ \t]|[\x21-\x39\x3b-\x7e]+[ \t]*:|\Z)([^\r\n]*)")
_TAKEN_OUT = re.compile(
    rb"\n(?:" + b"|".join(map(re.escape, sorted(TAKEN_OUT))) + rb")[ \t]*:[^\n]*(?:\n[ \t][^\n]*)*(?=\n)", re.I
)
_SEPARATOR = re.compile(rb">?From [^\r\n]*\r\n")


def fault(header: Header, envelope: Envelope) -> Reply | None:
    """Why a message with this header is refused; None: it is well formed."""
    text, names = header.text, header.names
    if envelope.binary and not text.count(b"\r\n") == text.count(b"\r") == text.count(b"\n"):
        return _refused("the header has a bare CR or LF: BINARYMIME is for the body (RFC 3030)")
    if len(text.translate(None, _CONTROLS)) != len(text):
        return _control(text)
    if text.count(b"\n") != 1 + len(names) + text.count(b"\n ") + text.count(b"\n\t"):
        return _bad_line(text)
    if len(names) != len(set(names)):
        for name in SINGLE:
            if names.count(name) > 1:
                return _refused(f"the header has more than one {_shown(name)} field (RFC 5322 3.6)")
    if envelope.smtputf8 and not text.isascii():
        try:
            text.decode("utf-8")
        except UnicodeDecodeError as e:
            return _refused(f"line {_line(text, e.start)} of the header is not UTF-8, as SMTPUTF8 demands (RFC 6532)")
    return None


def separator(content: bytes) -> Reply | None:
    """The line that separates messages in a mailbox file: what follows it would become text."""
    if _SEPARATOR.match(content):
        return _refused("the content begins with the separator line of a mailbox file ('From ...'): remove it")
    return None


def wish(header: Header) -> Reply | None:
    """The refusal of a field of ours that asks for something unknown."""
    value = field(header, VERP)
    return None if value is None or value.strip().lower() == b"yes" else BAD_VERP


def without(header: Header) -> Header:
    """The header without Bcc, Resent-Bcc (RFC 5322 3.6.3), Return-Path (RFC 5321 4.4) and fields of ours."""
    if TAKEN_OUT.isdisjoint(header.names):
        return header
    return of(_TAKEN_OUT.sub(b"", header.text)[2:])


def _control(text: bytes) -> Reply | None:
    found = _CONTROL.search(text)
    if found is None:
        return None
    return _refused(f"line {_line(text, found.start())} of the header has the control character 0x{found[0].hex()}")


def _bad_line(text: bytes) -> Reply | None:
    found = _BAD_LINE.search(text)
    if found is None:  # the last line lacks its end
        return None
    shown = "".join(c if c.isprintable() and c.isascii() else "?" for c in found[1][:SHOWN].decode("utf-8", "replace"))
    line = _line(text, found.start() + 1)
    return _refused(f"line {line} of the header is no field and continues none: {shown!r}; is a blank line missing?")


def _line(text: bytes, position: int) -> int:
    """The number of the line, from 1; the text begins with an extra line end."""
    return text.count(b"\n", 0, position)


def _shown(name: bytes) -> str:
    return {b"message-id": "Message-ID", KEY: "PTT-Submission-Key", VERP: "PTT-VERP"}.get(name, name.decode().title())


def _refused(text: str) -> Reply:
    return Reply(550, "5.6.0", text)
