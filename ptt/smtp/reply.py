"""SMTP replies (RFC 5321 4.2) with enhanced status codes (RFC 2034, RFC 3463): one value for both directions.

``Reply`` is what a server answers and what a client was told. ``ReplyReader`` cuts a server's bytes into
replies; it tolerates any byte above 127 in the text (servers speak all languages) but no bare CR or LF.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ptt.smtp.errors import ProtocolError

MAX_REPLY_LINE = 2048  # RFC 5321 4.5.3.1.5 says 512 with CRLF; long URLs in refusals break that. Postfix: 2048
MAX_REPLY_BYTES = 16_384  # of all lines of one reply: the longest EHLO answer seen in the wild is under 2 KiB
MAX_TEXT_SENT = 480  # characters of text on a line that we send: with code and CRLF it stays below 512

# Nearly every reply: one line, with an enhanced code of the same class or with none at all.
_SINGLE_LINE = re.compile(rb"(([245])[0-9][0-9]|3[0-9][0-9]) (?:(\2\.[0-9]{1,3}\.[0-9]{1,3})(?: +|\Z))?([^\r\n]*)\Z")
_CODE = re.compile(rb"[2-5][0-9][0-9](?:[ -]|\Z)")
_ENHANCED = re.compile(r"([245]\.\d{1,3}\.\d{1,3})(?: +|\Z)")
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")


class Reply(NamedTuple):
    """A reply. ``enhanced`` is "" or like "5.1.1"; the lines of ``text`` are separated by a newline, without codes."""

    code: int
    enhanced: str = ""
    text: str = ""

    @property
    def kind(self) -> int:
        """The first digit, by which replies are judged (RFC 5321 4.2.1)."""
        return self.code // 100

    @property
    def ok(self) -> bool:
        return 200 <= self.code < 300

    @property
    def transient(self) -> bool:
        return 400 <= self.code < 500

    @property
    def permanent(self) -> bool:
        return self.code >= 500

    @property
    def lines(self) -> list[str]:
        return self.text.split("\n")

    def encode(self) -> bytes:
        """The reply as bytes. What is not printable ASCII in the text becomes "?": text may come from strangers."""
        head = f"{self.code} {self.enhanced} " if self.enhanced else f"{self.code} "
        text = self.text
        if len(text) <= MAX_TEXT_SENT and text.isascii() and text.isprintable():
            return f"{head}{text}\r\n".encode("ascii")
        lines = [_UNPRINTABLE.sub("?", line)[:MAX_TEXT_SENT] for line in text.split("\n")]
        more = head[:3] + "-" + head[4:]
        return "".join([f"{more}{line}\r\n" for line in lines[:-1]] + [f"{head}{lines[-1]}\r\n"]).encode("ascii")

    def __str__(self) -> str:
        """On one line, for logs and bounces."""
        return " ".join(part for part in (str(self.code), self.enhanced, self.text.replace("\n", " ")) if part)


class ReplyReader:
    """Cuts the bytes of a server into replies. Holds at most MAX_REPLY_BYTES plus what was fed last."""

    __slots__ = ("_buffer", "_lines", "_pos", "_size")

    def __init__(self) -> None:
        self._buffer = b""
        self._pos = 0
        self._lines: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> None:
        self._buffer = self._buffer[self._pos :] + data if self._pos < len(self._buffer) else data
        self._pos = 0

    @property
    def empty(self) -> bool:
        """True when not a single byte waits: the condition for starting TLS."""
        return self._pos >= len(self._buffer) and not self._lines

    def next(self) -> Reply | None:
        """The next complete reply, or None when more bytes are needed. Raises ProtocolError."""
        while True:
            end = self._buffer.find(b"\r\n", self._pos)
            if end < 0:
                self._check_unfinished()
                return None
            line = self._buffer[self._pos : end]
            self._pos = end + 2
            if not self._lines and len(line) < MAX_REPLY_LINE and (alone := _SINGLE_LINE.match(line)):
                code, enhanced, text = alone.group(1, 3, 4)
                return Reply(int(code), enhanced.decode() if enhanced else "", text.decode("utf-8", "replace"))
            self._check(line)
            self._lines.append(line)
            if line[3:4] != b"-":
                lines, self._lines, self._size = self._lines, [], 0
                return _decode(lines)

    def _check(self, line: bytes) -> None:
        self._size += len(line) + 2
        if len(line) + 2 > MAX_REPLY_LINE or self._size > MAX_REPLY_BYTES:
            raise ProtocolError("reply too long")
        if b"\n" in line or b"\r" in line:
            raise ProtocolError("bare CR or LF in a reply")
        if not _CODE.match(line):
            raise ProtocolError("not an SMTP reply")
        if self._lines and self._lines[0][:3] != line[:3]:
            raise ProtocolError("reply code changes from line to line")

    def _check_unfinished(self) -> None:
        rest = len(self._buffer) - self._pos
        if rest + 1 > MAX_REPLY_LINE or self._size + rest > MAX_REPLY_BYTES:
            raise ProtocolError("reply too long")
        if self._buffer.find(b"\n", self._pos) >= 0:
            raise ProtocolError("bare CR or LF in a reply")


def _decode(lines: list[bytes]) -> Reply:
    """Join the lines of one reply; take the enhanced code off them if it agrees with the code (RFC 2034 4)."""
    code = int(lines[0][:3])
    texts = [line[4:].decode("utf-8", "replace") for line in lines]
    found = _ENHANCED.match(texts[-1])
    if found is None or found[1][0] != str(code)[0]:
        return Reply(code, "", "\n".join(texts))
    enhanced = found[1]
    stripped = [t[len(enhanced) :].lstrip(" ") if t.startswith(enhanced) else t for t in texts]
    return Reply(code, enhanced, "\n".join(stripped))
