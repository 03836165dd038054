"""Records -> the files of one commit, and the pointer that puts them in force.

    data/snapshot/COMMIT12-N.mdb    all but verifiers: what workers read (mode 0640)
    data/snapshot/current           the pointer: commit and file name (mode 0640)
    data/control/COMMIT12-N.mdb     password verifiers: for the control process alone (mode 0600)

Order: the verifiers, the snapshot, and both directories are on disk before the pointer is replaced by one rename,
which is the moment a commit comes into force. Files are never changed after that. A crash at any instant leaves the old
pointer with its files, and at most some files that nobody names, which the next publication removes.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil

import lmdb
import msgspec

from ptt.directory import verifiers
from ptt.directory.files import ReadFile
from ptt.directory.reader import (
    ALIAS,
    DKIM,
    DOMAIN,
    FORMAT,
    LIMITS,
    POINTER,
    ROUTE,
    USER,
    AliasView,
    DomainView,
    Pointer,
    RouteView,
    UserView,
    key,
    read_pointer,
)
from ptt.directory.records import Limits
from ptt.directory.rules import Database
from ptt.directory.schema import Kind, Place

MAP_BYTES = 8 << 30  # address space, not disk: 500,000 files of 4 KiB, twice over
KEEP = 2  # files of the commit in force and of the one before, which a worker may be about to open
SUFFIX = ".mdb"
DAMAGED = ".damaged"  # appended to the name of a file that cannot be opened; never removed by us

_encode = msgspec.msgpack.Encoder().encode
_KEYS: dict[Kind, tuple[bytes, ...]] = {
    "user": (USER, LIMITS),
    "domain": (DOMAIN, LIMITS, DKIM),
    "alias": (ALIAS,),
    "group": (ALIAS,),
    "route": (ROUTE,),
}
Pairs = dict[bytes, bytes | None]  # key -> value, None removes


class Changes(msgspec.Struct):
    """What a commit changes against the one in force (or against nothing)."""

    records: Database
    removed: set[Place]


class Store:
    """The two directories. ``snapshots``: read by workers; ``private``: by the control process alone."""

    def __init__(self, snapshots: str, private: str) -> None:
        self.snapshots = snapshots
        self.private = private

    def prepare(self) -> None:
        """Make the directories. Raises OSError."""
        os.makedirs(self.snapshots, mode=0o750, exist_ok=True)
        os.makedirs(self.private, mode=0o700, exist_ok=True)

    def current(self) -> Pointer | None:
        """The pointer in force, if its files are there."""
        pointer = read_pointer(self.snapshots)
        if pointer is None or not all(os.path.exists(p) for p in self.paths(pointer.file)):
            return None
        return pointer

    def paths(self, file: str) -> tuple[str, str]:
        """Snapshot and verifiers of a pointer's file name."""
        return os.path.join(self.snapshots, file), os.path.join(self.private, file)

    def usable(self) -> Pointer | None:
        """As ``current``, but a pointer whose files cannot be opened has them moved aside and counts as none."""
        pointer = self.current()
        if pointer is None:
            return None
        try:
            for path in self.paths(pointer.file):
                ReadFile(path).close()
        except lmdb.Error:
            for path in self.paths(pointer.file):
                os.replace(path, path + DAMAGED)
            return None
        return pointer

    def write(self, commit: str, changes: Changes, base: Pointer | None) -> Pointer:
        """Write the files of a commit. It is in force only after ``point``.

        ``base``: what ``changes`` are against, the pointer in force; None: ``changes`` are the whole database.
        Raises OSError and lmdb.Error.
        """
        pointer = Pointer(FORMAT, commit, self._free_name(commit))
        public, private = self.paths(pointer.file)
        base_public, base_private = self.paths(base.file) if base else ("", "")
        _write(private, base_private, private_pairs(changes), 0o600)
        _write(public, base_public, public_pairs(changes), 0o640)
        _sync_directory(self.private)
        _sync_directory(self.snapshots)
        return pointer

    def point(self, pointer: Pointer) -> None:
        """Put the files of a commit in force, and remove old ones. Raises OSError: the pointer is then as it was."""
        final = os.path.join(self.snapshots, POINTER)
        aside = os.path.join(self.snapshots, f".{POINTER}")
        with open(aside, "wb", opener=lambda p, f: os.open(p, f, 0o640)) as f:
            f.write(msgspec.json.encode(pointer))
            f.flush()
            os.fchmod(f.fileno(), 0o640)
            os.fsync(f.fileno())
        os.replace(aside, final)  # the commit point
        _sync_directory(self.snapshots)
        self._clean()

    def _clean(self) -> None:
        """Remove the files that are neither in force nor the newest before it, and what a crash left unfinished."""
        pointer = read_pointer(self.snapshots)
        if pointer is None:
            return
        for directory in (self.snapshots, self.private):
            files = []
            for entry in os.scandir(directory):
                if entry.name.endswith(SUFFIX) and not entry.name.startswith(".") and entry.name != pointer.file:
                    files.append((entry.stat().st_mtime_ns, entry.path))
                elif entry.name.startswith(".") and entry.name.endswith(SUFFIX):
                    os.unlink(entry.path)
            for _, path in sorted(files)[: 1 - KEEP or None]:
                os.unlink(path)

    def _free_name(self, commit: str) -> str:
        for number in itertools.count():
            name = f"{commit[:12]}-{number}{SUFFIX}"
            if not any(os.path.exists(p) for p in self.paths(name)):
                return name
        raise AssertionError


def public_pairs(changes: Changes) -> Pairs:
    """What workers read of the changed records."""
    pairs: Pairs = {key(kind, place.name): None for place in changes.removed for kind in _KEYS[place.kind]}
    for name, domain in changes.records.domains.items():
        view = DomainView(name, domain.sign, domain.subdomains, domain.postmaster or f"postmaster@{name}")
        pairs[key(DOMAIN, name)] = _encode(view)
        pairs[key(LIMITS, name)] = _limits(domain.limits)
        pairs[key(DKIM, name)] = None if domain.dkim is None else _encode(domain.dkim)
    for name, user in changes.records.users.items():
        shown = UserView(name, verifiers.version_of(user), user.disabled, user.addresses)
        pairs[key(USER, name)] = _encode(shown)
        pairs[key(LIMITS, name)] = _limits(user.limits)
    for name, alias in changes.records.aliases.items():
        pairs[key(ALIAS, name)] = _encode(AliasView(alias.targets))
    for name, group in changes.records.groups.items():
        pairs[key(ALIAS, name)] = _encode(AliasView(group.members, group.post, group.posters, group.owners))
    for name, route in changes.records.routes.items():
        where = (route.via, route.host, route.tls, route.subdomains, route.credentials, route.fallback, route.source)
        pairs[key(ROUTE, name)] = _encode(RouteView(name, *where))
    return pairs


def _limits(limits: Limits | None) -> bytes | None:
    return None if limits is None else _encode(limits)


def private_pairs(changes: Changes) -> Pairs:
    """The verifiers of the changed users."""
    pairs: Pairs = {key(USER, place.name): None for place in changes.removed if place.kind == "user"}
    for name, user in changes.records.users.items():
        pairs[key(USER, name)] = _encode(verifiers.of(user))
    return pairs


def _write(path: str, base: str, pairs: Pairs, mode: int) -> None:
    """Write a file: a copy of ``base`` (or nothing) with changes. It has its name only once it is on disk."""
    aside = os.path.join(os.path.dirname(path), "." + os.path.basename(path))
    with contextlib.suppress(FileNotFoundError):
        os.unlink(aside)
    os.close(os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
    if base:
        shutil.copyfile(base, aside)
    env = lmdb.open(aside, subdir=False, lock=False, map_size=MAP_BYTES, mode=mode)
    try:
        with env.begin(write=True) as transaction:
            for item in sorted(pairs.items()):
                _apply(transaction, *item, append=not base)
        env.sync(True)
    finally:
        env.close()
    os.chmod(aside, mode)
    os.replace(aside, path)


def _apply(transaction: lmdb.Transaction, item_key: bytes, value: bytes | None, append: bool) -> None:
    if value is not None:
        transaction.put(item_key, value, append=append)
    elif not append:
        transaction.delete(item_key)


def _sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
