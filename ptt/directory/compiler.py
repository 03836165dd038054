"""From a commit to what is in force: what changed, whether it keeps the rules, the files that say so. Blocking.

A commit is compared with the one in force, and only what differs is read, parsed and checked, and what needs a domain
that it takes away. The control process calls this in a thread; the commands check so before they commit.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ptt.directory.reader import Pointer, SnapshotFile
from ptt.directory.records import Alias, Domain, Group, User
from ptt.directory.repository import GOOD_REF, Listing, Repository, RepositoryError
from ptt.directory.rules import MAX_MISTAKES, Base, Database, check, check_changes, locate, parse_all
from ptt.directory.schema import Mistake, Place, parse, path_of, place_of
from ptt.directory.snapshot import Changes, Store
from ptt.directory.sshsig import BadSignature, BadSigners, parse_signers, verify

MAX_SIGNERS_BYTES = 1 << 20  # of the file of allowed signers: some 10,000 keys


class Refused(Exception):
    """A commit breaks rules. ``mistakes``: with file and line, at most MAX_MISTAKES. What was in force stays."""

    def __init__(self, commit: str, mistakes: list[Mistake]) -> None:
        self.commit = commit
        self.mistakes = mistakes
        super().__init__("\n".join(str(m) for m in mistakes))


class Checked(NamedTuple):
    """A commit that keeps the rules."""

    changes: Changes
    whole: bool  # ``changes`` are the whole database, not differences


class Trust(NamedTuple):
    """What a commit must be beside good, to come into force."""

    allow_rewrite: bool = False  # it need not contain the one in force
    signers: str = ""  # file with the allowed signers, of whom one must have signed it; empty: no signature is needed


ANY_FAST_FORWARD = Trust()


def compile_commit(repository: Repository, commit: str, store: Store, trust: Trust = ANY_FAST_FORWARD) -> Pointer:
    """Check a commit and write its files; ``Store.point`` puts them in force.

    Raises Refused, RepositoryError, OSError, lmdb.Error.
    """
    base = store.current()
    if trust.signers and (wrong := signature_mistake(repository, commit, trust.signers)):
        raise Refused(commit, [Mistake(repository.ref, 1, f"{commit}: {wrong}")])
    if base is not None and not trust.allow_rewrite and not repository.is_ancestor(base.commit, commit):
        text = f"the history was rewritten: {commit} does not contain {base.commit}, which is in force"
        raise Refused(commit, [Mistake(repository.ref, 1, text)])
    if base is None:
        checked = examine(repository, commit, "", None)
    else:
        opened = SnapshotFile(store.paths(base.file)[0])
        try:
            checked = examine(repository, commit, base.commit, opened)
        finally:
            opened.close()
    _found_good(repository, commit)
    return store.write(commit, checked.changes, None if checked.whole else base)


def signature_mistake(repository: Repository, commit: str, file: str) -> str:
    """What is wrong with a commit's signature by one of the allowed signers; "" if nothing. Raises RepositoryError.

    Only the commit that is to come into force is looked at. Its signature covers its tree, which is all that comes into
    force, and its history by the hashes; the commits behind a merge may be anybody's who was reviewed.
    """
    try:
        with open(file, encoding="utf-8") as f:
            signers = parse_signers(f.read(MAX_SIGNERS_BYTES))
    except (OSError, UnicodeDecodeError, BadSigners) as e:
        raise RepositoryError(f"{file}: {e}") from e
    signature, message = repository.signature(commit)
    if not signature:
        return "it is not signed"
    try:
        verify(signature, message, signers, time.time())
    except BadSignature as e:
        return str(e)
    return ""


def examine(repository: Repository, commit: str, since: str, base: Base | None) -> Checked:
    """Check a commit against the good commit ``since``, whose records ``base`` knows; without them, as a whole.

    Raises Refused, RepositoryError.
    """
    if base is not None:
        return _examine_changes(repository, commit, repository.listing(commit, since), base)
    listing = repository.listing(commit)
    records = _records(repository, commit, listing)
    _raise(commit, locate(check(records, records), _content(repository, commit)))
    return Checked(Changes(records, set()), whole=True)


def _examine_changes(repository: Repository, commit: str, listing: Listing, base: Base) -> Checked:
    records = _records(repository, commit, listing)
    places = (place_of(path) for path, oid in listing.files.items() if oid is None)
    removed = {place for place in places if isinstance(place, Place)}
    _raise(commit, locate(check_changes(base, records, removed), _content(repository, commit)))
    return Checked(Changes(records, removed), whole=False)


def _records(repository: Repository, commit: str, listing: Listing) -> Database:
    wrong = list(listing.mistakes)

    def files() -> Iterator[tuple[str, bytes]]:
        for path, data in repository.contents(listing):
            if isinstance(data, Mistake):
                wrong.append(data)
            else:
                yield path, data
            if len(wrong) > MAX_MISTAKES:
                return

    records, mistakes = parse_all(files())
    _raise(commit, wrong + mistakes)
    return records


def _raise(commit: str, mistakes: list[Mistake]) -> None:
    if mistakes:
        raise Refused(commit, mistakes[:MAX_MISTAKES])


def _content(repository: Repository, commit: str) -> Callable[[str], bytes]:
    return lambda path: repository.content(commit, path) or b""


class TreeBase:
    """The records of a good commit, read from its tree one by one: what the commands check a change against."""

    def __init__(self, repository: Repository, commit: str) -> None:
        self._repository = repository
        self._commit = commit

    def domain(self, name: str) -> Domain | None:
        found = self._record(Place("domain", name))
        return found if isinstance(found, Domain) else None

    def has_user(self, name: str) -> bool:
        return isinstance(self._record(Place("user", name)), User)

    def alias(self, name: str) -> Alias | None:
        found = self._record(Place("alias", name))
        return found if isinstance(found, Alias) else None

    def group(self, name: str) -> Group | None:
        found = self._record(Place("group", name))
        return found if isinstance(found, Group) else None

    def aliases(self) -> dict[str, Alias]:
        return {name: record for name, record in self._records("aliases/") if isinstance(record, Alias)}

    def senders(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        return ((name, record.addresses) for name, record in self._records("users/") if isinstance(record, User))

    def signers(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        found = ((name, record) for name, record in self._records("domains/") if isinstance(record, Domain))
        return ((name, domain.dkim.also) for name, domain in found if domain.dkim is not None)

    def groups(self) -> dict[str, Group]:
        return {name: record for name, record in self._records("groups/") if isinstance(record, Group)}

    def _records(self, folder: str) -> Iterator[tuple[str, object]]:
        for path, oid in self._repository.listing(self._commit).files.items():
            if path.startswith(folder) and oid is not None:
                data = self._repository.read(path, oid)
                parsed = parse(path, data) if isinstance(data, bytes) else []
                if isinstance(parsed, tuple):
                    yield parsed[0].name, parsed[1]

    def _record(self, place: Place) -> object:
        data = self._repository.content(self._commit, path_of(place))
        parsed = None if data is None else parse(path_of(place), data)
        return parsed[1] if isinstance(parsed, tuple) else None


def check_for_commit(repository: Repository, commit: str, parent: str) -> None:
    """Check a commit that is about to be put on the branch. Raises Refused, RepositoryError."""
    known = bool(parent) and parent == repository.tip(GOOD_REF)
    examine(repository, commit, parent if known else "", TreeBase(repository, parent) if known else None)
    _found_good(repository, commit)


def _found_good(repository: Repository, commit: str) -> None:
    """Remember, for the commands, that this commit needs no second check as a whole."""
    with contextlib.suppress(RepositoryError):  # moved or locked by another process: it costs a check, no more
        before = repository.tip(GOOD_REF)
        if before != commit:
            repository.move(GOOD_REF, commit, before)
