"""Cuts a client's bytes into command lines. Only CRLF ends a line (RFC 5321 2.3.8)."""

from __future__ import annotations

from ptt.smtp.errors import ProtocolError
from ptt.smtp.replies import BAD_CHUNK, BARE_IN_COMMAND, LINE_TOO_LONG


class LineReader:
    """A buffer and a place in it. Between calls of ``take`` it holds at most one line, plus what was fed last.

    ``buffer`` and ``pos`` are public: the content of a message is taken from them without a copy.
    """

    __slots__ = ("_skipping", "buffer", "pos")

    def __init__(self) -> None:
        self.buffer = b""
        self.pos = 0
        self._skipping = False  # inside the rest of a line that was refused already

    def feed(self, data: bytes) -> None:
        self.buffer = self.buffer[self.pos :] + data if self.pos < len(self.buffer) else data
        self.pos = 0

    @property
    def empty(self) -> bool:
        return self.pos >= len(self.buffer)

    def clear(self) -> None:
        self.buffer, self.pos = b"", 0

    def take(self, limit: int) -> bytes | None:
        """The next line of at most ``limit`` octets, without its CRLF, or None when it is not complete yet.

        Raises ProtocolError with its reply, once for each line that is too long or has a bare CR, a bare LF or a
        NUL. Such a line is skipped to its CRLF, so that both sides agree on where the next one begins; if it is a
        BDAT command they cannot, and the reply is BAD_CHUNK.
        """
        while True:
            buffer, start = self.buffer, self.pos
            end = buffer.find(b"\r\n", start)
            if end < 0:
                if start < len(buffer):
                    self._check_unfinished(limit)
                return None
            line = buffer[start:end]
            self.pos = end + 2
            if self._skipping:
                self._skipping = False
                continue
            if len(line) > limit:
                bare = b"\n" in line[: limit + 1]  # the same answer as if it had come octet by octet
                raise _broken(line, bare)
            if b"\n" in line or b"\r" in line or b"\0" in line:
                raise _broken(line, True)
            return line

    def _check_unfinished(self, limit: int) -> None:
        """A line without its CRLF: refuse it as soon as it cannot become a good one, and keep none of it."""
        skipping = self._skipping
        bare = not skipping and self.buffer.find(b"\n", self.pos, self.pos + limit + 1) >= 0
        long = not skipping and len(self.buffer) - self.pos > limit + 1  # 1: the CR may be there already
        start = self.buffer[self.pos : self.pos + 4]
        if bare or long or skipping:
            self._skipping = True
            self.buffer = b"\r" if self.buffer.endswith(b"\r") else b""
            self.pos = 0
        if bare or long:
            raise _broken(start, bare)


def _broken(line: bytes, bare: bool) -> ProtocolError:
    if line[:4].upper() == b"BDAT":
        return ProtocolError.of(BAD_CHUNK)
    return ProtocolError.of(BARE_IN_COMMAND if bare else LINE_TOO_LONG)
