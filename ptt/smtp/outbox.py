"""What a client session has to send: commands that wait, those under way, and the end of a content, held back."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

from ptt.smtp.dotstuff import gather
from ptt.smtp.transaction import Command

PIPELINE_COMMANDS: Final = 100  # sent before their replies are read: what both sides have under way stays within
# the buffers of any socket, so neither waits for the other to read (RFC 2920 3.1)


class Outbox:
    """``todo``: to be sent. ``flight``: sent, not answered yet. ``end``: the command after which mail is delivered."""

    __slots__ = ("_out", "end", "flight", "todo")

    def __init__(self) -> None:
        self.todo: deque[Command] = deque()
        self.flight: deque[Command] = deque()
        self.end: Command | None = None  # the final dot or the last BDAT, when all before it was handed out
        self._out: list[bytes] = []

    def data(self) -> bytes:
        """What is to be written, joined."""
        out = self._out
        if not out:
            return b""
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        return data

    def pieces(self) -> list[bytes]:
        """As ``data``, without joining what is large."""
        out, self._out = self._out, []
        return gather(out)

    def write(self, pieces: Iterable[bytes]) -> None:
        """Octets that are no command."""
        self._out.extend(pieces)

    def send(self, command: Command) -> None:
        self.flight.append(command)
        self._out.append(command.wire)
        self._out.extend(command.octets)

    def pump(self, pipelining: bool) -> None:
        """Send what may go now: a group at a time, the next one when all of it is answered."""
        if self.flight or not self.todo:
            return
        for _ in range(min(PIPELINE_COMMANDS if pipelining else 1, len(self.todo))):
            self.send(self.todo.popleft())

    def may_end(self, pipelining: bool) -> bool:
        """May the end of the content be sent?"""
        return self.end is not None and not self.todo and (pipelining or not self.flight)

    def send_end(self) -> None:
        if self.end is not None:
            self.send(self.end)
            self.end = None

    def give_up(self) -> None:
        """Nothing more of this message is sent."""
        self.todo.clear()
        self.end = None

    def discard(self) -> None:
        """Not even what was handed out already, as far as it is here."""
        self.give_up()
        self._out.clear()
