"""The table ``[dkim]`` of a domain: what it may say, with file and line; in words; in the snapshot."""

from typing import Any

import pytest

from ptt.directory.describe import describe
from ptt.directory.records import Domain
from ptt.directory.rules import Database, validate
from ptt.directory.schema import Mistake, Place, dump, parse
from ptt.dkim.rules import DEFAULT, Rules

D = "domains/a.example.toml"
EVERY = Rules(
    ("ed25519",),
    (),
    ("esp.example", "b.example"),
    "simple/relaxed",
    ("x-campaign", "feedback-id"),
    604_800,
    "author",
    "beside",
    "mx.a.example",
)


@pytest.mark.parametrize("rules", [EVERY, Rules(selectors=("s1", "s2"))])
def test_what_is_dumped_is_read_again(rules: Rules) -> None:
    assert parse(D, dump(Domain(subdomains=True, dkim=rules))) == (
        Place("domain", "a.example"),
        Domain(subdomains=True, dkim=rules),
    )


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("[dkim]\n", 1, "dkim: the table is empty"),
        ("sign = false\n[dkim]\nexpires_seconds = 86400\n", 2, "dkim: means nothing with sign = false"),
        ("[dkim]\nbody_length = 100\n", 2, "unknown key 'dkim.body_length'"),
        ("[dkim]\n\nalgorithms = ['dsa']\n", 3, "dkim.algorithms: Invalid enum value 'dsa'"),
        ("[dkim]\nalgorithms = []\n", 2, "dkim.algorithms: names none"),
        ("[dkim]\nalgorithms = ['rsa']\nselectors = ['s1']\n", 2, "dkim.algorithms: means nothing beside selectors"),
        ("[dkim]\nselectors = [\n 's1',\n '../s2',\n]\n", 4, "dkim.selectors: '../s2' is not a selector"),
        ("[dkim]\nselectors = ['a', 'b', 'c', 'd', 'e']\n", 2, "dkim.selectors: more than 4"),
        ("[dkim]\nalso = ['Esp.example']\n", 2, "dkim.also: 'Esp.example' is not a domain in lower case"),
        ("[dkim]\ncanonicalization = 'relaxed'\n", 2, "dkim.canonicalization: Invalid enum value"),
        ("[dkim]\noversign = ['x-a',\n'X-B']\n", 3, "dkim.oversign: 'X-B' is not the name of a header field"),
        ("[dkim]\noversign = ['x:y']\n", 2, "dkim.oversign: 'x:y' is not the name"),
        ("[dkim]\noversign = ['arc-seal']\n", 2, "dkim.oversign: 'arc-seal' is changed or removed on the way"),
        ("[dkim]\noversign = ['x-a', 'x-a']\n", 2, "dkim.oversign: 'x-a' is named twice"),
        ("[dkim]\nexpires_seconds = 60\n", 2, "dkim.expires_seconds: less than 3600"),
        ("[dkim]\nexpires_seconds = -1\n", 2, "dkim.expires_seconds: Expected `int` >= 0"),
        ("[dkim]\narc = 'instead'\nalso = ['b.example']\n", 3, "dkim.also: means nothing with arc"),
        ("[dkim]\nauthserv_id = 'mx.example'\n", 2, "dkim.authserv_id: means nothing without arc"),
        ("[dkim]\narc = 'beside'\nauthserv_id = 'a;b'\n", 3, "dkim.authserv_id: is not the name of a server"),
        ("[dkim]\nidentity = 'x'\n", 2, "dkim.identity: Invalid enum value"),
    ],
)
def test_mistakes_with_file_and_line(text: str, line: int, reason: str) -> None:
    found = parse(D, text.encode())
    assert isinstance(found, list)
    assert found[0][:2] == (D, line)
    assert found[0].text.startswith(reason)


ALSO = b'#\n[dkim]\nalso = ["esp.example"]\n'


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({}, "there is no domains/esp.example.toml"),
        ({"domains/esp.example.toml": b"sign = false"}, "esp.example does not sign: sign = false"),
        ({"domains/esp.example.toml": b""}, ""),
    ],
)
def test_who_signs_too_must_be_able_to(other: dict[str, bytes], reason: str) -> None:
    _, mistakes = validate({D: ALSO, **other})
    assert mistakes == ([Mistake(D, 3, f"dkim.also: {reason}")] if reason else [])


def test_its_own_domain_is_no_other() -> None:
    _, mistakes = validate({"domains/esp.example.toml": ALSO})
    assert [m.text for m in mistakes] == ["dkim.also: esp.example signs its own mail anyway"]


def test_in_words() -> None:
    said = [c.what for c in describe(Place("domain", "a.example"), Domain(), Domain(dkim=EVERY))]
    assert said == [
        "signs with its newest key of each kind: ed25519",
        "its mail is signed by esp.example, b.example too",
        "its signatures are c=simple/relaxed (header/body)",
        "x-campaign, feedback-id may not be added or changed on the way",
        "its signatures expire 604800 s after signing",
        "its mail gets an ARC set too",
        "its ARC sets take over Authentication-Results of mx.a.example",
        "its signatures name the subdomain of From (i=)",
    ]
    back = [c.what for c in describe(Place("domain", "a.example"), Domain(dkim=EVERY), Domain())]
    assert len(back) == len(said)
    assert back[0] == "signs with its newest key of each kind: rsa, ed25519"
    assert "its signatures expire never" in back


@pytest.mark.slow
def test_in_force_with_the_commit(base: Any) -> None:
    control = base.control()
    snapshot = base.snapshot()
    assert snapshot.rules("a.example") is DEFAULT
    base.commit({D: ALSO, "domains/esp.example.toml": ""})
    control.refresh()
    snapshot.refresh()
    assert snapshot.rules("a.example") == Rules(also=("esp.example",))
    assert snapshot.rules("esp.example") is DEFAULT
    good = snapshot.commit
    for taken in (None, "sign = false"):  # the file that makes it wrong is not the one that the commit changes
        base.commit({"domains/esp.example.toml": taken})
        control.refresh()
        snapshot.refresh()
        assert snapshot.commit == good
        base.commit({"domains/esp.example.toml": ""})
    base.commit({D: ""})
    control.refresh()
    snapshot.refresh()
    assert snapshot.rules("a.example") is DEFAULT


def test_a_database_is_its_own_base() -> None:
    """The rules are kept when a record passes through the view of the database."""
    database = Database({"a.example": Domain(dkim=EVERY)})
    found = database.domain("a.example")
    assert found is not None
    assert found.dkim == EVERY
