"""The transparency procedure of DATA (RFC 5321 4.5.2), on whole buffers: no loop over lines.

Strictness (RFC 5321 2.3.8 and 4.1.1.4): only CRLF ends a line and only CRLF.CRLF ends the content. A CR or LF on its
own never ends anything; ``Unstuffer`` goes on to the real end, so that both sides agree where the next command starts,
and says what was wrong.
"""

from __future__ import annotations

from collections.abc import Iterable

from ptt.smtp.content import GATHER, Content

END = b"\r\n.\r\n"


class Unstuffer:
    """Takes the bytes that follow 354 and puts the content, unstuffed, into ``content``."""

    __slots__ = ("_carry", "_first", "content")

    def __init__(self, content: Content) -> None:
        self.content = content
        self._carry = b"\r\n"  # what may be the start of END; at first the CRLF of the command DATA
        self._first = True  # that CRLF is not content

    def feed(self, data: bytes, start: int = 0) -> int:
        """Take ``data`` from ``start``. Returns the place in ``data`` behind the end, or -1 if it is yet to come."""
        carry = len(self._carry)
        whole = self._carry + (data[start:] if start else data)
        dot = whole.find(b"\r\n.")  # most messages have but one such line, the last: then there is nothing to unstuff
        end = dot if dot < 0 or whole.startswith(END, dot) else whole.find(END, dot)
        if end >= 0:
            self._take(whole[: end + 2], stuffed=dot < end)
            self.content.finish()
            return start + end + 5 - carry
        keep = _overlap(whole)
        self._take(whole[: len(whole) - keep], stuffed=dot >= 0)
        self._carry = whole[len(whole) - keep :]
        return -1

    def _take(self, octets: bytes, stuffed: bool) -> None:
        """Content as on the wire, cut so that no CRLF and no stuffed dot lies across its border."""
        if not octets:
            return
        if stuffed:
            octets = octets.replace(b"\r\n.", b"\r\n")
        if self._first:
            octets = octets[2:]
            self._first = False
        self.content.take(octets)


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
