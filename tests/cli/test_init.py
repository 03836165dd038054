"""``ptt init``: what it writes, what it refuses, whose the files are."""

from __future__ import annotations

import os
import pathlib
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ptt.cli.init import FIRST_UID, separate_users, usable_ports
from ptt.cli.template import Choices, render
from ptt.config import Config, load
from ptt.directory.repository import Repository
from ptt.dns.update import TsigKey
from ptt.net.tls import internal_client_context, peer_roles, server_context
from ptt.signer.state import all_public_keys

pytestmark = pytest.mark.slow


def init(directory: pathlib.Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ptt", "init", str(directory), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def roles(config: Config) -> frozenset[str]:
    certificate = x509.load_pem_x509_certificate(pathlib.Path(config.tls.internal_certificate).read_bytes())
    return peer_roles(certificate.public_bytes(Encoding.DER))


@pytest.fixture(scope="module")
def base() -> Iterator[pathlib.Path]:
    """A directory that other users can enter."""
    directory = pathlib.Path(tempfile.mkdtemp(prefix="ptt-test-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def made(base: pathlib.Path) -> Config:
    done = init(base / "one", "--domain", "example.org", "--hostname", "Mail.Example.ORG")
    assert done.returncode == 0, done.stderr
    assert "DKIM key for example.org" in done.stdout
    return load(base / "one/ptt.toml")


def test_all_that_the_configuration_names_is_there(made: Config) -> None:
    assert made.hostname == "mail.example.org"
    assert [(listen.service, listen.tls, listen.address) for listen in made.listen] == [
        ("submission", "implicit", "127.0.0.1:4650"),
        ("submission", "starttls", "127.0.0.1:5870"),
        ("relay", "starttls", "127.0.0.1:2525"),
    ]
    assert made.admin.listen == "127.0.0.1:8025"
    server_context(made.tls.public_certificate, made.tls.public_key)
    internal_client_context(made.tls.internal_certificate, made.tls.internal_key, made.tls.internal_ca)
    assert roles(made) == {"submission", "signer", "relay"}
    (key,) = all_public_keys(made.signer.public)
    assert key.domain == "example.org"
    assert key.record.startswith("v=DKIM1; k=rsa; p=")
    repository = Repository(made.directory.repository, made.directory.branch)
    assert repository.content(repository.tip(), "domains/example.org.toml") is not None
    TsigKey.load(str(pathlib.Path(made.run).parent / "tsig.key"))


def test_secrets_are_closed(made: Config) -> None:
    base = pathlib.Path(made.run).parent
    for path in base.rglob("*"):
        secret = path.suffix in (".key", ".pem") and path.name not in ("ca.pem", "internal.pem", "public.pem")
        if secret and path.is_file() and path.parent.name != "issued":  # certificates alone
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    text = (base / "ptt.toml").read_text()
    assert "PRIVATE" not in text


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="separate users need root")
def test_as_root_each_kind_owns_its_own(made: Config) -> None:
    base = pathlib.Path(made.run).parent
    queue, worker, signer, control = range(FIRST_UID, FIRST_UID + 4)
    assert (made.users.queue, made.users.worker, made.users.signer, made.users.control) == (
        queue,
        worker,
        signer,
        control,
    )
    owners = {
        "data/queue": queue,
        "keys": signer,
        "tls/internal.key": worker,
        "tsig.key": control,
        "directory.git": control,
    }
    assert {name: (base / name).stat().st_uid for name in owners} == owners
    assert (base / "tls/ca.key").stat().st_uid == 0
    assert {path.stat().st_uid for path in (base / "directory.git").rglob("*")} == {control}


def test_overwrites_nothing(made: Config) -> None:
    base = pathlib.Path(made.run).parent
    before = {path: path.read_bytes() for path in base.rglob("*") if path.is_file()}
    done = init(base, "--domain", "example.org")
    assert done.returncode == 1
    assert "nothing is overwritten" in done.stderr
    assert {path: path.read_bytes() for path in base.rglob("*") if path.is_file()} == before


def test_another_role_with_the_same_authority(made: Config, base: pathlib.Path) -> None:
    first = pathlib.Path(made.run).parent
    other = base / "signer"
    done = init(
        other,
        "--role",
        "signer",
        "--next-hop",
        "relay.example.org:25",
        "--ca",
        str(first),
        "--hostname",
        "s.example.org",
    )
    assert done.returncode == 0, done.stderr
    config = load(other / "ptt.toml")
    assert (config.role, config.relay.next_hop) == ("signer", "relay.example.org:25")
    assert [listen.service for listen in config.listen] == ["relay"]
    assert roles(config) == {"signer"}
    assert (other / "tls/ca.pem").read_bytes() == (first / "tls/ca.pem").read_bytes()
    assert not (other / "tls/ca.key").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--domain", "not a domain"], "--domain"),
        (["--hostname", 'x"\n[users]'], "--hostname"),
        (["--role", "signer"], "needs --next-hop"),
        (["--role", "signer", "--next-hop", "nowhere"], "--next-hop"),
    ],
)
def test_wrong_usage_leaves_nothing(tmp_path: pathlib.Path, options: list[str], said: str) -> None:
    done = init(tmp_path / "x", *options)
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "x").exists()


def test_a_failure_leaves_nothing(tmp_path: pathlib.Path) -> None:
    done = init(tmp_path / "x", "--ca", str(tmp_path))
    assert done.returncode == 1
    assert "no authority in" in done.stderr
    assert not (tmp_path / "x").exists()


def test_taken_ports_are_replaced() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = usable_ports([port, 0])
        assert found[0] != port
        assert usable_ports([found[0]]) == [found[0]]


@pytest.mark.skipif(os.getuid() != 0, reason="only root has users to give")
def test_no_separate_users_where_they_could_not_come(tmp_path: pathlib.Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o700)
    found = separate_users(tmp_path / "closed/inside/deep")
    assert isinstance(found, str)
    assert "chmod o+x" in found


@pytest.mark.parametrize("role", ["all", "submission", "signer", "relay"])
@pytest.mark.parametrize("users", [{"queue": 1, "worker": 2, "signer": 3, "control": 4}, "nobody is root"])
def test_every_template_loads(tmp_path: pathlib.Path, role: str, users: dict[str, int] | str) -> None:
    choices = Choices(
        "mail.example.org", "example.org", role, "h.example:25", *(f"[::1]:{n}" for n in range(1, 5)), users
    )  # type: ignore[misc]
    (tmp_path / "ptt.toml").write_text(render(choices))
    config = load(tmp_path / "ptt.toml")
    assert config.role == role
    assert len(config.listen) == {"all": 3, "submission": 2, "signer": 1, "relay": 1}[role]
    assert (config.users.signer == 3) == isinstance(users, dict)


def test_nothing_is_imported_from_the_directory_that_the_operator_stands_in(tmp_path: pathlib.Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    for name in ("msgspec", "click", "cryptography", "secrets"):
        (here / f"{name}.py").write_text("import pathlib\npathlib.Path('owned').touch()\nraise SystemExit(9)\n")
    for words in (
        ["init", str(tmp_path / "service"), "--domain", "example.org", "--hostname", "mail.example.org"],
        ["dkim", "keygen", "--domain", "example.org", "--config", str(tmp_path / "service" / "ptt.toml")],
    ):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "ptt", *words],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert not (here / "owned").exists()
