"""Reading a message's header, and the fields that we put in front of it (RFC 5321 4.4, RFC 6409 8): pure functions.

A header is looked at in bulk: a few searches by ``re`` and ``bytes`` over the whole of it, never a loop over its lines.
"""

from __future__ import annotations

import email.utils
import functools
import re
from typing import NamedTuple

MAX_HOPS = 50  # Received fields; RFC 5321 6.3 asks for a limit of at least 100 for relays, 50 is Postfix's
MAX_FROM_BYTES = 10_000  # of a field with addresses that is parsed: more is no mail of a person

# An address, alone or in angle brackets behind a name without quotes, comments or commas (RFC 5322 3.4).
_SIMPLE_FROM = re.compile(rb"(?:[^\x00-\x1f<>,;:\"()\\@]*<(?=.*>\Z))?([\w.+=-]+)@([A-Za-z0-9.-]+)>?")
_FIELD_LINE = re.compile(rb"[\x21-\x39\x3b-\x7e]+[ \t]*:")
_NAMES = re.compile(rb"\n([\x21-\x39\x3b-\x7e]+)[ \t]*:")  # begins with a literal: the search runs at memchr's speed


class Header(NamedTuple):
    """A header with a line end in front of it, so that each of its lines follows one, and the names of its fields."""

    text: bytes
    names: list[bytes]  # in lower case, in order
    bare: bool = False  # the content has no header at all, it begins with text: what we add needs a blank line

    @property
    def raw(self) -> bytes:
        return self.text[2:]


def read(content: bytes) -> Header:
    """The header of a content, or of the part of it that has its header."""
    if not has_header(content):
        return Header(b"\r\n", [], bare=True)
    return of(header_of(content))


def of(header: bytes) -> Header:
    """``header``: the fields, each with its CRLF."""
    text = b"\r\n" + header
    return Header(text, list(map(bytes.lower, _NAMES.findall(text))))


def header_of(body: bytes) -> bytes:
    """The header with the CRLF of its last field; empty when the message has none."""
    if body.startswith(b"\r\n"):
        return b""
    end = body.find(b"\r\n\r\n")
    return body if end < 0 else body[: end + 2]


def has_header(content: bytes) -> bool:
    """Does the content begin with a header field (RFC 5322 2.2), or with the blank line after an empty header?

    If not, what is put in front of it needs a blank line of its own.
    """
    return not content or content.startswith(b"\r\n") or _FIELD_LINE.match(content) is not None


@functools.cache  # of the few names that are asked for
def _field(name: bytes) -> re.Pattern[bytes]:
    return re.compile(rb"\n" + re.escape(name) + rb"[ \t]*:((?:[^\r\n]*\r\n[ \t])*[^\r\n]*)", re.I)


def fields(header: Header, name: bytes) -> list[bytes]:
    """The values of all fields of that name (in lower case), unfolded."""
    if name not in header.names:
        return []
    return [value.replace(b"\r\n", b"").strip() for value in _field(name).findall(header.text)]


def field(header: Header, name: bytes) -> bytes | None:
    """The first field of that name (in lower case), unfolded, without its name; None when absent."""
    if name not in header.names:
        return None
    found = _field(name).search(header.text)
    return found[1].replace(b"\r\n", b"").strip() if found else None


def hops(header: Header) -> int:
    """How many servers the message has passed (RFC 5321 6.3)."""
    return header.names.count(b"received")


def addresses(value: bytes | None) -> list[str]:
    """The addresses in the value of an address field, lower-case domains; empty when there is none that can be read."""
    if value is None or len(value) > MAX_FROM_BYTES:
        return []
    if simple := _SIMPLE_FROM.fullmatch(value):  # nearly all: the parser for the rest costs 50 us
        return [f"{simple[1].decode()}@{simple[2].decode().lower()}"]
    try:
        pairs = email.utils.getaddresses([value.decode("utf-8", "replace")])
    except RecursionError:  # comments within comments, or groups within groups, by the thousand
        return []
    return [f"{local}@{domain.lower()}" for _, a in pairs for local, at, domain in [a.rpartition("@")] if at and local]


def completion(header: Header, author: str, hostname: str, shown_id: str, now: float) -> bytes:
    """Date, Message-ID and From where they are missing, as fields to be put in front (RFC 6409 8.2, 8.3).

    ``author``: who is named in From; RFC 5322 3.6 demands the field, and a DKIM signature covers it.
    """
    added = b""
    if b"message-id" not in header.names:
        added += f"Message-ID: <{shown_id}@{hostname}>\r\n".encode()
    if b"date" not in header.names:
        added += f"Date: {email.utils.formatdate(now, localtime=False)}\r\n".encode()
    if b"from" not in header.names and author:
        added += f"From: <{author}>\r\n".encode()
    return added


def received(
    *,
    helo: str,
    client: str,
    hostname: str,
    protocol: str,
    tls: str,
    shown_id: str,
    recipient: str,
    now: float,
) -> bytes:
    """The trace field (RFC 5321 4.4). ``client``: "" hides it; ``recipient``: only when there is just one.

    ``helo`` is the peer's word, so what cannot stand in a header field is left out of it.
    """
    name = re.sub(r"[^A-Za-z0-9.:\[\]_-]", "", helo)[:255] or "unknown"
    source = f"from {name} ([{client}])" if client else "from submission"
    if tls:
        source += f"\r\n\t({tls})"
    target = f"\r\n\tfor <{recipient}>" if recipient and len(recipient) < 255 else ""
    date = email.utils.formatdate(now, localtime=False)
    return (
        f"Received: {source}\r\n\tby {hostname} (PTT) with {protocol} id {shown_id}{target};\r\n\t{date}\r\n".encode()
    )
