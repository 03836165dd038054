"""What people ask about commits: every mistake of one, and the difference of two. Blocking; no service is needed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

import pygit2
from pygit2.enums import SortMode

from ptt.directory.describe import Change, describe
from ptt.directory.records import Record
from ptt.directory.repository import MAX_FILES, Repository, RepositoryError
from ptt.directory.rules import validate
from ptt.directory.schema import FOLDERS, MAX_FILE_BYTES, Mistake, Place, ignored, parse, place_of

MAX_REPORTED = 1_000  # mistakes and changes: a person reads no more, and a hostile commit prints no more


class Commit(NamedTuple):
    """One commit of the history. ``when``: Unix seconds."""

    id: str
    when: int
    author: str
    subject: str
    parent: str  # the first one, "" if none


def resolve(repository: Repository, name: str) -> str:
    """A commit's full id from anything that git understands (HEAD, a branch, HEAD~2). Raises RepositoryError."""
    try:
        return str(repository.git.revparse_single(name).peel(pygit2.Commit).id)
    except (pygit2.GitError, KeyError, ValueError) as e:
        raise RepositoryError(f"{name!r} is no commit of {repository.path}") from e


def commit_mistakes(repository: Repository, commit: str) -> list[Mistake]:
    """Every mistake of a commit. Raises RepositoryError."""
    listing = repository.listing(commit)
    files: dict[str, bytes] = {}
    mistakes = list(listing.mistakes)
    for path, data in repository.contents(listing):
        if isinstance(data, Mistake):
            mistakes.append(data)
        else:
            files[path] = data
    return _all(mistakes, files)


def worktree_mistakes(directory: str) -> list[Mistake]:
    """Every mistake of the files in a directory, committed or not. Raises OSError if it cannot be read."""
    files: dict[str, bytes] = {}
    mistakes: list[Mistake] = []
    for path, entry in _walk(directory, "", 0):
        if isinstance(entry, Mistake):
            mistakes.append(entry)
        elif len(files) >= MAX_FILES:
            return [*mistakes, Mistake(path, 1, f"there are more than {MAX_FILES} files")]
        elif entry.st_size > MAX_FILE_BYTES:
            mistakes.append(Mistake(path, 1, f"has {entry.st_size} bytes; at most {MAX_FILE_BYTES} are allowed"))
        else:
            with open(os.path.join(directory, path), "rb") as f:
                files[path] = f.read(MAX_FILE_BYTES + 1)
    return _all(mistakes, files)


def _walk(root: str, below: str, depth: int) -> Iterator[tuple[str, os.stat_result | Mistake]]:
    for entry in sorted(os.scandir(os.path.join(root, below)), key=lambda e: e.name):
        path = f"{below}/{entry.name}" if below else entry.name
        if entry.name.startswith(".") or (not below and ignored(path)):
            continue
        mode = entry.stat(follow_symlinks=False)
        if stat.S_ISDIR(mode.st_mode) and depth < 2 and (below or path in FOLDERS):
            yield from _walk(root, path, depth + 1)
        elif stat.S_ISREG(mode.st_mode):
            yield path, mode
        else:
            yield path, Mistake(path, 1, "does not belong here: only files in the folders " + ", ".join(FOLDERS))


def _all(mistakes: list[Mistake], files: dict[str, bytes]) -> list[Mistake]:
    found = mistakes + validate(files, MAX_REPORTED)[1]
    return sorted(found, key=lambda m: (m.path, m.line))[:MAX_REPORTED]


def changes(repository: Repository, before: str, after: str) -> list[Change]:
    """What becomes different between two commits ("" is the empty database). Raises RepositoryError.

    Files that break a rule say nothing here; ``commit_mistakes`` does.
    """
    found: list[Change] = []
    for path, oid in sorted(repository.listing(after, before).files.items()):
        place = place_of(path)
        if isinstance(place, Place):
            old = repository.content(before, path) if before else None
            data = None if oid is None else repository.read(path, oid)
            new = data if isinstance(data, bytes) else None
            found += describe(place, _record(path, old), _record(path, new))
        if len(found) > MAX_REPORTED:
            break
    return found[:MAX_REPORTED]


def _record(path: str, data: bytes | None) -> Record | None:
    parsed = None if data is None else parse(path, data)
    return parsed[1] if isinstance(parsed, tuple) else None


def history(repository: Repository, tip: str, most: int) -> list[Commit]:
    """The newest commits, newest first. Raises RepositoryError."""
    found: list[Commit] = []
    try:
        for commit in repository.git.walk(tip, SortMode.TOPOLOGICAL | SortMode.TIME):
            if len(found) == most:
                break
            text = commit.message.partition("\n")[0]
            parent = str(commit.parent_ids[0]) if commit.parent_ids else ""
            found.append(Commit(str(commit.id), commit.commit_time, commit.author.name, text, parent))
    except (pygit2.GitError, KeyError, ValueError, UnicodeError) as e:
        raise RepositoryError(f"{tip}: {e}") from e
    return found


def ahead_behind(repository: Repository, ours: str, theirs: str) -> tuple[int, int]:
    """How many commits each of two has that the other lacks. Raises RepositoryError."""
    try:
        return repository.git.ahead_behind(ours, theirs)
    except (pygit2.GitError, KeyError, ValueError) as e:
        raise RepositoryError(f"{ours}..{theirs}: {e}") from e
