"""Canonical forms of header and body (RFC 6376, 3.4), by bulk operations on bytes instead of loops over lines.

Messages hold CRLF and no bare CR or LF (the session refuses those). A message whose last line is not ended is
taken as SMTP sends it, with the CRLF, before anything else is done: white space at its end then goes away in
the relaxed form, where dkimpy, which adds the CRLF last, keeps one space.

White space is WSP, space and tab (RFC 5234). A form feed at the end of a field's value stays, where dkimpy strips it.
"""

from __future__ import annotations

import ctypes
import hashlib
import re
from collections.abc import Callable, Collection
from typing import Literal

Canon = Literal["relaxed", "simple"]

CHUNK_BYTES = 64 * 1024
"""A body is canonicalised in such pieces, 0.1 to 0.4 ms each: they stay in the processor's cache, and bound both the
memory beside the message and the time for which others wait."""

_FIELD_END = re.compile(rb"\r\n(?![ \t])")
_BLANK_LINES = b"\r\n" * 1024


def body_start(message: bytes) -> int:
    """Where the body begins: behind the first empty line. The message's length when there is none."""
    if message.startswith(b"\r\n"):
        return 2
    end = message.find(b"\r\n\r\n")
    return len(message) if end < 0 else end + 4


def _pair_finder() -> Callable[[bytes, bytes], object]:
    """The C library's strstr: true when the pair is in the text, which must hold no NUL.

    Python looks for two bytes one by one, and each space of a text misleads the processor: 40 to 80 us for 64 KiB, more
    than their SHA-256. The C library compares 16 bytes and more at once: 2 us.
    """
    try:  # PyDLL: to give the interpreter away for 2 us costs more
        found = ctypes.PyDLL(None).strstr
    except (OSError, AttributeError):  # a static interpreter
        return lambda text, pair: pair in text
    found.argtypes = (ctypes.c_char_p, ctypes.c_char_p)
    found.restype = ctypes.c_void_p
    return found


_find_pair = _pair_finder()


def _holds(text: bytes, pair: bytes) -> bool:
    return pair in text if b"\0" in text else bool(_find_pair(text, pair))


def squeeze(text: bytes) -> bytes:
    """Each run of spaces and tabs as one space. Halves the runs in each pass, so a long one takes few."""
    text = text.replace(b"\t", b" ")
    while _holds(text, b"  "):
        text = text.replace(b"  ", b" ")
    return text


def header_fields(head: bytes, wanted: Collection[bytes], canon: Canon = "relaxed") -> dict[bytes, list[bytes]]:
    """The fields whose lower-case name is in ``wanted``: name -> canonical fields without CRLF, from top to bottom.

    ``head`` is the header with or without its empty line. What is not a header field is passed over.
    """
    found: dict[bytes, list[bytes]] = {}
    if canon == "simple":
        for field in _FIELD_END.split(head):
            name = field.partition(b":")[0].rstrip(b" \t").lower()
            if name in wanted:
                found.setdefault(name, []).append(field)
        return found
    for line in squeeze(head.replace(b"\r\n ", b" ").replace(b"\r\n\t", b" ")).split(b"\r\n"):
        name, colon, value = line.partition(b":")
        name = name.rstrip(b" ").lower()
        if name in wanted and colon:
            found.setdefault(name, []).append(name + b":" + value.strip(b" "))
    return found


class Body:
    """The canonical body as a stream: ``update`` with pieces cut anywhere, then ``finish``; ``sink`` takes the output.

    Holds back only what the next piece may change: a space or CR at the end, and the number of empty lines.
    """

    def __init__(self, canon: Canon, sink: Callable[[bytes], object]) -> None:
        self._relaxed = canon == "relaxed"
        self._sink = sink
        self._carry = b""
        self._line_ends = 0  # CRLFs not yet handed on: at the end of the body all but one are ignored
        self._any = False  # has anything but CRLFs been handed on?

    def update(self, data: bytes) -> None:
        if self._carry:
            data = self._carry + data
        if self._relaxed:
            data = squeeze(data)
            if _holds(data, b" \r"):
                data = data.replace(b" \r\n", b"\r\n")
        end = len(data)
        if data.endswith(b"\r"):
            end -= 1
        if self._relaxed and data.endswith(b" ", 0, end):
            end -= 1
        self._carry = data[end:]
        core = data[:end].rstrip(b"\r\n")
        count = data.count(b"\r\n", len(core), end)
        if len(core) + 2 * count != end:  # a bare CR or LF among the line ends: not ours to repair
            count = 0
            while data.endswith(b"\r\n", 0, end):
                end -= 2
                count += 1
            core = data[:end]
        if core:
            self._flush(core)
        self._line_ends += count

    def finish(self) -> None:
        """The end of the body. An unfinished last line gets its CRLF (RFC 6376, 3.4.3 and 3.4.4)."""
        if self._carry.strip(b" "):  # a bare CR; a space at the end of the last line goes away
            self._flush(self._carry)
        if self._any or not self._relaxed:  # the empty body is "" relaxed, CRLF simple
            self._sink(b"\r\n")

    def _flush(self, core: bytes) -> None:
        while self._line_ends:
            count = min(self._line_ends, len(_BLANK_LINES) // 2)
            self._sink(_BLANK_LINES[: 2 * count])
            self._line_ends -= count
        self._sink(core)
        self._any = True


def body_hash(
    message: bytes, start: int = 0, canon: Canon = "relaxed", pause: Callable[[], object] | None = None
) -> bytes:
    """SHA-256 of the canonical body, which begins at ``start`` of the message.

    ``pause`` is called between pieces of CHUNK_BYTES, so that a long message leaves others their turn.
    """
    digest = hashlib.sha256()
    body = Body(canon, digest.update)
    for at in range(start, len(message), CHUNK_BYTES):
        if pause is not None and at > start:
            pause()
        body.update(message[at : at + CHUNK_BYTES])
    body.finish()
    return digest.digest()


def canonical_body(body: bytes, canon: Canon = "relaxed") -> bytes:
    """The canonical body itself, for those who look at it; the signing path hashes it piece by piece."""
    out: list[bytes] = []
    stream = Body(canon, out.append)
    stream.update(body)
    stream.finish()
    return b"".join(out)
