"""Key files: how they are made, which are refused, when they are read again."""

import os
import pathlib
import stat
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from ptt.dkim.keys import parse_record
from ptt.signer import keystore
from ptt.signer.keystore import KeyRefused, Keystore, generate, problems
from ptt.signer.state import PublicKey, public_keys

DOMAIN = "example.org"
NONE = serialization.NoEncryption()


class Store:
    def __init__(self, base: pathlib.Path) -> None:
        self.keys, self.public = str(base / "keys"), str(base / "public")
        self.folder = base / "keys" / DOMAIN
        self.store = Keystore(self.keys, os.geteuid())

    def make(self, selector: str = "s1", algorithm: Any = "ed25519", domain: str = DOMAIN) -> PublicKey:
        return generate(self.keys, self.public, domain, selector, algorithm, 1)

    def put(self, pem: bytes, selector: str = "s1") -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{selector}.pem"
        path.write_bytes(pem)
        path.chmod(0o600)


@pytest.fixture
def made(tmp_path: pathlib.Path) -> Store:
    return Store(tmp_path)


def test_what_a_killed_process_left_half_written_goes(made: Store) -> None:
    made.put(b"half", "s1.pem.77.new")
    left = made.folder / "s1.pem.77.new"
    (made.folder / "s1.pem.77.new.pem").rename(left)
    made.make()
    assert not left.exists()
    left.write_bytes(b"half")
    other = made.folder / "s11.pem.77.new"
    other.write_bytes(b"another's")
    keystore.remove(made.keys, made.public, DOMAIN, "s1")
    assert list(made.folder.iterdir()) == [other]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o000])
def test_files_of_a_new_key(made: Store, umask: int) -> None:
    before = os.umask(umask)
    try:
        found = made.make()
    finally:
        os.umask(before)
    base = pathlib.Path(made.keys).parent
    modes = {str(p.relative_to(base)): stat.S_IMODE(p.stat().st_mode) for p in base.rglob("*")}
    assert modes == {
        "keys": 0o700,
        "keys/example.org": 0o700,
        "keys/example.org/s1.pem": 0o600,
        "public": 0o755,
        "public/example.org": 0o755,
        "public/example.org/s1.pub": 0o644,
    }
    assert public_keys(made.public, DOMAIN) == [found]
    assert "PRIVATE" not in (base / "public/example.org/s1.pub").read_text()


def test_ed25519_signs_the_digest(made: Store) -> None:
    """RFC 8463, 3: PureEdDSA over the SHA-256."""
    record = parse_record(made.make().record)
    digest = hashes.Hash(hashes.SHA256())
    digest.update(b"data")
    signature = made.store.get(DOMAIN, "s1").sign(b"data")
    ed25519.Ed25519PublicKey.from_public_bytes(record.key).verify(signature, digest.finalize())


@pytest.mark.slow
def test_rsa_signs(made: Store) -> None:
    record = parse_record(made.make(algorithm="rsa2048").record)
    public = serialization.load_der_public_key(record.key)
    assert isinstance(public, rsa.RSAPublicKey)
    assert public.key_size == 2048
    public.verify(made.store.get(DOMAIN, "s1").sign(b"data"), b"data", padding.PKCS1v15(), hashes.SHA256())


def test_never_replaces(made: Store) -> None:
    made.make()
    before = (made.folder / "s1.pem").read_bytes()
    with pytest.raises(KeyRefused, match="exists already"):
        made.make()
    assert (made.folder / "s1.pem").read_bytes() == before
    assert [p.name for p in made.folder.iterdir()] == ["s1.pem"]


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "", ".", "A", "a\0", "x" * 300])
def test_names_lead_nowhere_else(made: Store, name: str) -> None:
    for domain, selector in ((name, "s1"), (DOMAIN, name)):
        with pytest.raises(KeyRefused, match="is not a"):
            made.make(selector, domain=domain)
        with pytest.raises(KeyRefused, match="is not a"):
            made.store.get(domain, selector)
    assert not pathlib.Path(made.keys).exists()


def test_a_public_file_alone_is_not_given_another_private_key(made: Store) -> None:
    made.make()
    (made.folder / "s1.pem").unlink()
    with pytest.raises(KeyRefused, match="exists already"):
        made.make()
    assert not list(made.folder.iterdir())


def test_a_private_key_of_another_name_is_refused(made: Store) -> None:
    store = Keystore(made.keys, os.geteuid(), made.public)
    for selector in ("s1", "s2"):
        made.make(selector)
        store.get(DOMAIN, selector)
    os.replace(made.folder / "s2.pem", made.folder / "s1.pem")
    with pytest.raises(KeyRefused, match="does not belong"):
        store.get(DOMAIN, "s1")


def test_unknown_algorithm(made: Store) -> None:
    with pytest.raises(KeyRefused, match="unknown algorithm"):
        made.make(algorithm="rsa512")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601, 0o700])
def test_readable_by_others_is_refused_also_when_open(made: Store, mode: int) -> None:
    made.make()
    made.store.get(DOMAIN, "s1")
    path = made.folder / "s1.pem"
    path.chmod(mode)
    with pytest.raises(KeyRefused, match=f"has mode {mode:04o}, must have 0600"):
        made.store.get(DOMAIN, "s1")
    assert [(p, "must have 0600" in why) for p, why in problems(made.keys, os.geteuid())] == [(str(path), True)]
    path.chmod(0o600)
    made.store.get(DOMAIN, "s1")
    assert not list(problems(made.keys, os.geteuid()))


def test_anothers_file_is_refused(made: Store) -> None:
    made.make()
    with pytest.raises(KeyRefused, match=f"must belong to the key process's user {os.geteuid() + 1}"):
        Keystore(made.keys, os.geteuid() + 1).get(DOMAIN, "s1")
    assert list(problems(made.keys, os.geteuid() + 1))


def test_links_and_devices_are_refused(made: Store, tmp_path: pathlib.Path) -> None:
    made.make()
    (made.folder / "link.pem").symlink_to(made.folder / "s1.pem")
    os.mkfifo(made.folder / "fifo.pem", 0o600)
    (made.folder / "folder.pem").mkdir(0o600)
    (tmp_path / "keys" / "linked.example").symlink_to(made.folder)
    for selector in ("link", "fifo", "folder"):
        with pytest.raises(KeyRefused, match="is not a regular file"):
            made.store.get(DOMAIN, selector)
    with pytest.raises(KeyRefused, match="cannot be opened"):
        made.store.get("linked.example", "s1")
    assert len(list(problems(made.keys, os.geteuid()))) == 4


@pytest.mark.parametrize("pem", [b"", b"nonsense", b"\xff" * 100_000])
def test_what_is_no_key(made: Store, pem: bytes) -> None:
    made.put(pem)
    with pytest.raises(KeyRefused, match="is not an unencrypted private key"):
        made.store.get(DOMAIN, "s1")


def test_keys_of_other_kinds(made: Store) -> None:
    pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    made.put(ec.generate_private_key(ec.SECP256R1()).private_bytes(*pkcs8, NONE))
    with pytest.raises(KeyRefused, match="neither RSA nor Ed25519"):
        made.store.get(DOMAIN, "s1")
    locked = ed25519.Ed25519PrivateKey.generate().private_bytes(*pkcs8, serialization.BestAvailableEncryption(b"x"))
    made.put(locked)
    with pytest.raises(KeyRefused, match="unencrypted"):
        made.store.get(DOMAIN, "s1")


def test_read_again_when_changed(made: Store) -> None:
    made.make("one")
    made.make("two")
    first = made.store.get(DOMAIN, "one").sign(b"data")
    assert made.store.get(DOMAIN, "one").sign(b"data") == first
    os.replace(made.folder / "two.pem", made.folder / "one.pem")
    assert made.store.get(DOMAIN, "one").sign(b"data") != first
    (made.folder / "one.pem").unlink()
    with pytest.raises(KeyRefused, match="No such file"):
        made.store.get(DOMAIN, "one")


def test_open_keys_are_bounded(made: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keystore, "MAX_KEYS", 2)
    for selector in ("a", "b", "c"):
        made.make(selector)
        made.store.get(DOMAIN, selector)
    assert len(made.store._open) == 2
    made.store.get(DOMAIN, "a")


def test_public_files_that_lie_are_passed_over(made: Store) -> None:
    found = made.make()
    folder = pathlib.Path(made.public, DOMAIN)
    (folder / "other.pub").write_bytes((folder / "s1.pub").read_bytes())
    (folder / "broken.pub").write_text("{")
    (folder / "wrong.pub").write_bytes(msgspec.json.encode({"domain": DOMAIN, "selector": "wrong", "algorithm": "dsa"}))
    assert public_keys(made.public, DOMAIN) == [found]
    assert public_keys(made.public, "../public/example.org") == []
