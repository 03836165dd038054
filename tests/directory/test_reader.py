"""What workers see: look-ups, and the switch from one commit to the next."""

import os
import pathlib
from typing import Any

import pytest

from ptt.directory.reader import FORMAT, POINTER, Snapshot


def test_before_the_first_commit_nothing_is_found(tmp_path: pathlib.Path) -> None:
    snapshot = Snapshot(str(tmp_path / "missing"))
    assert (snapshot.commit, snapshot.problem) == ("", "")
    assert snapshot.user("a@b") is None
    assert snapshot.domain("b") is None
    assert snapshot.expand("a@b") is None
    assert snapshot.signing_domain("b") == ""
    assert not snapshot.may_send_as("a@b", "a@b")
    assert snapshot.domains() == []
    assert not snapshot.refresh()


def test_users(base: Any) -> None:
    base.control()
    snapshot = base.snapshot()
    anna = snapshot.user("Anna@A.Example")
    assert anna is not None
    assert anna.name == "anna@a.example"
    assert anna.addresses == ("*@b.example", "sales@a.example")
    assert snapshot.user("anna") is None
    assert snapshot.user("all@a.example") is None
    assert snapshot.user("\udcff@a.example") is None
    assert snapshot.user("x" * 100_000) is None


def test_domains(base: Any) -> None:
    base.control()
    snapshot = base.snapshot()
    assert snapshot.domains() == ["a.example", "b.example"]
    assert snapshot.domain("A.EXAMPLE.").postmaster == "postmaster@a.example"
    assert snapshot.domain("b.example").postmaster == "boss@a.example"
    assert snapshot.domain("x.b.example") is None
    assert snapshot.our_domain("x.y.b.example").name == "b.example"
    assert snapshot.our_domain("x.a.example") is None


def test_signing_domains(base: Any) -> None:
    base.commit({"domains/c.example.toml": "subdomains = true", "domains/off.c.example.toml": "sign = false"})
    base.control()
    snapshot = base.snapshot()
    expected = {
        "a.example": "a.example",
        "A.Example": "a.example",
        "x.a.example": "",
        "b.example": "",
        "x.b.example": "",
        "c.example": "c.example",
        "x.y.c.example": "c.example",
        "off.c.example": "",
        "other.example": "",
        "": "",
        "[192.0.2.1]": "",
    }
    assert {domain: snapshot.signing_domain(domain) for domain in expected} == expected


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("anna@a.example", True),
        ("ANNA@A.EXAMPLE", True),
        ("anna+list@a.example", True),
        ("anna+@a.example", True),
        ("sales@a.example", True),
        ("sales+x@a.example", True),
        ("anyone@b.example", True),
        ("any+one@b.example", True),
        ("anyone@x.b.example", False),
        ("bob@a.example", False),
        ("annax@a.example", False),
        ("+anna@a.example", False),
        ("@b.example", False),
        ("*@a.example", False),
        ("anna@a.example@b.example", True),  # a quoted local part; policy has parsed the address before
        ("anna", False),
        ("", False),
    ],
)
def test_senders(base: Any, address: str, allowed: bool) -> None:
    base.control()
    snapshot = base.snapshot()
    assert snapshot.may_send_as("anna@a.example", address) is allowed
    assert snapshot.may_send_as(snapshot.user("anna@a.example"), address) is allowed
    assert not snapshot.may_send_as("nobody@a.example", address)


def test_a_disabled_user_sends_as_nobody(base: Any) -> None:
    base.commit({"users/a.example/anna.toml": "disabled = true"})
    base.control()
    snapshot = base.snapshot()
    assert snapshot.user("anna@a.example").disabled
    assert not snapshot.may_send_as("anna@a.example", "anna@a.example")


def test_aliases(base: Any) -> None:
    base.commit(
        {
            "aliases/a.example/two.toml": 'targets = ["All@a.example", "b@x.example", "ANNA@a.example"]',
            "aliases/a.example/three.toml": 'targets = ["two@a.example", "all@a.example", "c@x.example"]',
        }
    )
    base.control()
    snapshot = base.snapshot()
    assert snapshot.expand("nobody@a.example") is None
    assert snapshot.expand("anna@a.example") is None
    assert snapshot.expand("ALL@a.example") == ["anna@a.example", "Foo@x.example"]
    assert snapshot.expand("three@a.example") == ["c@x.example", "b@x.example", "ANNA@a.example", "Foo@x.example"]


def test_the_switch(base: Any) -> None:
    control = base.control()
    snapshot = base.snapshot()
    first = snapshot.commit
    assert first == control.commit
    second = base.commit({"users/a.example/bob.toml": ""})
    assert control.refresh()
    assert snapshot.user("bob@a.example") is None  # not before refresh
    assert snapshot.refresh()
    assert snapshot.commit == second
    assert snapshot.user("bob@a.example") is not None
    assert not snapshot.refresh()
    snapshot.close()


def test_a_pointer_that_cannot_be_used_changes_nothing(base: Any) -> None:
    control = base.control()
    snapshot = base.snapshot()
    pointer = pathlib.Path(base.config.directory.snapshots) / POINTER
    good = pointer.read_bytes()
    for bad in (
        b"",
        b"{",
        good.replace(b'"format":%d' % FORMAT, b'"format":1'),
        good.replace(b'.mdb"', b'.gone"'),
        b"x" * 9999,
    ):
        aside = pointer.with_name("aside")
        aside.write_bytes(bad)
        os.replace(aside, pointer)
        assert not snapshot.refresh()
        assert snapshot.problem
        assert snapshot.user("anna@a.example") is not None
        assert snapshot.commit == control.commit
    pointer.unlink()
    assert not snapshot.refresh()
    pointer.write_bytes(good)
    assert snapshot.refresh()
    assert not snapshot.problem


def test_a_damaged_file_changes_nothing(base: Any) -> None:
    base.control()
    snapshot = base.snapshot()
    pointer = pathlib.Path(base.config.directory.snapshots) / POINTER
    (pointer.parent / "bad.mdb").write_bytes(b"no database" * 1000)
    aside = pointer.with_name("aside")
    aside.write_text(f'{{"format":{FORMAT},"commit":"{"1" * 40}","file":"bad.mdb"}}')
    os.replace(aside, pointer)
    assert not snapshot.refresh()
    assert "bad.mdb cannot be opened" in snapshot.problem
    assert snapshot.user("anna@a.example") is not None


def test_no_verifier_is_in_what_workers_read(base: Any, fast_hash: str) -> None:
    base.control()
    files = list(pathlib.Path(base.config.directory.snapshots).iterdir())
    assert len(files) == 2
    for file in files:
        data = file.read_bytes()
        assert b"argon2" not in data
        assert fast_hash[-20:].encode() not in data
        assert file.stat().st_mode & 0o777 == 0o640
    private = pathlib.Path(base.config.data) / "control"
    assert private.stat().st_mode & 0o777 == 0o700
    (verifiers,) = private.glob("*.mdb")
    assert fast_hash.encode() in verifiers.read_bytes()
    assert verifiers.stat().st_mode & 0o777 == 0o600
