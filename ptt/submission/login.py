"""AUTH of one session: which mechanisms are offered, and who the client is. Passwords and proofs are judged elsewhere.

Whatever is wrong (no such user, disabled, wrong password, wrong channel, a certificate that names nobody), the client
gets the same reply; "454" says that nothing was looked at.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from ptt.directory import names
from ptt.directory.logins import Channel, Login, Proof
from ptt.net.tls import peer_mailboxes
from ptt.smtp.config import ServerConfig
from ptt.smtp.events import AuthAttempt, AuthStep
from ptt.smtp.replies import AUTH_FAILED
from ptt.smtp.reply import Reply
from ptt.smtp.sasl import EXTERNAL, SCRAM, SCRAM_PLUS

MECHANISMS: Final = (SCRAM, "PLAIN", "LOGIN")  # always; the order of the offer is our preference

AUTH_BUSY: Final = Reply(454, "4.7.0", "too many logins at once, try again later")
BAD_AUTHZID: Final = Reply(535, "5.7.8", "one user cannot act as another")


class Verifies(Protocol):
    """What is asked of ``ptt.directory.logins.Logins``."""

    def verify(self, user: str, password: str, client: str) -> Login: ...
    def scram_first(self, channel: Channel, first: bytes) -> bytes | Login: ...
    def scram_final(self, channel: Channel, first: bytes, challenge: bytes, final: bytes) -> Proof: ...
    def external(self, mailboxes: Sequence[str], authzid: str) -> tuple[Login, str]: ...


class Outcome(NamedTuple):
    """The end of an attempt. ``user``: folded name if ``result`` is "ok", else what the client said, or "" """

    mechanism: str
    user: str
    result: Login
    reply: Reply | None  # None: the usual 235


@functools.lru_cache(maxsize=64)  # the combinations of a few listeners
def offering(config: ServerConfig, plus: bool, external: bool) -> ServerConfig:
    """``config`` with the mechanisms that this connection allows; one without AUTH as it is."""
    if not config.auth or not (plus or external):
        return config
    more = (EXTERNAL,) * external + (SCRAM_PLUS,) * plus
    return dataclasses.replace(config, auth=more + config.auth)


class SessionLogin:
    """One session's AUTH, after the handshake.

    ``client``: its address; ``binding``: the channel's tls-server-end-point data, b"" if there is none;
    ``certificate``: what the client has shown (DER), verified by an authority for users; None: nothing.
    """

    def __init__(self, logins: Verifies, client: str, binding: bytes = b"", certificate: bytes | None = None) -> None:
        self._logins = logins
        self._client = client
        self._binding = binding
        self._mailboxes = peer_mailboxes(certificate) if certificate else ()
        self._said: list[bytes] = []  # of a SCRAM exchange: the client's first message, our challenge
        self._proof: Proof | None = None  # it was right; the client has to hear that we know the password too

    def offer(self, config: ServerConfig) -> ServerConfig:
        return offering(config, bool(self._binding), bool(self._mailboxes))

    def answer(self, event: AuthAttempt | AuthStep) -> Outcome | bytes:
        """The outcome, or the next challenge."""
        if isinstance(event, AuthAttempt):
            return self._password(event)
        if event.mechanism == EXTERNAL:
            return self._external(event)
        return self._scram(event)

    def _password(self, event: AuthAttempt) -> Outcome:
        user = names.fold(event.authcid)
        if event.authzid and names.fold(event.authzid) != user:
            return Outcome(event.mechanism, event.authcid, "bad", BAD_AUTHZID)
        result = self._logins.verify(event.authcid, event.password.reveal(), self._client)
        return _outcome(event.mechanism, user if result == "ok" else event.authcid, result)

    def _external(self, event: AuthStep) -> Outcome:
        try:
            authzid = event.response.decode("utf-8")
        except UnicodeDecodeError:
            return _outcome(EXTERNAL, "", "bad")
        result, user = self._logins.external(self._mailboxes, authzid)
        return _outcome(EXTERNAL, user or authzid or ",".join(self._mailboxes), result)

    def _scram(self, event: AuthStep) -> Outcome | bytes:
        mechanism, response, first = event
        if first:  # what an exchange that was cancelled left behind is forgotten
            self._said, self._proof = [], None
        if self._proof is not None:
            proof, self._proof = self._proof, None
            if not response:  # RFC 4954 4: the answer to a challenge that asks nothing
                return _outcome(mechanism, proof.user, "ok")
            return _outcome(mechanism, proof.user, "bad")
        channel = Channel(self._client, mechanism == SCRAM_PLUS, self._binding)
        if not self._said:
            if not response:  # no initial response: the client waits for an empty challenge, which it has had
                return _outcome(mechanism, "", "bad")
            challenge = self._logins.scram_first(channel, response)
            if not isinstance(challenge, bytes):
                return _outcome(mechanism, _shown(response), challenge)
            self._said = [response, challenge]
            return challenge
        said, self._said = self._said, []
        proof = self._logins.scram_final(channel, said[0], said[1], response)
        if proof.result != "ok":
            return _outcome(mechanism, _shown(said[0]), proof.result)
        self._proof = proof
        return proof.answer


def _shown(first: bytes) -> str:
    """For the log: who a client-first-message says it is."""
    _, _, name = first.decode("utf-8", "replace").partition(",n=")
    return name.partition(",")[0]


def _outcome(mechanism: str, user: str, result: Login) -> Outcome:
    reply = None if result == "ok" else AUTH_FAILED if result == "bad" else AUTH_BUSY
    return Outcome(mechanism, user, result, reply)
