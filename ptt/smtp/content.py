"""The content of one message as it comes in, whichever command carries it: what may be in it, and how it is kept.

Text (BODY=7BIT and 8BITMIME, RFC 6152 2 with RFC 5321 2.3.8): CR and LF come as CRLF only, no NUL, no line above the
limit. So every next hop, however it reads line ends, sees the same lines. Binary (RFC 3030 3): any octets.
"""

from __future__ import annotations

import enum

MAX_TEXT_LINE = 998  # octets without CRLF: RFC 5321 4.5.3.1.6, RFC 5322 2.1.1; longer ones are cut on the way, and
# what is cut fails DKIM. Exim refuses them too (message_linelength_limit).
SMALL = 4096  # octets: smaller pieces are gathered, lest a message sent byte by byte costs 60 times its size
GATHER = 65_536  # octets: size of gathered chunks


class Fault(enum.Enum):
    """Why a content cannot be taken, the gravest first. The value is its name in logs and metrics."""

    BARE = "bare_line_end"
    NUL = "nul"
    TOO_LARGE = "size"
    LONG_LINE = "long_line"


_RANK = list(Fault)


class Content:
    """Collects octets in ``chunks``. After the first fault nothing is kept, so memory is bounded by ``max_bytes``."""

    __slots__ = ("_open_line", "_small", "binary", "chunks", "fault", "max_bytes", "max_line", "size")

    def __init__(self, max_bytes: int, max_line: int = MAX_TEXT_LINE, *, binary: bool = False) -> None:
        self.max_bytes = max_bytes
        self.max_line = max_line
        self.binary = binary
        self.chunks: list[bytes] = []
        self.size = 0  # octets so far
        self.fault: Fault | None = None
        self._open_line = 0  # octets of the last line, not yet ended
        self._small = bytearray()

    @property
    def held(self) -> int:
        """Octets in memory."""
        return sum(map(len, self.chunks)) + len(self._small)

    def take(self, octets: bytes) -> None:
        """More of it. Text must be cut so that no CRLF lies across a border."""
        if self.fault is Fault.BARE:
            return
        if not self.binary and (found := _fault_of(octets)) is not None:
            self.fail(found)
        self.size += len(octets)
        if self.size > self.max_bytes:
            self.fail(Fault.TOO_LARGE)
        elif self.fault is None:
            if not self.binary and self._too_long(octets):
                self.fail(Fault.LONG_LINE)
            else:
                self._keep(octets)

    def finish(self) -> None:
        """That was all. A last line of text without its end gets one, as DATA would have given it.

        The header is text in binary content too (RFC 3030 3, RFC 2045 6.2): what reads it later finds one reading.
        """
        if self.binary and self.fault is None and (found := _fault_of(self._header())) is not None:
            self.fail(found)
        if self._open_line and self.fault is None:
            self._small += b"\r\n"
            self.size += 2
            self._open_line = 0
        self._flush()

    def _header(self) -> bytes:
        """The content up to the first empty line; all of it if there is none."""
        parts: list[bytes] = []
        size, tail = 0, b""
        for chunk in (*self.chunks, bytes(self._small)):
            parts.append(chunk)
            joint = tail + chunk
            if (end := joint.find(b"\r\n\r\n")) >= 0:
                return b"".join(parts)[: size - len(tail) + end + 2]
            size += len(chunk)
            tail = joint[-3:]
        return b"".join(parts)

    def fail(self, fault: Fault) -> None:
        """It cannot be taken. The fault that stands first in ``Fault`` counts, so that the cuts make no difference."""
        self.fault = fault if self.fault is None else min(fault, self.fault, key=_RANK.index)
        self.chunks.clear()
        self._small.clear()

    def _too_long(self, content: bytes) -> bool:
        """Is a line too long? Jumps from the last line end within reach to the next: a step per KiB, not per line."""
        start = -self._open_line
        size = len(content)
        reach = self.max_line + 2
        while size - start > self.max_line:
            found = content.rfind(b"\r\n", max(start, 0), start + reach)
            if found < 0:
                return True
            start = found + 2
        last = content.rfind(b"\r\n", max(start, 0))
        self._open_line = size - (last + 2 if last >= 0 else start)
        return False

    def _keep(self, octets: bytes) -> None:
        if len(octets) >= SMALL:
            self._flush()
            self.chunks.append(octets)
            return
        self._small += octets
        if len(self._small) >= GATHER:
            self._flush()

    def _flush(self) -> None:
        if self._small:
            self.chunks.append(bytes(self._small))
            self._small.clear()


def _fault_of(text: bytes) -> Fault | None:
    """A bare CR, a bare LF or a NUL in text that no CRLF is cut from."""
    ends = text.count(b"\r\n")
    if text.count(b"\r") != ends or text.count(b"\n") != ends:
        return Fault.BARE
    return Fault.NUL if b"\0" in text else None
