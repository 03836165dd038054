"""The worker's side of a login: ask the control process, and remember for a minute who was verified.

A client with a connection for each message would otherwise cost an argon2id computation for each. What is remembered is
an HMAC under a key of this process, never the password. It is bound to the user's ``version``, which changes with the
password and when the user is disabled, so a new commit ends what was remembered. Failures are never remembered.
"""

from __future__ import annotations

import hmac
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Literal, Protocol

import gevent.event

from ptt.directory import names
from ptt.directory.reader import UserView
from ptt.net.rpc import RpcError

Login = Literal["ok", "bad", "busy", "unavailable"]

TTL_SECONDS = 60.0
MAX_ENTRIES = 10_000  # users, some 250 bytes each
MAX_BYTES = 1024  # of a user's name or a password; longer is wrong without asking


class Caller(Protocol):
    """What is needed of ``ptt.net.rpc.RpcClient``."""

    def call(self, method: str, argument: object = None, timeout: float | None = None) -> Any: ...


class Users(Protocol):
    """What is needed of ``ptt.directory.reader.Snapshot``."""

    def user(self, name: str) -> UserView | None: ...
    def refresh(self) -> bool: ...


class Logins:
    """Verified logins of one worker. ``clock`` in seconds, monotonic."""

    def __init__(self, client: Caller, snapshot: Users, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._snapshot = snapshot
        self._clock = clock
        self._key = os.urandom(32)
        self._verified: OrderedDict[str, tuple[bytes, float]] = OrderedDict()  # user -> mark, its end; oldest first
        self._asking: dict[bytes, gevent.event.AsyncResult] = {}

    def verify(self, user: str, password: str) -> Login:
        """Is this the user's password?

        "ok"; "bad" (535 5.7.8: also for users who do not exist or are disabled); "busy" (454 4.7.0: too many checks at
        once); "unavailable" (454 4.7.0: the control process does not answer).
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
            result = self._ask(name, password)
        finally:
            del self._asking[mark]
            answer.set(result)
        return result

    def _ask(self, name: str, password: str) -> Login:
        try:
            answer = self._client.call("verify", [name, password])
        except RpcError:
            return "unavailable"
        match answer:
            case ["ok", str() as version]:
                return self._verified_as(name, password, version)
            case ["bad" | "busy" as refusal, *_]:
                return "bad" if refusal == "bad" else "busy"
        return "unavailable"

    def _verified_as(self, name: str, password: str, version: str) -> Login:
        """Control found the password right for ``version`` of the user: is that the one in force here?"""
        view = self._snapshot.user(name)
        if view is None or view.version != version:
            self._snapshot.refresh()  # a commit of this moment
            view = self._snapshot.user(name)
        if view is None or view.version != version:
            return "unavailable"
        if view.disabled:
            return "bad"
        self._verified[name] = self._mark(name, password, version), self._clock() + TTL_SECONDS
        self._verified.move_to_end(name)
        if len(self._verified) > MAX_ENTRIES:
            self._verified.popitem(last=False)
        return "ok"

    def _mark(self, name: str, password: str, version: str) -> bytes:
        # Lengths first: no two triples give the same text.
        parts = [x.encode("utf-8", "surrogatepass") for x in (name, password, version)]
        return hmac.digest(self._key, b"".join(len(x).to_bytes(4, "big") + x for x in parts), "sha256")

    def _remembers(self, name: str, mark: bytes) -> bool:
        remembered, end = self._verified.get(name, (b"", 0.0))
        return hmac.compare_digest(remembered, mark) and self._clock() < end
