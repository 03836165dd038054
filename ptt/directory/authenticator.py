"""Logins in the control process: passwords and SCRAM, with the back-off against those who try. The calls of workers.

========================================================================  ==========================================
call and argument                                                         answer
========================================================================  ==========================================
verify [user, password, client]                                           ["ok", version], ["bad", seconds], ["busy"]
scram_first [client, plus, binding, first]                                ["challenge", message] or as above
scram_final [client, plus, binding, first, challenge, final]              ["ok", version, user, message] or as above
========================================================================  ==========================================

``seconds``: how long the worker is to wait before it answers the client. The control process itself never holds a call
back: workers have a bounded number of them. "busy" is said to everybody whose attempt was not looked at, because
others were too many or because too many failed before: nobody learns which, or whether the user exists.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from ptt.directory import names
from ptt.directory.exchange import Channel, Exchanges
from ptt.directory.nobody import SECRET_BYTES, Nobody, keep_secret
from ptt.directory.passwords import Found, Result, Verifier
from ptt.directory.throttle import Throttle, network_of
from ptt.directory.verifiers import USUAL, VerifierFile, Verifiers
from ptt.log import Log
from ptt.metrics import Counters
from ptt.net.rpc import RpcError
from ptt.smtp.errors import ProtocolError

SALTS_FILE = "salts-of-nobody"  # in the control process's own directory
MAX_LOGGED = 320  # characters of a user's name in the log

Answer = list[str | float | bytes]


class Authenticator:
    """See the module. ``clock``: monotonic seconds. ``use`` says which verifiers are in force."""

    def __init__(self, log: Log, counters: Counters, clock: Callable[[], float]) -> None:
        self._log = log
        self._counters = counters
        self._file: VerifierFile | None = None
        self._nobody = Nobody(os.urandom(SECRET_BYTES))
        self._throttle = Throttle(clock)
        self._exchanges = Exchanges(self._of, self._nobody)
        self.verifier = Verifier(self._found)
        self.close = self.verifier.close

    def start(self, directory: str) -> None:
        """Read the secret of who does not exist, which is kept in ``directory``. Raises OSError."""
        self._nobody = Nobody(keep_secret(os.path.join(directory, SALTS_FILE)))
        self._exchanges = Exchanges(self._of, self._nobody)

    def use(self, file: VerifierFile | None) -> None:
        """These verifiers are in force from now on. Raises lmdb.Error, and leaves those that were."""
        self._nobody.like = file.parameters() if file is not None else USUAL
        self._file = file

    # -- passwords -------------------------------------------------------------------------------------------------

    def rpc_verify(self, argument: Any) -> Answer:
        """Raises RpcError."""
        match argument:
            case [str() as user, str() as password, str() as client]:
                pass
            case _:
                raise RpcError("verify takes [user, password, client]")
        name, network = names.fold(user), network_of(client)
        if self._throttle.refuses(name, network):
            return self._throttled()
        before = self._of(name)
        result = self.verify(name, password, network)
        if result == "busy":
            return ["busy"]
        return self._ended(name, network, before if result == "ok" else None, b"")

    def verify(self, user: str, password: str, network: str = "") -> Result:
        """Check a user's password (folded name). Unknown and disabled users take as long as a wrong password."""
        result = self.verifier.verify(user, password, network, self._throttle.known(user, network))
        self._counters.count("ptt_password_checks_total", result)
        return result

    # -- SCRAM -----------------------------------------------------------------------------------------------------

    def rpc_scram_first(self, argument: Any) -> Answer:
        """Raises RpcError."""
        match argument:
            case [str() as client, bool() as plus, bytes() as binding, bytes() as first]:
                pass
            case _:
                raise RpcError("scram_first takes [client, plus, binding, first]")
        network = network_of(client)
        try:
            user = self._exchanges.user(first)
            if self._throttle.refuses(user, network):
                return self._throttled()
            challenge = self._exchanges.start(first, Channel(plus, binding))
        except ProtocolError:
            return self._ended("", network, None, b"")
        return ["challenge", challenge] if challenge is not None else self._ended(user, network, None, b"")

    def rpc_scram_final(self, argument: Any) -> Answer:
        """Raises RpcError."""
        match argument:
            case [
                str() as client,
                bool() as plus,
                bytes() as binding,
                bytes() as first,
                bytes() as challenge,
                bytes() as final,
            ]:
                pass
            case _:
                raise RpcError("scram_final takes [client, plus, binding, first, challenge, final]")
        network = network_of(client)
        user = ""
        try:
            user = self._exchanges.user(first)
            if self._throttle.refuses(user, network):  # others may have failed since
                return self._throttled()
            done = self._exchanges.finish(first, challenge, final, Channel(plus, binding))
        except ProtocolError:
            return self._ended(user, network, None, b"")
        return self._ended(user, network, self._of(user) if done.proved else None, done.answer)

    # -- what both end in ------------------------------------------------------------------------------------------

    def _ended(self, user: str, network: str, verified: Verifiers | None, answer: bytes) -> Answer:
        """``verified``: the user who proved the password; None: nobody did. ``user`` "": not even a name was said."""
        if verified is not None:
            self._throttle.succeeded(user, network)
            return ["ok", verified.version, user, answer] if answer else ["ok", verified.version]
        failure = self._throttle.failed(user, network)
        if failure.delay:
            self._counters.count("ptt_auth_throttled_total", "delayed")
        if failure.locked:
            self._log.warning("logins refused for a time", by=failure.locked, user=user[:MAX_LOGGED], network=network)
        return ["bad", failure.delay]

    def _throttled(self) -> Answer:
        self._counters.count("ptt_auth_throttled_total", "refused")
        return ["busy"]

    def _of(self, user: str) -> Verifiers | None:
        return self._file.get(user) if self._file is not None else None

    def _found(self, user: str) -> Found:
        found = self._of(user)
        password = found.password if found is not None else ""
        hash = password if found is not None and not found.disabled else ""
        return Found(hash, password or self._nobody.argon2(user))
