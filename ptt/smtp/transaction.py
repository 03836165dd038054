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
    CHUNK: Final = "BDAT"  # but the last one, whose answer is that to the content
    CONTENT: Final = "end of DATA"
    LONE_DOT: Final = "end of an empty DATA"  # 354 came although every recipient was refused
    RSET: Final = "RSET"
    PROBE: Final = "RSET, asked for"
    QUIT: Final = "QUIT"


class Command(NamedTuple):
    """A command to be sent; ``recipient`` is the index of the one that RCPT names, ``octets`` follow BDAT."""

    wire: bytes
    phase: str
    recipient: int = 0
    octets: Sequence[bytes] = ()


class Transaction:
    """A message on its way: which recipients were accepted, and the final result of the others."""

    __slots__ = ("accepted", "chunks", "content", "last", "results")

    def __init__(self, recipients: int, content: Sequence[bytes], chunks: list[Command]) -> None:
        """``chunks``: what ``chunk_commands`` gave; empty when the content goes by DATA."""
        self.content = content
        self.chunks = chunks[:-1]
        self.last = chunks[-1] if chunks else None
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
    """MAIL and every RCPT, with those parameters that the peer understands.

    Raises UnsendableAddress for one that could not be sent: with control characters, or not ASCII without SMTPUTF8.
    """
    utf8 = mail.smtputf8 and peer.smtputf8
    commands = [Command(_line("MAIL FROM", sender, format_mail_params(mail, peer.mail), utf8), Phase.MAIL)]
    for index, recipient in enumerate(recipients):
        parameters = format_rcpt_params(rcpt[index], peer.rcpt) if rcpt else ""
        commands.append(Command(_line("RCPT TO", recipient, parameters, utf8), Phase.RCPT, index))
    return commands


def chunk_commands(content: Sequence[bytes], most: int, binary: bool) -> list[Command]:
    """The content as BDAT commands (RFC 3030) of at most ``most`` octets, the last one with LAST.

    The last line of text gets its end, as ``dotstuff.stuff`` does.
    """
    if not binary and not ends_in_crlf(content):
        content = [*content, b"\r\n"]
    groups: list[list[bytes]] = [[]]
    room = most
    for piece in content:
        start = 0
        while start < len(piece):
            if room == 0:
                groups.append([])
                room = most
            part = piece[start : start + room]  # the whole piece, not copied, where it fits
            groups[-1].append(part)
            room -= len(part)
            start += len(part)
    sizes = [sum(map(len, group)) for group in groups]
    commands = [
        Command(b"BDAT %d\r\n" % size, Phase.CHUNK, octets=group) for size, group in zip(sizes, groups, strict=True)
    ]
    commands[-1] = Command(b"BDAT %d LAST\r\n" % sizes[-1], Phase.CONTENT, octets=groups[-1])
    return commands


def ends_in_crlf(content: Sequence[bytes]) -> bool:
    """Does the last line have its end? The empty content has none."""
    end = b""
    for piece in reversed(content):
        end = piece[-2:] + end
        if len(end) >= 2:
            break
    return not end or end.endswith(b"\r\n")


def _line(verb: str, address: str, parameters: str, utf8: bool) -> bytes:
    text = f"{verb}:<{address}>{parameters}"
    if _CONTROL.search(text) or not (utf8 or text.isascii()):
        raise UnsendableAddress(f"{address!r} cannot be sent")
    return text.encode() + b"\r\n"
