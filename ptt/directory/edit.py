"""One change of the git database by a command: read, change, check, push, commit. Blocking.

With a remote, the remote comes first: the change is made on top of what it has, pushed, and only then committed here,
so two hosts that change the database at once never part. While the remote is away the change is committed here alone,
which the caller is told; the control process pushes it later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import tomlkit
import tomlkit.exceptions

from ptt.config import Directory
from ptt.directory.compiler import check_for_commit
from ptt.directory.records import Record
from ptt.directory.remote import Refused as PushRefused
from ptt.directory.remote import Rewritten, push, synchronise
from ptt.directory.repository import Author, Repository, RepositoryError
from ptt.directory.schema import FLAT, Kind, Mistake, Place, dump, parse, path_of

TRIES = 5  # when other hosts push at the same moment


class EditError(Exception):
    """The change makes no sense in the database as it is; the text says why."""


class Done(NamedTuple):
    """A change that was committed. ``warning``: why it is not at the remote yet, or ""."""

    commit: str
    warning: str


class Tree:
    """The database at a commit ("": empty), for a command."""

    def __init__(self, repository: Repository, commit: str) -> None:
        self.repository = repository
        self.commit = commit

    def text(self, place: Place) -> str | None:
        """The file of a record; None if there is none. Raises EditError if it is not UTF-8."""
        data = self.repository.content(self.commit, path_of(place)) if self.commit else None
        try:
            return None if data is None else data.decode("utf-8")
        except UnicodeDecodeError as e:
            raise EditError(f"{path_of(place)}: is not UTF-8") from e

    def records(self, kind: Kind) -> Iterator[tuple[str, Record] | Mistake]:
        """(name, record) of all files of a kind, sorted; a Mistake for each that breaks a rule."""
        if not self.commit:
            return
        folder = path_of(Place(kind, "x@x" if kind not in FLAT else "x")).partition("/")[0] + "/"
        files = self.repository.listing(self.commit).files
        for path, oid in sorted(files.items()):
            if not path.startswith(folder) or oid is None:
                continue
            data = self.repository.read(path, oid)
            found = [data] if isinstance(data, Mistake) else parse(path, data)
            if isinstance(found, list):
                yield from found
            else:
                yield found[0].name, found[1]


Edit = Callable[[Tree], dict[str, bytes | None]]
"""What a command changes: path -> content, None removes. Raises EditError."""


def added(tree: Tree, place: Place, record: Record) -> dict[str, bytes | None]:
    """Add a file. Raises EditError if it is there."""
    if tree.text(place) is not None:
        raise EditError(f"{place.kind} {place.name} exists already")
    return {path_of(place): dump(record)}


def removed(tree: Tree, place: Place) -> dict[str, bytes | None]:
    """Remove a file. Raises EditError if it is not there."""
    if tree.text(place) is None:
        raise EditError(f"there is no {place.kind} {place.name}")
    return {path_of(place): None}


def changed(tree: Tree, place: Place, **values: object) -> dict[str, bytes | None]:
    """Set keys of a file; comments and the rest stay as people wrote them. None removes a key, a dict sets those of a
    table, which goes with its last key. Raises EditError.
    """
    text = tree.text(place)
    if text is None:
        raise EditError(f"there is no {place.kind} {place.name}")
    try:
        document = tomlkit.parse(text)
        _set(document, values)
        return {path_of(place): tomlkit.dumps(document).encode()}
    except tomlkit.exceptions.TOMLKitError as e:
        raise EditError(f"{path_of(place)}: is not TOML: {e}") from e


def _set(table: Any, values: Mapping[str, object]) -> None:
    """``table``: of tomlkit."""
    for key, value in values.items():
        if value is None:
            table.pop(key, None)
        elif isinstance(value, dict):
            if key not in table:
                table[key] = tomlkit.table()
            _set(table[key], value)
            if not table[key]:
                table.pop(key)
        else:
            table[key] = value


def apply(settings: Directory, edit: Edit, message: str, author: Author) -> Done:
    """Make one commit. Raises EditError, ``compiler.Refused`` (it would break a rule), RepositoryError."""
    if settings.allowed_signers:
        raise EditError("[directory] allowed_signers is set, and commands cannot sign: use git commit -S in a clone")
    repository = Repository(settings.repository, settings.branch, create=True)
    with repository.lock():
        for _ in range(TRIES):
            warning = _pull(repository, settings)
            parent = repository.tip()
            changes = edit(Tree(repository, parent))
            commit = repository.commit(changes, message, author, parent)
            check_for_commit(repository, commit, parent)
            if settings.remote and not warning:
                try:
                    push(repository, settings.remote, settings.credentials, commit)
                except PushRefused:
                    continue  # another host pushed between our fetch and now
                except RepositoryError as e:
                    warning = str(e)
            repository.move(repository.ref, commit, parent)
            return Done(commit, warning)
    raise RepositoryError("others change the database all the time; try again")


def _pull(repository: Repository, settings: Directory) -> str:
    """Bring the local branch up to date; returns why the remote cannot be reached, or ""."""
    if not settings.remote:
        return ""
    try:
        synchronise(repository, settings.remote, settings.credentials, settings.allow_rewrite)
    except Rewritten:
        raise
    except RepositoryError as e:
        return str(e)
    return ""
