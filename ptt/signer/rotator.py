"""Drives the rotations: one turn looks at each, does what its step asks for, and stores where it is.

Run by the control process. Everything it does may be done twice: where a rotation is, is stored only after a step was
done, and a crash before that repeats the step. The keys are made and deleted by the key process, the records written
by the publisher and removed by its means (``withdraw``).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable
from typing import Protocol

import msgspec

from ptt.config import Config
from ptt.log import Log
from ptt.metrics import Counters
from ptt.net.rpc import RpcClient, RpcError
from ptt.signer import rotation as steps
from ptt.signer.rotation import DAY_MS, SPARE_MS, Book, Roles, Rotation
from ptt.signer.state import KeyState, PublicKey, all_public_keys, public_keys, read_state, state_path

MAX_ACTIVE = 50  # rotations whose new keys are not in use yet; others wait for their turn
LOOK_SECONDS = 60.0  # how often the age of all keys is looked at
KEYGEN_SECONDS = 60.0  # RSA-4096 takes some seconds


class RotationRefused(Exception):
    """A rotation cannot be begun. The text says why."""


class Keys(Protocol):
    """The key process. Both raise RpcError, and do nothing when it is done already."""

    def make(self, domain: str, selector: str, algorithm: str) -> None: ...
    def remove(self, domain: str, selector: str) -> None: ...


class KeyProcess:
    """The key process at ``run/signer.sock``."""

    def __init__(self, config: Config) -> None:
        self._rpc = RpcClient(os.path.join(config.run, "signer.sock"), KEYGEN_SECONDS)

    def make(self, domain: str, selector: str, algorithm: str) -> None:
        self._rpc.call("ensure", [domain, selector, algorithm])

    def remove(self, domain: str, selector: str) -> None:
        self._rpc.call("remove", [domain, selector])


class Rotator:
    """``step`` is one turn. ``withdraw``: a key's record out of DNS; "" or what is waited for. ``ours``: is this domain
    in a zone that we write? ``clock``: seconds since the epoch.
    """

    def __init__(
        self,
        config: Config,
        keys: Keys,
        withdraw: Callable[[PublicKey], str],
        ours: Callable[[str], bool],
        log: Log,
        counters: Counters,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._keys = keys
        self._withdraw = withdraw
        self._ours = ours
        self._log = log
        self._counters = counters
        self._clock = clock
        self._path = steps.book_path(config)
        self._lock: int | None = None
        self._looked = float("-inf")
        self.book = self._read()

    @property
    def roles(self) -> Roles:
        return steps.roles(self.book)

    def close(self) -> None:
        """Let another process drive."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def start(self, domain: str, compromise: bool) -> Rotation:
        """Begin a rotation of ``domain``; with ``compromise`` one that is under way gives place to it.

        It is stored when this returns. Raises RotationRefused, OSError.
        """
        if not self._own_lock():
            raise RotationRefused("another control process drives the rotations")
        keys = public_keys(self._config.signer.public, domain)
        under_way = self._of(domain)
        if not keys:
            raise RotationRefused(f"there is no key of {domain}: ptt dkim keygen makes one")
        if under_way is not None and not compromise:
            raise RotationRefused(f"a rotation of {domain} is under way, at step {under_way.step}")
        made = steps.begin(domain, keys, under_way, self._now(), compromise=compromise)
        if {key.selector for key in made.new} & set(made.old):
            raise RotationRefused(f"a key of {domain} was made this very second: try again")
        revoked = steps.revoke(self.book, made, self._gone_by()) if compromise else self.book.revoked
        rest = tuple(rotation for rotation in self.book.rotations if rotation.domain != domain)
        self._save(Book((*rest, made), revoked))
        self._log.event("DKIM rotation begun", domain=domain, old=list(made.old), compromise=compromise)
        return made

    def step(self) -> None:
        """One turn: each rotation as far as it gets, then those that are due by age."""
        if not self._own_lock():
            return
        for rotation in self.book.rotations:
            self._advance(rotation)
        now = self._now()
        left = tuple(key for key in self.book.revoked if key.until > now)
        if left != self.book.revoked:
            self._save(msgspec.structs.replace(self.book, revoked=left))
        if self._clock() - self._looked >= LOOK_SECONDS:
            self._looked = self._clock()
            self._begin_due()
        self._measure()

    # -- one rotation ------------------------------------------------------------------------------------------------

    def _advance(self, rotation: Rotation) -> None:
        """Do its steps until one has to wait; that is stored with it."""
        try:
            left = self._withdrawn(rotation) if rotation.now and rotation.step != "remove" else []
            while (following := self._follow(rotation, left)) is not rotation:
                if not self._store(rotation, following):
                    return  # another rotation took its place meanwhile
                if following is None:
                    self._log.event("DKIM rotation done", domain=rotation.domain)
                    return
                if following.step != rotation.step:
                    self._log.event("DKIM rotation", domain=rotation.domain, step=following.step)
                rotation = following
        except RpcError as e:
            self._wait(rotation, f"the key process: {e}")
        except OSError as e:
            self._log.error("DKIM rotation not stored", domain=rotation.domain, reason=e.strerror or str(e))

    def _follow(self, rotation: Rotation, left: list[str]) -> Rotation | None:
        """What comes of it now: itself, changed or as it is; None: it is done. ``left``: old records still in DNS that
        shall not be. Raises RpcError, OSError.
        """
        now = self._now()
        if rotation.step == "generate":
            for key in rotation.new:
                self._keys.make(rotation.domain, key.selector, key.algorithm)
            return steps.at(rotation, "publish", now)
        if rotation.step == "remove":
            return self._remove(rotation)
        if rotation.step == "retire":
            if now >= rotation.due:
                return steps.at(rotation, "remove", now)
            return self._waits(rotation, "mail signed with the old keys")
        states = {(s.domain, s.selector): s for s in read_state(state_path(self._config))}
        if waits := self._unfinished(rotation, states):
            return self._waits(rotation, "; ".join([waits, *left]))
        if rotation.step == "use":
            return steps.at(
                rotation, "remove" if rotation.now else "retire", now, 0 if rotation.now else self._gone_by()
            )
        return steps.at(rotation, steps.STEPS[steps.STEPS.index(rotation.step) + 1], now)

    def _unfinished(self, rotation: Rotation, states: dict[tuple[str, str], KeyState]) -> str:
        """What steps publish, seen and use wait for; "" when nothing is left."""
        if rotation.step == "use":
            in_use = [s for s in rotation.old if (state := states.get((rotation.domain, s))) and _may_sign(state)]
            return f"workers, which may sign with {', '.join(in_use)}" if in_use else ""
        for key in rotation.new:
            state = states.get((rotation.domain, key.selector))
            if state is None:
                return f"{key.selector}: not looked at yet"
            if not (state.served or (rotation.step == "publish" and state.published)):
                return f"{key.selector}: {state.why}"
        return ""

    def _withdrawn(self, rotation: Rotation) -> list[str]:
        """Take the old keys' records out of DNS; what is left to wait for."""
        found = []
        for key in public_keys(self._config.signer.public, rotation.domain):
            if key.selector in rotation.old and (why := self._withdraw(key)):
                found.append(f"{key.selector}: {why}")
        return found

    def _remove(self, rotation: Rotation) -> Rotation | None:
        if left := self._withdrawn(rotation):
            return self._waits(rotation, "; ".join(left))
        for selector in rotation.old:
            self._keys.remove(rotation.domain, selector)
            self._log.event("DKIM key deleted", domain=rotation.domain, selector=selector)
        return None

    def _waits(self, rotation: Rotation, why: str) -> Rotation:
        """``rotation`` itself, when it waits for what it waited for before."""
        return rotation if rotation.wait == why else msgspec.structs.replace(rotation, wait=why)

    def _wait(self, rotation: Rotation, why: str) -> None:
        changed = self._waits(rotation, why)
        if changed is not rotation:
            self._store(rotation, changed)

    # -- all of them -------------------------------------------------------------------------------------------------

    def _begin_due(self) -> None:
        days = self._config.signer.rotate_days
        active = sum(rotation.step not in ("retire", "remove") for rotation in self.book.rotations)
        served = {(s.domain, s.selector) for s in read_state(state_path(self._config)) if s.served}
        by_domain: dict[str, list[PublicKey]] = {}
        for key in all_public_keys(self._config.signer.public) if days else ():
            by_domain.setdefault(key.domain, []).append(key)
        for domain, keys in by_domain.items():
            if active >= MAX_ACTIVE:
                return
            in_use = any((domain, key.selector) in served for key in keys)
            if in_use and steps.is_old(keys, days, self._now()) and self._of(domain) is None and self._ours(domain):
                with contextlib.suppress(RotationRefused):  # a key was made this second
                    self.start(domain, compromise=False)
                    active += 1

    def _measure(self) -> None:
        gauges = dict.fromkeys(steps.STEPS, 0)
        for rotation in self.book.rotations:
            gauges[rotation.step] += 1
        for step, number in gauges.items():
            self._counters.gauge("ptt_dkim_rotations", step, value=float(number))

    def _of(self, domain: str) -> Rotation | None:
        return next((rotation for rotation in self.book.rotations if rotation.domain == domain), None)

    def _gone_by(self) -> int:
        """When no mail signed before now is under way any more, and no cache has a record read before that."""
        ttl = max((zone.ttl for zone in self._config.dns.zones), default=DAY_MS // 1000)
        return self._now() + int((self._config.queue.max_age_seconds + ttl) * 1000) + SPARE_MS

    def _now(self) -> int:
        return int(self._clock() * 1000)

    def _store(self, before: Rotation, after: Rotation | None) -> bool:
        """False: ``before`` is no longer there."""
        if not any(one is before for one in self.book.rotations):
            return False
        rotations = [after if one is before else one for one in self.book.rotations]
        kept = tuple(one for one in rotations if one is not None)
        self._save(msgspec.structs.replace(self.book, rotations=kept))
        return True

    def _save(self, book: Book) -> None:
        steps.write_book(self._path, book)
        self.book = book

    def _read(self) -> Book:
        try:
            return steps.read_book(self._path)
        except ValueError as e:
            self._log.error("rotations unreadable", reason=str(e))
            os.replace(self._path, f"{self._path}.damaged")
            return Book()

    def _own_lock(self) -> bool:
        """Nobody else drives: a control process that is ending may still be there."""
        if self._lock is None:
            fd = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(fd)
                return False
            self._lock = fd
            self.book = self._read()
        return True


def _may_sign(state: KeyState) -> bool:
    return state.served and not state.retired
