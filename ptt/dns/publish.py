"""The publisher: brings each public DKIM key into DNS, and knows at any time which of them DNS serves.

Run by the control process, which holds the TSIG keys and no private key. For a key whose domain lies in a configured
zone: read the record back from the primary; if it is not ours, update it and read it back again. For any other domain
somebody else publishes, and the resolver is asked. The result goes to run/dkim.json, by which the workers sign.

A key counts as served only after it was seen as it is here. A server that does not answer takes nothing back: what it
was last seen to serve stays in force until it is seen to serve something else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import gevent
import msgspec

from ptt.config import Config
from ptt.dns.keycheck import KeyCheck, KeyId, Result, key_id
from ptt.dns.keyfiles import KeyFiles
from ptt.log import Log
from ptt.metrics import Counters
from ptt.signer.rotation import Roles, book_path, read_book, roles
from ptt.signer.state import KeyState, PublicKey, all_public_keys, public_keys, read_state, state_path, write_state

LOOK_SECONDS = 0.5  # how often the folders are looked at for new keys
MAX_STEP = 500  # keys checked in one turn of the loop, so that new ones never wait behind ten thousand old ones
WRITE_SECONDS = 1.0  # the state is written while a turn goes on, at most this often


class Publisher:
    """``run_once`` checks everything; ``run_forever`` is the loop for a greenlet. ``clock``: seconds, monotonic."""

    def __init__(
        self,
        config: Config,
        log: Log,
        counters: Counters,
        clock: Callable[[], float] = time.monotonic,
        roles: Callable[[], Roles] = Roles,
    ) -> None:
        self._config = config.dns
        self._log = log
        self._counters = counters
        self._clock = clock
        self._path = state_path(config)
        self._files = KeyFiles(config.signer.public)
        self._roles = roles
        self._shown = Roles()  # what the state file says of them
        self.check = KeyCheck(config, log, counters, lambda key: key in roles().withdrawn)
        self._states: dict[KeyId, KeyState] = {(s.domain, s.selector): s for s in read_state(self._path)}
        self._due: dict[KeyId, tuple[str, float]] = {}  # of which record, and when it is checked again
        self._said: dict[KeyId, tuple[bool, str]] = {}  # what was logged last
        self._reread = clock() + config.dns.recheck_seconds
        self._written = clock()

    def run_once(self) -> list[Result]:
        """Check every key now, publish what is not served, write the state. Results by domain and selector."""
        keys = self._files.scan(everything=True)
        self._forget_all_but(keys)
        self.take_roles()
        withdrawn = self._roles().withdrawn
        return self._work([key for key in keys if key_id(key) not in withdrawn])

    def run_forever(self) -> None:
        """Check each key when it is due and new ones at once, until killed. A fault of our own is logged, not fatal."""
        while True:
            try:
                self.step()
            except Exception as e:
                self._counters.count("ptt_errors_total", "publish")
                self._log.error("publication failed unexpectedly", reason=f"{type(e).__name__}: {e}")
                gevent.sleep(self._config.retry_seconds)
            gevent.sleep(LOOK_SECONDS)

    def step(self) -> list[Result]:
        """One turn of the loop: the keys that are due now, at most MAX_STEP, new ones first."""
        now = self._clock()
        everything = now >= self._reread
        if everything:
            self._reread = now + self._config.recheck_seconds
        keys = self._files.scan(everything=everything)
        changed = self._forget_all_but(keys)
        self.take_roles()
        withdrawn = self._roles().withdrawn
        due = sorted(
            (at, key_id(key), key) for key in keys if key_id(key) not in withdrawn and (at := self._due_at(key)) <= now
        )
        if not due and not changed:
            return []
        return self._work([key for _, _, key in due[:MAX_STEP]])

    def _due_at(self, key: PublicKey) -> float:
        record, at = self._due.get(key_id(key), ("", float("-inf")))
        return at if record == key.record else float("-inf")

    def _forget_all_but(self, keys: Sequence[PublicKey]) -> bool:
        """Drop the keys whose file is gone; their records stay in DNS until somebody removes them. Were there any?"""
        gone = self._states.keys() - {key_id(key) for key in keys}
        for key in gone:
            del self._states[key]
            self._due.pop(key, None)
            self._said.pop(key, None)
            self._counters.gauges.pop(("ptt_dkim_key_served", key), None)
            self._log.event("DKIM key removed", domain=key[0], selector=key[1])
        return bool(gone)

    def take_roles(self) -> None:
        """Bring what rotations say of keys into their states, for the workers to see, before anything is asked of DNS:
        a compromised key signs nothing more.
        """
        roles = self._roles()
        if roles == self._shown:
            return
        self._shown = roles
        for id, state in self._states.items():
            self._states[id] = _in_role(state, id, roles)
            self._counters.gauge("ptt_dkim_key_served", *id, value=float(self._states[id].served))
        self._write()

    def _work(self, keys: Sequence[PublicKey]) -> list[Result]:
        before = served_before(keys, self._states)
        results: list[Result] = []
        for group in self.check.check(keys, before):
            for result in group:
                self._note(result)
            results += group
            if self._clock() - self._written >= WRITE_SECONDS:
                self._write()
        self._write()
        return sorted(results, key=lambda result: result.id)

    def _note(self, result: Result) -> None:
        """Keep, count and log what was found; say only what changed."""
        key, state = result.key, self._states.get(result.id)
        checked = time.time_ns() // 1_000_000
        if not result.reached:
            checked = state.checked if state is not None and state.record == key.record else 0
        found = KeyState(
            key.domain, key.selector, key.algorithm, key.record, result.served, result.why, checked, result.published
        )
        self._states[result.id] = _in_role(found, result.id, self._roles())
        settled = result.served and result.reached
        wait = self._config.recheck_seconds if settled else self._config.retry_seconds
        self._due[result.id] = (key.record, self._clock() + wait)
        self._counters.gauge("ptt_dkim_key_served", key.domain, key.selector, value=float(result.served))
        said = (result.served, "" if result.served else result.why)  # of a silent server the check tells, once
        if self._said.get(result.id) != said:
            self._said[result.id] = said
            event, level = ("DKIM key served", "info") if result.served else ("DKIM key not served", "warning")
            self._log.event(event, level, domain=key.domain, selector=key.selector, reason=result.why)

    def _write(self) -> None:
        self._written = self._clock()
        try:
            write_state(self._path, [self._states[key] for key in sorted(self._states)], self._roles().revoked)
        except OSError as e:
            self._log.error("DKIM state not written", file=self._path, reason=e.strerror)


def publish_once(config: Config, domain: str | None = None) -> list[Result]:
    """Publish and check all keys, or those of ``domain``, for a command. The state file stays the running service's,
    which looks for itself. Results by domain and selector.
    """
    public = config.signer.public
    keys = public_keys(public, domain) if domain is not None else all_public_keys(public)
    states = {(s.domain, s.selector): s for s in read_state(state_path(config))}
    withdrawn = _roles_of(config).withdrawn
    keys = [key for key in keys if key_id(key) not in withdrawn]
    check = KeyCheck(config, Log("dns", "error"), Counters(), lambda key: key in _roles_of(config).withdrawn)
    results = [result for group in check.check(keys, served_before(keys, states)) for result in group]
    return sorted(results, key=lambda result: result.id)


def _roles_of(config: Config) -> Roles:
    """What the rotations of the running service say. Raises OSError when they may not be seen."""
    try:
        return roles(read_book(book_path(config)))
    except ValueError:
        return Roles()


def _in_role(state: KeyState, id: KeyId, roles: Roles) -> KeyState:
    """A key that is being withdrawn is not served, whatever a server said just before."""
    if id in roles.withdrawn:
        return msgspec.structs.replace(state, served=False, published=False, why="withdrawn", retired=True)
    return msgspec.structs.replace(state, retired=id in roles.retired)


def served_before(keys: Sequence[PublicKey], states: dict[KeyId, KeyState]) -> set[KeyId]:
    """Those of ``keys`` that were served, as they are now, when last seen."""
    found = ((key, states.get(key_id(key))) for key in keys)
    return {key_id(key) for key, state in found if state is not None and state.served and state.record == key.record}
