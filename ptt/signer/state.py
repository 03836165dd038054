"""Which keys exist and which of them DNS serves.

Two sources, neither holds a secret:

* ``public/DOMAIN/SELECTOR.pub``: a public key, written by the key process when it makes the pair (``PublicKey``).
* ``run/dkim.json``: what the authoritative servers were seen to serve (``KeyState``), written by the control process.

A key signs only when both agree. Workers ask ``KeyView``; a wrong or missing file is the same as no key served.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import msgspec

from ptt.config import Config
from ptt.dkim.keys import same_key, valid_name
from ptt.dkim.rules import DEFAULT, Rules

KeyAlgorithm = Literal["rsa2048", "rsa3072", "rsa4096", "ed25519"]

MAX_FILE = 64 * 1024 * 1024  # of the state file: some 100,000 keys
MAX_PUBLIC = 64 * 1024  # of a public key's file
RECHECK_SECONDS = 0.25  # how soon a worker notices a change
MAX_DOMAINS = 10_000  # remembered by a worker; others are looked up again
_SETTLED_NS = 50_000_000  # a file changed so lately may change again within the same tick of its time stamp


class PublicKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One public key. ``record`` is the text of its TXT record; ``created`` is in ms since the epoch."""

    domain: str
    selector: str
    algorithm: KeyAlgorithm
    record: str
    created: int = 0


class KeyState(msgspec.Struct, frozen=True):
    """What DNS was seen to serve of one key. ``why``: the reason when it is not served; ``checked``: ms, epoch.

    ``published``: where it is published it is to be seen, if not everywhere yet. ``retired``: signs no more.
    """

    domain: str
    selector: str
    algorithm: KeyAlgorithm
    record: str
    served: bool
    why: str = ""
    checked: int = 0
    published: bool = False
    retired: bool = False


class Revoked(msgspec.Struct, frozen=True):
    """A compromised key, whose signatures no mail may bear; ``until``: when none can any more, ms since the epoch."""

    domain: str
    selector: str
    until: int


class _StateFile(msgspec.Struct, frozen=True):
    keys: list[KeyState]
    revoked: list[Revoked] = []


_STATE = msgspec.json.Decoder(_StateFile)
_PUBLIC = msgspec.json.Decoder(PublicKey)


def state_path(config: Config) -> str:
    return os.path.join(config.run, "dkim.json")


def read_state(path: str) -> list[KeyState]:
    """What the control process last wrote; [] when there is nothing that can be read."""
    return _read(path).keys


def _read(path: str) -> _StateFile:
    try:
        with open(path, "rb") as file:
            return _STATE.decode(file.read(MAX_FILE))
    except (OSError, msgspec.MsgspecError):
        return _StateFile([])


def write_state(path: str, keys: Sequence[KeyState], revoked: Sequence[Revoked] = ()) -> None:
    """Replace the file in one step. Not synced: after a loss of power it is made again. Raises OSError."""
    temporary = f"{path}.{secrets.token_hex(8)}.new"  # nobody can put a link of that name into run/ before
    data = msgspec.json.format(msgspec.json.encode(_StateFile(list(keys), list(revoked))), indent=1)
    try:
        with open(temporary, "xb") as file:
            file.write(data + b"\n")
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def public_keys(public: str, domain: str) -> list[PublicKey]:
    """The public keys of one domain, newest first. Files that do not hold what their place says are passed over."""
    if not valid_name(domain):
        return []
    found = []
    for path in sorted(pathlib.Path(public, domain).glob("*.pub")):
        with contextlib.suppress(OSError, msgspec.MsgspecError), path.open("rb") as file:
            key = _PUBLIC.decode(file.read(MAX_PUBLIC))
            if (key.domain, key.selector) == (domain, path.stem):
                found.append(key)
    return sorted(found, key=lambda key: (key.created, key.selector), reverse=True)


def all_public_keys(public: str) -> list[PublicKey]:
    """The public keys of all domains, by domain, newest first."""
    try:
        domains = sorted(entry.name for entry in os.scandir(public) if entry.is_dir())
    except OSError:
        return []
    return [key for domain in domains for key in public_keys(public, domain)]


class Active(NamedTuple):
    """The keys of one domain. ``signing``: the newest that is served of each kind, Ed25519 only beside RSA where there
    is an RSA key; ``known``: there are keys; ``usable``: all that are not retired, newest first, and which are served.
    """

    signing: tuple[PublicKey, ...]
    known: bool
    usable: tuple[tuple[PublicKey, bool], ...] = ()


def choose_keys(usable: Sequence[tuple[PublicKey, bool]], rules: Rules = DEFAULT) -> tuple[PublicKey, ...]:
    """The keys that sign by the rules of their domain, RSA first; none where Ed25519 would stand in for an RSA key that
    is not served: most verifiers know no Ed25519, and for them the mail would be unsigned.
    """
    kinds: dict[str, list[PublicKey]] = {"rsa": [], "ed25519": []}
    has_rsa = False
    for key, served in usable:
        kind = "ed25519" if key.algorithm == "ed25519" else "rsa"
        if key.selector not in rules.selectors if rules.selectors else kind not in rules.algorithms:
            continue
        has_rsa = has_rsa or kind == "rsa"
        if served and (rules.selectors or not kinds[kind]):
            kinds[kind].append(key)
    return () if has_rsa and not kinds["rsa"] else (*kinds["rsa"], *kinds["ed25519"])


class _Seen(NamedTuple):
    at: float
    marks: tuple[object, object]
    active: Active


class KeyView:
    """What a worker knows of the keys: ``active(domain)``, at most 250 ms old. ``clock`` counts seconds, monotonic."""

    def __init__(self, config: Config, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = state_path(config)
        self._public = config.signer.public
        self._clock = clock
        self._seen: dict[str, _Seen] = {}
        self._state_at = float("-inf")
        self._state_mark: object = None
        self._served: dict[tuple[str, str], str] = {}
        self._retired: set[tuple[str, str]] = set()
        self._revoked: frozenset[tuple[str, str]] = frozenset()

    def active(self, domain: str) -> Active:
        """The keys that sign for this domain now."""
        now = self._clock()
        seen = self._seen.get(domain)
        if seen is not None and now - seen.at < RECHECK_SECONDS:
            return seen.active
        if not valid_name(domain):
            return Active((), False)
        marks = (self._state(now), _mark(os.path.join(self._public, domain)))
        if seen is None or seen.marks != marks or None in marks:
            seen = _Seen(now, marks, self._look(domain))
        if len(self._seen) >= MAX_DOMAINS and domain not in self._seen:
            del self._seen[next(iter(self._seen))]
        self._seen[domain] = seen._replace(at=now)
        return seen.active

    def revoked(self) -> frozenset[tuple[str, str]]:
        """Domain and selector of the keys whose signatures no mail may bear, at most 250 ms old."""
        self._state(self._clock())
        return self._revoked

    def _state(self, now: float) -> object:
        """Read the state file again if it changed; what tells this version from another."""
        if now - self._state_at >= RECHECK_SECONDS:
            self._state_at = now
            mark = _mark(self._path)
            if mark is None or mark != self._state_mark:
                self._state_mark = mark
                found = _read(self._path)
                self._served = {(k.domain, k.selector): k.record for k in found.keys if k.served and not k.retired}
                self._retired = {(k.domain, k.selector) for k in found.keys if k.retired}
                self._revoked = frozenset((k.domain, k.selector) for k in found.revoked)
        return self._state_mark

    def _look(self, domain: str) -> Active:
        keys = public_keys(self._public, domain)
        gone = self._revoked | self._retired
        usable = tuple((key, self._is_served(key)) for key in keys if (domain, key.selector) not in gone)
        return Active(choose_keys(usable), bool(keys), usable)

    def _is_served(self, key: PublicKey) -> bool:
        record = self._served.get((key.domain, key.selector))
        return record is not None and same_key(record, key.record)


def _mark(path: str) -> object:
    """What changes when the file or directory does; None when that cannot be told, so it must be read."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    if time.time_ns() - found.st_mtime_ns < _SETTLED_NS:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
