"""ptt git and ptt group: every mistake, what would change for whom, the history, the state."""

import json
import os
import pathlib
import re
import subprocess
import sys
import types
from typing import Any

import click.testing
import pytest

from ptt.cli.git import git
from ptt.cli.group import group
from ptt.directory.describe import describe
from ptt.directory.records import Alias, Domain, Group, Limits, Route, User
from ptt.directory.schema import Place, parse

GROUPS = {"git": git, "group": group}


class Commands:
    """Runs commands over the database of a test, with a ptt.toml beside it or in a clone without."""

    def __init__(self, base: Any) -> None:
        self.base = base
        self.file = str(base.root / "log")  # any file that is there stands for ptt.toml

    def __call__(self, *arguments: str, code: int = 0) -> click.testing.Result:
        shared = types.SimpleNamespace(config=self.base.config, file=self.file, account=0)
        result = click.testing.CliRunner().invoke(GROUPS[arguments[0]], arguments[1:], obj=shared)
        assert result.exit_code == code, result.output
        return result

    def subjects(self) -> list[str]:
        return run(self.base.repository.path, "log", "--format=%s", "main").splitlines()


def run(directory: Any, *arguments: str, **environment: str) -> str:
    settings = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", **os.environ, **environment}
    who = ["-c", "user.name=Eve", "-c", "user.email=eve@host.example", "-c", "safe.directory=*"]
    command = ["git", *who, "-C", str(directory), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=settings)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def ptt(base: Any) -> Commands:
    return Commands(base)


# -- validate ----------------------------------------------------------------------------------------------------


def test_validate_prints_every_mistake(base: Any, ptt: Commands) -> None:
    assert ptt("git", "validate").stderr == "no mistakes\n"
    good = base.repository.tip()
    base.commit(
        {
            "domains/a.example.toml": "\nsign = 1\n",  # the users of the domain are not blamed for that
            "users/a.example/x.toml": "a = 1\ndisabled = 3\n",
            "users/c.example/y.toml": "",
            "nonsense": "",
            "aliases/a.example/loop.toml": 'targets = [\n"loop@a.example"]',
            "users/a.example/big.toml": "#" * 70_000,
        }
    )
    result = ptt("git", "validate", code=1)
    places = [line.partition(" ")[0] for line in result.stdout.splitlines()]
    assert places == [
        "aliases/a.example/loop.toml:2:",
        "domains/a.example.toml:2:",
        "nonsense:1:",
        "users/a.example/big.toml:1:",
        "users/a.example/x.toml:1:",
        "users/a.example/x.toml:2:",
        "users/c.example/y.toml:1:",
    ]
    assert result.stderr == "7 mistakes\n"
    found = json.loads(ptt("git", "validate", "main", "--json", code=1).stdout)
    assert found[1] == {"path": "domains/a.example.toml", "line": 2, "text": "sign: Expected `bool`, got `int`"}
    assert len(found) == 7
    ptt("git", "validate", good)
    ptt("git", "validate", "main~1")
    ptt("git", "validate", "no-such-branch", code=1)


def test_validate_reports_more_than_the_service_logs(base: Any, ptt: Commands) -> None:
    base.commit({f"users/a.example/u{n}.toml": "x" for n in range(150)})
    assert ptt("git", "validate", code=1).stderr == "150 mistakes\n"


def test_validate_a_worktree(ptt: Commands, tmp_path: pathlib.Path) -> None:
    for path, text in {
        "README.md": "x",
        "domains/a.example.toml": "",
        "users/a.example/x.toml": "\ndisabled = 3",
        "users/a.example/big.toml": "#" * 70_000,
        "other/x": "",
        "users/a.example/deep/x.toml": "",
    }.items():
        (tmp_path / "tree" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / path).write_text(text)
    (tmp_path / "tree" / ".git").mkdir()
    (tmp_path / "tree/users/a.example/link.toml").symlink_to("/etc/passwd")
    result = ptt("git", "validate", "--worktree", str(tmp_path / "tree"), code=1)
    assert [line.rpartition(":")[0].partition(": ")[0] for line in result.stdout.splitlines()] == [
        "other:1",
        "users/a.example/big.toml:1",
        "users/a.example/deep:1",
        "users/a.example/link.toml:1",
        "users/a.example/x.toml:2",
    ]
    ptt("git", "validate", "main", "--worktree", str(tmp_path), code=2)


def test_validate_in_a_plain_clone(base: Any, ptt: Commands, tmp_path: pathlib.Path, monkeypatch: Any) -> None:
    run(tmp_path, "clone", "-q", base.repository.path, "clone")
    monkeypatch.chdir(tmp_path / "clone")
    ptt.file = str(tmp_path / "missing.toml")
    ptt("git", "validate")
    pathlib.Path("users/a.example/x.toml").write_text("x")
    run(".", "add", ".")
    run(".", "commit", "-qm", "bad")
    assert ptt("git", "validate", "HEAD", code=1).stdout.startswith("users/a.example/x.toml:1: is not TOML")
    assert "user x@a.example" not in ptt("git", "plan", "HEAD~1..HEAD", code=1).stdout
    monkeypatch.chdir(tmp_path)
    assert "is no clone" in ptt("git", "validate", code=1).stderr
    ptt("git", "validate", "HEAD", "--repository", "clone", code=1)


HOOK = """#!/bin/sh
while read old new ref; do
    case $new in *[!0]*) {ptt} git validate --repository . "$new" || exit 1 ;; esac
done
"""


@pytest.mark.slow
def test_a_pre_receive_hook(base: Any, tmp_path: pathlib.Path) -> None:
    remote = tmp_path / "remote.git"
    run(tmp_path, "clone", "-q", "--bare", base.repository.path, "remote.git")
    hook = remote / "hooks" / "pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(HOOK.format(ptt=f"{sys.executable} -m ptt"))
    hook.chmod(0o755)
    run(tmp_path, "clone", "-q", str(remote), "clone")
    clone = tmp_path / "clone"
    (clone / "users/a.example/bob.toml").write_text("")
    run(clone, "add", ".")
    run(clone, "commit", "-qm", "good")
    run(clone, "push", "-q", "origin", "HEAD:main", PTT_CONFIG=str(tmp_path / "missing.toml"))
    (clone / "users/a.example/bob.toml").write_text("\nx = 1")
    run(clone, "commit", "-qam", "bad")
    with pytest.raises(AssertionError, match=r"users/a\.example/bob\.toml:2: unknown key"):
        run(clone, "push", "-q", "origin", "HEAD:main", PTT_CONFIG=str(tmp_path / "missing.toml"))


# -- plan, log, status -------------------------------------------------------------------------------------------


def words(path: str, before: Any, after: Any) -> list[str]:
    return [c.what for c in describe(Place(path, "x@a.example" if path != "domain" else "a.example"), before, after)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (None, User("h"), ["is added, can log in"]),
        (None, User(), ["is added, cannot log in: has no password"]),
        (None, User(disabled=True), ["is added, disabled"]),
        (User(), None, ["is removed: can log in and send no more"]),
        (User(), User(disabled=True), ["is disabled: can send no more"]),
        (User(disabled=True), User(), ["is enabled again"]),
        (User("a", "s"), User("b"), ["the password changes", "loses the SCRAM verifier"]),
        (User(), User("b"), ["gets a password"]),
        (
            User(addresses=("a@x.example", "b@x.example")),
            User(addresses=("b@x.example", "*@y.example")),
            ["may no longer send as a@x.example", "may send as *@y.example too"],
        ),
        (
            User(limits=Limits(messages_per_hour=1)),
            User(limits=Limits(messages_per_hour=0, over="hold")),
            ["limit messages per hour: 1 -> 0", "limit over: refuse -> hold"],
        ),
        (User("a"), User("a"), []),
    ],
)
def test_words_for_users(before: Any, after: Any, said: list[str]) -> None:
    assert words("user", before, after) == said


def test_words_for_the_others() -> None:
    assert words("domain", None, Domain(False)) == ["is added, its mail is sent without a DKIM signature"]
    assert words("domain", Domain(False), Domain(True, True, "p@a.example")) == [
        "its mail is signed with DKIM",
        "its subdomains are ours too",
        "its postmaster is p@a.example",
    ]
    assert words("domain", Domain(), None) == ["is removed: it is ours no more"]
    many = tuple(f"u{n}@a.example" for n in range(8))
    assert words("alias", None, Alias(many)) == [f"is added, leads to {', '.join(many[:5])} and 3 more"]
    assert words("alias", Alias(many), Alias(many[1:])) == ["no longer leads to u0@a.example"]
    assert words("group", Group(("a@x",)), Group(("a@x",), ("o@x",), "listed", ("p@x",))) == [
        "listed may post",
        "p@x may post",
        "o@x owns it",
    ]
    (to_host,) = describe(Place("route", "default"), None, Route("smarthost", "h:25"))
    whose = "mail of all destinations without a route of their own"
    assert to_host.what == f"{whose} goes to h:25"
    (back,) = describe(Place("route", "x.example"), Route("mx"), None)
    assert back.what == "mail for x.example takes the usual way again"


def test_plan(base: Any, ptt: Commands, fast_hash: str) -> None:
    base.control()
    assert ptt("git", "plan").stdout == "nothing changes for anybody\n"
    first = base.repository.tip()
    base.commit({"users/a.example/bob.toml": f'password = "{fast_hash}"', "domains/a.example.toml": "sign = false"})
    second = base.repository.tip()
    base.commit({"users/a.example/anna.toml": None, "aliases/a.example/all.toml": 'targets = ["bob@a.example"]'})
    lines = ptt("git", "plan").stdout.splitlines()
    assert lines == [
        "alias all@a.example: no longer leads to anna@a.example, Foo@x.example",
        "alias all@a.example: leads to bob@a.example too",
        "domain a.example: its mail is sent without a DKIM signature",
        "user anna@a.example: is removed: can log in and send no more",
        "user bob@a.example: is added, can log in",
    ]
    assert ptt("git", "plan", f"{first}..main").stdout.splitlines() == lines
    found = json.loads(ptt("git", "plan", f"{second}..main", "--json").stdout)
    assert (found["from"], found["to"]) == (second, base.repository.tip())
    assert len(found["changes"]) == 3
    back = ptt("git", "plan", f"main..{first}")
    assert "user anna@a.example: is added, can log in" in back.stdout
    assert "it would be refused" in back.stderr
    assert "its mail is signed with DKIM" in back.stdout
    base.commit({"users/a.example/x.toml": "x"})
    assert "users/a.example/x.toml:1" in ptt("git", "plan", code=1).stderr


def test_log(base: Any, ptt: Commands) -> None:
    base.control()
    first = base.repository.tip()
    base.commit({"users/a.example/bob.toml": ""})
    lines = ptt("git", "log").stdout.splitlines()
    assert lines[0].endswith("tester: test")
    assert lines[1] == "    user bob@a.example: is added, cannot log in: has no password"
    assert lines[2].startswith(first[:12])
    assert lines[2].endswith("(in force)")
    rows = [json.loads(line) for line in ptt("git", "log", "--json", "-n", "1").stdout.splitlines()]
    assert [(row["in_force"], row["parent"], len(row["changes"])) for row in rows] == [(False, first, 1)]


def test_status(base: Any, make_base: Any) -> None:
    base.control()
    here = make_base("there", remote=f"file://{base.repository.path}")
    control = here.control()
    ptt = Commands(here)
    first = here.repository.tip()
    found = json.loads(ptt("git", "status", "--json").stdout)
    assert (found["in_force"], found["branch"], found["remote_branch"]) == (first, first, first)
    assert (found["ahead"], found["behind"], found["alarm"], found["fetch_problem"]) == (0, 0, "", "")
    assert found["last_fetch"] > 1_700_000_000
    bad = base.commit({"users/a.example/x.toml": "\nx = 1"})
    assert control.fetch()
    found = json.loads(ptt("git", "status", "--json").stdout)
    assert (found["in_force"], found["branch"], found["remote_branch"]) == (first, bad, bad)
    assert "users/a.example/x.toml:2: unknown key" in found["alarm"]
    pathlib.Path(base.repository.path).rename(base.root / "away")
    assert not control.fetch()
    shown = ptt("git", "status").stdout
    assert "fetch problem:  fetch from" in shown
    assert f"in force:       {first}" in shown
    assert re.search(r"^repository: +[0-9]+\.[0-9] MiB$", shown, re.M)


# -- roll-back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("good", [True, False])
def test_roll_back_is_git_revert(base: Any, tmp_path: pathlib.Path, good: bool) -> None:
    control = base.control()
    before = base.snapshot().user("anna@a.example")
    changed = base.commit(
        {"users/a.example/anna.toml": "disabled = true" if good else "x", "users/a.example/u.toml": ""}
    )
    assert control.refresh() == good
    run(tmp_path, "clone", "-q", "-b", "main", base.repository.path, "clone")
    run(tmp_path / "clone", "revert", "--no-edit", changed)
    run(tmp_path / "clone", "push", "-q", "origin", "main")
    assert control.refresh()
    assert base.alarm() == 0
    snapshot = base.snapshot()
    assert snapshot.commit == base.repository.tip() != changed
    assert snapshot.user("anna@a.example") == before
    assert snapshot.user("u@a.example") is None


# -- group -------------------------------------------------------------------------------------------------------


def test_groups(base: Any, ptt: Commands) -> None:
    ptt("group", "add", "Staff@A.example", "anna@a.example", "q@x.example", "--owner", "ANNA@a.example")
    ptt("group", "add", "staff@a.example", "r@x.example", "--post", "listed", "--poster", "*@b.example")
    path = "groups/a.example/staff.toml"
    data = base.repository.content(base.repository.tip(), path)
    members = ("anna@a.example", "q@x.example", "r@x.example")
    assert parse(path, data)[1] == Group(members, ("anna@a.example",), "listed", ("*@b.example",))
    ptt("group", "remove", "staff@a.example", "q@x.example")
    ptt("group", "remove", "staff@a.example", "gone@x.example", code=1)
    rows = json.loads(ptt("group", "list", "--json").stdout)
    assert [row["members"] for row in rows] == [["anna@a.example", "r@x.example"]]
    ptt("group", "remove", "staff@a.example")
    assert ptt("group", "list").stdout == ""
    ptt("group", "add", "anna@a.example", "q@x.example", code=1)  # a user
    ptt("group", "add", "s@a.example", "q", code=2)
    assert ptt.subjects()[:4] == [
        "group: remove staff@a.example",
        "group: remove q@x.example from staff@a.example",
        "group: r@x.example into staff@a.example",
        "group: anna@a.example, q@x.example into staff@a.example",
    ]
    author, committer = run(base.repository.path, "log", "-1", "--format=%an <%ae>%n%cn <%ce>", "main").splitlines()
    assert author == committer
    assert "@" in author
