"""LMTP (RFC 2033) to a mailbox server: LHLO, and after the content one reply for each recipient that was accepted.

A conversation of its own and not ``ClientSession``: no TLS, no login, no connection kept - the server is on this host
or beside it - and recipients that are settled one by one behind the final dot.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence

from ptt.config import Relay as Settings
from ptt.net.stream import MAX_READ, PeerClosed, ReadTimeout, Stream, StreamError
from ptt.relay.attempt import Job, Outcomes, Wanted, compose
from ptt.relay.outcome import Deferred, Failed, of_error, of_reply
from ptt.relay.session import ENVELOPE_WAITS, MIN_BYTES_PER_SECOND, OPENING_WAITS, Message
from ptt.smtp.capabilities import NOTHING_OFFERED, Capabilities, capabilities_of
from ptt.smtp.dotstuff import stuff
from ptt.smtp.errors import ProtocolError, UnsendableAddress
from ptt.smtp.reply import Reply, ReplyReader
from ptt.smtp.transaction import transaction_commands

END = b".\r\n"


def deliver(stream: Stream, peer: str, job: Job, wanted: Sequence[Wanted], ehlo: str, settings: Settings) -> Outcomes:
    """One transaction over a fresh connection, which is closed. The outcome of each recipient.

    Never raises for what the peer does.
    """
    dialog = _Dialog(stream, peer, settings, job.until)
    outcomes: Outcomes = {}
    try:
        refusal = dialog.open(ehlo)
        if refusal is None:
            message, outcomes = compose(job, wanted, dialog.offered, False, peer)
            left = [item for item, _ in wanted if item not in outcomes]
            if message is not None:
                dialog.send(message, left, outcomes, job.before_final_dot)
            dialog.quit()
        else:
            outcomes = {item: refusal for item, _ in wanted}
    except UnsendableAddress as e:
        outcomes |= {item: Failed(str(e), "MAIL", peer, "5.1.3") for item, _ in wanted if item not in outcomes}
    except (StreamError, ProtocolError) as e:
        lost = of_error(e, dialog.phase, peer, dialog.final_dot)
        outcomes |= {item: lost for item, _ in wanted if item not in outcomes}
    finally:
        stream.close()
    return outcomes


class _Dialog:
    def __init__(self, stream: Stream, peer: str, settings: Settings, until: float) -> None:
        self.stream = stream
        self.peer = peer
        self.settings = settings
        self.until = until
        self.offered: Capabilities = NOTHING_OFFERED
        self.phase = "greeting"
        self.final_dot = False
        self._in = ReplyReader()

    def open(self, ehlo: str) -> Deferred | None:
        """Greeting and LHLO. The reason why the server does not want us, or None. Raises StreamError, ProtocolError."""
        timeout = self.settings.command_seconds
        deadline = min(self.until, time.monotonic() + OPENING_WAITS * timeout)
        for phase, command in (("greeting", b""), ("LHLO", f"LHLO {ehlo}\r\n".encode())):
            self.phase = phase
            if command:
                self._write(command, timeout)
            reply = self._reply(timeout, deadline)
            if not reply.ok:
                return Deferred(str(of_reply(reply, phase, self.peer).text), phase, self.peer, "4.3.2", reply=True)
        self.offered = capabilities_of(reply)
        return None

    def send(self, message: Message, items: Sequence[int], outcomes: Outcomes, before_dot: Callable[[], None]) -> None:
        """MAIL, RCPT and DATA, then the content; fills in ``outcomes``. Raises StreamError, ProtocolError."""
        accepted = self._envelope(message, items, outcomes)
        if not accepted:
            return
        for piece in stuff(message.content):
            self.stream.write(piece, self.settings.data_seconds + len(piece) / MIN_BYTES_PER_SECOND)
        if not self._in.empty:
            raise ProtocolError("reply before the end of the content")
        before_dot()
        self.phase, self.final_dot = "end of DATA", True
        timeout = self.settings.final_dot_seconds
        self.stream.write(END, timeout)
        deadline = time.monotonic() + timeout
        for item in accepted:  # RFC 2033 4.2: in the order of RCPT
            outcomes[item] = of_reply(self._reply(timeout, deadline), self.phase, self.peer, self.offered.dsn)

    def quit(self) -> None:
        with contextlib.suppress(StreamError):
            self.stream.write(b"QUIT\r\n", 0.0)

    def _envelope(self, message: Message, items: Sequence[int], outcomes: Outcomes) -> list[int]:
        """The recipients that the server is to get the content for. Raises StreamError, ProtocolError."""
        commands = transaction_commands(message.sender, message.recipients, message.mail, message.rcpt, self.offered)
        timeout = self.settings.command_seconds
        deadline = min(self.until, time.monotonic() + ENVELOPE_WAITS * timeout)
        accepted: list[int] = []
        self.phase = "MAIL"
        for command, item in zip(commands, [0, *items], strict=True):
            self.phase = command.phase
            self._write(command.wire, timeout)
            reply = self._reply(timeout, deadline)
            if command.phase == "MAIL" and not reply.ok:
                outcomes |= {i: of_reply(reply, "MAIL", self.peer) for i in items}
                return []
            if command.phase == "RCPT" and reply.ok:
                accepted.append(item)
            elif command.phase == "RCPT":
                outcomes[item] = of_reply(reply, "RCPT", self.peer)
        if not accepted:
            return []
        self.phase = "DATA"
        self._write(b"DATA\r\n", timeout)
        reply = self._reply(timeout, deadline)
        if reply.kind == 3:
            return accepted
        if reply.ok:
            raise ProtocolError(f"reply {reply.code} to DATA")
        outcomes |= {item: of_reply(reply, "DATA", self.peer) for item in accepted}
        return []

    def _write(self, command: bytes, timeout: float) -> None:
        if not self._in.empty:
            raise ProtocolError("reply to no command")
        self.stream.write(command, timeout)

    def _reply(self, timeout: float, deadline: float) -> Reply:
        while (reply := self._in.next()) is None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise ReadTimeout(f"{self.peer} did not answer in time")
            data = self.stream.read(MAX_READ, min(timeout, left))
            if not data:
                raise PeerClosed(f"{self.peer} closed the connection")
            self._in.feed(data)
        if reply.kind == 3 and self.phase != "DATA":
            raise ProtocolError(f"reply {reply.code} to {self.phase}")
        return reply
