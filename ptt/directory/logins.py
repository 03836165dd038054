"""The worker's side of a login: ask the control process, and remember for a minute whose password was verified.

A client with a connection for each message would otherwise cost an argon2id computation for each. What is remembered is
an HMAC under a key of this process, never the password. It is bound to the user's ``version``, which changes with the
password and when the user is disabled, so a new commit ends what was remembered. Failures are never remembered.
"""

from __future__ import annotations

import hmac
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import gevent
import gevent.event

from ptt.directory import names
from ptt.directory.reader import UserView
from ptt.net.rpc import RpcError

Login = Literal["ok", "bad", "busy", "unavailable"]

TTL_SECONDS = 60.0
MAX_ENTRIES = 10_000  # users, some 250 bytes each
MAX_BYTES = 1024  # of a user's name or a password; longer is wrong without asking


class Channel(NamedTuple):
    """What a SCRAM exchange needs to know of its connection."""

    client: str  # its address
    plus: bool  # the mechanism is -PLUS
    binding: bytes  # the tls-server-end-point data; b"": -PLUS is not offered


class Proof(NamedTuple):
    """The end of a SCRAM exchange; ``user`` and ``answer`` (server-final-message) only if ``result`` is "ok"."""

    result: Login
    user: str = ""
    answer: bytes = b""


class Caller(Protocol):
    """What is needed of ``ptt.net.rpc.RpcClient``."""

    def call(self, method: str, argument: object = None, timeout: float | None = None) -> Any: ...


class Users(Protocol):
    """What is needed of ``ptt.directory.reader.Snapshot``."""

    def user(self, name: str) -> UserView | None: ...
    def refresh(self) -> bool: ...


class Logins:
    """Verified logins of one worker. ``clock`` in seconds, monotonic.

    An answer that the control process wants to be late (``ptt.directory.throttle``) is late here, in ``sleep``.
    """

    def __init__(
        self,
        client: Caller,
        snapshot: Users,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = gevent.sleep,
    ) -> None:
        self._client = client
        self._snapshot = snapshot
        self._clock = clock
        self._sleep = sleep
        self._key = os.urandom(32)
        self._verified: OrderedDict[str, tuple[bytes, float]] = OrderedDict()  # user -> mark, its end; oldest first
        self._asking: dict[bytes, gevent.event.AsyncResult] = {}

    def verify(self, user: str, password: str, client: str) -> Login:
        """Is this the user's password? ``client``: the address that it comes from.

        "ok"; "bad" (535 5.7.8: also for users who do not exist or are disabled); "busy" (454 4.7.0: too many checks at
        once, or too many failures before); "unavailable" (454 4.7.0: the control process does not answer).
        """
        if (
            not password
            or max(len(user.encode("utf-8", "replace")), len(password.encode("utf-8", "replace"))) > MAX_BYTES
        ):
            return "bad"
        name = names.fold(user)
        view = self._snapshot.user(name)
        mark = self._mark(name, password, view.version if view else "")
        if view is not None and not view.disabled and self._remembers(name, mark):
            return "ok"
        if (waiting := self._asking.get(mark)) is not None:  # the same login on another connection: one check for both
            shared: Login = waiting.get()
            return shared
        answer = self._asking[mark] = gevent.event.AsyncResult()
        result: Login = "unavailable"
        try:
            result = self._ask(name, password, client)
        finally:
            del self._asking[mark]
            answer.set(result)
        return result

    def scram_first(self, channel: Channel, first: bytes) -> bytes | Login:
        """client-first-message -> server-first-message, or why not, as in ``verify``."""
        match self._call("scram_first", [*channel, first]):
            case ["challenge", bytes() as challenge]:
                return challenge
            case other:
                return self._refused(other)

    def scram_final(self, channel: Channel, first: bytes, challenge: bytes, final: bytes) -> Proof:
        """The client's second message, with the two that went before it."""
        match self._call("scram_final", [*channel, first, challenge, final]):
            case ["ok", str() as version, str() as user, bytes() as answer]:
                result = self._in_force(user, version)
                return Proof(result, user, answer) if result == "ok" else Proof(result)
            case other:
                return Proof(self._refused(other))

    def external(self, mailboxes: Sequence[str], authzid: str) -> tuple[Login, str]:
        """The user (folded name) whom a certificate that was verified names, by its rfc822Names (RFC 5280 4.2.1.6).

        ``authzid`` chooses among several; without one there must be only one (RFC 4422 A).
        """
        found = {names.fold(mailbox) for mailbox in mailboxes}
        if authzid:
            found &= {names.fold(authzid)}
        if len(found) != 1:
            return "bad", ""
        view = self._snapshot.user(found.pop())
        return ("bad", "") if view is None or view.disabled else ("ok", view.name)

    def _ask(self, name: str, password: str, client: str) -> Login:
        match self._call("verify", [name, password, client]):
            case ["ok", str() as version]:
                return self._verified_as(name, password, version)
            case other:
                return self._refused(other)

    def _call(self, method: str, argument: list[object]) -> Any:
        """None: no answer."""
        try:
            return self._client.call(method, argument)
        except RpcError:
            return None

    def _refused(self, answer: Any) -> Login:
        match answer:
            case ["bad", (float() | int()) as delay]:
                if delay > 0:
                    self._sleep(delay)
                return "bad"
            case ["busy"]:
                return "busy"
        return "unavailable"

    def _verified_as(self, name: str, password: str, version: str) -> Login:
        result = self._in_force(name, version)
        if result == "ok":
            self._verified[name] = self._mark(name, password, version), self._clock() + TTL_SECONDS
            self._verified.move_to_end(name)
            if len(self._verified) > MAX_ENTRIES:
                self._verified.popitem(last=False)
        return result

    def _in_force(self, name: str, version: str) -> Login:
        """Control found the proof right for ``version`` of the user: is that the one in force here?"""
        view = self._snapshot.user(name)
        if view is None or view.version != version:
            self._snapshot.refresh()  # a commit of this moment
            view = self._snapshot.user(name)
        if view is None or view.version != version:
            return "unavailable"
        if view.disabled:
            return "bad"
        return "ok"

    def _mark(self, name: str, password: str, version: str) -> bytes:
        # Lengths first: no two triples give the same text.
        parts = [x.encode("utf-8", "surrogatepass") for x in (name, password, version)]
        return hmac.digest(self._key, b"".join(len(x).to_bytes(4, "big") + x for x in parts), "sha256")

    def _remembers(self, name: str, mark: bytes) -> bool:
        remembered, end = self._verified.get(name, (b"", 0.0))
        return hmac.compare_digest(remembered, mark) and self._clock() < end
