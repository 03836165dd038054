"""``ptt check``: each thing that can be wrong is found, with what to do about it."""

from __future__ import annotations

import datetime
import json
import pathlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import dns.resolver
import msgspec
import pytest

from ptt.cli import check, check_certificates, check_dns, check_files, check_host
from ptt.cli.findings import Finding
from ptt.config import Config, Listen, load
from ptt.directory.repository import Author, Repository
from ptt.service.certificates import Pair, issue, make_ca
from ptt.signer import keystore

NOW = datetime.datetime.now(datetime.UTC)


@pytest.fixture
def config(tmp_path: pathlib.Path) -> Config:
    """A configuration with certificates, a key and nothing else."""
    file = tmp_path / "ptt.toml"
    file.write_text(
        'hostname = "mail.example"\n[[listen]]\naddress = "127.0.0.1:0"\nservice = "submission"\n'
        '[admin]\nlisten = "127.0.0.1:0"\n[dns]\nresolvers = ["127.0.0.1:9"]\ntimeout_seconds = 0.1\n'
    )
    (tmp_path / "tls").mkdir()
    found = load(file)
    ca = make_ca("test", NOW)
    write(tmp_path / "tls/ca", ca)
    write(tmp_path / "tls/internal", issue(ca, ["mail.example"], ["submission", "signer", "relay"], NOW, 100))
    write(tmp_path / "tls/public", issue(ca, ["mail.example"], [], NOW, 100))
    return found


def write(stem: pathlib.Path, pair: Pair) -> None:
    stem.with_suffix(".pem").write_bytes(pair.certificate_pem())
    stem.with_suffix(".key").write_bytes(pair.key_pem())
    stem.with_suffix(".key").chmod(0o600)


def bad(found: Iterator[Finding]) -> list[tuple[str, str]]:
    """What is not good; whatever is not good comes with advice."""
    findings = list(found)
    assert all(finding.advice for finding in findings if finding.level != "ok")
    return [(finding.level, finding.text) for finding in findings if finding.level != "ok"]


def test_good_certificates(config: Config) -> None:
    assert bad(check_certificates.certificates(config)) == []


def test_certificates_that_cannot_be_used(config: Config) -> None:
    tls = pathlib.Path(config.tls.internal_ca).parent
    other = make_ca("test", NOW)
    write(tls / "internal", issue(other, ["mail.example"], ["relay"], NOW, 100))
    (tls / "public.key").write_bytes(other.key_pem())
    texts = bad(check_certificates.certificates(config))
    assert [level for level, _ in texts] == ["fail", "fail"]
    assert "cannot be used together" in texts[0][1]
    assert "did not issue" in texts[1][1]


def test_certificates_of_another_time_name_or_role(config: Config) -> None:
    tls = pathlib.Path(config.tls.internal_ca).parent
    ca = make_ca("test", NOW)
    write(tls / "ca", ca)
    write(tls / "internal", issue(ca, ["mail.example"], ["relay"], NOW - datetime.timedelta(days=20), 10))
    write(tls / "public", issue(ca, ["other.example"], [], NOW, 10))
    assert [(level, text.partition(" 2")[0]) for level, text in bad(check_certificates.certificates(config))] == [
        ("warn", "expires on"),
        ("warn", "it is for other.example, not for mail.example"),
        ("fail", "expired on"),
        ("fail", "it does not name the role signer, submission of this host"),
    ]
    early = issue(ca, ["mail.example"], [], NOW + datetime.timedelta(days=3), 100).certificate
    assert "is not valid before" in next(check_certificates.dates("x", early, NOW)).text


def test_a_certificates_key_that_others_read(config: Config) -> None:
    pathlib.Path(config.tls.public_key).chmod(0o644)
    ((level, text),) = bad(check_certificates.certificates(config))
    assert (level, text) == ("fail", f"every user can read {config.tls.public_key}")


def test_keys(config: Config) -> None:
    assert [text for _, text in bad(check_files.keys(config))] == ["there is no DKIM key"]
    keystore.generate(config.signer.keys, config.signer.public, "a.example", "s1", "ed25519", 1)
    assert bad(check_files.keys(config)) == []
    private = pathlib.Path(config.signer.keys, "a.example/s1.pem")
    private.chmod(0o640)
    ((level, text),) = bad(check_files.keys(config))
    assert level == "fail"
    assert text.startswith(f"{private} has mode 0640")
    private.unlink()
    assert bad(check_files.keys(config)) == [("fail", "the private key of s1 of a.example is missing")]


def test_users(config: Config) -> None:
    ((level, text),) = bad(check_files.users(config))
    assert level == "warn"
    assert "who takes over a worker can read the keys and sign as your domains" in text
    nobody = msgspec.structs.replace(config, users=msgspec.structs.replace(config.users, queue="no-such-user-here"))
    found = bad(check_files.users(nobody))
    assert found[0][0] in ("fail", "warn")  # without root no user is looked up


def test_directories(config: Config) -> None:
    assert bad(check_files.ownership(config)) == []
    pathlib.Path(config.data).mkdir(mode=0o700)
    pathlib.Path(config.queue.path).mkdir(mode=0o700)
    pathlib.Path(config.queue.path).chmod(0o755)
    assert bad(check_files.ownership(config)) == [("fail", "has mode 755: 55 too much")]


def test_disk(config: Config) -> None:
    full = msgspec.structs.replace(config, queue=msgspec.structs.replace(config.queue, min_free_bytes=1 << 60))
    ((level, text),) = bad(check_files.disk(full))
    assert level == "fail"
    assert "MiB free" in text


def test_git_database(config: Config) -> None:
    ((level, text),) = bad(check_files.repository(config))
    assert (level, text.partition(" at ")[0]) == ("warn", "there is none")
    made = Repository(config.directory.repository, config.directory.branch, create=True)
    assert bad(check_files.repository(config)) == [("warn", "branch main has no commit")]
    commit = made.commit({"users/a.example/x.toml": b"foo = 1\n"}, "x", Author("x", "x@x.example"), "")
    made.move(made.ref, commit, "")
    found = bad(check_files.repository(config))
    assert {level for level, _ in found} == {"fail"}
    assert any("users/a.example/x.toml:1: unknown key" in text for _, text in found)


def test_a_taken_port(config: Config) -> None:
    assert bad(check_host.ports(config)) == []
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        held = msgspec.structs.replace(config, listen=(Listen(address=address, service="relay"),))
        assert bad(check_host.ports(held)) == [("fail", f"cannot listen on {address}")]


def test_no_listener(config: Config) -> None:
    assert bad(check_host.ports(msgspec.structs.replace(config, listen=()))) == [
        ("warn", "nothing is listened on for mail")
    ]


def test_too_few_descriptors(config: Config) -> None:
    many = msgspec.structs.replace(config, smtp=msgspec.structs.replace(config.smtp, max_connections=10**12))
    assert bad(check_host.descriptors(many))[0][0] == "warn"


class Dns:
    """A resolver that knows ``records``: (name, type) -> texts; everything else is not there."""

    def __init__(self, records: dict[tuple[str, str], list[str]], error: Exception | None = None) -> None:
        self.records = records
        self.error = error

    def resolve(self, name: dns.name.Name, kind: dns.rdatatype.RdataType) -> list[Any]:
        if self.error is not None:
            raise self.error
        key = (name.to_text(omit_final_dot=True), dns.rdatatype.to_text(kind))
        if key not in self.records:
            raise dns.resolver.NXDOMAIN
        return [dns.rdata.from_text("IN", kind, text) for text in self.records[key]]


def ask(config: Config, monkeypatch: pytest.MonkeyPatch, resolver: Dns) -> list[tuple[str, str]]:
    monkeypatch.setattr(check_dns, "_resolver", lambda _: resolver)
    return bad(check_dns.check(config))


def test_dns_is_silent(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    ((level, text),) = ask(config, monkeypatch, Dns({}, dns.resolver.LifetimeTimeout(timeout=1, errors=[])))
    assert level == "fail"
    assert text.startswith("127.0.0.1:9 does not answer")


def test_dns_names_this_host(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    records = {("mail.example", "A"): ["192.0.2.1"], ("1.2.0.192.in-addr.arpa", "PTR"): ["MAIL.example."]}
    assert ask(config, monkeypatch, Dns(records)) == []
    records["1.2.0.192.in-addr.arpa", "PTR"] = ["dyn-1.example."]
    assert ask(config, monkeypatch, Dns(records)) == [("warn", "192.0.2.1 leads to dyn-1.example, not to mail.example")]
    del records["1.2.0.192.in-addr.arpa", "PTR"]
    assert ask(config, monkeypatch, Dns(records)) == [("warn", "192.0.2.1 leads to no name, not to mail.example")]
    assert ask(config, monkeypatch, Dns({})) == [("warn", "mail.example has no address in DNS")]


def test_dns_serves_the_keys(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    key = keystore.generate(config.signer.keys, config.signer.public, "a.example", "s1", "ed25519", 1)
    records = {("mail.example", "A"): ["192.0.2.1"], ("1.2.0.192.in-addr.arpa", "PTR"): ["mail.example."]}
    ((level, text),) = ask(config, monkeypatch, Dns(records))
    assert (level, text) == ("fail", "s1._domainkey.a.example is not served as it is here: no record there")
    records["s1._domainkey.a.example", "TXT"] = [f'"{key.record}"']
    assert ask(config, monkeypatch, Dns(records)) == []


def test_a_check_that_fails_is_a_finding(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Config) -> Iterator[Finding]:
        raise RuntimeError("boom")
        yield

    monkeypatch.setattr(check, "CHECKS", (broken, check_files.disk))
    assert [finding.level for finding in check.findings("f", config)][:2] == ["ok", "fail"]


@pytest.mark.slow
def test_the_command(config: Config) -> None:
    file = pathlib.Path(config.run).parent / "ptt.toml"
    done = subprocess.run(
        [sys.executable, "-m", "ptt", "check", "--json", "--config", str(file)], capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["level"] for row in rows} == {"ok", "warn", "fail"}
    text = subprocess.run([sys.executable, "-m", "ptt", "--config", str(file), "check"], capture_output=True, text=True)
    assert "fail  resolver: 127.0.0.1:9 does not answer" in text.stdout


@pytest.mark.parametrize(
    ("content", "wrong"), [("ca.pem", ""), ("ca.key", "cannot be used"), ("missing", "cannot be used")]
)
def test_the_authority_of_users(config: Config, content: str, wrong: str) -> None:
    file = str(pathlib.Path(config.tls.internal_ca).parent / content)
    users = msgspec.structs.replace(config, tls=msgspec.structs.replace(config.tls, submission_client_ca=file))
    found = bad(check_certificates.certificates(users))
    assert [wrong in text for _, text in found] == ([True] if wrong else [])
