"""The bare git repository: the tree of a commit without a checkout, and commits that change some files (libgit2).

Everything in a repository is hostile until it was looked at: sizes are read from objects' headers before the objects,
only our three levels of folders are entered, links and submodules are refused. Calls block: the control process makes
them in a thread. An object of this module is used by one thread at a time.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import gevent.monkey
import pygit2
from pygit2.enums import ConfigLevel, DeltaStatus, FileMode, ObjectType

from ptt.directory.schema import FLAT, FOLDERS, MAX_FILE_BYTES, Mistake, ignored

MAX_FILES = 500_000  # five times the largest database that we measured
MAX_TOTAL_BYTES = 128 * 1024 * 1024  # of the files that a commit changes: three times 100,000 users. One file may stand
# under every name, so 500,000 of the largest size need no more than a few MiB in a pack
MAX_TREE_BYTES = 64 * 1024 * 1024  # of one folder's list: some 800,000 names
CACHE_BYTES = 16 * 1024 * 1024  # of libgit2's objects: each is read once
LOCK_SECONDS = 150.0  # more than a fetch from a remote that stalls
LOCK_PAUSE_SECONDS = 0.05
MAX_LISTED_MISTAKES = 100
GOOD_REF = "refs/ptt/good"  # the last commit that was checked as a whole: the next one needs only its changes checked

_sleep = gevent.monkey.get_original("time", "sleep")  # we are in a real thread


class RepositoryError(Exception):
    """The repository cannot be read or written; the text says why. Caught by the control process and the commands."""


class Author(NamedTuple):
    """Who makes a commit."""

    name: str
    email: str


class Listing(NamedTuple):
    """The files of a tree that differ from another tree: path -> object, None for a removed file."""

    files: dict[str, pygit2.Oid | None]
    mistakes: list[Mistake]


def isolate() -> None:
    """Let libgit2 depend on nothing but the repository: not on ~/.gitconfig, nor on who owns the files.

    The owner does not matter: libgit2 runs no hooks and no programs, and root works on what control owns.
    """
    for level in (ConfigLevel.SYSTEM, ConfigLevel.GLOBAL, ConfigLevel.XDG, ConfigLevel.PROGRAMDATA):
        pygit2.settings.search_path[level] = ""
    pygit2.settings.owner_validation = False
    pygit2.settings.enable_fsync_gitdir(True)
    pygit2.settings.cache_max_size(CACHE_BYTES)


class Repository:
    """A bare repository and the branch that is the database."""

    def __init__(self, path: str, branch: str, *, create: bool = False) -> None:
        """Open it; ``create`` makes an empty one if there is none. Raises RepositoryError."""
        isolate()
        self.path = path
        self.ref = f"refs/heads/{branch}"
        try:
            if create and not (os.path.isdir(path) and os.listdir(path)):
                os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
                pygit2.init_repository(path, bare=True, initial_head=branch, mode=0o700)
            self.git = pygit2.Repository(path)
        except (pygit2.GitError, KeyError, ValueError, OSError) as e:
            raise RepositoryError(f"{path}: {e}") from e

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from fetching, pushing and committing here. Raises RepositoryError in LOCK_SECONDS."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            deadline = time.monotonic() + LOCK_SECONDS
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as e:
                    if time.monotonic() > deadline:
                        raise RepositoryError(f"{self.path} is locked by another process") from e
                    _sleep(LOCK_PAUSE_SECONDS)
            yield
        finally:
            os.close(descriptor)

    def tip(self, ref: str = "") -> str:
        """The commit at the branch (or another reference), full hexadecimal; "" if there is none."""
        try:
            found = self.git.references.get(ref or self.ref)
            return "" if found is None else str(found.peel(pygit2.Commit).id)
        except (pygit2.GitError, KeyError, ValueError) as e:
            raise RepositoryError(f"{ref or self.ref}: {e}") from e

    def is_ancestor(self, older: str, newer: str) -> bool:
        """Does ``newer`` contain ``older``? A commit contains itself. False if either is not in the repository."""
        try:
            return older == newer or self.git.descendant_of(newer, older)
        except (pygit2.GitError, KeyError, ValueError):
            return False

    def move(self, ref: str, commit: str, old: str) -> None:
        """Point a reference to a commit if it is still at ``old`` ("": there is none). Raises RepositoryError."""
        try:
            with self.git.transaction() as transaction:
                transaction.lock_ref(ref)
                if self.tip(ref) != old:
                    raise RepositoryError(f"{ref} was moved by somebody else")
                transaction.set_target(ref, commit)
        except (pygit2.GitError, KeyError, ValueError) as e:
            raise RepositoryError(f"{ref}: {e}") from e

    def signature(self, commit: str) -> tuple[str, bytes]:
        """A commit's signature and what it signs; ("", b"") if it has none. Raises RepositoryError."""
        try:
            signature, payload = self.git[commit].peel(pygit2.Commit).gpg_signature
        except (pygit2.GitError, KeyError, ValueError) as e:
            raise RepositoryError(f"{commit}: {e}") from e
        return (signature or b"").decode("ascii", "replace"), payload or b""

    # -- read ----------------------------------------------------------------------------------------------------

    def listing(self, commit: str, since: str = "") -> Listing:
        """The files of a commit, or those that differ from the commit ``since``. Raises RepositoryError."""
        try:
            old = self.git[since].peel(pygit2.Tree).id if since else None
            walk = _Walk(self.git)
            walk.root(self.git[commit].peel(pygit2.Tree).id, old)
        except (pygit2.GitError, KeyError, ValueError) as e:
            raise RepositoryError(f"{commit}: {e}") from e
        return Listing(walk.files, walk.mistakes)

    def read(self, path: str, oid: pygit2.Oid) -> bytes | Mistake:
        """The content of a listed file, or what is wrong with it. Raises RepositoryError."""
        try:
            kind, size = self.git.odb.read_header(oid)
            if kind != ObjectType.BLOB:
                return Mistake(path, 1, "is not a file")
            if size > MAX_FILE_BYTES:
                return Mistake(path, 1, f"has {size} bytes; at most {MAX_FILE_BYTES} are allowed")
            return self.git.odb.read(oid)[1]
        except (pygit2.GitError, KeyError, ValueError) as e:
            raise RepositoryError(f"{path}: {e}") from e

    def contents(self, listing: Listing) -> Iterator[tuple[str, bytes | Mistake]]:
        """(path, content, or what is wrong) of each file that is there; at most MAX_TOTAL_BYTES, then the last Mistake.

        Raises RepositoryError.
        """
        room = MAX_TOTAL_BYTES
        for path, oid in listing.files.items():
            if oid is None:
                continue
            data = self.read(path, oid)
            room -= len(data) if isinstance(data, bytes) else 0
            if room < 0:
                yield path, Mistake(path, 1, f"with this file the commit has more than {MAX_TOTAL_BYTES} bytes")
                return
            yield path, data

    def content(self, commit: str, path: str) -> bytes | None:
        """The content of one file of a commit; None if it is not there or not an ordinary file of lawful size."""
        try:
            found = self.git[commit].peel(pygit2.Tree)[path]
        except (KeyError, pygit2.GitError, ValueError):
            return None
        data = self.read(path, found.id) if found.filemode in (FileMode.BLOB, FileMode.BLOB_EXECUTABLE) else None
        return data if isinstance(data, bytes) else None

    # -- write ---------------------------------------------------------------------------------------------------

    def commit(self, changes: Mapping[str, bytes | None], message: str, author: Author, parent: str) -> str:
        """Write a commit on top of ``parent`` ("": the first), not yet on the branch (see ``move``).

        ``changes``: path -> new content, None removes. Returns the commit's id. Raises RepositoryError.
        """
        try:
            base = self.git[parent].peel(pygit2.Tree).id if parent else None
            parts = {tuple(path.split("/")): data for path, data in changes.items()}
            tree = self._tree(base, parts) or self.git.TreeBuilder().write()
            signature = pygit2.Signature(author.name, author.email, int(time.time()), 0)
            parents = [pygit2.Oid(hex=parent)] if parent else []
            return str(self.git.create_commit(None, signature, signature, message, tree, parents))
        except (pygit2.GitError, KeyError, ValueError, OSError) as e:
            raise RepositoryError(f"{self.path}: {e}") from e

    def _tree(self, base: pygit2.Oid | None, changes: Mapping[tuple[str, ...], bytes | None]) -> pygit2.Oid | None:
        """A tree with changes; None if nothing is left in it."""
        tree = self.git[base].peel(pygit2.Tree) if base else None
        builder = self.git.TreeBuilder(tree) if tree is not None else self.git.TreeBuilder()
        below: dict[str, dict[tuple[str, ...], bytes | None]] = {}
        for (name, *rest), data in changes.items():
            if rest:
                below.setdefault(name, {})[tuple(rest)] = data
            elif data is not None:
                builder.insert(name, self.git.create_blob(data), FileMode.BLOB)
            elif tree is not None and name in tree:
                builder.remove(name)
        for name, inner in below.items():
            there = tree is not None and name in tree
            child = self._tree(tree[name].id if tree is not None and there else None, inner)
            if child is not None:
                builder.insert(name, child, FileMode.TREE)
            elif there:
                builder.remove(name)
        return builder.write() if len(builder) else None


def disk_bytes(path: str) -> int:
    """What a repository takes on disk. Files that go away meanwhile do not count."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_blocks * 512
    return total


_Entries = dict[bytes, tuple[int, pygit2.Oid]]


class _Walk:
    """Walks a tree beside an older one and enters only what differs. ``old`` is None where there is no older one."""

    def __init__(self, git: pygit2.Repository) -> None:
        self._git = git
        self.files: dict[str, pygit2.Oid | None] = {}
        self.mistakes: list[Mistake] = []

    def root(self, new: pygit2.Oid, old: pygit2.Oid | None) -> None:
        for path, mode, oid, before in self._differences("", new, old):
            if path not in FOLDERS:
                if mode:
                    self._mistake(path, f"does not belong here; the folders are {', '.join(FOLDERS)}")
            elif mode and mode != FileMode.TREE:
                self._mistake(path, "must be a folder")
            elif FOLDERS[path] in FLAT:
                self._folder(path, oid, before)
            else:
                self._domains(path, oid, before)

    def _domains(self, folder: str, new: pygit2.Oid | None, old: pygit2.Oid | None) -> None:
        for path, mode, oid, before in self._differences(folder, new, old):
            if mode and mode != FileMode.TREE:
                self._mistake(path, f"must be a folder, {folder}/DOMAIN/")
            else:
                self._folder(path, oid, before)

    def _folder(self, folder: str, new: pygit2.Oid | None, old: pygit2.Oid | None) -> None:
        for path, mode, oid in self._changed_files(folder, new, old):
            if mode in (0, FileMode.BLOB, FileMode.BLOB_EXECUTABLE):
                self.files[path] = oid
            else:
                self._mistake(path, f"is {_WHAT.get(mode, 'not a file')}; only files may be here")
            if len(self.files) > MAX_FILES:
                self._mistake(path, f"there are more than {MAX_FILES} files")
                return

    def _changed_files(
        self, folder: str, new: pygit2.Oid | None, old: pygit2.Oid | None
    ) -> Iterator[tuple[str, int, pygit2.Oid | None]]:
        """As ``_differences``, by libgit2's own comparison where that is safe: 0.1 s for 100,000 names, not 0.3."""
        if new is None or old is None or not self._flat(new):
            for path, mode, oid, _ in self._differences(folder, new, old):
                yield path, mode, oid
            return
        for delta in self._git[old].peel(pygit2.Tree).diff_to_tree(self._git[new].peel(pygit2.Tree)).deltas:
            there = delta.status != DeltaStatus.DELETED
            file = delta.new_file if there else delta.old_file
            if path := self._path(folder, file.raw_path):
                yield path, int(file.mode) if there else 0, file.id if there else None

    def _flat(self, oid: pygit2.Oid) -> bool:
        """Is this surely a folder of lawful size without folders in it? libgit2 would enter them, however many."""
        kind, size = self._git.odb.read_header(oid)
        return kind == ObjectType.TREE and size <= MAX_TREE_BYTES and b"40000 " not in self._git.odb.read(oid)[1]

    def _differences(
        self, folder: str, new: pygit2.Oid | None, old: pygit2.Oid | None
    ) -> Iterator[tuple[str, int, pygit2.Oid | None, pygit2.Oid | None]]:
        """(path, mode, object, former object) of each name that differs. Removed: mode 0, object None."""
        before = self._entries(folder, old)
        for name, (mode, oid) in self._entries(folder, new).items():
            former = before.pop(name, None)
            if former == (mode, oid):
                continue
            if (path := self._path(folder, name)) and len(self.mistakes) < MAX_LISTED_MISTAKES:
                was_tree = former is not None and former[0] == FileMode.TREE
                yield path, mode, oid, former[1] if former and was_tree == (mode == FileMode.TREE) else None
        for name, (mode, oid) in before.items():
            if path := self._path(folder, name):
                yield path, 0, None, oid if mode == FileMode.TREE else None

    def _path(self, folder: str, raw: bytes) -> str:
        """The path of a name in a folder; "" if it is ignored or refused."""
        path = f"{folder}/" if folder else ""
        try:
            path += raw.decode("utf-8")
        except UnicodeDecodeError:
            self._mistake(path + raw.decode("utf-8", "backslashreplace"), "the name is not UTF-8")
            return ""
        if raw.startswith(b".") or (not folder and ignored(path)):
            return ""
        return path

    def _entries(self, folder: str, oid: pygit2.Oid | None) -> _Entries:
        if oid is None:
            return {}
        if self._git.odb.read_header(oid)[1] > MAX_TREE_BYTES:
            self._mistake(folder or "/", "the folder has too many files")
            return {}
        tree = self._git[oid]
        if not isinstance(tree, pygit2.Tree):
            return {}
        return {(e.raw_name or b""): (int(e.filemode), e.id) for e in tree}

    def _mistake(self, path: str, text: str) -> None:
        if len(self.mistakes) < MAX_LISTED_MISTAKES:
            self.mistakes.append(Mistake(path, 1, text))


_WHAT = {
    int(FileMode.TREE): "a folder",
    int(FileMode.LINK): "a symbolic link",
    int(FileMode.COMMIT): "a submodule",
}
