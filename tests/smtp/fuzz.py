"""Fuzz both sessions: conversations from ``session_corpus``, mutated and cut at random. ``fuzz.py SECONDS [SEED]``.

The server raises nothing, says only well-formed replies, keeps its memory bounded, answers alike whatever the cuts,
and gives as text only what every next hop reads alike. The client raises nothing but ProtocolError and settles each
message once. The first input that breaks this is shown, as it is to be put into the corpus.
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import random
import re
import time

from ptt.smtp import (
    NEED_DATA,
    AuthAttempt,
    ClientSession,
    Closed,
    FinalDot,
    MailParams,
    MessageComplete,
    MessageDone,
    ProtocolError,
    Ready,
    Reply,
    ServerConfig,
    ServerSession,
    StartTls,
    TlsReady,
)
from ptt.smtp.config import FutureRelease
from ptt.smtp.events import AuthStep
from ptt.smtp.reply import MAX_REPLY_BYTES
from ptt.smtp.server import MAX_AUTH_LINE

CORPUS = pathlib.Path(__file__).parent / "session_corpus"
CONFIG = ServerConfig(
    "mx.example.org",
    max_message_bytes=2000,
    max_recipients=3,
    max_errors=30,
    starttls=True,
    auth=("PLAIN", "LOGIN"),
    smtputf8=True,
    dsn=True,
    chunking=True,
    binarymime=True,
    limits=True,
    future_release=FutureRelease(3600, lambda: 1_893_456_000.0),
    mt_priority=True,
)
TOKENS = (
    *(b"\r", b"\n", b"\r\n", b".", b"\0", b" ", b"\r\n.\r\n", b"\n.\n", b"x" * 999, b"\xff", "ü".encode(), b"9" * 21),
    *(b"BDAT 5\r\n", b"BDAT 0 LAST\r\n", b"LAST", b"BODY=BINARYMIME", b"SMTPUTF8", b"DATA\r\n", b"RSET\r\n"),
    *(b"MAIL FROM:<a@b.org>\r\n", b"RCPT TO:<c@d.org>\r\n"),
    *(b"250 ok\r\n", b"250-", b"354 go\r\n", b"421 away\r\n", b"550 5.1.1 no\r\n"),
)
REPLY = re.compile(rb"[2-5][0-9][0-9][ -][\x20-\x7e]*\Z")
BARE = re.compile(rb"\r(?!\n)|(?<!\r)\n|\0")


def mutated(seed: bytes, rng: random.Random) -> bytes:
    data = bytearray(seed)
    for _ in range(rng.randint(0, 6)):
        at = rng.randint(0, len(data))
        kind = rng.randint(0, 4)
        if kind == 0:
            data[at:at] = rng.choice(TOKENS)
        elif kind == 1:
            del data[at : at + rng.randint(1, 12)]
        elif kind == 2 and at < len(data):
            data[at] = rng.randint(0, 255)
        elif kind == 3:
            data[at:at] = data[at : at + rng.randint(1, 60)]
        elif at < len(data) and chr(data[at]).isdigit():
            data[at] = rng.choice(b"0123456789")
    return bytes(data)


def cuts(data: bytes, rng: random.Random) -> list[bytes]:
    most = rng.choice((1, 3, 40, 1000))
    pieces = []
    while data:
        size = rng.randint(1, most)
        pieces.append(data[:size])
        data = data[size:]
    return pieces


def serve(pieces: list[bytes], seed: int) -> bytes:
    """What the server says. Decisions depend on ``seed`` and on how many there were, not on the cuts."""
    session = ServerSession(CONFIG, tls=bool(seed & 1))
    rng = random.Random(seed)
    said = b""
    for piece in [*pieces, b""]:
        session.receive_data(piece)
        while (event := session.next_event()) is not NEED_DATA and not isinstance(event, Closed):
            code = rng.choice((0, 0, 0, 0, 0, 0, 450, 550))
            if isinstance(event, MessageComplete):
                judge(event)
            if isinstance(event, StartTls):
                session.tls_started()
            elif isinstance(event, AuthStep) or (code and not isinstance(event, AuthAttempt)):
                session.refuse(Reply(code or 535, "5.0.0" if code != 450 else "4.0.0", "no"))
            else:
                session.accept()
        said += session.data_to_send()
        if len(session._in.buffer) > MAX_AUTH_LINE + 1 or session._intake.held > CONFIG.max_message_bytes:
            raise AssertionError("memory is not bounded")
    for line in said.split(b"\r\n")[:-1]:
        if not REPLY.match(line):
            raise AssertionError(f"no reply: {line!r}")
    if not isinstance(session.next_event(), Closed) or len(session.conduct.take_refused()) > 60:
        raise AssertionError("the session goes on behind the end of the stream")
    return said


def judge(event: MessageComplete) -> None:
    """Is it what it says it is?"""
    content = b"".join(event.chunks)
    text = content.partition(b"\r\n\r\n")[0] if event.binary else content
    if len(content) != event.size or len(content) > CONFIG.max_message_bytes + 2 or BARE.search(text):
        raise AssertionError(f"taken: {content!r}")
    if not event.binary and content and not content.endswith(b"\r\n"):
        raise AssertionError(f"the last line has no end: {content!r}")


def send(pieces: list[bytes], seed: int) -> None:
    """A client with two messages to send, to a server that says ``pieces``."""
    rng = random.Random(seed)
    client = ClientSession("c")
    for piece in [*pieces, b""]:
        client.receive_data(piece)
        while (event := client.next_event()) is not NEED_DATA and not isinstance(event, Closed):
            if isinstance(event, TlsReady):
                client.tls_started()
            elif isinstance(event, MessageDone) and len(event.results) != 2:
                raise AssertionError("a recipient without a result")
            elif isinstance(event, FinalDot) and not set(event.accepted) <= {0, 1}:
                raise AssertionError("nobody's recipient")
            if isinstance(event, Ready | MessageDone) and client.reusable:
                offered = client.capabilities
                chunk = rng.choice((0, 3, 1000)) if offered.chunking else 0
                body = "BINARYMIME" if chunk and offered.binarymime else "8BITMIME"
                content = [b"A: b\r\n\r\n", b".x\r\n" * rng.randint(0, 3)]
                mail = MailParams(body=body)
                client.send_message("a@b", ["c@d", "e@f"], content, mail, chunk=chunk, at_once=bool(seed & 1))
        client.data_to_send()
        if len(client._in._buffer) + client._in._size > MAX_REPLY_BYTES + 5000:
            raise AssertionError("memory is not bounded")
    if len(client.interrupted()) not in (0, 2) or not client.phase:
        raise AssertionError("what is known of an interrupted message")


def try_server(data: bytes, rng: random.Random, seed: int) -> None:
    said = serve(cuts(data, rng), seed)
    # where bytes come in clear behind STARTTLS is the point there, and noise at the end of the stream never ends
    if b"STARTTLS" not in data.upper() and serve([data], seed) != said:
        raise AssertionError("the cuts make a difference")


def try_client(data: bytes, rng: random.Random, seed: int) -> None:
    with contextlib.suppress(ProtocolError):
        send(cuts(data, rng), seed)


def fuzz(seconds: float, seed: int) -> int:
    """How many conversations were tried. Raises what the first one that fails raised."""
    sides = {"server": try_server, "client": try_client}
    seeds = [(side, path.read_bytes()) for side in sides for path in sorted((CORPUS / side).iterdir())]
    rng = random.Random(seed)
    end = time.monotonic() + seconds
    done = 0
    while time.monotonic() < end or done < len(seeds):
        side, data = seeds[done % len(seeds)]
        if done >= len(seeds):  # at first all as they are
            data = mutated(data, rng)
        chosen = rng.getrandbits(32)
        try:
            sides[side](data, rng, chosen)
        except BaseException as e:
            e.add_note(f"{side}, decisions {chosen}: {data!r}")
            raise
        done += 1
    return done


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", type=float)
    parser.add_argument("seed", type=int, nargs="?", default=1)
    chosen_by = parser.parse_args()
    print(fuzz(chosen_by.seconds, chosen_by.seed), "conversations, none failed")
