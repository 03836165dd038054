"""A remote behind a real sshd: keys, and above all host keys."""

import os
import pathlib
import pwd
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator

import pytest

from ptt.directory.remote import synchronise
from ptt.directory.repository import Author, Repository, RepositoryError

pytestmark = [pytest.mark.peer, pytest.mark.slow]


def keygen(file: pathlib.Path, *options: str) -> str:
    """A new key pair; returns the public key."""
    subprocess.run(["ssh-keygen", "-q", "-N", "", "-f", str(file), *options], check=True)
    return " ".join(file.with_name(file.name + ".pub").read_text().split()[:2])


class Ssh:
    """A server for the user of the test, a repository behind it, and credentials that fit."""

    def __init__(self, folder: pathlib.Path, sshd: str) -> None:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.credentials = folder / "git-credentials"
        self.key = self.credentials / ".ssh" / "id"
        self.known_hosts = self.credentials / ".ssh" / "known_hosts"
        self.key.parent.mkdir(parents=True)
        host_key = keygen(folder / "host")
        (folder / "authorized").write_text(keygen(self.key, "-t", "ed25519") + "\n")
        self.know(host_key)
        self.remote = folder / "remote.git"
        subprocess.run(["git", "init", "-q", "--bare", "--initial-branch=main", str(self.remote)], check=True)
        user = pwd.getpwuid(os.getuid()).pw_name
        self.url = f"ssh://{user}@127.0.0.1:{self.port}{self.remote}"
        lines = [f"HostKey {folder}/host", f"AuthorizedKeysFile {folder}/authorized"]
        lines += ["StrictModes no", "UsePAM no", "PidFile none", "PermitRootLogin yes", "PasswordAuthentication no"]
        (folder / "config").write_text("\n".join([f"ListenAddress 127.0.0.1:{self.port}", *lines, ""]))
        self.command = [sshd, "-D", "-e", "-f", str(folder / "config")]

    def know(self, key: str) -> None:
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {key}\n")

    def listens(self) -> bool:
        with socket.socket() as s:
            return s.connect_ex(("127.0.0.1", self.port)) == 0


@pytest.fixture
def ssh(tmp_path: pathlib.Path, program: Callable[[str], str]) -> Iterator[Ssh]:
    from peer_programs import Program, missing

    if pwd.getpwuid(os.getuid()).pw_shell.endswith(("nologin", "false")):
        missing("this user has no shell, so sshd lets it run nothing")
    made = Ssh(tmp_path, program("sshd"))
    if os.getuid() == 0:
        pathlib.Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd separates its privileges
    server = Program(made.command, tmp_path / "sshd.log", made.listens)
    server.start()
    yield made
    server.stop()


@pytest.fixture
def repository(tmp_path: pathlib.Path) -> Repository:
    found = Repository(str(tmp_path / "local.git"), "main", create=True)
    commit = found.commit({"domains/a.example.toml": b""}, "one", Author("t", "t@host.example"), "")
    found.move(found.ref, commit, "")
    return found


def test_push_and_fetch(ssh: Ssh, repository: Repository, tmp_path: pathlib.Path) -> None:
    assert synchronise(repository, ssh.url, str(ssh.credentials)) == "pushed"
    other = Repository(str(tmp_path / "other.git"), "main", create=True)
    assert synchronise(other, ssh.url, str(ssh.credentials)) == "fetched"
    assert other.tip() == repository.tip()


def test_a_host_key_that_is_not_known_is_refused(ssh: Ssh, repository: Repository, tmp_path: pathlib.Path) -> None:
    other_key = keygen(tmp_path / "other")
    for change in (lambda: ssh.know(other_key), lambda: ssh.known_hosts.write_text(""), ssh.known_hosts.unlink):
        change()
        with pytest.raises(RepositoryError, match="hostkey"):
            synchronise(repository, ssh.url, str(ssh.credentials))
    assert not list((ssh.remote / "refs" / "heads").iterdir())


def test_keys_that_do_not_work(ssh: Ssh, repository: Repository, tmp_path: pathlib.Path) -> None:
    ssh.key.chmod(0o644)
    with pytest.raises(RepositoryError, match="chmod 600"):
        synchronise(repository, ssh.url, str(ssh.credentials))
    keygen(tmp_path / "stranger")
    shutil.move(tmp_path / "stranger", ssh.key)
    with pytest.raises(RepositoryError, match="refused our credentials"):
        synchronise(repository, ssh.url, str(ssh.credentials))
    ssh.key.unlink()
    with pytest.raises(RepositoryError, match="No such file"):
        synchronise(repository, ssh.url, str(ssh.credentials))
