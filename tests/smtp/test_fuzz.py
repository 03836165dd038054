"""Any bytes at all: the server never raises, the client raises nothing but ProtocolError, memory stays bounded."""

import contextlib
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptt.smtp import (
    NEED_DATA,
    ClientSession,
    Closed,
    MessageDone,
    ProtocolError,
    Ready,
    Reply,
    ServerConfig,
    ServerSession,
    StartTls,
    TlsReady,
)
from ptt.smtp.reply import MAX_REPLY_BYTES
from ptt.smtp.server import MAX_AUTH_LINE

CONFIG = ServerConfig(
    "mx.example.org",
    max_message_bytes=2000,
    max_recipients=3,
    starttls=True,
    auth=("PLAIN", "LOGIN"),
    smtputf8=True,
    dsn=True,
    chunking=True,
    binarymime=True,
    max_errors=50,
)
# Lines that lead deep into the session, mixed with noise.
COMMANDS = st.sampled_from(
    [
        b"EHLO c\r\n",
        b"HELO c\r\n",
        b"MAIL FROM:<a@b.org>\r\n",
        "MAIL FROM:<ä@b.org> SMTPUTF8 RET=HDRS SIZE=10\r\n".encode(),
        b"RCPT TO:<c@d.org>\r\n",
        b'RCPT TO:<"c d"@[IPv6:::1]> NOTIFY=NEVER\r\n',
        b"DATA\r\n",
        b"x\r\n.\r\n",
        b".\r\n",
        b"\r\n.\r",
        b"..x\r\n",
        b"MAIL FROM:<a@b.org> BODY=BINARYMIME\r\n",
        b"BDAT 3\r\nab\r",
        b"BDAT 3 LAST\r\n\nx\r",
        b"BDAT 0 LAST\r\n",
        b"BDAT 9999\r\n",
        b"BDAT x\r\n",
        b"AUTH PLAIN AHUAcA==\r\n",
        b"AUTH LOGIN\r\n",
        b"dQ==\r\n",
        b"*\r\n",
        b"STARTTLS\r\n",
        b"RSET\r\n",
        b"NOOP\r\n",
        b"QUIT\r\n",
        b"\r",
        b"\n",
        b"x" * 700,
        b"y" * 13_000,
        b"z" * 900 + b"\r\n",
    ]
)
NOISE = st.one_of(COMMANDS, COMMANDS, COMMANDS, st.binary(max_size=20))
REPLIES = st.sampled_from(
    [
        b"220 mx\r\n",
        b"250 ok\r\n",
        b"250-mx\r\n250-PIPELINING\r\n250-AUTH PLAIN LOGIN\r\n250 STARTTLS\r\n",
        b"354 go\r\n",
        b"334 VXNlcg==\r\n",
        b"235 ok\r\n",
        b"421 away\r\n",
        b"450 later\r\n",
        b"550 5.1.1 no\r\n",
        b"550-no\r\n",
        b"250",
        b"\r\n",
        b"250-" + b"x" * 1000 + b"\r\n",
    ]
)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(st.lists(NOISE, max_size=30), st.booleans(), st.lists(st.sampled_from([0, 0, 0, 421, 450, 550]), max_size=20))
def test_server_takes_anything(pieces: list[bytes], tls: bool, decisions: list[int]) -> None:
    session = ServerSession(CONFIG, tls=tls)
    said = iter(decisions)
    for piece in [*pieces, b""]:
        session.receive_data(piece)
        while (event := session.next_event()) is not NEED_DATA and not isinstance(event, Closed):
            repr(event)
            if isinstance(event, StartTls):
                session.tls_started()
            elif code := next(said, 0):
                session.refuse(Reply(code, f"{code // 100}.0.0", "no"))
            else:
                session.accept()
        assert len(session._in.buffer) <= MAX_AUTH_LINE + 1
        assert session._intake.held <= CONFIG.max_message_bytes
        for line in session.data_to_send().split(b"\r\n")[:-1]:
            assert line[:3].isdigit()
            assert line.isascii()
    assert isinstance(session.next_event(), Closed)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(st.lists(st.one_of(REPLIES, REPLIES, REPLIES, st.binary(max_size=20)), max_size=30), st.booleans())
def test_client_raises_nothing_but_protocol_error(pieces: list[bytes], starttls: bool) -> None:
    client = ClientSession("c")
    with contextlib.suppress(ProtocolError):
        for piece in [*pieces, b""]:
            client.receive_data(piece)
            while (event := client.next_event()) is not NEED_DATA and not isinstance(event, Closed):
                if isinstance(event, TlsReady):
                    client.tls_started()
                elif isinstance(event, MessageDone):
                    assert len(event.results) == 2
                    if client.reusable:
                        client.quit()
                elif isinstance(event, Ready) and starttls and not client.tls:
                    client.start_tls()
                elif isinstance(event, Ready):
                    client.send_message("a@b.org", ["c@d.org", "e@f.org"], [b"x\r\n"])
            client.data_to_send()
            assert len(client._in._buffer) + client._in._size <= MAX_REPLY_BYTES + 5000
    assert client.phase
    assert len(client.interrupted()) in (0, 2)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.lists(NOISE, max_size=12), st.integers(1, 30))
def test_the_cuts_make_no_difference(pieces: list[bytes], size: int) -> None:
    """TLS apart, where it is the point: the same bytes in other pieces give the same replies."""
    wire = b"".join(pieces).replace(b"STARTTLS", b"STARTXYZ")

    def run(chunks: list[bytes]) -> bytes:
        session = ServerSession(CONFIG, tls=True)
        output = b""
        for chunk in chunks:
            if chunk:
                session.receive_data(chunk)
            while (event := session.next_event()) is not NEED_DATA and not isinstance(event, Closed):
                session.accept()
            output += session.data_to_send()
        return output

    assert run([wire[i : i + size] for i in range(0, len(wire), size)] or [b""]) == run([wire])


@pytest.mark.slow
def test_the_corpus_of_conversations() -> None:
    """Each as it is, then mutated ones for a second; longer by hand: ``fuzz.py SECONDS SEED``."""
    script = pathlib.Path(__file__).parent / "fuzz.py"
    done = subprocess.run([sys.executable, script, "1"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "none failed" in done.stdout


@pytest.mark.parametrize("name", ["cpython_email", "mail_parser", "ruby_mail"])
def test_messages_of_others_pass_unchanged(name: str, corpora: Any, serve: Callable[..., Any]) -> None:
    """Bodies that we did not write, stuffed by the client's half and unstuffed by the server's."""
    from ptt.smtp.content import MAX_TEXT_LINE
    from ptt.smtp.dotstuff import stuff

    files = [p for p in sorted((corpora / name).rglob("*")) if p.is_file()]
    assert len(files) > 10
    for path in files:
        content = path.read_bytes().replace(b"\r\n", b"\n").replace(b"\r", b"").replace(b"\n", b"\r\n")
        wire = b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<a@b.org>\r\nDATA\r\n" + b"".join(stuff([content])) + b".\r\n"
        got = [e for e in serve([wire[i : i + 1000] for i in range(0, len(wire), 1000)]).events if isinstance(e, bytes)]
        if max(map(len, content.split(b"\r\n"))) > MAX_TEXT_LINE:
            assert not got
        else:
            assert got == [content if content.endswith(b"\r\n") or not content else content + b"\r\n"], path
