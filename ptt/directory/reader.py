"""What workers read of the git database: the compiled snapshot of the commit in force.

A snapshot is one LMDB file, never changed after it was made; the file ``current`` beside it names the one in force. A
look-up reads the page cache and holds no copy. Nothing here knows git, and there is no password hash in these files.

    snapshot = Snapshot(config.directory.snapshots)
    ...
    snapshot.refresh()          # every REFRESH_SECONDS, by one greenlet of the worker
    snapshot.user("anna@example.org")

No method yields to another greenlet, so a look-up never sees half of a change; two look-ups may see two commits.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import TypeVar

import gevent
import lmdb
import msgspec

from ptt.directory import names
from ptt.directory.files import ReadFile
from ptt.directory.schema import Alias, Domain

REFRESH_SECONDS = 0.25
FORMAT = 1  # of the snapshot files and the pointer; a file of another format is compiled anew
POINTER = "current"
MAX_POINTER_BYTES = 1024

# Bounds of an expansion at run time. The same as what is validated (ptt.directory.rules), as a second fence.
MAX_EXPANSION = 1_000
MAX_ALIAS_DEPTH = 16


class UserView(msgspec.Struct, array_like=True, frozen=True):
    """A user, without verifiers."""

    name: str  # "anna@example.org"
    version: str  # changes whenever password or ``disabled`` change
    disabled: bool
    addresses: tuple[str, ...]  # further senders; "*@domain" is every address of a domain


class DomainView(msgspec.Struct, array_like=True, frozen=True):
    """A domain that is ours."""

    name: str
    sign: bool
    subdomains: bool
    postmaster: str  # never empty


class AliasView(msgspec.Struct, array_like=True, frozen=True):
    targets: tuple[str, ...]


class Pointer(msgspec.Struct, frozen=True):
    """The content of the pointer file (JSON)."""

    format: int
    commit: str  # full hexadecimal
    file: str  # name of the snapshot file beside the pointer


_T = TypeVar("_T")
_USER = msgspec.msgpack.Decoder(UserView)
_DOMAIN = msgspec.msgpack.Decoder(DomainView)
_ALIAS = msgspec.msgpack.Decoder(AliasView)
_POINTER = msgspec.json.Decoder(Pointer)

USER, DOMAIN, ALIAS = b"u", b"d", b"a"  # first byte of a key; the name follows


def key(kind: bytes, name: str) -> bytes:
    """The key of a record: at most 319 bytes for a name that was validated (LMDB's limit is 511)."""
    return kind + name.encode("utf-8", "surrogatepass")[:400]  # what strangers ask for may be longer; it is not there


def read_pointer(directory: str) -> Pointer | None:
    """The pointer in a directory of snapshots; None if there is none that can be used."""
    try:
        with open(os.path.join(directory, POINTER), "rb") as f:
            pointer = _POINTER.decode(f.read(MAX_POINTER_BYTES))
    except (OSError, msgspec.MsgspecError):
        return None
    usable = pointer.format == FORMAT and os.path.basename(pointer.file) == pointer.file
    return pointer if usable else None


class SnapshotFile:
    """One compiled snapshot, open for reading. Raises lmdb.Error from the constructor if it cannot be opened."""

    def __init__(self, path: str) -> None:
        self._file = ReadFile(path)
        self.close = self._file.close

    def user(self, name: str) -> UserView | None:
        return self._get(_USER, USER, name)

    def domain_view(self, name: str) -> DomainView | None:
        return self._get(_DOMAIN, DOMAIN, name)

    def alias_view(self, name: str) -> AliasView | None:
        return self._get(_ALIAS, ALIAS, name)

    # The methods of ptt.directory.rules.Base, by which a later commit is checked against this one.

    def domain(self, name: str) -> Domain | None:
        found = self.domain_view(name)
        return None if found is None else Domain(found.sign, found.subdomains, found.postmaster)

    def has_user(self, name: str) -> bool:
        return self.user(name) is not None

    def alias(self, name: str) -> Alias | None:
        found = self.alias_view(name)
        return None if found is None else Alias(found.targets)

    def aliases(self) -> dict[str, Alias]:
        """All aliases. Only for the compiler: this is a copy of them in memory."""
        return {k[1:].decode(): Alias(_ALIAS.decode(value).targets) for k, value in self._file.items(ALIAS)}

    def names(self, kind: bytes) -> list[str]:
        """The names of all records of a kind, sorted: a copy in memory."""
        return [k[1:].decode() for k, _ in self._file.items(kind)]

    def _get(self, decoder: msgspec.msgpack.Decoder[_T], kind: bytes, name: str) -> _T | None:
        value = self._file.get(key(kind, name))
        return None if value is None else decoder.decode(value)


class Snapshot:
    """The snapshot in force. ``directory``: ``config.directory.snapshots``. Before the first commit, nothing is found.

    ``commit``: its full hexadecimal id, "" before the first. ``problem``: why the newest could not be opened, or "".
    """

    def __init__(self, directory: str) -> None:
        self.commit = ""
        self.problem = ""
        self._directory = directory
        self._seen: tuple[int, int, int] | None = None
        self._name = ""
        self._file: SnapshotFile | None = None
        self.refresh()

    def refresh(self) -> bool:
        """Switch to the snapshot that the pointer names. Costs one stat when nothing changed. Returns: switched?"""
        try:
            found = os.stat(os.path.join(self._directory, POINTER))
        except OSError as e:
            self.problem = "" if self._file is None else f"no pointer: {e.strerror}"
            return False
        seen = (found.st_ino, found.st_mtime_ns, found.st_size)
        if seen == self._seen:
            return False
        pointer = read_pointer(self._directory)
        if pointer is None:
            self.problem = "the pointer cannot be read"
            return False
        if pointer.file != self._name and not self._open(pointer):
            return False  # what was in force stays; the next call tries again
        self._seen = seen
        self.commit = pointer.commit
        self.problem = ""
        return True

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self, pointer: Pointer) -> bool:
        try:
            opened = SnapshotFile(os.path.join(self._directory, pointer.file))
        except lmdb.Error as e:
            self.problem = f"{pointer.file} cannot be opened: {e}"
            return False
        self.close()
        self._file = opened
        self._name = pointer.file
        return True

    def domains(self) -> list[str]:
        """The names of all our domains, sorted."""
        return self._file.names(DOMAIN) if self._file else []

    # -- look-ups ----------------------------------------------------------------------------------------------

    def user(self, name: str) -> UserView | None:
        """The user of a login name (any case), disabled or not; None if there is none."""
        return self._file.user(names.fold(name)) if self._file else None

    def domain(self, name: str) -> DomainView | None:
        """The domain of exactly this name (any case); None if it is not ours."""
        return self._file.domain_view(names.fold_domain(name)) if self._file else None

    def our_domain(self, name: str) -> DomainView | None:
        """The domain that answers for a domain: itself, or the nearest parent that has its subdomains; None if none."""
        folded = names.fold_domain(name)
        if (found := self.domain(folded)) is not None:
            return found
        for parent in names.parents(folded):
            found = self.domain(parent)
            if found is not None and found.subdomains:
                return found
        return None

    def signing_domain(self, domain: str) -> str:
        """The d= domain for addresses of a domain (RFC 6376 3.5): "" if it is not ours or is not signed."""
        found = self.our_domain(domain)
        return found.name if found is not None and found.sign else ""

    def may_send_as(self, user: UserView | str, address: str) -> bool:
        """May this user be the sender of this address?

        Yes for the user's own address and those listed, each also with a subaddress (user+detail@domain), and for every
        address of a domain listed as "*@domain". Never for the null sender or for a disabled user.
        """
        view = self.user(user) if isinstance(user, str) else user
        if view is None or view.disabled or "@" not in address:
            return False
        folded = names.fold(address)
        local, domain = names.split(folded)
        if not local:
            return False
        allowed = (view.name, *view.addresses)
        return folded in allowed or names.without_detail(folded) in allowed or f"*@{domain}" in allowed

    def expand(self, address: str) -> list[str] | None:
        """What an alias stands for in the end, each address once; None if the address is no alias."""
        if self._file is None or (first := self._file.alias_view(names.fold(address))) is None:
            return None
        result: dict[str, str] = {}  # folded -> as written
        seen = {names.fold(address)}
        level: list[str] = list(first.targets)
        for _ in range(MAX_ALIAS_DEPTH):
            below: list[str] = []
            for target in level:
                folded = names.fold(target)
                if folded in seen:
                    continue
                seen.add(folded)
                alias = self._file.alias_view(folded)
                if alias is not None:
                    below.extend(alias.targets)
                elif len(result) < MAX_EXPANSION:
                    result[folded] = target
            level = below
            if not level:
                break
        return list(result.values())


def run_refresh(snapshot: Snapshot, tell: Callable[[str], None]) -> None:
    """Refresh a snapshot for ever: the greenlet of a worker. ``tell`` gets each new problem. Ends only when killed."""
    said = ""
    while True:
        with contextlib.suppress(lmdb.Error):
            snapshot.refresh()
        if snapshot.problem != said:
            said = snapshot.problem
            if said:
                tell(said)
        gevent.sleep(REFRESH_SECONDS)
