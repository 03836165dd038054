"""What must hold between the files of the git database. Pure.

``validate`` looks at a whole tree. ``check`` looks at some records in the light of the rest, which a ``View`` answers
for: so a commit that changes one file costs what that file costs, whatever the size of the database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

import msgspec

from ptt.directory import names
from ptt.directory.records import Alias, Domain, Group, Record, Route, User
from ptt.directory.schema import Mistake, Place, line_of, parse, path_of

MAX_MISTAKES = 100  # reported of one commit: enough to mend it, bounded for a log line
MAX_EXPANSION = 1_000  # addresses that one alias stands for in the end
MAX_ALIAS_DEPTH = 16  # aliases behind aliases; people lose sight long before


class Database(msgspec.Struct):
    """The records of one commit, by name."""

    domains: dict[str, Domain] = msgspec.field(default_factory=dict)
    users: dict[str, User] = msgspec.field(default_factory=dict)
    aliases: dict[str, Alias] = msgspec.field(default_factory=dict)
    groups: dict[str, Group] = msgspec.field(default_factory=dict)
    routes: dict[str, Route] = msgspec.field(default_factory=dict)

    def domain(self, name: str) -> Domain | None:
        return self.domains.get(name)

    def has_user(self, name: str) -> bool:
        return name in self.users

    def alias(self, name: str) -> Alias | None:
        return self.aliases.get(name)

    def group(self, name: str) -> Group | None:
        return self.groups.get(name)

    def put(self, place: Place, record: Record) -> None:
        """Add or replace one record."""
        if isinstance(record, Domain):
            self.domains[place.name] = record
        elif isinstance(record, User):
            self.users[place.name] = record
        elif isinstance(record, Alias):
            self.aliases[place.name] = record
        elif isinstance(record, Group):
            self.groups[place.name] = record
        else:
            self.routes[place.name] = record


class View(Protocol):
    """The database that records are checked against: it contains them already."""

    def domain(self, name: str) -> Domain | None: ...
    def has_user(self, name: str) -> bool: ...
    def alias(self, name: str) -> Alias | None: ...
    def group(self, name: str) -> Group | None: ...


def our_domain(view: View, name: str) -> str:
    """The domain of the database that answers for a domain: itself, or a parent with ``subdomains``; "" if none."""
    if view.domain(name) is not None:
        return name
    for parent in names.parents(name):
        found = view.domain(parent)
        if found is not None and found.subdomains:
            return parent
    return ""


def parse_all(files: Iterable[tuple[str, bytes]], most: int = MAX_MISTAKES) -> tuple[Database, list[Mistake]]:
    """Parse files (path, content), one at a time. Stops at ``most`` mistakes."""
    database = Database()
    mistakes: list[Mistake] = []
    for path, data in files:
        found = parse(path, data)
        if isinstance(found, list):
            mistakes += found
            if len(mistakes) >= most:
                break
        else:
            database.put(*found)
    return database, mistakes[:most]


def validate(files: Mapping[str, bytes], most: int = MAX_MISTAKES) -> tuple[Database, list[Mistake]]:
    """Parse and check a whole tree: path -> content. The database may be used only if there are no mistakes.

    The rules between files are checked even if some files are wrong; what these may have meant is given the benefit of
    the doubt.
    """
    database, mistakes = parse_all(files.items(), most)
    wrong = {m.path for m in mistakes}
    found = locate(check(database, _Lenient(database, wrong)), files.__getitem__, most)
    return database, (mistakes + found)[:most]


class _Lenient:
    """The View of a database some of whose files could not be parsed: they are there, and mean nothing."""

    def __init__(self, database: Database, wrong: set[str]) -> None:
        self._wrong = wrong
        self._database = database
        self.has_user, self.alias, self.group = database.has_user, database.alias, database.group

    def domain(self, name: str) -> Domain | None:
        unknown = path_of(Place("domain", name)) in self._wrong
        return Domain(subdomains=True) if unknown else self._database.domain(name)


Finding = tuple[Place, str, str, str]  # record, key ("": the whole file), value, what is wrong


def locate(found: Iterable[Finding], content: Callable[[str], bytes], most: int = MAX_MISTAKES) -> list[Mistake]:
    """Findings with their lines, which are looked for in the files: ``content`` maps a path to its bytes."""
    mistakes = []
    for place, key, value, text in found:
        path = path_of(place)
        line = line_of(content(path).decode("utf-8", "replace"), key, value) if key else 1
        mistakes.append(Mistake(path, line, text))
        if len(mistakes) == most:
            break
    return mistakes


class Base(View, Protocol):
    """A database that is known to be good, which a few files change."""

    def aliases(self) -> dict[str, Alias]: ...
    def groups(self) -> dict[str, Group]: ...
    def senders(self) -> Iterator[tuple[str, tuple[str, ...]]]: ...  # all users, with their further addresses
    def signers(self) -> Iterator[tuple[str, tuple[str, ...]]]: ...  # domains, with those that sign their mail too


class Changed:
    """The View of a good database after some changes."""

    def __init__(self, base: Base, records: Database, removed: set[Place]) -> None:
        self._base = base
        self._records = records
        self._removed = removed

    def domain(self, name: str) -> Domain | None:
        if found := self._records.domain(name):
            return found
        return None if Place("domain", name) in self._removed else self._base.domain(name)

    def has_user(self, name: str) -> bool:
        return self._records.has_user(name) or (Place("user", name) not in self._removed and self._base.has_user(name))

    def alias(self, name: str) -> Alias | None:
        if found := self._records.alias(name):
            return found
        return None if Place("alias", name) in self._removed else self._base.alias(name)

    def group(self, name: str) -> Group | None:
        if found := self._records.group(name):
            return found
        return None if Place("group", name) in self._removed else self._base.group(name)


def check_changes(base: Base, records: Database, removed: set[Place]) -> Iterator[Finding]:
    """Every breach of a rule after ``records`` were put into, and ``removed`` taken out of, a good database.

    Changed aliases and groups are checked with all others, which may contain them. A domain that is removed, or loses
    its subdomains, has all records checked that may need it, and one that signs no more those whose mail it signs too;
    one that is added or changed otherwise takes away nothing.
    """
    view = Changed(base, records, removed)
    records = msgspec.structs.replace(records, domains={**_signed_by(base, records, removed), **records.domains})
    lost = {place.name for place in removed if place.kind == "domain"}
    for name, domain in records.domains.items():
        before = base.domain(name)
        if before is not None and before.subdomains and not domain.subdomains:
            lost.add(name)
    if lost:
        touched = ((n, a) for n, a in base.senders() if _needs(lost, (n, *a)))
        users = {n: User(addresses=a) for n, a in touched if Place("user", n) not in removed}
        records = Database(records.domains, {**users, **records.users}, records.aliases, records.groups)
    if records.aliases or records.groups or lost:
        aliases = {n: a for n, a in base.aliases().items() if Place("alias", n) not in removed}
        groups = {n: g for n, g in base.groups().items() if Place("group", n) not in removed}
        all_aliases, all_groups = {**aliases, **records.aliases}, {**groups, **records.groups}
        records = Database(records.domains, records.users, all_aliases, all_groups)
    yield from check(records, view)


def _signed_by(base: Base, records: Database, removed: set[Place]) -> dict[str, Domain]:
    """The domains whose mail is signed by others too that are removed, or sign no more."""
    ended = {place.name for place in removed if place.kind == "domain"}
    ended |= {name for name, domain in records.domains.items() if not domain.sign}
    if not ended:
        return {}
    touched = (name for name, also in base.signers() if not ended.isdisjoint(also))
    found = {name: base.domain(name) for name in touched if Place("domain", name) not in removed}
    return {name: domain for name, domain in found.items() if domain is not None}


def _needs(domains: set[str], addresses: tuple[str, ...]) -> bool:
    """Is one of the addresses in or below one of the domains?"""
    for address in addresses:
        domain = names.split(address)[1]
        if domain in domains or not domains.isdisjoint(names.parents(domain)):
            return True
    return False


def check(records: Database, view: View) -> Iterator[Finding]:
    """Every breach of a rule by one of ``records``."""
    for name, domain in records.domains.items():
        for other in domain.dkim.also if domain.dkim else ():
            if wrong := _no_signer(name, other, view.domain(other)):
                yield Place("domain", name), "dkim.also", other, f"dkim.also: {wrong}"
    for name, user in records.users.items():
        place = Place("user", name)
        yield from _domain_is_ours(place, view)
        if view.alias(name) is not None:
            yield place, "", "", f"{name} is an alias too ({path_of(Place('alias', name))})"
        if view.group(name) is not None:
            yield place, "", "", f"{name} is a group too ({path_of(Place('group', name))})"
        for address in user.addresses:
            if not our_domain(view, names.split(address)[1]):
                yield place, "addresses", address, f"addresses: the domain of {address!r} is not in domains/"
    expander = Expander(view)
    for name, alias in records.aliases.items():
        yield from _expansion(Place("alias", name), "targets", alias.targets, view, expander)
        if view.group(name) is not None:
            yield Place("alias", name), "", "", f"{name} is a group too ({path_of(Place('group', name))})"
    for name, group in records.groups.items():
        yield from _expansion(Place("group", name), "members", group.members, view, expander)


def _no_signer(name: str, other: str, found: Domain | None) -> str:
    """Why ``other`` cannot sign the mail of the domain ``name`` too; "" if it can."""
    if other == name:
        return f"{other} signs its own mail anyway"
    if found is None:
        return f"there is no {path_of(Place('domain', other))}"
    return "" if found.sign else f"{other} does not sign: sign = false"


def _expansion(place: Place, key: str, targets: tuple[str, ...], view: View, expander: Expander) -> Iterator[Finding]:
    """What is wrong with an alias or a group and what it stands for."""
    yield from _domain_is_ours(place, view)
    if view.has_user(place.name):
        yield place, "", "", f"{place.name} is a user too ({path_of(Place('user', place.name))})"
    for target in targets:
        if wrong := expander.mistake(place.name, target):
            yield place, key, target, f"{key}: {wrong}"
            return


def _domain_is_ours(place: Place, view: View) -> Iterator[Finding]:
    domain = names.split(place.name)[1]
    if view.domain(domain) is None:
        yield place, "", "", f"there is no {path_of(Place('domain', domain))}"


class Expander:
    """Measures aliases and groups: how many addresses each stands for, and how deep. Each alias is walked once."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._known: dict[str, tuple[int, int]] = {}  # alias -> (addresses, depth)
        self._total: dict[str, int] = {}

    def mistake(self, name: str, target: str) -> str:
        """What is wrong with ``target`` as the next target of alias ``name``; "" if nothing."""
        found = self._measure(target, (name,))
        if isinstance(found, str):
            return found
        size, depth = found
        if depth + 1 > MAX_ALIAS_DEPTH:
            return f"{name} is more than {MAX_ALIAS_DEPTH} aliases deep"
        self._total[name] = self._total.get(name, 0) + size
        return f"{name} stands for more than {MAX_EXPANSION} addresses" if self._total[name] > MAX_EXPANSION else ""

    def _measure(self, target: str, above: tuple[str, ...]) -> tuple[int, int] | str:
        """(addresses, depth) of what an address stands for, or what is wrong. ``above`` bounds the recursion."""
        name = names.fold(target)
        if name in above:
            return "cycle: " + " -> ".join((*above[above.index(name) :], name))
        targets = self._targets(name)
        if targets is None:
            return 1, 0
        if name in self._known:
            return self._known[name]
        if len(above) > MAX_ALIAS_DEPTH:
            return f"{above[0]} is more than {MAX_ALIAS_DEPTH} aliases deep"
        size = depth = 0
        for further in targets:
            found = self._measure(further, (*above, name))
            if isinstance(found, str):
                return found
            size, depth = size + found[0], max(depth, found[1] + 1)
        self._known[name] = min(size, MAX_EXPANSION + 1), depth
        return self._known[name]

    def _targets(self, name: str) -> tuple[str, ...] | None:
        if (alias := self._view.alias(name)) is not None:
            return alias.targets
        group = self._view.group(name)
        return None if group is None else group.members
