"""CHUNKING (RFC 3030): the content comes in counted chunks, ``BDAT octets [LAST]``, and is not dot-stuffed.

The octets of a chunk are no commands, whatever becomes of it: those of a refused one are read and thrown away. So
both sides always agree where the next command starts, and a client that sends ahead (RFC 2920) stays in step.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ptt.smtp.content import Content, Fault
from ptt.smtp.reply import Reply

MAX_CHUNK_DIGITS = 20  # as of SIZE (RFC 1870 6); a chunk may be larger than what is taken: it is read to its end
_CHUNK = re.compile(rb" *([0-9]{1,%d})(?: +([Ll][Aa][Ss][Tt]))? *\Z" % MAX_CHUNK_DIGITS)


class Chunk(NamedTuple):
    """What a BDAT command announces."""

    octets: int
    last: bool


def parse_bdat(argument: bytes) -> Chunk | None:
    """``octets [LAST]`` (RFC 3030 2). None: it does not say how many octets follow."""
    found = _CHUNK.match(argument)
    return Chunk(int(found[1]), found[2] is not None) if found else None


class ChunkReader:
    """Takes the octets of chunks, one chunk after the other, and puts them into ``content`` unless they are refused."""

    __slots__ = ("_carry", "content", "last", "left", "refusal")

    def __init__(self, content: Content) -> None:
        self.content = content
        self.left = 0  # octets of this chunk that are yet to come
        self.last = False
        self.refusal: Reply | None = None  # the answer once the octets have been read
        self._carry = b""  # a CR at the border of two pieces: its LF may follow

    def start(self, chunk: Chunk, refusal: Reply | None = None) -> None:
        """The next chunk, and the answer to it if it is refused already."""
        self.left, self.last = chunk
        self.refusal = refusal
        if refusal is None and self.content.size + len(self._carry) + self.left > self.content.max_bytes:
            self.content.fail(Fault.TOO_LARGE)  # known before it comes: none of it is kept

    def feed(self, data: bytes, start: int) -> int:
        """Take what belongs to the chunk from ``data``, beginning at ``start``. Returns the place behind it."""
        end = min(start + self.left, len(data))
        self.left -= end - start
        if self.refusal is None:
            octets = data[start:end]
            if self.content.binary:
                self.content.take(octets)
            else:
                self._take_text(octets)
            if self.last and not self.left:
                self.content.finish()
        return end

    def _take_text(self, octets: bytes) -> None:
        octets = self._carry + octets
        ended = self.last and not self.left
        self._carry = b"\r" if octets.endswith(b"\r") and not ended else b""
        self.content.take(octets[:-1] if self._carry else octets)
