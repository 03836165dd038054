"""Every file of tests/dialogs, run against the bare session."""

import base64
import fnmatch
import pathlib

import pytest

from ptt.smtp import NEED_DATA, AuthAttempt, Closed, ServerConfig, ServerSession, StartTls
from ptt.smtp.config import FutureRelease
from ptt.smtp.dialog import parse
from ptt.smtp.replies import AUTH_FAILED
from ptt.smtp.reply import ReplyReader

DIALOGS = sorted((pathlib.Path(__file__).parent.parent / "dialogs").glob("*.smtp"))


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


VARIABLES = {
    "sender": "alice@example.org",
    "recipient": "bob@example.net",
    "auth": b64("\0alice@example.org\0secret"),
    "wrong": b64("\0alice@example.org\0wrong"),
    "user": b64("alice@example.org"),
    "password": b64("secret"),
}


def advance(session: ServerSession) -> str:
    """Decide until the session wants bytes, TLS or is over."""
    while True:
        event = session.next_event()
        if event is NEED_DATA:
            return "C"
        if isinstance(event, StartTls):
            return "TLS"
        if isinstance(event, Closed):
            return "CLOSED"
        if isinstance(event, AuthAttempt) and event.password.reveal() != "secret":
            session.refuse(AUTH_FAILED)
        else:
            session.accept()


@pytest.mark.parametrize("path", DIALOGS, ids=lambda p: p.stem)
@pytest.mark.parametrize("step_size", [1, 7, 1 << 20])
def test_dialog(path: pathlib.Path, step_size: int) -> None:
    dialog = parse(path.read_text(encoding="utf-8"), VARIABLES)
    config = ServerConfig(
        "mx.example.org",
        starttls=True,
        auth=("PLAIN", "LOGIN"),
        require_tls=True,
        require_auth=True,
        smtputf8=True,
        dsn=True,
        chunking=True,
        binarymime=True,
        limits=True,
        future_release=FutureRelease(86_400, lambda: 1_800_000_000.0),
        mt_priority=True,
        **dialog.settings,  # type: ignore[arg-type]
    )
    session = ServerSession(config, tls=dialog.tls)
    reader = ReplyReader()
    state = advance(session)
    for step in dialog.steps:
        reader.feed(session.data_to_send())
        where = f"{path.name}:{step.line}"
        if step.kind == "S":
            reply = reader.next()
            assert reply is not None, f"{where}: no reply"
            assert fnmatch.fnmatchcase(str(reply), step.pattern), f"{where}: {reply}"
            continue
        assert reader.empty, f"{where}: unexpected {reader.next()}"
        assert state == step.kind, f"{where}: the session wants {state}"
        if step.kind == "TLS":
            session.tls_started()
            state = advance(session)
        # what is pipelined behind STARTTLS comes in one piece: that it was pipelined is the point
        size = len(step.data) if b"STARTTLS\r\n" in step.data else step_size
        for i in range(0, len(step.data), max(size, 1)):
            session.receive_data(step.data[i : i + size])
            state = advance(session)
    reader.feed(session.data_to_send())
    assert reader.empty
    assert state == "CLOSED"


def test_there_are_dialogs() -> None:
    assert len(DIALOGS) >= 23


def test_a_line_that_is_no_step() -> None:
    with pytest.raises(ValueError, match="line 2"):
        parse("# fine\nHELO\n", {})
