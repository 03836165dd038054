"""MIME messages made fit for a narrower transport: 8-bit to 7-bit (RFC 6152), binary to lines (RFC 3030). Pure.

What is converted is decided part by part: a part that fits stays as it is, octet for octet; of one that does not, the
body is encoded and its Content-Transfer-Encoding replaced. No other field changes, and decoded every part is
what it was. Parts are views of the message, not copies, and the work is done in pieces: ``pause`` is called between
them.
"""

from __future__ import annotations

import base64
import binascii
import email.message
import re
from collections.abc import Callable
from typing import NamedTuple

MAX_DEPTH = 40  # parts within parts; forwarded mail has two for each time it was forwarded. Each costs a pass
MAX_PASSES = 12  # over a message above SMALL: what is in the innermost of n parts is looked at n times
SMALL = 1024 * 1024  # octets
MAX_PARTS = 10_000  # of a message; and of what looks like a delimiter in a part
MAX_HEADER = 256 * 1024  # octets of the header of a message or part, as submission has it
MAX_TYPE = 2_000  # octets of a Content-Type field: RFC 2231 parameters of a long file name fit
MAX_LINE = 998  # octets without CRLF (RFC 5322 2.1.1)
PIECE = 57 * 1024  # octets that are encoded in one go: under a millisecond. A multiple of a line of base64
STRETCH = 1024 * 1024  # octets that are looked at in one go: some milliseconds

_FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:([^\r\n]*(?:\r\n[ \t][^\r\n]*)*)(?:\r\n|\Z)")
_TAIL = re.compile(rb"(--)?[ \t]*(?:\r\n|\Z)")
_PART_FIELD = re.compile(
    rb"\r\nContent-[!-9;-~]+:[^\x80-\xff\r\n]*(?:\r\n[ \t][^\x80-\xff\r\n]*)*[\x80-\xff]", re.IGNORECASE
)
_HIGH = bytes(range(0x80, 0x100))
_MASKED = bytes(range(0x80)) + b"?" * 0x80
_IDENTITY = ("", "7bit", "8bit", "binary")

Pause = Callable[[], object]
Octets = bytes | memoryview


class Unconvertible(ValueError):
    """The message cannot be converted. The text says why, for the sender."""


def eight_bit_body(message: bytes) -> bool:
    """Has the body octets above 127?"""
    return not message.isascii() and not message[_body_start(message) :].isascii()


def international(message: bytes) -> bool:
    """Has a field of the header, or a Content-* field of a part, octets above 127 (RFC 6532)?"""
    if message.isascii():
        return False
    start = _body_start(message)
    return not message[:start].isascii() or _PART_FIELD.search(message, max(start - 2, 0)) is not None


def to_seven_bit(message: bytes, pause: Pause | None = None) -> bytes:
    """The message for a peer without 8BITMIME: no octets above 127, but for those in header fields.

    ``message``: lines that end in CRLF. Raises Unconvertible: multipart/signed, which the change would break; a
    multipart without its delimiter; a type of message/* that must not be encoded; an unknown encoding.
    """
    return _Conversion(True, pause).message(message)


def to_transportable(message: bytes, pause: Pause | None = None) -> bytes:
    """A BODY=BINARYMIME message as ordinary 8-bit or 7-bit mail: no NUL, no bare CR or LF, lines of 998 octets.

    Raises Unconvertible, as ``to_seven_bit``, and when the header itself is binary.
    """
    converted = _Conversion(False, pause).message(message)
    if not _is_lines(converted, pause or _no_pause):
        raise Unconvertible("the header or the structure of the message is binary")
    return converted


class _Entity(NamedTuple):
    """A message or part, taken apart."""

    header: Octets
    body: memoryview
    separator: bytes  # between them: b"\r\n", or b"" where it is missing
    kind: str  # "text/plain", in lower case
    boundary: bytes
    encoding: str  # Content-Transfer-Encoding, in lower case


class _Conversion:
    """One message. ``seven``: to 7 bits; else to lines."""

    def __init__(self, seven: bool, pause: Pause | None) -> None:
        self.seven = seven
        self.pause = pause or _no_pause
        self.out: list[Octets] = []
        self.parts = 0
        self.room = 0  # octets that may still be looked at

    def message(self, octets: bytes) -> bytes:
        if self.seven and octets.isascii():
            return octets
        self.room = MAX_PASSES * len(octets) if len(octets) > SMALL else (MAX_DEPTH + 1) * SMALL
        self._entity(memoryview(octets), 0, "text/plain")
        return b"".join(self.out)

    def _entity(self, octets: memoryview, depth: int, default: str) -> None:
        self.parts += 1
        self.room -= len(octets)
        if depth > MAX_DEPTH or self.parts > MAX_PARTS or self.room < 0:
            raise Unconvertible("too many parts, or too many within each other")
        self.pause()
        if self.seven and _is_ascii(octets, self.pause):
            self.out.append(octets)
            return
        entity = _take_apart(octets, default)
        simple = not entity.kind.startswith(("multipart/", "message/")) and entity.encoding != "binary"
        if self._fits(entity.body) and (self.seven or simple):
            self.out.append(octets)  # a header that does not fit stays as it is
        elif entity.kind.startswith("multipart/"):
            self._multipart(entity, depth)
        elif entity.kind in ("message/rfc822", "message/news"):
            self._start(entity, self._composite(entity))
            self._entity(entity.body, depth + 1, "text/plain")
        elif entity.kind.startswith("message/") and not entity.kind.startswith("message/global"):
            if not self._fits(entity.body):
                raise Unconvertible(f"{entity.kind} must not be encoded")
            self._start(entity, self._composite(entity))
            self.out.append(entity.body)
        else:
            self._leaf(entity, top=depth == 0)

    def _multipart(self, entity: _Entity, depth: int) -> None:
        """RFC 2046 5.1.1. Preamble and epilogue, which nobody reads, lose what does not fit."""
        fits = self._fits(entity.body)
        if entity.kind == "multipart/signed" and not fits:
            raise Unconvertible("multipart/signed would lose its signature")
        found = _delimiters(bytes(entity.body), entity.boundary)
        if not found and not fits:
            raise Unconvertible("multipart without its boundary")
        if not entity.boundary.isascii():
            raise Unconvertible("multipart with a boundary that is not ASCII")
        self._start(entity, self._composite(entity))
        default = "message/rfc822" if entity.kind == "multipart/digest" else "text/plain"
        self._unread(entity.body[: found[0][0]] if found else entity.body)
        for n, (start, end, closes) in enumerate(found):
            self.out.append(entity.body[start:end])
            if closes:
                self._unread(entity.body[end:])
            else:
                until = found[n + 1][0] if n + 1 < len(found) else len(entity.body)
                self._entity(entity.body[end:until], depth + 1, default)

    def _leaf(self, entity: _Entity, top: bool) -> None:
        if self._fits(entity.body):  # "binary" is only what its label says
            self._start(entity, "7bit" if _is_ascii(entity.body, self.pause) else "8bit")
            self.out.append(entity.body)
            return
        decoded = _decoded(entity)
        quoted = entity.kind.startswith("text/") and self._mostly_ascii(decoded) and _is_lines(decoded, self.pause)
        self._start(entity, "quoted-printable" if quoted else "base64", mime=top)
        (self._quoted_printable if quoted else self._base64)(decoded)
        if not top and not quoted and bytes(self.out[-1][-2:]) == b"\r\n":
            self.out[-1] = self.out[-1][:-2]  # the delimiter brings its own

    def _start(self, entity: _Entity, encoding: str, mime: bool = False) -> None:
        """The header with this encoding. ``mime``: with all that makes it a MIME message."""
        fields = list(_FIELD.finditer(entity.header))
        names = [m[1].lower() for m in fields]
        said = False
        for name, match in zip(names, fields, strict=True):
            if name != b"content-transfer-encoding":
                self.out.append(match[0])
            elif not said:
                said = True
                self.out.append(b"%s: %s\r\n" % (match[1], encoding.encode()) if encoding else match[0])
        if fields and bytes(self.out[-1][-2:]) != b"\r\n":
            self.out.append(b"\r\n")
        if mime and b"mime-version" not in names:
            self.out.append(b"MIME-Version: 1.0\r\n")
        if mime and b"content-type" not in names:
            self.out.append(b"Content-Type: text/plain; charset=unknown-8bit\r\n")  # RFC 1428
        if encoding and not said:
            self.out.append(b"Content-Transfer-Encoding: %s\r\n" % encoding.encode())
        self.out.append(b"\r\n")

    def _composite(self, entity: _Entity) -> str:
        """The encoding of what contains others: only these exist (RFC 2045 6.4). "": it is left unsaid."""
        if entity.encoding not in _IDENTITY:
            raise Unconvertible(f"{entity.kind} in {entity.encoding}")
        if not entity.encoding:
            return "" if self.seven or _is_ascii(entity.body, self.pause) else "8bit"
        return "7bit" if self.seven else "8bit"

    def _fits(self, octets: memoryview) -> bool:
        return (_is_ascii if self.seven else _is_lines)(octets, self.pause)

    def _mostly_ascii(self, octets: Octets) -> bool:
        """Is less than one octet in six above 127, so that quoted-printable is the shorter encoding?"""
        low = 0
        for start in range(0, len(octets), STRETCH):
            low += len(bytes(octets[start : start + STRETCH]).translate(None, _HIGH))
            self.pause()
        return (len(octets) - low) * 6 < len(octets)

    def _unread(self, octets: memoryview) -> None:
        if self.seven:
            self.out.append(bytes(octets).translate(_MASKED))
        elif _is_lines(octets, self.pause):
            self.out.append(octets)

    def _base64(self, octets: Octets) -> None:
        for start in range(0, len(octets), PIECE):
            self.out.append(base64.encodebytes(octets[start : start + PIECE]).replace(b"\n", b"\r\n"))
            self.pause()

    def _quoted_printable(self, octets: Octets) -> None:
        start = 0
        while start < len(octets):
            piece = bytes(octets[start : start + PIECE])
            if b"\r\n" in piece:  # else it is the last line, which has no end
                piece = piece[: piece.rfind(b"\r\n") + 2]
            encoded = binascii.b2a_qp(piece)
            self.out.append(encoded if piece.endswith(b"\r\n") else encoded.replace(b"=\n", b"=\r\n"))
            start += len(piece)
            self.pause()


def _no_pause() -> None:
    pass


def _body_start(message: bytes) -> int:
    if message.startswith(b"\r\n"):
        return 2
    end = message.find(b"\r\n\r\n")
    return end + 4 if end >= 0 else len(message)


def _is_ascii(octets: Octets, pause: Pause) -> bool:
    for start in range(0, len(octets), STRETCH):
        if not bytes(octets[start : start + STRETCH]).isascii():
            return False
        pause()
    return True


def _is_lines(octets: Octets, pause: Pause) -> bool:
    """No NUL, no bare CR or LF, no line above MAX_LINE."""
    start = 0
    while start < len(octets):
        stretch = bytes(octets[start : start + STRETCH])
        if len(stretch) == STRETCH:  # up to its last line end, lest one lies across the border
            stretch = stretch[: stretch.rfind(b"\r\n") + 2]
        if len(stretch) < 2 <= len(octets) - start or not _are_lines(stretch):
            return False
        start += len(stretch)
        pause()
    return True


def _are_lines(octets: bytes) -> bool:
    ends = octets.count(b"\r\n")
    if b"\x00" in octets or octets.count(b"\r") != ends or octets.count(b"\n") != ends:
        return False
    start = 0
    while len(octets) - start > MAX_LINE:
        end = octets.rfind(b"\r\n", start, start + MAX_LINE + 2)
        if end < 0:
            return False
        start = end + 2
    return True


def _take_apart(octets: memoryview, default: str) -> _Entity:
    """A header ends at an empty line, or where something comes that is no field."""
    end = 0
    values: dict[bytes, bytes] = {}
    start = bytes(octets[: MAX_HEADER + 2])
    while (match := _FIELD.match(start, end)) is not None and match.end() > end:
        values.setdefault(match[1].lower(), match[2])
        end = match.end()
    if end > MAX_HEADER:
        raise Unconvertible("the header of a part is too long")
    separator = b"\r\n" if start.startswith(b"\r\n", end) else b""
    about = values.get(b"content-type", b"")
    if len(about) > MAX_TYPE:
        raise Unconvertible("Content-Type is too long")
    kind, boundary = default, ""
    if about.strip():
        parsed = email.message.Message()
        parsed["Content-Type"] = about.replace(b"\r\n", b"").decode("latin-1").strip()
        kind, boundary = parsed.get_content_type(), str(parsed.get_boundary(""))
    encoding = values.get(b"content-transfer-encoding", b"").decode("latin-1").strip().lower()
    body = octets[end + len(separator) :]
    return _Entity(start[:end], body, separator, kind, boundary.encode("latin-1", "replace"), encoding)


def _delimiters(body: bytes, boundary: bytes) -> list[tuple[int, int, bool]]:
    """(start, end, closes) of each delimiter line, with the CRLF before it; none after the closing one."""
    found: list[tuple[int, int, bool]] = []
    if not boundary:
        return found
    needle = b"--" + boundary
    at = body.find(needle)
    seen = 0
    while at >= 0:
        if (seen := seen + 1) > MAX_PARTS:
            raise Unconvertible("too many parts")
        tail = _TAIL.match(body, at + len(needle))
        if tail is not None and (at == 0 or body[at - 2 : at] == b"\r\n"):
            before = found[-1][1] if found else 0
            found.append((max(before, at - 2), tail.end(), tail[1] is not None))
            if tail[1] is not None:
                break
        at = body.find(needle, at + len(needle))
    return found


def _decoded(entity: _Entity) -> Octets:
    """The body without its encoding, which it may have in name only."""
    if entity.encoding in _IDENTITY:
        return entity.body
    try:
        if entity.encoding == "base64":
            return binascii.a2b_base64(entity.body)
        if entity.encoding == "quoted-printable":
            return binascii.a2b_qp(entity.body)
    except binascii.Error as e:
        raise Unconvertible(f"bad base64: {e}") from e
    raise Unconvertible(f"unknown encoding {entity.encoding[:40]}")
