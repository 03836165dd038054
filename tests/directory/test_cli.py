"""ptt user, alias and domain: what they commit, what they refuse, and whose the files are."""

import json
import os
import pathlib
import subprocess
import sys
import types
from typing import Any

import click.testing
import pytest

from ptt.cli.directory import alias, domain, user
from ptt.directory import compiler, passwords
from ptt.directory.inspect import history
from ptt.directory.records import User
from ptt.directory.repository import GOOD_REF, Repository
from ptt.directory.schema import parse
from ptt.directory.values import argon2_mistake, scram_mistake

GROUPS = {"user": user, "alias": alias, "domain": domain}


class Commands:
    """Runs commands over the database of a test."""

    def __init__(self, base: Any) -> None:
        self.base = base

    def __call__(self, *arguments: str, stdin: str = "", code: int = 0) -> click.testing.Result:
        runner = click.testing.CliRunner()
        shared = types.SimpleNamespace(config=self.base.config, account=os.getuid())
        result = runner.invoke(GROUPS[arguments[0]], arguments[1:], input=stdin, obj=shared)
        assert result.exit_code == code, result.output
        return result

    def file(self, path: str) -> bytes | None:
        found: bytes | None = self.base.repository.content(self.base.repository.tip(), path)
        return found

    def log(self) -> list[str]:
        git = ["git", "-C", self.base.repository.path, "log", "--format=%s", "main"]
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.fixture
def ptt(base: Any) -> Commands:
    return Commands(base)


def test_add_a_user(ptt: Commands) -> None:
    ptt("user", "add", "Bob@A.example", "--password-stdin", "--address", "*@b.example", stdin="pässword \n")
    assert ptt.log()[0] == "user: add bob@a.example"
    path = "users/a.example/bob.toml"
    found = parse(path, ptt.file(path) or b"")
    assert isinstance(found, tuple)
    record = found[1]
    assert isinstance(record, User)
    assert argon2_mistake(record.password) == scram_mistake(record.scram) == ""
    assert passwords.check(record.password, "pässword ")  # spaces count, the end of the line does not
    assert record.addresses == ("*@b.example",)


def test_the_service_takes_a_new_user(ptt: Commands) -> None:
    control = ptt.base.control()
    shown = ptt("user", "add", "bob@a.example", "--generate").output
    password = shown.partition("password: ")[2].strip()
    assert control.refresh()
    assert control.logins.verify("bob@a.example", password) == "ok"
    ptt("user", "disable", "bob@a.example")
    assert control.refresh()
    assert control.logins.verify("bob@a.example", password) == "bad"
    ptt("user", "enable", "bob@a.example")
    ptt("user", "passwd", "bob@a.example", "--password-stdin", stdin="new")
    assert control.refresh()
    assert control.logins.verify("bob@a.example", password) == "bad"
    assert control.logins.verify("bob@a.example", "new") == "ok"
    ptt("user", "remove", "bob@a.example")
    assert control.refresh()
    assert control.logins.verify("bob@a.example", "new") == "bad"
    assert ptt.log()[:5] == [
        "user: remove bob@a.example",
        "user: change the password of bob@a.example",
        "user: enable bob@a.example",
        "user: disable bob@a.example",
        "user: add bob@a.example",
    ]


def test_the_password_is_asked_for_twice(ptt: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptt.cli.directory._at_terminal", lambda: True)
    result = ptt("user", "add", "bob@a.example", stdin="one\none\n")
    assert "one" not in result.output
    ptt("user", "passwd", "bob@a.example", stdin="one\ntwo\n", code=1)


def test_comments_survive(ptt: Commands) -> None:
    ptt.base.commit({"users/a.example/bob.toml": "# from sales\ndisabled = true # since May\n"})
    ptt("user", "passwd", "bob@a.example", "--password-stdin", stdin="x")
    text = (ptt.file("users/a.example/bob.toml") or b"").decode()
    assert text.startswith("# from sales\ndisabled = true # since May\n")
    assert "argon2id" in text


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (("user", "add", "anna@a.example", "--generate"), 1, "user anna@a.example exists already"),
        (
            ("user", "add", "all@a.example", "--generate"),
            1,
            "users/a.example/all.toml:1: all@a.example is an alias too",
        ),
        (
            ("user", "add", "x@c.example", "--generate"),
            1,
            "users/c.example/x.toml:1: there is no domains/c.example.toml",
        ),
        (
            ("user", "add", "x@a.example", "--generate", "--address", "y@z.example"),
            1,
            "x.toml:4: addresses: the domain",
        ),
        (("user", "add", "x@a.example", "--password-stdin"), 1, "the password is empty"),
        (("user", "add", "x@a.example", "--password-stdin", "--generate"), 2, "exclude each other"),
        (("user", "add", "x", "--generate"), 2, "must be NAME@DOMAIN"),
        (("user", "add", "x y@a.example", "--generate"), 2, "needs quoting"),
        (("user", "add", "x/../y@a.example", "--generate"), 2, "may not contain /"),
        (("user", "add", "@a.example", "--generate"), 2, "is not a local part"),
        (("user", "add", "x+y@a.example", "--generate"), 2, "separates subaddresses"),
        (("user", "passwd", "nobody@a.example", "--generate"), 1, "there is no user nobody@a.example"),
        (("user", "disable", "nobody@a.example"), 1, "there is no user"),
        (("user", "remove", "nobody@a.example"), 1, "there is no user"),
        (("alias", "add", "x@a.example"), 2, "TARGET"),
        (("alias", "add", "x@a.example", "nobody"), 2, "is not an address"),
        (("alias", "add", "x@a.example", "x@a.example"), 1, "aliases/a.example/x.toml:2: targets: cycle"),
        (("alias", "add", "anna@a.example", "x@a.example"), 1, "is a user too"),
        (("alias", "remove", "x@a.example"), 1, "there is no alias"),
        (("alias", "remove", "all@a.example", "x@y.example"), 1, "does not lead to x@y.example"),
        (("domain", "add", "a.example"), 1, "exists already"),
        (("domain", "add", "no domain"), 2, "is not a domain"),
        (("domain", "add", "../x"), 2, "is not a domain"),
        (("domain", "add", "c.example", "--postmaster", "x"), 1, "domains/c.example.toml:1: postmaster"),
        (("domain", "remove", "a.example"), 1, "users/a.example/anna.toml:1: there is no domains/a.example.toml"),
        (("domain", "remove", "c.example"), 1, "there is no domain c.example"),
        (("domain", "frob"), 2, "No such command"),
    ],
)
def test_what_is_refused_leaves_no_commit(ptt: Commands, arguments: tuple[str, ...], code: int, reason: str) -> None:
    before = ptt.base.repository.tip()
    result = ptt(*arguments, code=code)
    assert reason in result.output
    assert ptt.base.repository.tip() == before


def test_a_database_that_is_bad_already_is_not_built_upon(ptt: Commands) -> None:
    ptt("user", "add", "bob@a.example", "--generate")
    ptt.base.commit({"users/a.example/x.toml": "foo = 1"})
    assert "users/a.example/x.toml:1: unknown key 'foo'" in ptt("user", "disable", "bob@a.example", code=1).output
    ptt("user", "remove", "x@a.example")
    ptt("user", "disable", "bob@a.example")


def test_a_good_database_is_not_checked_again(ptt: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    ptt("user", "add", "bob@a.example", "--generate")
    assert ptt.base.repository.tip(GOOD_REF) == ptt.base.repository.tip()
    monkeypatch.setattr(compiler, "check", None)  # the check of a whole database
    ptt("user", "add", "carl@a.example", "--generate")
    ptt("alias", "add", "all@a.example", "carl@a.example")


def test_addresses_of_a_user(ptt: Commands) -> None:
    def addresses() -> list[str]:
        rows = json.loads(ptt("user", "list", "--json").output)
        found: list[str] = next(row["addresses"] for row in rows if row["name"] == "bob@a.example")
        return found

    ptt("user", "add", "bob@a.example", "--generate", "--address", "info@a.example")
    ptt("user", "address", "bob@a.example", "--add", "*@B.example", "--add", "info@a.example")
    assert addresses() == ["info@a.example", "*@b.example"]
    ptt("user", "address", "bob@a.example", "--remove", "info@a.example")
    assert addresses() == ["*@b.example"]
    refused = ptt("user", "address", "bob@a.example", "--remove", "info@a.example", code=1)
    assert "bob@a.example has no address info@a.example" in refused.output
    assert "no user" in ptt("user", "address", "zoe@a.example", "--add", "x@a.example", code=1).output
    assert "is not in domains/" in ptt("user", "address", "bob@a.example", "--add", "x@y.example", code=1).output
    ptt("user", "address", "bob@a.example", "--remove", "*@b.example")
    assert addresses() == []


def test_a_password_is_asked_for_on_a_terminal_only(ptt: Commands) -> None:
    assert "--password-stdin" in ptt("user", "add", "bob@a.example", stdin="secret\nsecret\n", code=2).output


def test_aliases(ptt: Commands) -> None:
    ptt("alias", "add", "Team@a.example", "anna@a.example", "Foo@x.example", "anna@a.example")
    ptt("alias", "add", "team@a.example", "bar@x.example")
    assert json.loads(ptt("alias", "list", "--json").stdout) == [
        {"name": "all@a.example", "targets": ["anna@a.example", "Foo@x.example"]},
        {"name": "team@a.example", "targets": ["anna@a.example", "Foo@x.example", "bar@x.example"]},
    ]
    ptt("alias", "remove", "team@a.example", "Foo@x.example", "bar@x.example")
    assert "team@a.example" in ptt("alias", "list").stdout
    assert "bar@x.example" not in ptt("alias", "list").stdout
    ptt("alias", "remove", "team@a.example", "anna@a.example")
    assert ptt.file("aliases/a.example/team.toml") is None
    assert ptt.log()[0] == "alias: remove anna@a.example from team@a.example"


def test_domains(ptt: Commands) -> None:
    ptt("domain", "add", "C.example", "--no-sign", "--subdomains", "--postmaster", "Boss@a.example")
    assert ptt.file("domains/c.example.toml") == b'sign = false\nsubdomains = true\npostmaster = "boss@a.example"\n'
    rows = json.loads(ptt("domain", "list", "--json").stdout)
    assert [r["name"] for r in rows] == ["a.example", "b.example", "c.example"]
    assert rows[2] == {"name": "c.example", "sign": False, "subdomains": True, "postmaster": "boss@a.example"}
    ptt("domain", "add", "bücher.example")
    assert ptt.file("domains/xn--bcher-kva.example.toml") == b""
    ptt("domain", "remove", "c.example")
    assert ptt.file("domains/c.example.toml") is None


def test_lists_show_no_verifier(ptt: Commands, fast_hash: str) -> None:
    ptt.base.commit({"users/a.example/off.toml": "disabled = true", "users/a.example/none.toml": ""})
    for arguments in (("user", "list"), ("user", "list", "--json")):
        assert "argon2" not in ptt(*arguments).stdout
    states = {row["name"]: row["state"] for row in json.loads(ptt("user", "list", "--json").stdout)}
    assert states == {"anna@a.example": "enabled", "none@a.example": "no password", "off@a.example": "disabled"}


def test_lists_of_a_bad_database(ptt: Commands) -> None:
    ptt.base.commit({"users/a.example/x.toml": "foo = 1"})
    result = ptt("user", "list", code=1)
    assert "anna@a.example" in result.stdout
    assert "users/a.example/x.toml:1: unknown key" in result.stderr


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_as_root_the_files_are_the_control_process_users() -> None:
    top = pathlib.Path("/var/tmp") / f"ptt-test-{os.getpid()}"  # the user must be able to come there
    top.mkdir(mode=0o755)
    try:
        (top / "directory.git").mkdir(mode=0o700)
        os.chown(top / "directory.git", 60999, 60999)
        (top / "ptt.toml").write_text(
            'hostname = "mail.example"\n[users]\nqueue = 60997\nworker = 60998\nsigner = 60996\ncontrol = 60999\n'
        )
        for arguments in (("domain", "add", "a.example"), ("user", "add", "anna@a.example", "--generate")):
            command = [sys.executable, "-m", "ptt", *arguments, "--config", str(top / "ptt.toml")]
            environment = {name: value for name, value in os.environ.items() if name != "SUDO_USER"}
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
            assert done.returncode == 0, done.stderr
        found = [*(top / "directory.git").rglob("*"), top / "directory.git"]
        assert len(found) > 10
        assert {path.lstat().st_uid for path in found} == {60999}
        repository = Repository(str(top / "directory.git"), "main")
        assert {commit.author for commit in history(repository, repository.tip(), 9)} == {"root"}  # who ran them
    finally:
        subprocess.run(["rm", "-rf", str(top)], check=True)
