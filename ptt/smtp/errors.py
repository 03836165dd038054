"""The one exception that leaves a parser of this package, and the one that a writer raises."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ptt.smtp.reply import Reply


class ProtocolError(Exception):
    """The peer broke the protocol.

    Raised by the parsers. ``ServerSession`` catches it and answers with ``reply``; it never leaves that class.
    It leaves ``ClientSession`` (``reply`` is None there): the driver closes the connection, what was not
    settled is tried again later.
    """

    def __init__(self, reason: str, reply: Reply | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.reply = reply

    @classmethod
    def of(cls, reply: Reply) -> ProtocolError:
        """A mistake of a client, to be answered with ``reply``."""
        return cls(reply.text, reply)


class UnsendableAddress(ValueError):
    """An address that SMTP cannot carry to this peer. A class of its own, for it is final: a fault of ours is not."""
