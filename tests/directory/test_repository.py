"""Trees as hostile people make them, and commits; real git beside libgit2."""

import os
import pathlib
import subprocess
from collections.abc import Callable
from typing import Any

import pygit2
import pytest

from ptt.directory.compiler import Refused, TreeBase, examine
from ptt.directory.repository import Author, Repository, RepositoryError
from ptt.directory.schema import MAX_FILE_BYTES

AUTHOR = Author("t", "t@host.example")
BLOB, LINK, MODULE, TREE = 0o100644, 0o120000, 0o160000, 0o040000


@pytest.fixture
def repository(tmp_path: pathlib.Path) -> Repository:
    return Repository(str(tmp_path / "d.git"), "main", create=True)


@pytest.fixture
def commit(repository: Repository) -> Callable[[dict[str, Any]], str]:
    """A commit of any tree: a value is a file (bytes), (content, mode), or a folder."""

    def tree(content: dict[str, Any]) -> pygit2.Oid:
        lines = []
        for name, value in content.items():
            if isinstance(value, dict):
                mode, oid = TREE, tree(value)
            else:
                data, mode = value if isinstance(value, tuple) else (value, BLOB)
                oid = pygit2.Oid(hex="1" * 40) if mode == MODULE else repository.git.create_blob(data)
            raw = name.encode("utf-8", "surrogateescape")
            lines.append((raw + (b"/" if mode == TREE else b""), b"%o %s\0" % (mode, raw) + oid.raw))
        return repository.git.write(pygit2.enums.ObjectType.TREE, b"".join(line for _, line in sorted(lines)))

    def make(content: dict[str, Any]) -> str:
        signature = pygit2.Signature("t", "t@host.example")
        return str(repository.git.create_commit(None, signature, signature, "t", tree(content), []))

    return make


def refused(repository: Repository, commit: str) -> list[str]:
    with pytest.raises(Refused) as caught:
        examine(repository, commit, "", None)
    return [str(m) for m in caught.value.mistakes]


GOOD: dict[str, Any] = {"domains": {"a.example.toml": b""}}


@pytest.mark.parametrize(
    ("tree", "mistake"),
    [
        ({"users": {"a.example": {"u.toml": (b"/etc/passwd", LINK)}}}, "users/a.example/u.toml:1: is a symbolic link"),
        ({"users": (b"domains", LINK)}, "users:1: must be a folder"),
        ({"users": {"a.example": (b"../x", LINK)}}, "users/a.example:1: must be a folder"),
        ({"users": {"a.example": (b"", MODULE)}}, "users/a.example:1: must be a folder"),
        ({"aliases": {"a.example": {"m.toml": (b"", MODULE)}}}, "aliases/a.example/m.toml:1: is a submodule"),
        ({"aliases": {"a.example": {"m.toml": {"x": b""}}}}, "aliases/a.example/m.toml:1: is a folder"),
        ({"evil": (b"", MODULE)}, "evil:1: does not belong here"),
        ({"evil.toml": b""}, "evil.toml:1: does not belong here"),
        ({"domains": {"a.example.toml": b"", "b\udce9.toml": b""}}, "domains/b\\xe9.toml:1: the name is not UTF-8"),
        ({"domains": {"big.example.toml": b"#" * (MAX_FILE_BYTES + 1)}}, "domains/big.example.toml:1: has 65537 bytes"),
        ({"domains": {"a.example.toml": b"\n\nsign = 3\n"}}, "domains/a.example.toml:3: sign: Expected"),
        ({"domains": {"a.example.toml": b"sign = true\n\xff"}}, "domains/a.example.toml:2: is not UTF-8"),
    ],
)
def test_hostile_trees_are_refused(
    repository: Repository, commit: Callable[[dict[str, Any]], str], tree: dict[str, Any], mistake: str
) -> None:
    found = refused(repository, commit({**GOOD, **tree}))
    assert len(found) == 1
    assert found[0].startswith(mistake)


FLAT: dict[str, Any] = {**GOOD, "users": {"a.example": {"u.toml": b"", "v.toml": b""}}}


@pytest.mark.parametrize(
    ("users", "changed", "mistakes"),
    [
        ({"u.toml": b"", "v.toml": b""}, {}, []),
        ({"u.toml": b"", "v.toml": b"disabled = true"}, {"v": True}, []),
        ({"u.toml": b"", "v.toml": (b"", 0o100755)}, {"v": True}, []),
        ({"u.toml": b""}, {"v": False}, []),
        ({"u.toml": b"", "v.toml": b"", "w.toml": b""}, {"w": True}, []),
        ({"u.toml": b"", ".v.toml": b""}, {"v": False}, []),
        ({"u.toml": b"", "v.toml": (b"u.toml", LINK)}, {}, ["v.toml:1: is a symbolic link; only files may be here"]),
        ({"u.toml": b"", "v.toml": (b"", MODULE)}, {}, ["v.toml:1: is a submodule; only files may be here"]),
        ({"u.toml": b"", "v.toml": {"x": b""}}, {}, ["v.toml:1: is a folder; only files may be here"]),
        ({"u.toml": b"", "v.toml": b"", "\udce9": b""}, {}, ["\\xe9:1: the name is not UTF-8"]),
        ({"u.toml": b"", "v.toml": b"sign = true"}, {}, ["v.toml:1: unknown key 'sign'"]),
    ],
)
def test_what_differs_from_a_good_commit(
    repository: Repository,
    commit: Callable[[dict[str, Any]], str],
    users: dict[str, Any],
    changed: dict[str, bool],
    mistakes: list[str],
) -> None:
    old, new = commit(FLAT), commit({**GOOD, "users": {"a.example": users}})
    found: list[str] = []
    try:
        changes = examine(repository, new, old, TreeBase(repository, old)).changes
    except Refused as e:
        found = [str(m) for m in e.mistakes]
    else:
        names = {f"{name}@a.example": there for name, there in changed.items()}
        assert set(changes.records.users) == {name for name, there in names.items() if there}
        assert {place.name for place in changes.removed} == {name for name, there in names.items() if not there}
    assert len(found) == len(mistakes)
    assert all(f.startswith(f"users/a.example/{m}") for f, m in zip(found, mistakes, strict=True))


def test_a_bomb_of_folders_is_not_entered(repository: Repository, commit: Callable[[dict[str, Any]], str]) -> None:
    """Twelve levels of ten times the same folder: 10 to the 12th names in twelve small objects."""
    old = commit(FLAT)
    level = repository.git.TreeBuilder().write()
    for _ in range(12):
        builder = repository.git.TreeBuilder()
        for n in range(10):
            builder.insert(f"x{n}", level, TREE)
        level = builder.write()
    for path in (("users", "a.example", "bomb"), ("users", "a.example"), ("users",), ("bomb",)):
        tree = level
        for name in reversed(path):
            builder = repository.git.TreeBuilder()
            builder.insert(name, tree, TREE)
            tree = builder.write()
        signature = pygit2.Signature("t", "t@host.example")
        bomb = str(repository.git.create_commit(None, signature, signature, "t", tree, []))
        for since in ("", old):
            with pytest.raises(Refused):
                examine(repository, bomb, since, TreeBase(repository, old) if since else None)


def test_a_bomb_is_not_inflated(repository: Repository, commit: Callable[[dict[str, Any]], str]) -> None:
    read = []

    class Odb:
        read_header = repository.git.odb.read_header

        def read(self, oid: pygit2.Oid) -> tuple[int, bytes]:
            read.append(oid)
            return repository.git.odb.read(oid)

    bomb = commit({**GOOD, "users": {"a.example": {"u.toml": bytes(20_000_000)}}})

    class Git:
        odb = Odb()

        def __getitem__(self, oid: Any) -> Any:
            return repository.git[oid]

    spied = Repository(repository.path, "main")
    spied.git = Git()  # type: ignore[assignment]
    assert "has 20000000 bytes" in refused(spied, bomb)[0]
    assert len(read) == 1  # the domain's file


def test_deep_trees_are_not_entered(repository: Repository, commit: Callable[[dict[str, Any]], str]) -> None:
    deep: dict[str, Any] = {"x.toml": b""}
    for _ in range(60):
        deep = {"d": deep}
    found = refused(repository, commit({**GOOD, "users": {"a.example": deep}}))
    assert found == ["users/a.example/d:1: is a folder; only files may be here"]


def test_too_many_mistakes_are_cut(repository: Repository, commit: Callable[[dict[str, Any]], str]) -> None:
    links = {f"u{n}.toml": (b"x", LINK) for n in range(500)}
    assert len(refused(repository, commit({**GOOD, "users": {"a.example": links}}))) == 100


def test_too_many_files(
    repository: Repository, commit: Callable[[dict[str, Any]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ptt.directory.repository.MAX_FILES", 3)
    users = {f"u{n}.toml": b"" for n in range(3)}
    examine(repository, commit({**GOOD, "users": {"a.example": dict(list(users.items())[:2])}}), "", None)
    assert "more than 3 files" in refused(repository, commit({**GOOD, "users": {"a.example": users}}))[0]


def test_enormous_folders_are_not_read(
    repository: Repository, commit: Callable[[dict[str, Any]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ptt.directory.repository.MAX_TREE_BYTES", 100)
    made = commit({**GOOD, "users": {"a.example": {f"u{n}.toml": b"" for n in range(9)}}})
    assert refused(repository, made) == ["users/a.example:1: the folder has too many files"]


def test_names_that_are_ignored(repository: Repository, commit: Callable[[dict[str, Any]], str]) -> None:
    extra = {".gitignore": b"x", ".github": {"x.yml": b""}, "README.md": b"hi"}
    users = {"users": {"a.example": {".gitkeep": b"", "u.toml": (b"", 0o100755)}}}
    checked = examine(repository, commit({**GOOD, **extra, **users}), "", None)
    assert set(checked.changes.records.users) == {"u@a.example"}


def test_a_missing_object_is_an_error(repository: Repository, commit: Callable[[dict[str, Any]], str]) -> None:
    made = commit(GOOD)
    blob = str(repository.git.create_blob(b""))
    os.unlink(os.path.join(repository.path, "objects", blob[:2], blob[2:]))
    again = Repository(repository.path, "main")
    with pytest.raises(RepositoryError):
        examine(again, made, "", None)
    with pytest.raises(RepositoryError):
        again.listing("1" * 40)


def test_commits_are_what_git_reads(repository: Repository) -> None:
    first = repository.commit({"users/a.example/u.toml": b"x", "README": b"y"}, "one", AUTHOR, "")
    repository.move(repository.ref, first, "")
    second = repository.commit({"users/a.example/u.toml": None, "domains/a.toml": b"z"}, "two\n\nmore", AUTHOR, first)
    repository.move(repository.ref, second, first)

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", repository.path, *arguments], capture_output=True, text=True, check=True
        ).stdout

    git("fsck", "--strict")
    assert git("ls-tree", "-r", "--name-only", "main").split() == ["README", "domains/a.toml"]  # no empty folders
    assert git("log", "--format=%s|%an|%ae|%P", "main").split() == [
        f"two|t|t@host.example|{first}",
        "one|t|t@host.example|",
    ]
    assert repository.content(second, "domains/a.toml") == b"z"
    assert repository.content(second, "users/a.example/u.toml") is None
    listing = repository.listing(second, first)
    assert listing.files["users/a.example/u.toml"] is None
    assert set(listing.files) == {"users/a.example/u.toml", "domains/a.toml"}


def test_a_reference_that_somebody_moved_is_not_moved(repository: Repository) -> None:
    first = repository.commit({"README": b"1"}, "one", AUTHOR, "")
    repository.move(repository.ref, first, "")
    second = repository.commit({"README": b"2"}, "two", AUTHOR, first)
    with pytest.raises(RepositoryError, match="moved by somebody else"):
        repository.move(repository.ref, second, "")
    assert repository.tip() == first


def test_two_processes_exclude_each_other(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptt.directory.repository.LOCK_SECONDS", 0.0)
    with repository.lock(), pytest.raises(RepositoryError, match="locked"), Repository(repository.path, "main").lock():
        pass
    with repository.lock():
        pass


def test_what_is_no_repository(tmp_path: pathlib.Path) -> None:
    with pytest.raises(RepositoryError):
        Repository(str(tmp_path / "nothing"), "main")
    (tmp_path / "file").write_text("x")
    with pytest.raises(RepositoryError):
        Repository(str(tmp_path / "file"), "main", create=True)
