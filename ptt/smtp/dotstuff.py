"""The transparency procedure of DATA (RFC 5321 4.5.2), on whole buffers: no loop over lines.

Strictness (RFC 5321 2.3.8 and 4.1.1.4): only CRLF ends a line and only CRLF.CRLF ends the content. A CR or LF on its
own never ends anything; ``Unstuffer`` goes on to the real end, so that both sides agree where the next command starts,
and says what was wrong.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

END = b"\r\n.\r\n"
MAX_TEXT_LINE = 998  # octets without CRLF: RFC 5321 4.5.3.1.6, RFC 5322 2.1.1; longer ones are cut on the way, and
# what is cut fails DKIM. Exim refuses them too (message_linelength_limit).
SMALL = 4096  # octets: smaller pieces are gathered, lest a message sent byte by byte costs 60 times its size
GATHER = 65_536  # octets: size of gathered chunks


class Fault(enum.Enum):
    """Why a content cannot be taken."""

    BARE = "bare CR or LF"
    LONG_LINE = "line too long"
    TOO_LARGE = "too large"


class Unstuffer:
    """Takes the bytes that follow 354; collects the content, unstuffed, in ``chunks``.

    Memory is bounded by ``max_bytes``: after the first fault nothing is kept, only the end is looked for.
    """

    __slots__ = ("_carry", "_first", "_open_line", "_small", "chunks", "fault", "max_bytes", "max_line", "size")

    def __init__(self, max_bytes: int, max_line: int = MAX_TEXT_LINE) -> None:
        self.max_bytes = max_bytes
        self.max_line = max_line
        self.chunks: list[bytes] = []
        self.size = 0  # octets of content so far
        self.fault: Fault | None = None
        self._carry = b"\r\n"  # what may be the start of END; at first the CRLF of the command DATA
        self._first = True  # that CRLF is not content
        self._open_line = 0  # octets of the last line, not yet ended
        self._small = bytearray()

    def feed(self, data: bytes, start: int = 0) -> int:
        """Take ``data`` from ``start``. Returns the place in ``data`` behind the end, or -1 if it is yet to come."""
        carry = len(self._carry)
        whole = self._carry + (data[start:] if start else data)
        dot = whole.find(b"\r\n.")  # most messages have but one such line, the last: then there is nothing to unstuff
        end = dot if dot < 0 or whole.startswith(END, dot) else whole.find(END, dot)
        if end >= 0:
            self._take(whole[: end + 2], stuffed=dot < end)
            self._flush()
            return start + end + 5 - carry
        keep = _overlap(whole)
        self._take(whole[: len(whole) - keep], stuffed=dot >= 0)
        self._carry = whole[len(whole) - keep :]
        return -1

    def _take(self, content: bytes, stuffed: bool) -> None:
        """Content as on the wire, cut so that no CRLF and no stuffed dot lies across its border."""
        if self.fault is Fault.BARE or not content:
            return
        ends = content.count(b"\r\n")
        if content.count(b"\r") != ends or content.count(b"\n") != ends:
            self._fail(Fault.BARE)
            return
        if self.fault is not None:
            return
        if stuffed:
            content = content.replace(b"\r\n.", b"\r\n")
        if self._first:
            content = content[2:]
            self._first = False
        self.size += len(content)
        if self.size > self.max_bytes:
            self._fail(Fault.TOO_LARGE)
        elif self._too_long(content):
            self._fail(Fault.LONG_LINE)
        else:
            self._keep(content)

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

    def _keep(self, content: bytes) -> None:
        if len(content) >= SMALL:
            self._flush()
            self.chunks.append(content)
            return
        self._small += content
        if len(self._small) >= GATHER:
            self._flush()

    def _flush(self) -> None:
        if self._small:
            self.chunks.append(bytes(self._small))
            self._small.clear()

    def _fail(self, fault: Fault) -> None:
        self.fault = fault
        self.chunks.clear()
        self._small.clear()


def _overlap(data: bytes) -> int:
    """How many of the last octets may be the start of END."""
    for size in (4, 3, 2, 1):
        if data.endswith(END[:size]):
            return size
    return 0


def stuff(chunks: Iterable[bytes]) -> list[bytes]:
    """Content -> what is sent before the final ".CRLF": dots doubled, a CRLF added if the content does not end in one.

    The chunks are not joined; those without a dot at the start of a line are passed on as they are.
    """
    out: list[bytes] = []
    tail = b"\r\n"  # the last two octets before the chunk; at the start, the CRLF of the command DATA
    empty = True
    for chunk in chunks:
        if not chunk:
            continue
        empty = False
        border = (tail + chunk[:2]).find(b"\r\n.")
        if border >= 0:  # a line that starts in this chunk was ended in the one before
            out.append(chunk[:border] + b".")
            out.append(chunk[border:].replace(b"\r\n.", b"\r\n.."))
        else:
            out.append(chunk.replace(b"\r\n.", b"\r\n.."))
        tail = chunk[-2:] if len(chunk) > 1 else tail[-1:] + chunk
    if not empty and tail != b"\r\n":
        out.append(b"\r\n")
    return out


def gather(pieces: Iterable[bytes]) -> list[bytes]:
    """The same octets in fewer pieces: small ones are joined, those of GATHER octets and more are not copied."""
    out: list[bytes] = []
    small: list[bytes] = []
    size = 0
    for piece in pieces:
        large = len(piece) >= GATHER
        if not large:
            small.append(piece)
            size += len(piece)
        if small and (large or size >= GATHER):
            out.append(b"".join(small))
            small, size = [], 0
        if large:
            out.append(piece)
    if small:
        out.append(b"".join(small))
    return out
