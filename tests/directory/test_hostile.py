"""Hostile commits, written object by object: the last good one stays in force, the alarm names the file and line."""

from collections.abc import Callable
from typing import Any

import pygit2
import pytest
from pygit2.enums import FileMode

from ptt.directory import repository as module
from ptt.directory.repository import Author


class Trees:
    """Makes trees that git itself would not make."""

    def __init__(self, git: pygit2.Repository) -> None:
        self.git = git
        pygit2.settings.enable_fsync_gitdir(False)  # thousands of objects; whoever opens a repository turns it on again

    def blob(self, data: bytes = b"") -> pygit2.Oid:
        return self.git.create_blob(data)

    def tree(self, *entries: tuple[int, bytes, pygit2.Oid]) -> pygit2.Oid:
        raw = b"".join(b"%o %s\0" % (mode, name) + oid.raw for mode, name, oid in sorted(entries, key=lambda e: e[1]))
        return self.git.odb.write(pygit2.enums.ObjectType.TREE, raw)

    def root(self, users: pygit2.Oid, **folders: pygit2.Oid) -> pygit2.Oid:
        domains = self.tree((FileMode.BLOB, b"a.example.toml", self.blob()))
        inner = self.tree((FileMode.TREE, b"a.example", users))
        more = [(FileMode.TREE, name.encode(), oid) for name, oid in folders.items()]
        return self.tree((FileMode.TREE, b"domains", domains), (FileMode.TREE, b"users", inner), *more)


def of_user(mode: int, name: bytes, content: Callable[[Trees], pygit2.Oid]) -> Callable[[Trees], pygit2.Oid]:
    return lambda t: t.root(t.tree((FileMode.BLOB, b"anna.toml", t.blob()), (mode, name, content(t))))


def deep(t: Trees) -> pygit2.Oid:
    oid = t.tree((FileMode.BLOB, b"x.toml", t.blob()))
    for _ in range(2000):
        oid = t.tree((FileMode.TREE, b"d", oid))
    return t.root(t.tree((FileMode.TREE, b"d", oid)))


def many(t: Trees) -> pygit2.Oid:
    empty = t.blob()
    return t.root(t.tree(*[(FileMode.BLOB, b"u%d.toml" % n, empty) for n in range(60)]))


def wide(t: Trees) -> pygit2.Oid:
    """A bomb: the same small trees again and again, below a folder of ours."""
    oid = t.tree((FileMode.BLOB, b"x.toml", t.blob()))
    for _ in range(12):
        oid = t.tree(*[(FileMode.TREE, b"d%d" % n, oid) for n in range(10)])
    return t.root(t.tree((FileMode.TREE, b"bomb", oid)))


def heavy(t: Trees) -> pygit2.Oid:
    """A bomb: one large file under many names, which is small in a pack."""
    content = t.blob(b'addresses = ["x@a.example"]\n' + b"#" * 60_000)
    return t.root(t.tree(*[(FileMode.BLOB, b"u%d.toml" % n, content) for n in range(40)]))


def cycle(t: Trees) -> pygit2.Oid:
    aliases = t.tree(
        (FileMode.BLOB, b"x.toml", t.blob(b'#\ntargets = ["y@a.example"]')),
        (FileMode.BLOB, b"y.toml", t.blob(b'targets = [\n\n"x@a.example"]')),
    )
    return t.root(t.tree(), aliases=t.tree((FileMode.TREE, b"a.example", aliases)))


def toml(text: bytes) -> Callable[[Trees], pygit2.Oid]:
    return of_user(FileMode.BLOB, b"x.toml", lambda t: t.blob(text))


HOSTILE: dict[str, tuple[Callable[[Trees], pygit2.Oid], str, int, str]] = {
    "cyclic aliases": (cycle, "aliases/a.example/x.toml", 2, "cycle"),
    "enormous file": (toml(b"#" * 20_000_000), "users/a.example/x.toml", 1, "20000000 bytes"),
    "many files": (many, "users/a.example/", 1, "more than 50 files"),
    "deep trees": (deep, "users/a.example/d", 1, "is a folder"),
    "tree bomb": (wide, "users/a.example/bomb", 1, "is a folder"),
    "large in all": (heavy, "users/a.example/u", 1, "more than 1000000 bytes"),
    "key of many parts": (toml(b"\n" + b"a." * 32_000 + b"a = 1"), "users/a.example/x.toml", 2, "nested too deeply"),
    "many mistakes": (
        toml(b"\n".join(b"k%d=1" % n for n in range(7_000))),
        "users/a.example/x.toml",
        1,
        "unknown key",
    ),
    "symbolic link": (
        of_user(FileMode.LINK, b"x.toml", lambda t: t.blob(b"/etc/shadow")),
        "users/a.example/x.toml",
        1,
        "is a symbolic link",
    ),
    "submodule": (
        of_user(FileMode.COMMIT, b"x.toml", lambda _: pygit2.Oid(hex="1" * 40)),
        "users/a.example/x.toml",
        1,
        "is a submodule",
    ),
    "missing object": (of_user(FileMode.BLOB, b"x.toml", lambda _: pygit2.Oid(hex="2" * 40)), "", 0, ""),
    "wrong type": (toml(b"\n\ndisabled = [1]"), "users/a.example/x.toml", 3, "disabled: Expected `bool`"),
    "nested too deeply": (toml(b"a = " + b"[" * 30_000), "users/a.example/x.toml", 1, ""),
    "enormous integer": (toml(b"[limits]\nmax_recipients = " + b"9" * 5000), "users/a.example/x.toml", 1, ""),
    "not UTF-8": (toml(b"#\n\xff"), "users/a.example/x.toml", 2, "not UTF-8"),
    "name not UTF-8": (
        of_user(FileMode.BLOB, b"\xff.toml", Trees.blob),
        "users/a.example/\\xff.toml",
        1,
        "the name is not UTF-8",
    ),
    "upper case": (of_user(FileMode.BLOB, b"Anna.toml", Trees.blob), "users/a.example/Anna.toml", 1, "lower case"),
    "composed otherwise": (
        of_user(FileMode.BLOB, "u\u0308.toml".encode(), Trees.blob),
        "users/a.example/u\u0308.toml",
        1,
        "normalisation form C",
    ),
    "up and out": (of_user(FileMode.BLOB, b"..toml", Trees.blob), "", -1, ""),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_commits(base: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    control = base.control()
    good = control.commit
    monkeypatch.setattr(module, "MAX_FILES", 50)
    monkeypatch.setattr(module, "MAX_TOTAL_BYTES", 1_000_000)
    make, file, line, reason = HOSTILE[name]
    git = base.repository.git
    who = pygit2.Signature("x", "x@x.example", 1, 0)
    bad = str(git.create_commit(None, who, who, "hostile", make(Trees(git)), [pygit2.Oid(hex=good)]))
    base.repository.move(base.repository.ref, bad, good)
    if line < 0:  # hidden names are ignored: a good commit after all
        assert control.refresh()
        return
    assert not control.refresh()
    snapshot = base.snapshot()
    assert control.commit == snapshot.commit == good
    assert snapshot.user("anna@a.example") is not None
    if not line:  # an object that is missing: nothing can be said of the file
        assert base.events("directory cannot be compiled")
        return
    assert base.alarm() == 1
    event = base.events("directory commit refused")[0]
    assert str(event["file"]).startswith(file)
    assert event["line"] == line
    assert reason in str(event["reason"])
    back = base.repository.commit({}, "back", Author("x", "x@x.example"), good)
    base.repository.move(base.repository.ref, back, bad)
    assert control.refresh()
    assert base.alarm() == 0
