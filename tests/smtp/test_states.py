"""The whole product of states and commands."""

import pathlib

import pytest

from ptt.smtp import NEED_DATA, MessageComplete, ServerConfig, ServerSession, StartTls
from ptt.smtp.states import TRANSITIONS, State, Verb, markdown

CONFIG = ServerConfig("mx.example.org", starttls=True, auth=("PLAIN",), chunking=True)
# How to come into each state in which lines are commands.
WAY = {
    State.START: b"",
    State.READY: b"EHLO c\r\n",
    State.MAIL: b"EHLO c\r\nMAIL FROM:<a@b.org>\r\n",
    State.RCPT: b"EHLO c\r\nMAIL FROM:<a@b.org>\r\nRCPT TO:<c@d.org>\r\n",
    State.CHUNKED: b"EHLO c\r\nMAIL FROM:<a@b.org>\r\nRCPT TO:<c@d.org>\r\nBDAT 6\r\nA: b\r\n",
}
LINE = {
    Verb.EHLO: b"EHLO c",
    Verb.HELO: b"HELO c",
    Verb.AUTH: b"AUTH PLAIN",
    Verb.MAIL: b"MAIL FROM:<a@b.org>",
    Verb.RCPT: b"RCPT TO:<c@d.org>",
    Verb.VRFY: b"VRFY c@d.org",
    Verb.BDAT: b"BDAT 0",
}


def run(session: ServerSession, wire: bytes) -> bytes:
    if wire:
        session.receive_data(wire)
    while (event := session.next_event()) is not NEED_DATA:
        if session.state is State.CLOSED or isinstance(event, StartTls):
            break
        session.accept()
        assert not isinstance(event, MessageComplete)
    return session.data_to_send()


@pytest.mark.parametrize("state", list(WAY))
@pytest.mark.parametrize("verb", list(Verb))
def test_every_command_in_every_state(state: State, verb: Verb) -> None:
    session = ServerSession(CONFIG, tls=verb is Verb.AUTH)
    run(session, WAY[state])
    assert session.state is state
    reply = run(session, LINE.get(verb, verb.name.encode()) + b"\r\n")
    expected = TRANSITIONS.get((state, verb))
    if expected is None:
        assert reply.startswith(b"503 5.5.1 ")
        assert session.state is state
    else:
        assert not reply.startswith(b"503")
        assert session.state is expected
        assert reply[:1] in (b"2", b"3") or verb is Verb.EXPN


@pytest.mark.parametrize("state", [s for s in State if s not in WAY])
def test_no_command_is_taken_where_lines_are_none(state: State) -> None:
    assert not [pair for pair in TRANSITIONS if pair[0] is state]


def test_the_documentation_shows_this_table() -> None:
    text = (pathlib.Path(__file__).parent.parent.parent / "docs" / "smtp.md").read_text(encoding="utf-8")
    assert markdown() in text
