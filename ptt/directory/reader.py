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
import functools
import os
from collections.abc import Callable, Iterator
from typing import Literal, TypeVar, cast

import gevent
import lmdb
import msgspec

from ptt.directory import names
from ptt.directory.files import ReadFile
from ptt.directory.records import DEFAULT_ROUTE, Alias, Domain, Group, Limits
from ptt.dkim.rules import DEFAULT, Rules

REFRESH_SECONDS = 0.25
FORMAT = 3  # of the snapshot files and the pointer; a file of another format is compiled anew
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
    """An alias, or a group: where ``post`` is not empty."""

    targets: tuple[str, ...]
    post: str = ""  # "everyone", "members" or "listed"
    posters: tuple[str, ...] = ()  # addresses of who is listed; "*@domain" is every address of a domain
    owners: tuple[str, ...] = ()


class RouteView(msgspec.Struct, array_like=True, frozen=True):
    """Where the operator wants mail for a destination to go."""

    name: str  # the file: a domain, or "default"
    via: str  # "smarthost", "mx", "lmtp" or "discard"
    host: str  # HOST:PORT of the smarthost or LMTP server, or unix:/PATH
    tls: str  # "none", "opportunistic", "encrypt" or "verify"; "": what the host's configuration says
    subdomains: bool
    credentials: str = ""
    fallback: str = ""
    source: str = ""


class Pointer(msgspec.Struct, frozen=True):
    """The content of the pointer file (JSON)."""

    format: int
    commit: str  # full hexadecimal
    file: str  # name of the snapshot file beside the pointer


_T = TypeVar("_T")
_USER = msgspec.msgpack.Decoder(UserView)
_DOMAIN = msgspec.msgpack.Decoder(DomainView)
_ALIAS = msgspec.msgpack.Decoder(AliasView)
_ROUTE = msgspec.msgpack.Decoder(RouteView)
_POINTER = msgspec.json.Decoder(Pointer)

# First byte of a key; the name follows. Groups are among the aliases; limits are under the name of a user or domain.
USER, DOMAIN, ALIAS, LIMITS, ROUTE, DKIM = b"u", b"d", b"a", b"l", b"r", b"k"

KNOWN = 1024  # decoded limits, and rules, that are remembered: most users share a few, some 300 bytes each
_limits = functools.lru_cache(KNOWN)(msgspec.msgpack.Decoder(Limits).decode)
_rules = functools.lru_cache(KNOWN)(msgspec.msgpack.Decoder(Rules).decode)


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
        self.has_limits = self._file.has(LIMITS)
        self.has_routes = self._file.has(ROUTE)
        self.has_rules = self._file.has(DKIM)

    def user(self, name: str) -> UserView | None:
        return self._get(_USER, USER, name)

    def domain_view(self, name: str) -> DomainView | None:
        return self._get(_DOMAIN, DOMAIN, name)

    def alias_view(self, name: str) -> AliasView | None:
        return self._get(_ALIAS, ALIAS, name)

    def route_view(self, name: str) -> RouteView | None:
        return self._get(_ROUTE, ROUTE, name)

    def limits(self, name: str) -> Limits | None:
        """The limits of a user or a domain."""
        value = self._file.get(key(LIMITS, name))
        return None if value is None else _limits(value)

    def rules(self, name: str) -> Rules | None:
        """How a domain signs, where its file says so."""
        value = self._file.get(key(DKIM, name))
        return None if value is None else _rules(value)

    # The methods of ptt.directory.rules.Base, by which a later commit is checked against this one.

    def domain(self, name: str) -> Domain | None:
        found = self.domain_view(name)
        if found is None:
            return None
        return Domain(found.sign, found.subdomains, found.postmaster, self.limits(name), self.rules(name))

    def signers(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """The domains with rules for their signatures, and which others sign their mail too."""
        for name, value in self._file.items(DKIM):
            yield name[1:].decode(), _rules(value).also

    def has_user(self, name: str) -> bool:
        return self.user(name) is not None

    def alias(self, name: str) -> Alias | None:
        found = self.alias_view(name)
        return None if found is None or found.post else Alias(found.targets)

    def group(self, name: str) -> Group | None:
        found = self.alias_view(name)
        return None if found is None or not found.post else _group(found)

    def aliases(self) -> dict[str, Alias]:
        """All aliases. Only for the compiler: this is a copy of them in memory."""
        return {name: Alias(view.targets) for name, view in self._alias_views() if not view.post}

    def senders(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """All users with their further addresses. Only for the compiler."""
        for _, value in self._file.items(USER):
            view = _USER.decode(value)
            yield view.name, view.addresses

    def groups(self) -> dict[str, Group]:
        """All groups. Only for the compiler, as ``aliases``."""
        return {name: _group(view) for name, view in self._alias_views() if view.post}

    def _alias_views(self) -> Iterator[tuple[str, AliasView]]:
        return ((k[1:].decode(), _ALIAS.decode(value)) for k, value in self._file.items(ALIAS))

    def names(self, kind: bytes) -> list[str]:
        """The names of all records of a kind, sorted: a copy in memory."""
        return [k[1:].decode() for k, _ in self._file.items(kind)]

    def _get(self, decoder: msgspec.msgpack.Decoder[_T], kind: bytes, name: str) -> _T | None:
        value = self._file.get(key(kind, name))
        return None if value is None else decoder.decode(value)


def _group(view: AliasView) -> Group:
    return Group(view.targets, view.owners, cast(Literal["everyone", "members", "listed"], view.post), view.posters)


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

    def rules(self, domain: str) -> Rules:
        """How the mail of a domain is signed. Costs nothing where no file says anything about it."""
        if self._file is None or not self._file.has_rules:
            return DEFAULT
        return self._file.rules(domain) or DEFAULT

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

    def limits(self, user: str) -> tuple[Limits | None, Limits | None] | None:
        """The limits of a user (any case) and those of the user's domain; None if neither has any."""
        if self._file is None or not self._file.has_limits:
            return None
        name = names.fold(user)
        own, domains = self._file.limits(name), self._file.limits(names.split(name)[1])
        return None if own is None and domains is None else (own, domains)

    def route(self, domain: str) -> RouteView | None:
        """The route to a destination: its own, that of the nearest parent with ``subdomains``, the default, or None."""
        if self._file is None or not self._file.has_routes:
            return None
        folded = names.fold_domain(domain)
        if (found := self._file.route_view(folded)) is not None:
            return found
        for parent in names.parents(folded):
            found = self._file.route_view(parent)
            if found is not None and found.subdomains:
                return found
        return self._file.route_view(DEFAULT_ROUTE)

    def expand(self, address: str) -> list[str] | None:
        """What an alias or a group stands for in the end, each address once; None if the address is neither."""
        found = self._expansion(address)
        return None if found is None else found[0]

    def may_post(self, user: str, address: str) -> bool:
        """May this user (login name) send to this address? Yes for what is no group.

        Every group that the address leads to must let the user: as one of its owners, or as its ``post`` says. A
        user is known to a group by the own address and by those listed.
        """
        found = self._expansion(address)
        if found is None or not found[1]:
            return True
        view = self.user(user)
        own = {view.name, *view.addresses} if view is not None and not view.disabled else set()
        return all(self._lets(group, own) for group in found[1])

    def _lets(self, group: AliasView, own: set[str]) -> bool:
        if group.post == "everyone":
            return True
        listed = set(map(names.fold, group.owners))
        if group.post == "listed":
            listed.update(map(names.fold, group.posters))
        else:
            listed.update(map(names.fold, self._expand_from(group)[0]))
        return not own.isdisjoint(listed) or any(f"*@{names.split(address)[1]}" in listed for address in own)

    def _expansion(self, address: str) -> tuple[list[str], list[AliasView]] | None:
        """(addresses, groups among the aliases on the way) of an alias or a group; None if the address is neither."""
        first = self._file.alias_view(names.fold(address)) if self._file else None
        return None if first is None else self._expand_from(first, names.fold(address))

    def _expand_from(self, first: AliasView, name: str = "") -> tuple[list[str], list[AliasView]]:
        assert self._file is not None  # noqa: S101  (``first`` came from it)
        result: dict[str, str] = {}  # folded -> as written
        groups = [first] if first.post else []
        seen = {name}
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
                    groups += [alias] if alias.post else []
                elif len(result) < MAX_EXPANSION:
                    result[folded] = target
            level = below
            if not level:
                break
        return list(result.values()), groups


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
