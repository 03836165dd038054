"""Updates and their reading back: the same tests against BIND and against our own server."""

from __future__ import annotations

import base64
import os
import pathlib
import subprocess

import pytest

from ptt.dns.update import (
    ALGORITHMS,
    Change,
    ChangedMeanwhile,
    NotReached,
    TsigKey,
    TsigKeyError,
    UpdateError,
    look,
    txt,
    update_txt,
)

ZONE = "example.test"
TIMEOUT = 5.0
LONG = b"v=DKIM1; k=rsa; p=" + b"MIICIjANBgkqhkiG9w0BAQEF" * 30


def put(primary, name: str, text: bytes, key: str = "", zone: str = ZONE, ttl: int = 60) -> None:
    try:
        before = look(primary.address, name, TIMEOUT).records
    except UpdateError:  # a zone of somebody else
        before = ()
    tsig = TsigKey.load(key or primary.key_file)
    update_txt(primary.address, zone, tsig, [Change(name, before, [txt(text)] if text else [])], ttl, TIMEOUT)


def read_back(address: str, name: str, timeout: float) -> list[bytes]:
    return look(address, name, timeout).texts


@pytest.mark.peer
class TestPrimary:
    def test_publishes_and_reads_back(self, primary) -> None:
        name = "a._domainkey.example.test"
        assert read_back(primary.address, name, TIMEOUT) == []
        put(primary, name, b"v=DKIM1; k=rsa; p=AAAA")
        assert read_back(primary.address, name, TIMEOUT) == [b"v=DKIM1; k=rsa; p=AAAA"]

    def test_replaces_what_was_there(self, primary) -> None:
        name = "b._domainkey.example.test"
        put(primary, name, b"first")
        put(primary, name, b"second")
        assert read_back(primary.address, name, TIMEOUT) == [b"second"]

    def test_the_same_again_changes_nothing(self, primary) -> None:
        name = "c._domainkey.example.test"
        put(primary, name, b"same")
        put(primary, name, b"same")
        assert read_back(primary.address, name, TIMEOUT) == [b"same"]

    def test_deletes(self, primary) -> None:
        name = "d._domainkey.example.test"
        put(primary, name, b"gone soon")
        for _ in range(2):  # the second time there is nothing to delete, which is no fault
            put(primary, name, b"")
            assert read_back(primary.address, name, TIMEOUT) == []

    def test_a_long_key_is_cut_into_strings_and_joined(self, primary) -> None:
        name = "long._domainkey.example.test"
        put(primary, name, LONG)
        assert read_back(primary.address, name, TIMEOUT) == [LONG]

    def test_every_octet_survives(self, primary) -> None:
        name = "octets._domainkey.example.test"
        text = bytes(range(256)) + b'"\\;'
        put(primary, name, text)
        assert read_back(primary.address, name, TIMEOUT) == [text]

    def test_a_wrong_secret_is_refused(self, primary) -> None:
        with pytest.raises(UpdateError, match="secret differs") as caught:
            put(primary, "e._domainkey.example.test", b"x", primary.wrong_key_file)
        assert caught.value.rcode == "BADSIG"
        assert read_back(primary.address, "e._domainkey.example.test", TIMEOUT) == []

    def test_an_unknown_key_is_refused(self, primary) -> None:
        with pytest.raises(UpdateError, match="not known there") as caught:
            put(primary, "e._domainkey.example.test", b"x", primary.unknown_key_file)
        assert caught.value.rcode == "BADKEY"

    def test_update_policy_refuses_other_names(self, primary) -> None:
        with pytest.raises(UpdateError, match="update-policy") as caught:
            put(primary, "www2.example.test", b"x")
        assert caught.value.rcode == "REFUSED"
        assert read_back(primary.address, "www2.example.test", TIMEOUT) == []

    def test_a_name_outside_the_zone_is_refused(self, primary) -> None:
        with pytest.raises(UpdateError) as caught:
            put(primary, "x._domainkey.other.test", b"x")
        assert caught.value.rcode == "NOTZONE"

    def test_a_zone_of_somebody_else_is_refused(self, primary) -> None:
        with pytest.raises(UpdateError) as caught:
            put(primary, "x._domainkey.strange.test", b"x", zone="strange.test")
        assert caught.value.rcode in ("NOTAUTH", "REFUSED")

    def test_reading_back_where_it_is_not_authoritative(self, primary) -> None:
        with pytest.raises(UpdateError):
            read_back(primary.address, "x._domainkey.strange.test", TIMEOUT)

    def test_what_somebody_changed_meanwhile_is_never_overwritten(self, primary) -> None:
        name, key = "race._domainkey.example.test", TsigKey.load(primary.key_file)
        beside = f"_ptt.{name}"

        def write(before, text: bytes) -> None:
            changes = [Change(name, before, [txt(text)]), Change(beside, (), [txt(b"marker")])]
            update_txt(primary.address, ZONE, key, changes, 60, TIMEOUT)

        put(primary, name, b"seen")
        seen = look(primary.address, name, TIMEOUT).records
        for changed in (b"another", b""):
            put(primary, name, changed)
            with pytest.raises(ChangedMeanwhile):
                write(seen, b"ours")
            assert read_back(primary.address, name, TIMEOUT) == ([changed] if changed else [])
            assert read_back(primary.address, beside, TIMEOUT) == []  # all or nothing
        put(primary, name, b"appeared")
        with pytest.raises(ChangedMeanwhile):
            write((), b"ours")
        put(primary, name, b"seen")
        write(seen, b"ours")
        assert read_back(primary.address, name, TIMEOUT) == [b"ours"]
        assert read_back(primary.address, beside, TIMEOUT) == [b"marker"]

    def test_an_alias_is_seen_and_not_followed(self, primary) -> None:
        assert look(primary.address, "www.example.test", TIMEOUT) == ((), "mx1.example.test")

    def test_dig_sees_what_was_published(self, primary, program) -> None:
        put(primary, "dig._domainkey.example.test", LONG, ttl=77)
        command = [program("dig"), "+noall", "+answer", "@127.0.0.1", "-p", str(primary.port)]
        done = subprocess.run(
            [*command, "dig._domainkey.example.test", "TXT"], capture_output=True, text=True, check=True
        )
        name, ttl, _, _, *strings = done.stdout.split(maxsplit=4)
        assert (name, ttl) == ("dig._domainkey.example.test.", "77")
        assert [len(s) for s in strings[0].strip().strip('"').split('" "')] == [255, 255, len(LONG) - 510]


@pytest.mark.peer
@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_keys_as_tsig_keygen_prints_them(fleet, program, algorithm: str) -> None:
    """Each algorithm at BIND and at Knot; RSA-4096's record is cut into strings."""
    key = TsigKey.load(fleet.keys[algorithm])
    assert key.algorithm == algorithm
    name = f"{algorithm}._domainkey.{ZONE}"
    update_txt(fleet.primary, ZONE, key, [Change(name, (), [txt(LONG)])], 60, TIMEOUT)
    (record,) = look(fleet.primary, name, TIMEOUT).records
    assert [len(s) for s in record.strings] == [255, 255, len(LONG) - 510]


@pytest.mark.peer
def test_nsupdate_updates_our_own_server(own_dns, program) -> None:
    name = "ns._domainkey.example.test"
    orders = f'server 127.0.0.1 {own_dns.port}\nzone {ZONE}\nadd {name}. 60 TXT "from nsupdate"\nsend\n'
    done = subprocess.run([program("nsupdate"), "-k", own_dns.key_file], input=orders, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert read_back(own_dns.address, name, TIMEOUT) == [b"from nsupdate"]
    wrong = subprocess.run(
        [program("nsupdate"), "-k", own_dns.wrong_key_file], input=orders, text=True, capture_output=True
    )
    assert wrong.returncode == 2
    assert "BADSIG" in wrong.stderr


def test_nobody_there(free_port, tmp: pathlib.Path) -> None:
    with pytest.raises(NotReached, match="refused"):
        read_back(f"127.0.0.1:{free_port()}", "x.test", TIMEOUT)


def test_a_text_or_name_that_dns_cannot_hold() -> None:
    key = TsigKey("k", "hmac-sha256", b"secret")
    for text in (b"", b"x" * 10_000):
        with pytest.raises(ValueError, match="octets"):
            txt(text)
    for name in ("a..b", "x" * 64 + ".test"):
        with pytest.raises(ValueError, match="domain name"):
            update_txt("127.0.0.1:1", "test", key, [Change(name, (), [txt(b"x")])], 60, 0.1)


GOOD = 'key "k.example" {\n\talgorithm hmac-sha256;\n\tsecret "c2VjcmV0";\n};\n'


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "// a comment\n# another\n/* and\none */ " + GOOD,
        'key k.example { secret "c2VjcmV0"; algorithm "HMAC-SHA256"; };',
        'key "k.example" { algorithm hmac-sha256; secret c2VjcmV0; };',
    ],
)
def test_key_files_as_bind_understands_them(text: str) -> None:
    assert TsigKey.parse(text) == TsigKey("k.example", "hmac-sha256", b"secret")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not a key"),
        ('key "k" { algorithm hmac-sha256; };', "not a key"),
        ('key "k" { secret "c2VjcmV0"; secret "c2VjcmV0"; };', "not a key"),
        (GOOD.replace("sha256", "md5"), "hmac-md5"),
        (GOOD.replace("c2VjcmV0", "c2VjcmV"), "damaged"),
        (GOOD.replace("k.example", "k..example"), "damaged"),
    ],
)
def test_key_files_that_cannot_be_used(text: str, complaint: str) -> None:
    with pytest.raises(TsigKeyError, match=complaint) as caught:
        TsigKey.parse(text, "file")
    assert "c2Vj" not in str(caught.value)


def test_a_secret_that_looks_like_a_comment() -> None:
    text = 'key "k" { algorithm hmac-sha512; secret "ab//cd//"; }; // "x" # "y"'
    assert TsigKey.parse(text) == TsigKey("k", "hmac-sha512", base64.b64decode("ab//cd//"))


def test_a_key_file_that_others_may_read_is_refused(tmp: pathlib.Path) -> None:
    path = tmp / "key"
    path.write_text(GOOD)
    os.chmod(path, 0o644)
    with pytest.raises(TsigKeyError, match="others may read it"):
        TsigKey.load(str(path))
    os.chmod(path, 0o640)
    assert TsigKey.load(str(path)).name == "k.example"
    with pytest.raises(TsigKeyError, match="cannot be read"):
        TsigKey.load(str(tmp / "absent"))


def test_a_key_does_not_show_its_secret() -> None:
    assert "secret" not in repr(TsigKey.parse(GOOD))
