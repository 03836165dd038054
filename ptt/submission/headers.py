"""What submission does to a message's header: pure functions over bytes (RFC 5321 4.4, RFC 6409 8)."""

from __future__ import annotations

import email.utils
import functools
import re

MAX_HOPS = 50  # Received fields; RFC 5321 6.3 asks for a limit of at least 100 for relays, 50 is Postfix's
MAX_FROM_BYTES = 10_000  # of a From field that is parsed: more is no mail of a person

_RECEIVED = re.compile(rb"^received[ \t]*:", re.I | re.M)
# An address, alone or in angle brackets behind a name without quotes, comments or commas (RFC 5322 3.4).
_SIMPLE_FROM = re.compile(rb"(?:[^\x00-\x1f<>,;:\"()\\@]*<(?=.*>\Z))?([\w.+=-]+)@([A-Za-z0-9.-]+)>?")
_FIELD_LINE = re.compile(rb"[\x21-\x39\x3b-\x7e]+[ \t]*:")


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
    return re.compile(rb"^" + re.escape(name) + rb"[ \t]*:((?:[^\r\n]*\r\n[ \t])*[^\r\n]*)", re.I | re.M)


def field(header: bytes, name: bytes) -> bytes | None:
    """The first field of that name, unfolded, without its name; None when absent."""
    found = _field(name).search(header)
    return found[1].replace(b"\r\n", b"").strip() if found else None


def count(header: bytes, name: bytes) -> int:
    """How many fields of that name there are."""
    return sum(1 for _ in _field(name).finditer(header))


def hops(header: bytes) -> int:
    return len(_RECEIVED.findall(header))


def from_addresses(header: bytes) -> list[str]:
    """The addresses in From, lower-case domains; empty when there is none that can be read."""
    value = field(header, b"From")
    if value is None or len(value) > MAX_FROM_BYTES:
        return []
    if simple := _SIMPLE_FROM.fullmatch(value):  # nearly all: the parser for the rest costs 50 us
        return [f"{simple[1].decode()}@{simple[2].decode().lower()}"]
    try:
        pairs = email.utils.getaddresses([value.decode("utf-8", "replace")])
    except RecursionError:  # comments within comments, or groups within groups, by the thousand
        return []
    return [f"{local}@{domain.lower()}" for _, a in pairs for local, at, domain in [a.rpartition("@")] if at and local]


def completion(header: bytes, hostname: str, shown_id: str, now: float) -> bytes:
    """Date and Message-ID where they are missing (RFC 6409 8.2, 8.3), as fields to be put in front."""
    added = b""
    if field(header, b"Message-ID") is None:
        added += f"Message-ID: <{shown_id}@{hostname}>\r\n".encode()
    if field(header, b"Date") is None:
        added += f"Date: {email.utils.formatdate(now, localtime=False)}\r\n".encode()
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
