"""``ptt tls``, and a hop whose both sides look at the list of revoked certificates."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import pathlib
import shutil
import ssl
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography import x509

from ptt.cli import check_certificates
from ptt.cli.tls import tls
from ptt.config import Config, load
from ptt.log import Log
from ptt.net.tls import internal_client_context, peer_roles, revocations, server_context
from ptt.service import certificates
from ptt.service.renewal import LOOK_SECONDS, Renewal

NOW = datetime.datetime.now(datetime.UTC)
HOST = "mail.example.org"


class Shared:
    """A configuration with an authority, as ``ptt init`` makes it."""

    def __init__(self, base: pathlib.Path, days: int = 3650) -> None:
        (base / "tls").mkdir()
        (base / "run").mkdir()
        (base / "ptt.toml").write_text(f'hostname = "{HOST}"\n')
        self.config: Config = load(base / "ptt.toml")
        self.ca = certificates.make_ca("Test CA", NOW)
        self.tls = base / "tls"
        (self.tls / "ca.pem").write_bytes(self.ca.certificate_pem())
        (self.tls / "ca.key").write_bytes(self.ca.key_pem())
        for name, roles in (("internal", ["submission", "signer", "relay"]), ("public", [])):
            pair = certificates.issue(self.ca, [HOST, "127.0.0.1"], roles, NOW, days)
            (self.tls / f"{name}.pem").write_bytes(pair.certificate_pem())
            (self.tls / f"{name}.key").write_bytes(pair.key_pem())

    def run(self, *words: str) -> Result:
        return CliRunner().invoke(tls, words, obj=self)

    def rows(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.run("list", "--json").output)
        return found

    def certificate(self, name: str = "internal") -> x509.Certificate:
        return x509.load_pem_x509_certificate((self.tls / f"{name}.pem").read_bytes())


@pytest.fixture
def shared(tmp_path: pathlib.Path) -> Shared:
    return Shared(tmp_path)


def hop(server: pathlib.Path, client: pathlib.Path) -> frozenset[str]:
    """A handshake between two hosts' directories; the roles that the server sees. Raises ssl.SSLError."""
    accepting = server_context(
        str(server / "internal.pem"), str(server / "internal.key"), client_ca=str(server / "ca.pem")
    )
    connecting = internal_client_context(
        str(client / "internal.pem"), str(client / "internal.key"), str(client / "ca.pem")
    )
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        accepting.wrap_bio(up, down, server_side=True),
        connecting.wrap_bio(down, up, server_hostname=HOST),
    ]
    for _ in range(10):
        for end in ends:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    with contextlib.suppress(ssl.SSLWantReadError):
        ends[1].read(1)  # TLS 1.3: the server's refusal comes after the client's end of the handshake
    return peer_roles(ends[0].getpeercert(binary_form=True) or b"")


def test_issue_for_another_host_and_revoke_it(shared: Shared, tmp_path: pathlib.Path) -> None:
    other = tmp_path / "other"
    made = shared.run("issue", str(other), "--host", HOST, "--role", "relay", "--days", "30")
    assert made.exit_code == 0, made.output
    assert (other / "internal.key").stat().st_mode & 0o777 == 0o600
    assert hop(shared.tls, other) == {"relay"}
    assert hop(other, shared.tls) == {"submission", "signer", "relay"}
    again = shared.run("issue", str(other), "--host", HOST, "--role", "relay")
    assert (again.exit_code, "nothing is overwritten" in again.output) == (1, True)
    (row,) = [row for row in shared.rows() if row["roles"] == ["relay"]]
    assert (row["hosts"], row["revoked"], row["file"]) == ([HOST], False, "")
    assert shared.run("revoke", "ffff").exit_code == 1
    assert shared.run("revoke", row["serial"]).exit_code == 0
    with pytest.raises(ssl.SSLError, match="certificate verify failed: certificate revoked"):
        hop(shared.tls, other)  # the server refuses it
    with pytest.raises(ssl.SSLError, match="revoked"):
        hop(other, shared.tls)  # and so does the client
    shutil.copytree(shared.tls, tmp_path / "third")
    assert hop(shared.tls, tmp_path / "third") == {"submission", "signer", "relay"}  # others are not concerned
    assert [row["revoked"] for row in shared.rows()].count(True) == 1
    crl = revocations(shared.config.tls.internal_ca)
    assert crl is not None
    assert shared.run("revoke", row["serial"].upper()).exit_code == 0  # again: nothing more
    after = revocations(shared.config.tls.internal_ca)
    assert after is not None
    assert len(after) == len(crl) == 1


def test_renew(shared: Shared) -> None:
    before = shared.certificate()
    (shared.tls / "public.key").chmod(0o640)
    assert shared.run("renew", "--due").output == ""
    assert shared.certificate() == before
    run = shared.run("renew")
    assert (run.exit_code, run.output.count("valid until")) == (0, 2)
    after = shared.certificate()
    assert after.serial_number != before.serial_number
    assert after.public_key() == before.public_key()
    assert certificates.names_of(after) == certificates.names_of(before)
    assert hop(shared.tls, shared.tls) == {"submission", "signer", "relay"}
    assert shared.run("renew", "--new-key").exit_code == 0
    assert shared.certificate().public_key() != before.public_key()
    assert hop(shared.tls, shared.tls) == {"submission", "signer", "relay"}
    assert sum(row["roles"] != [] for row in shared.rows()) == 3  # the old ones can still be revoked


def test_what_the_authority_did_not_issue_is_left(shared: Shared, tmp_path: pathlib.Path) -> None:
    (tmp_path / "b").mkdir()
    other = Shared(tmp_path / "b")
    for end in ("pem", "key"):
        shutil.copyfile(other.tls / f"public.{end}", shared.tls / f"public.{end}")
    run = shared.run("renew")
    assert run.exit_code == 0
    assert "was not issued by this authority: left as it is" in run.output
    assert shared.certificate("public") == other.certificate("public")
    (shared.tls / "ca.key").unlink()
    assert "the authority is on another host" in shared.run("renew").output


@pytest.mark.parametrize(("days", "passed", "due"), [(300, 199, False), (300, 201, True), (3650, 3600, False)])
def test_due_at_two_thirds_unless_the_authority_ends_too(days: int, passed: int, due: bool) -> None:
    ca = certificates.make_ca("Test CA", NOW)
    pair = certificates.issue(ca, [HOST], [], NOW, days)
    assert certificates.is_due(pair.certificate, ca.certificate, NOW + datetime.timedelta(days=passed)) is due


@pytest.mark.parametrize("text", [b"nonsense", b"forged"])
def test_a_list_that_cannot_be_used_lets_nobody_in(shared: Shared, text: bytes) -> None:
    if text == b"forged":
        key = certificates.make_ca("Test CA", NOW)
        forged = certificates.revoke(certificates.Pair(shared.ca.certificate, key.key), None, [], NOW)
        text = forged.public_bytes(certificates.serialization.Encoding.PEM)
    (shared.tls / "crl.pem").write_bytes(text)
    with pytest.raises(OSError, match=r"crl\.pem"):
        hop(shared.tls, shared.tls)
    found = list(check_certificates.certificates(shared.config))
    assert any(one.level == "fail" and one.what == "revocations" for one in found)


def test_check_tells_of_a_revoked_certificate(shared: Shared) -> None:
    serial = f"{shared.certificate().serial_number:x}"
    assert not any("it is revoked" in one.text for one in check_certificates.certificates(shared.config))
    assert shared.run("revoke", serial).exit_code == 0
    assert any("it is revoked" in one.text for one in check_certificates.certificates(shared.config))


@pytest.mark.slow
def test_the_supervisor_renews_what_is_due(tmp_path: pathlib.Path) -> None:
    shared = Shared(tmp_path)
    old = certificates.issue(shared.ca, [HOST], ["relay"], NOW - datetime.timedelta(days=80), 100)
    (shared.tls / "internal.pem").write_bytes(old.certificate_pem())
    (shared.tls / "internal.key").write_bytes(old.key_pem())
    renewal = Renewal(shared.config, str(tmp_path / "ptt.toml"), dict(os.environ), Log("test", "error"))
    renewal.look(False)
    assert renewal._process is None
    renewal.look(True)
    assert renewal._process is not None
    renewal._process.wait(30)
    renewal.look(True)
    assert renewal._process is None
    after = shared.certificate()
    assert after.not_valid_after_utc - NOW > datetime.timedelta(days=99)
    assert certificates.names_of(after) == ([HOST], ["relay"])
    renewal.look(True)
    assert renewal._process is None  # not before an hour has passed
    renewal._at -= LOOK_SECONDS
    renewal.look(True)
    assert renewal._process is not None
    renewal.stop()
