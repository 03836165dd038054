"""ptt limits and ptt route: what they commit, and what they refuse."""

from __future__ import annotations

import json
import types
from typing import Any

import click.testing
import pytest

from ptt.cli.directory import user
from ptt.cli.limits import limits
from ptt.cli.route import route
from ptt.directory.records import Limits, Route, User
from ptt.directory.schema import parse

COMMANDS: dict[str, click.Command] = {"limits": limits, "route": route, "user": user}


class Commands:
    """Runs commands over the database of a test."""

    def __init__(self, base: Any) -> None:
        self.base = base

    def __call__(self, *arguments: str, code: int = 0) -> str:
        shared = types.SimpleNamespace(config=self.base.config, account=0)
        result = click.testing.CliRunner().invoke(COMMANDS[arguments[0]], arguments[1:], obj=shared)
        assert result.exit_code == code, result.output
        return result.output

    def text(self, path: str) -> str:
        return (self.base.repository.content(self.base.repository.tip(), path) or b"").decode()

    def record(self, path: str) -> Any:
        found = parse(path, self.text(path).encode())
        assert isinstance(found, tuple), found
        return found[1]

    def subject(self) -> str:
        return str(self.base.repository.git[self.base.repository.tip()].message)


@pytest.fixture
def ptt(base: Any) -> Commands:
    return Commands(base)


ANNA, DOMAIN = "users/a.example/anna.toml", "domains/a.example.toml"


def test_limits_of_a_user(ptt: Commands) -> None:
    before = ptt.text(ANNA)
    ptt("limits", "Anna@A.example", "messages_per_day=1000", "over=hold")
    assert ptt.record(ANNA).limits == Limits(messages_per_day=1000, over="hold")
    assert ptt.text(ANNA).startswith(before)
    assert ptt.subject() == "user: limits of anna@a.example: messages_per_day=1000, over=hold"
    ptt("limits", "anna@a.example", "messages_per_day=none", "connections=0")
    assert ptt.record(ANNA).limits == Limits(connections=0, over="hold")
    assert ptt("limits", "anna@a.example").splitlines() == ["over=hold", "connections=0"]
    ptt("limits", "anna@a.example", "connections=none", "over=none")
    assert ptt.record(ANNA).limits is None
    assert ptt("limits", "anna@a.example") == ""


def test_comments_stay_and_other_commands_know_the_table(ptt: Commands) -> None:
    ptt.base.commit({ANNA: "# of sales\n\n[limits]\n# agreed with her\nmessages_per_day = 5\n"})
    ptt("limits", "anna@a.example", "messages_per_hour=2")
    assert "# agreed with her\nmessages_per_day = 5\nmessages_per_hour = 2\n" in ptt.text(ANNA)
    ptt("user", "disable", "anna@a.example")
    assert ptt.record(ANNA) == User(disabled=True, limits=Limits(messages_per_day=5, messages_per_hour=2))


def test_limits_of_a_domain(ptt: Commands) -> None:
    ptt("limits", "a.example", "bytes_per_hour=500000000")
    assert ptt.record(DOMAIN).limits == Limits(bytes_per_hour=500_000_000)
    assert "for users only" in ptt("limits", "a.example", "connections=3", code=1)


@pytest.mark.parametrize("wrong", ["messages_per_day", "messages_per_day=", "messages_per_day=-1", "mesages=1", "=1"])
def test_what_is_no_limit(ptt: Commands, wrong: str) -> None:
    tip = ptt.base.repository.tip()
    ptt("limits", "anna@a.example", wrong, code=2)
    assert "over" in ptt("limits", "anna@a.example", "over=maybe", code=1)
    for nobody in ("nobody@a.example", "c.example"):
        assert f"there is no {'user' if '@' in nobody else 'domain'} {nobody}" in ptt("limits", nobody, code=1)
        assert "there is no" in ptt("limits", nobody, "over=hold", code=1)
    assert ptt.base.repository.tip() == tip


def test_routes(ptt: Commands) -> None:
    ptt("route", "add", "X.example", "smarthost", "smtp.example.net:587", "--tls", "verify", "--subdomains")
    ptt("route", "add", "default", "mx")
    assert ptt.record("routes/x.example.toml") == Route("smarthost", "smtp.example.net:587", "verify", subdomains=True)
    assert ptt.subject() == "route: default goes by mx"
    listed = json.loads(ptt("route", "list", "--json"))
    assert [(row["name"], row["via"], row["host"]) for row in listed] == [
        ("default", "mx", ""),
        ("x.example", "smarthost", "smtp.example.net:587"),
    ]
    assert "smtp.example.net:587" in ptt("route", "list")
    assert "exists already" in ptt("route", "add", "x.example", "mx", code=1)
    ptt("route", "remove", "x.example")
    assert ptt.text("routes/x.example.toml") == ""
    assert "there is no route" in ptt("route", "remove", "x.example", code=1)


@pytest.mark.parametrize(
    "wrong", [("mx", "h.example:25"), ("smarthost",), ("smarthost", "h.example"), ("discard", "h.example:25")]
)
def test_what_is_no_route(ptt: Commands, wrong: tuple[str, ...]) -> None:
    assert "routes/y.example.toml:" in ptt("route", "add", "y.example", *wrong, code=1)
    assert ptt.text("routes/y.example.toml") == ""
