"""The content of the message under way, as it is taken from a session's input: by DATA, or by the chunks of BDAT."""

from __future__ import annotations

import enum

from ptt.smtp.chunking import Chunk, ChunkReader
from ptt.smtp.content import Content
from ptt.smtp.dotstuff import Unstuffer
from ptt.smtp.lines import LineReader
from ptt.smtp.reply import Reply


class Taken(enum.Enum):
    """What ``Intake.take`` says beside a content or the refusal of a chunk."""

    MORE = "octets are yet to come"
    CHUNK = "a chunk is here, and is not the last"


_MORE = Taken.MORE  # a plain name: see states


class Intake:
    """One content at a time. Whatever becomes of a chunk, its octets are taken and are no commands."""

    __slots__ = ("_body", "_chunks", "chunk")

    def __init__(self) -> None:
        self._body: Unstuffer | None = None
        self._chunks: ChunkReader | None = None  # from the first chunk to the last
        self.chunk = Chunk(0, False)  # the one that was announced last

    @property
    def held(self) -> int:
        """Octets in memory."""
        source = self._body or self._chunks
        return source.content.held if source is not None else 0

    @property
    def active(self) -> bool:
        """Has a content begun, and neither ended nor been dropped?"""
        return self._body is not None or self._chunks is not None

    def by_data(self, content: Content) -> None:
        """354 was said: take octets up to the final dot."""
        self._body = Unstuffer(content)

    def by_chunk(self, content: Content) -> None:
        """The chunk that was announced is the first of a content."""
        self._chunks = ChunkReader(content)
        self._chunks.start(self.chunk)

    def further_chunk(self) -> bool:
        """The chunk that was announced is one more of the content. False: there is none."""
        if self._chunks is None:
            return False
        self._chunks.start(self.chunk)
        return True

    def skip_chunk(self, refusal: Reply) -> None:
        """Throw away the octets of the chunk that was announced; then ``take`` gives the refusal."""
        self._chunks = ChunkReader(Content(0))
        self._chunks.start(self.chunk, refusal)

    def drop(self) -> None:
        """The transaction is over."""
        self._body = self._chunks = None

    def take(self, source: LineReader) -> Taken | Content | Reply:
        """Take what is there. A content, which may have a fault, or a refusal is given once all octets are in."""
        if self._body is not None:
            return self._take_data(self._body, source)
        reader = self._chunks
        if reader is None:
            return _MORE
        source.pos = reader.feed(source.buffer, source.pos)
        if reader.left:
            source.clear()
            return _MORE
        if reader.refusal is None and reader.content.fault is None and not reader.last:
            return Taken.CHUNK
        self._chunks = None
        return reader.content if reader.refusal is None else reader.refusal

    def _take_data(self, body: Unstuffer, source: LineReader) -> Taken | Content:
        if source.empty:
            return _MORE
        end = body.feed(source.buffer, source.pos)
        if end < 0:
            source.clear()
            return _MORE
        source.pos = end
        self._body = None
        return body.content
