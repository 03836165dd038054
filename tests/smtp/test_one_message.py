"""Smuggling, from end to end: what our server takes, by whatever octets, every next hop reads as one message.

The next hops: a strict one, for which CRLF alone ends a line, and a lax one, which takes CR and LF for line ends too,
and a line with a single dot for the end whatever its line ends are (so LF.LF, LF.CRLF, CR.CR, ... end it). What
follows the end would be commands: a second message.
"""

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from ptt.smtp import NEED_DATA, ClientSession, FinalDot, MailFrom, MessageDone, Ready, ServerConfig

CONFIG = ServerConfig("mx.example.org", chunking=True, binarymime=True, max_errors=1000)
ENVELOPE = b"EHLO c\r\nMAIL FROM:<a@b.org>\r\nRCPT TO:<c@d.org>\r\n"
CARRIER = b"Subject: carrier\r\n\r\ntext"
SMUGGLED = b"MAIL FROM:<evil@b.org>\r\nRCPT TO:<c@d.org>\r\nDATA\r\nSubject: smuggled\r\n\r\n"
TOKENS = (b"\r\n", b"\r", b"\n", b".", b"\0", b"x")
LINE_END = {"strict": re.compile(rb"\r\n"), "lax": re.compile(rb"\r\n|\r|\n")}


def sent_by_data(content: Sequence[bytes]) -> bytes:
    """What our client puts on the wire behind the reply 354."""
    client = ClientSession("relay.example.net")
    client.receive_data(b"220 mx\r\n250-mx\r\n250-PIPELINING\r\n250 8BITMIME\r\n")
    assert isinstance(client.next_event(), Ready)
    client.send_message("a@b.org", ["c@d.org"], content)
    client.data_to_send()
    client.receive_data(b"250 ok\r\n250 ok\r\n354 go\r\n")
    assert isinstance(client.next_event(), FinalDot)
    assert client.next_event() is NEED_DATA
    wire = client.data_to_send()
    client.receive_data(b"250 ok\r\n")
    assert isinstance(client.next_event(), MessageDone)
    return wire


def read(wire: bytes, hop: str) -> tuple[list[bytes], bytes]:
    """The lines of the message as the hop sees them, unstuffed, and what it would take for commands."""
    lines = []
    place = 0
    for end in LINE_END[hop].finditer(wire):
        line = wire[place : end.start()]
        place = end.end()
        if line == b".":
            return lines, wire[place:]
        lines.append(line.removeprefix(b"."))
    raise AssertionError(f"the {hop} hop waits for the end of {wire!r}")


def assert_one_message(content: bytes) -> None:
    wire = sent_by_data([content[:7], content[7:]])
    strict, lax = read(wire, "strict"), read(wire, "lax")
    assert strict == lax
    assert strict[1] == b""
    assert strict[0] == content.split(b"\r\n")[:-1]


def by_data(middle: bytes) -> bytes:
    return ENVELOPE + b"DATA\r\n" + CARRIER + middle + SMUGGLED + b"\r\n.\r\nNOOP\r\nQUIT\r\n"


def by_bdat(middle: bytes) -> bytes:
    content = CARRIER + middle + SMUGGLED
    cut = len(CARRIER) + len(middle) // 2
    return ENVELOPE + b"BDAT %d\r\n%bBDAT %d LAST\r\n%bNOOP\r\nQUIT\r\n" % (
        cut,
        content[:cut],
        len(content) - cut,
        content[cut:],
    )


def check(served: Any, true_ends: int) -> int:
    """Every message that was taken is one for every hop; no command was taken from a content. How many were taken."""
    taken = [e for e in served.events if isinstance(e, bytes)]
    for content in taken:
        assert_one_message(content)
    senders = [e.address for e in served.events if isinstance(e, MailFrom)]
    assert senders.count("evil@b.org") <= true_ends
    assert served.output.endswith(b"\r\n221 2.0.0 Bye\r\n")
    return len(taken)


MIDDLES = [b"".join(tokens) for length in range(1, 5) for tokens in itertools.product(TOKENS, repeat=length)]


@pytest.mark.slow
def test_every_mixture_by_data(serve: Callable[..., Any]) -> None:
    taken = 0
    for middle in MIDDLES:
        taken += check(serve([by_data(middle)], CONFIG), int(b"\r\n.\r\n" in middle))
    assert 50 < taken < len(MIDDLES) / 2  # those with CRLF, dots and text alone


@pytest.mark.slow
def test_every_mixture_by_bdat(serve: Callable[..., Any]) -> None:
    taken = 0
    for middle in MIDDLES:
        taken += check(serve([by_bdat(middle)], CONFIG), 0)
    assert 50 < taken < len(MIDDLES) / 2


FALSE_ENDS = [
    b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r.\r\n", b"\r\n.\r", b"\n.\r", b"\r.\n", b"\n\n.\n\n", b"\r\r.\r\r",
    b"\r\r\n.\r\r\n", b"\r\n\0.\r\n", b"\r\n.\0\r\n", b"\0\r\n.\n", b"\r\n.\r\0\n", b"\r\n.\n\r\n.\n", b"\n\r.\n\r",
    b"\r\n" + b"x" * 999 + b"\r\n", b"\r\n" + b"." * 1000 + b"\r\n", b"x" * 2000,
]  # fmt: skip


@pytest.mark.parametrize("how", [by_data, by_bdat])
@pytest.mark.parametrize("end", FALSE_ENDS, ids=lambda e: repr(e)[:40])
def test_false_ends_are_refused(end: bytes, how: Callable[[bytes], bytes], feed_all_ways: Callable[..., Any]) -> None:
    served = feed_all_ways(how(end), CONFIG)
    assert check(served, 0) == 0
    replies = served.output.split(b"\r\n")
    assert [r for r in replies if r.startswith(b"550 5.6.0 ")]
    assert replies[-3] == b"250 2.0.0 OK"  # in step: NOOP is the next command


@pytest.mark.parametrize("how", [by_data, by_bdat])
@pytest.mark.parametrize(
    "middle",
    [
        b"\r\n..\r\n",
        b"\r\n. \r\n",
        b"\r\n.\x01\r\n",
        b"\r\nBDAT 3 LAST\r\n",
        b"\r\n.x\r\n",
        b"\r\n" + b"y" * 998 + b"\r\n",
    ],
    ids=lambda e: repr(e)[:40],
)
def test_what_only_looks_like_an_end_is_carried(
    middle: bytes, how: Callable[[bytes], bytes], feed_all_ways: Callable[..., Any]
) -> None:
    assert check(feed_all_ways(how(middle), CONFIG), 0) == 1


MIXTURES = {
    "a dot in a chunk": b"BDAT 5\r\n\r\n.\r\nBDAT 2 LAST\r\nx\n",
    "DATA behind a chunk": b"BDAT 5\r\n\r\n.\r\nDATA\r\nRSET\r\n",
    "a chunk behind DATA": b"DATA\r\nBDAT 5 LAST\r\nabc\r\n.\r\n",
    "a chunk that holds DATA": b"BDAT 15 LAST\r\nDATA\r\nx: y\r\n.\r\n",
    "a chunk that ends before the dot": b"BDAT 3 LAST\r\n\r\n.NOOP\r\n",
    "a chunk in a refused DATA": b"DATA\r\nx\ny\r\nBDAT 25 LAST\r\n.\r\nBDAT 24 LAST\r\nMAIL FROM:<evil@b.org>\r\n",
    "a refused chunk that holds commands": b"RSET\r\nBDAT 24 LAST\r\nMAIL FROM:<evil@b.org>\r\n",
    "a chunk that is too short": b"BDAT 2 LAST\r\nx: y\r\nRSET\r\n",
    "a dot behind the last chunk": b"BDAT 6 LAST\r\nx: y\r\n.\r\nRSET\r\n",
}


@pytest.mark.parametrize("wire", MIXTURES.values(), ids=list(MIXTURES))
def test_mixtures_of_bdat_and_data(wire: bytes, feed_all_ways: Callable[..., Any]) -> None:
    assert check(feed_all_ways(ENVELOPE + wire + b"QUIT\r\n", CONFIG), 0) <= 1
