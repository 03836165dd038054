"""Limits, groups and routes: from a file to what a worker reads."""

from typing import Any

import pytest

from ptt.directory.reader import RouteView
from ptt.directory.records import Domain, Group, Limits, Route, User
from ptt.directory.schema import Place, dump, parse

EVERY = Limits(1, 2, 3, 4, 5, 6, "hold", 7, 8, 9)


def wrong(path: str, text: str) -> list[str]:
    found = parse(path, text.encode())
    assert isinstance(found, list)
    return [str(m) for m in found]


def test_every_limit_is_read() -> None:
    text = "".join(
        f"{k} = {v!r}\n" for k, v in zip(Limits.__struct_fields__, (1, 2, 3, 4, 5, 6, "hold", 7, 8, 9), strict=True)
    )
    place, user = parse("users/a.example/x.toml", b"[limits]\n" + text.encode())
    assert (place, user) == (Place("user", "x@a.example"), User(limits=EVERY))


@pytest.mark.parametrize(
    "record",
    [
        User(limits=EVERY),
        User(addresses=("x@a.example",), limits=Limits(messages_per_hour=0)),
        Domain(False, limits=Limits(bytes_per_day=10, over="hold")),
        Group(("x@a.example",), ("y@a.example",), "listed", ("z@a.example", "*@b.example")),
        Route("smarthost", "mail.example:587", "verify", True),
        Route("mx"),
    ],
)
def test_what_is_dumped_is_read_again(record: Any) -> None:
    path = {
        User: "users/a.example/x",
        Domain: "domains/a.example",
        Group: "groups/a.example/x",
        Route: "routes/default",
    }
    assert parse(path[type(record)] + ".toml", dump(record))[1] == record


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("\n[limits]\nmessages_per_hour = -1", 3, "limits.messages_per_hour: Expected `int` >= 0"),
        ("\n[limits]\nbytes_per_day = 1\nmessages_per_day = '1'", 4, "limits.messages_per_day: Expected `int | null`"),
        ("limits.over = 'drop'", 1, "limits.over: Invalid enum value 'drop'"),
        ("#\nlimits = { per_hour = 1 }", 2, "unknown key 'limits.per_hour'"),
        ("\nlimits = 3", 2, "limits: Expected `object | null`"),
        ("\n\n[limits]\n", 3, "limits: the table is empty"),
        ("[limits]\nmax_recipients = 99999999999999999", 2, "limits.max_recipients: Expected `int` <="),
    ],
)
def test_wrong_limits_have_a_line(text: str, line: int, reason: str) -> None:
    (found,) = wrong("users/a.example/x.toml", text)
    assert found.startswith(f"users/a.example/x.toml:{line}: {reason}")


def test_connections_are_those_of_a_user() -> None:
    (found,) = wrong("domains/a.example.toml", "[limits]\nmessages_per_day = 3\nconnections = 3")
    assert found == "domains/a.example.toml:3: limits.connections: is for users only"


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("host = 'x.example:25'", 1, "via: is missing"),
        ("via = 'smarthost'", 1, "host: '' is not HOST:PORT"),
        ("via = 'smarthost'\nhost = 'x.example'", 2, "host: 'x.example' is not HOST:PORT"),
        ("via = 'smarthost'\nhost = 'X.example:25'", 2, "host: domain 'X.example' must be in lower case"),
        ("via = 'smarthost'\nhost = 'x.example:0'", 2, "host: 'x.example:0': the port"),
        ("via = 'mx'\nhost = 'x.example:25'", 2, "host: means nothing"),
        ("\nvia = 'lmtp'\nhost = 'x.example'", 3, "host: 'x.example' is not HOST:PORT"),
        ("via = 'lmtp'\nhost = 'unix:run/lmtp'", 2, "host: must be unix: and an absolute path"),
        ("via = 'lmtp'\nhost = 'unix:/" + "x" * 107 + "'", 2, "host: must be unix: and an absolute path"),
        ("via = 'smarthost'\nhost = 'unix:/x'", 2, "host: "),
        ("via = 'lmtp'\nhost = 'x.example:24'\ntls = 'verify'", 3, "tls: means nothing"),
        ("via = 'discard'\nhost = 'x.example:24'", 2, "host: means nothing"),
        ("via = 'smarthost'\nhost = 'x.example:25'\ncredentials = '../x'", 3, "credentials: '../x' is no name"),
        ("via = 'smarthost'\nhost = 'x.example:25'\ntls = 'none'\ncredentials = 'x'", 3, "tls: with credentials"),
        ("via = 'mx'\ncredentials = 'x'", 2, "credentials: means nothing"),
        ("via = 'mx'\nfallback = 'x.example'", 2, "fallback: 'x.example' is not HOST:PORT"),
        ("via = 'mx'\nsource = '.a'", 2, "source: '.a' is no name"),
        ("via = 'uucp'", 1, "via: Invalid enum value 'uucp'"),
    ],
)
def test_routes_that_are_refused(text: str, line: int, reason: str) -> None:
    (found,) = wrong("routes/x.example.toml", text)
    assert found.startswith(f"routes/x.example.toml:{line}: {reason}")


@pytest.mark.parametrize(
    "text",
    [
        "via = 'discard'",
        "via = 'lmtp'\nhost = 'mail.example:24'",
        "via = 'lmtp'\nhost = 'unix:/run/dovecot/lmtp'",
        "via = 'mx'\ntls = 'encrypt'\nsource = 'bulk'\nfallback = 'backup.example:25'",
        "via = 'smarthost'\nhost = '[2001:db8::1]:587'\ncredentials = 'example'\ntls = 'verify'\nsource = 'b-1'",
    ],
)
def test_routes_that_are_taken(text: str) -> None:
    assert not isinstance(parse("routes/x.example.toml", text.encode()), list)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("members = []", "members: must name at least one"),
        ("members = ['x@a.example', 'x@a.example']", "named twice"),
        ("members = ['x@a.example']\nposters = ['y@a.example']", "posters: means nothing without"),
        ("members = ['x@a.example']\npost = 'nobody'", "post: Invalid enum value"),
        ("members = ['x@a.example']\nowners = ['y']", "owners: 'y' is not an address"),
    ],
)
def test_groups_that_are_refused(text: str, reason: str) -> None:
    assert reason in wrong("groups/a.example/x.toml", text)[0]


def test_limits_of_user_and_domain(base: Any) -> None:
    control = base.control()
    snapshot = base.snapshot()
    assert snapshot.limits("anna@a.example") is None
    base.commit({"users/a.example/bob.toml": "[limits]\nmessages_per_hour = 10\nover = 'hold'"})
    assert control.refresh()
    assert snapshot.refresh()
    assert snapshot.limits("BOB@A.example") == (Limits(messages_per_hour=10, over="hold"), None)
    assert snapshot.limits("anna@a.example") is None
    base.commit({"domains/a.example.toml": "[limits]\nbytes_per_day = 0\n"})
    assert control.refresh()
    assert snapshot.refresh()
    assert snapshot.limits("anna@a.example") == (None, Limits(bytes_per_day=0))
    assert snapshot.limits("bob@a.example") == (Limits(messages_per_hour=10, over="hold"), Limits(bytes_per_day=0))
    base.commit({"domains/a.example.toml": "", "users/a.example/bob.toml": ""})
    assert control.refresh()
    assert snapshot.refresh()
    assert snapshot.limits("bob@a.example") is None


def test_limits_go_with_their_user(base: Any) -> None:
    base.commit({"users/a.example/bob.toml": "[limits]\nconnections = 1"})
    control = base.control()
    base.commit({"users/a.example/bob.toml": None})
    assert control.refresh()
    assert base.snapshot().limits("bob@a.example") is None


def test_groups(base: Any) -> None:
    base.commit(
        {
            "users/a.example/bob.toml": "",
            "users/a.example/eve.toml": "",
            "groups/a.example/staff.toml": 'members = ["all@a.example", "bob@a.example"]\npost = "members"\n',
            "groups/a.example/news.toml": 'members = ["staff@a.example"]\npost = "listed"\n'
            'posters = ["bob@a.example"]\nowners = ["eve@a.example"]\n',
            "groups/a.example/open.toml": 'members = ["x@x.example"]',
            "aliases/a.example/way.toml": 'targets = ["staff@a.example"]',
            "aliases/a.example/list.toml": 'targets = ["open@a.example"]',
        }
    )
    control = base.control()
    snapshot = base.snapshot()
    assert snapshot.expand("Staff@a.example") == ["bob@a.example", "anna@a.example", "Foo@x.example"]
    assert snapshot.expand("news@a.example") == ["bob@a.example", "anna@a.example", "Foo@x.example"]

    def may(address: str) -> list[str]:
        return [u for u in ("anna", "bob", "eve", "nobody") if snapshot.may_post(f"{u}@a.example", address)]

    assert may("staff@a.example") == may("WAY@a.example") == ["anna", "bob"]
    assert may("news@a.example") == ["bob"]  # eve owns it, but it leads to staff, which does not let her
    assert (
        may("open@a.example") == may("list@a.example") == may("someone@x.example") == ["anna", "bob", "eve", "nobody"]
    )
    base.commit({"users/a.example/bob.toml": "disabled = true"})
    assert control.refresh()
    assert snapshot.refresh()
    assert may("staff@a.example") == ["anna"]


def test_an_alias_becomes_a_group(base: Any) -> None:
    control = base.control()
    base.commit(
        {"aliases/a.example/all.toml": None, "groups/a.example/all.toml": 'members = ["q@x.example"]\npost = "members"'}
    )
    assert control.refresh()
    snapshot = base.snapshot()
    assert snapshot.expand("all@a.example") == ["q@x.example"]
    assert not snapshot.may_post("anna@a.example", "all@a.example")
    base.commit({"groups/a.example/all.toml": None})
    assert control.refresh()
    assert snapshot.refresh()
    assert snapshot.expand("all@a.example") is None


def test_routes(base: Any) -> None:
    control = base.control()
    snapshot = base.snapshot()
    assert snapshot.route("x.example") is None
    base.commit(
        {
            "routes/x.example.toml": 'via = "smarthost"\nhost = "[::1]:25"\ntls = "none"\nsubdomains = true\n',
            "routes/y.x.example.toml": 'via = "mx"',
        }
    )
    assert control.refresh()
    assert snapshot.refresh()
    route = RouteView("x.example", "smarthost", "[::1]:25", "none", True)
    assert snapshot.route("X.example.") == snapshot.route("a.b.x.example") == route
    assert snapshot.route("y.x.example") == RouteView("y.x.example", "mx", "", "", False)
    assert snapshot.route("other.example") is None
    base.commit({"routes/default.toml": 'via = "smarthost"\nhost = "h.example:587"', "routes/x.example.toml": None})
    assert control.refresh()
    assert snapshot.refresh()
    assert snapshot.route("x.example") == RouteView("default", "smarthost", "h.example:587", "", False)
