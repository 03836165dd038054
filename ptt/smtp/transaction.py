"""One mail transaction as the client sees it: its commands, and what became of each recipient."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from ptt.smtp.capabilities import Capabilities
from ptt.smtp.errors import UnsendableAddress
from ptt.smtp.events import Result
from ptt.smtp.params import MailParams, RcptParams, format_mail_params, format_rcpt_params
from ptt.smtp.reply import Reply

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Phase:
    """What a reply answers, in the words for people."""

    GREETING: Final = "greeting"
    EHLO: Final = "EHLO"
    HELO: Final = "HELO"
    STARTTLS: Final = "STARTTLS"
    AUTH: Final = "AUTH"
    MAIL: Final = "MAIL"
    RCPT: Final = "RCPT"
    DATA: Final = "DATA"
    CONTENT: Final = "end of DATA"
    LONE_DOT: Final = "end of an empty DATA"  # 354 came although every recipient was refused
    RSET: Final = "RSET"
    PROBE: Final = "RSET, asked for"
    QUIT: Final = "QUIT"


class Command(NamedTuple):
    """A command to be sent; ``recipient`` is the index of the one that RCPT names."""

    wire: bytes
    phase: str
    recipient: int = 0


class Transaction:
    """A message on its way: which recipients were accepted, and the final result of the others."""

    __slots__ = ("accepted", "content", "results")

    def __init__(self, recipients: int, content: Sequence[bytes]) -> None:
        self.content = content
        self.accepted: list[int] = []
        self.results: list[Result | None] = [None] * recipients

    def refuse_all(self, reply: Reply, phase: str) -> None:
        """The reply holds for every recipient that has no result yet."""
        result = Result(reply, phase)
        self.results = [known or result for known in self.results]

    def answer_rcpt(self, index: int, reply: Reply) -> None:
        if self.results[index] is not None:  # MAIL was refused: what is said of RCPT then means nothing
            return
        if reply.ok:
            self.accepted.append(index)
        else:
            self.results[index] = Result(reply, Phase.RCPT)


def transaction_commands(
    sender: str, recipients: Sequence[str], mail: MailParams, rcpt: Sequence[RcptParams], peer: Capabilities
) -> list[Command]:
    """MAIL, every RCPT and DATA, with those parameters that the peer understands.

    Raises UnsendableAddress for one that could not be sent: with control characters, or not ASCII without SMTPUTF8.
    """
    utf8 = mail.smtputf8 and peer.smtputf8
    commands = [Command(_line("MAIL FROM", sender, format_mail_params(mail, peer.mail), utf8), Phase.MAIL)]
    for index, recipient in enumerate(recipients):
        parameters = format_rcpt_params(rcpt[index], peer.rcpt) if rcpt else ""
        commands.append(Command(_line("RCPT TO", recipient, parameters, utf8), Phase.RCPT, index))
    commands.append(Command(b"DATA\r\n", Phase.DATA))
    return commands


def _line(verb: str, address: str, parameters: str, utf8: bool) -> bytes:
    text = f"{verb}:<{address}>{parameters}"
    if _CONTROL.search(text) or not (utf8 or text.isascii()):
        raise UnsendableAddress(f"{address!r} cannot be sent")
    return text.encode() + b"\r\n"
