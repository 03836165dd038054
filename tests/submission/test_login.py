"""AUTH of one session: what is offered, who acts as whom, and that a cancelled exchange leaves nothing behind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from ptt.directory.logins import Channel, Login, Proof
from ptt.net import tls
from ptt.smtp.config import ServerConfig
from ptt.smtp.events import AuthAttempt, AuthStep
from ptt.smtp.sasl import EXTERNAL, SCRAM, SCRAM_PLUS, Secret
from ptt.submission import login
from ptt.submission.login import MECHANISMS, Outcome, SessionLogin, offering

CLIENT = "192.0.2.1"
ANNA = "anna@a.example"
FIRST = b"n,,n=anna@a.example,r=abc"


class Logins:
    """The control process and the snapshot: one user, whose proof is b"proof"."""

    def __init__(self, result: Login = "ok") -> None:
        self.result: Login = result
        self.asked: list[Any] = []

    def verify(self, user: str, password: str, client: str) -> Login:
        self.asked.append((user, password, client))
        return self.result

    def scram_first(self, channel: Channel, first: bytes) -> bytes | Login:
        self.asked.append((channel, first))
        return b"challenge" if self.result == "ok" else self.result

    def scram_final(self, channel: Channel, first: bytes, challenge: bytes, final: bytes) -> Proof:
        self.asked.append((channel, first, challenge, final))
        return Proof("ok", ANNA, b"v=") if final == b"proof" else Proof("bad")

    def external(self, mailboxes: Sequence[str], authzid: str) -> tuple[Login, str]:
        self.asked.append((mailboxes, authzid))
        return ("ok", ANNA) if mailboxes and authzid in ("", ANNA) else ("bad", "")


def test_the_offer_is_what_the_connection_allows() -> None:
    config = ServerConfig("mx.example.org", auth=MECHANISMS)
    assert offering(config, plus=False, external=False) is config
    assert offering(config, plus=True, external=False).auth == (SCRAM_PLUS, *MECHANISMS)
    assert offering(config, plus=True, external=True).auth == (EXTERNAL, SCRAM_PLUS, *MECHANISMS)
    assert offering(config, plus=True, external=True) is offering(config, plus=True, external=True)
    nothing = ServerConfig("mx.example.org")
    assert offering(nothing, plus=True, external=True) is nothing


@pytest.mark.parametrize(
    ("authzid", "code"), [("", 0), (ANNA, 0), ("ANNA@A.example", 0), ("bob@a.example", 535), ("anna", 535)]
)
def test_nobody_acts_as_somebody_else(authzid: str, code: int) -> None:
    logins = Logins()
    said = SessionLogin(logins, CLIENT).answer(AuthAttempt("PLAIN", "Anna@a.example", authzid, Secret("secret")))
    assert isinstance(said, Outcome)
    assert (said.reply.code if said.reply else 0) == code
    assert logins.asked == ([] if code else [("Anna@a.example", "secret", CLIENT)])
    assert said.user == ("Anna@a.example" if code else ANNA)


@pytest.mark.parametrize(("result", "code"), [("bad", 535), ("busy", 454), ("unavailable", 454)])
def test_replies(result: Login, code: int) -> None:
    one = SessionLogin(Logins(result), CLIENT)
    for event in (AuthAttempt("PLAIN", ANNA, "", Secret("x")), AuthStep(SCRAM, FIRST, first=True)):
        said = one.answer(event)
        assert isinstance(said, Outcome)
        assert said.reply is not None
        assert (said.user, said.result, said.reply.code) == (ANNA, result, code)


def test_an_exchange() -> None:
    logins = Logins()
    one = SessionLogin(logins, CLIENT, b"binding")
    channel = Channel(CLIENT, plus=True, binding=b"binding")
    assert one.answer(AuthStep(SCRAM_PLUS, FIRST, first=True)) == b"challenge"
    assert one.answer(AuthStep(SCRAM_PLUS, b"proof", first=False)) == b"v="
    assert one.answer(AuthStep(SCRAM_PLUS, b"", first=False)) == Outcome(SCRAM_PLUS, ANNA, "ok", None)
    assert logins.asked == [(channel, FIRST), (channel, FIRST, b"challenge", b"proof")]


def test_the_last_response_is_empty() -> None:
    one = SessionLogin(Logins(), CLIENT)
    for response in (FIRST, b"proof"):
        one.answer(AuthStep(SCRAM, response, first=response == FIRST))
    said = one.answer(AuthStep(SCRAM, b"x", first=False))
    assert isinstance(said, Outcome)
    assert said.result == "bad"


@pytest.mark.parametrize("before", [[FIRST], [FIRST, b"proof"]])
def test_nothing_is_left_of_an_exchange_that_was_cancelled(before: list[bytes]) -> None:
    one = SessionLogin(Logins(), CLIENT)
    for response in before:
        assert isinstance(one.answer(AuthStep(SCRAM, response, first=response == FIRST)), bytes)
    said = one.answer(AuthStep(SCRAM, b"", first=True))
    assert isinstance(said, Outcome)
    assert said.result == "bad"
    assert one.answer(AuthStep(SCRAM, FIRST, first=True)) == b"challenge"


def test_external(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login, "peer_mailboxes", lambda _certificate: (ANNA,))
    logins = Logins()
    one = SessionLogin(logins, CLIENT, certificate=b"der")
    assert one.answer(AuthStep(EXTERNAL, b"", first=True)) == Outcome(EXTERNAL, ANNA, "ok", None)
    for response in (b"bob@a.example", b"\xff"):
        said = one.answer(AuthStep(EXTERNAL, response, first=True))
        assert isinstance(said, Outcome)
        assert said.result == "bad"
    assert logins.asked == [((ANNA,), ""), ((ANNA,), "bob@a.example")]


def test_a_certificate_that_is_none_names_nobody() -> None:
    assert tls.peer_mailboxes(b"nonsense") == ()
