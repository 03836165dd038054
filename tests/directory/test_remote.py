"""A remote: file:// by libgit2's own transport, https by git's own server, and what a remote may not do."""

import base64
import contextlib
import datetime
import http.server
import ipaddress
import os
import pathlib
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ptt.directory.edit import added, apply
from ptt.directory.records import User
from ptt.directory.remote import REMOTE_REF, Refused, Rewritten, push, shown, synchronise
from ptt.directory.repository import Author, Repository, RepositoryError
from ptt.directory.schema import Place

AUTHOR = Author("t", "t@host.example")


class Remote:
    """A bare repository that the git command made, and a clone's way to change it."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.url = f"file://{path}"
        self.git("init", "-q", "--bare", "--initial-branch=main", str(path))

    def git(self, *arguments: str, data: bytes = b"") -> str:
        where = [] if arguments[0] == "init" else ["-C", str(self.path)]
        environment = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
        for who in ("AUTHOR", "COMMITTER"):
            environment |= {f"GIT_{who}_NAME": "r", f"GIT_{who}_EMAIL": "r@host.example"}
        done = subprocess.run(["git", *where, *arguments], input=data, capture_output=True, env=environment, check=True)
        return done.stdout.decode().strip()

    def commit(self, path: str, data: bytes, parent: str = "main") -> str:
        """A commit on top of ``parent`` ("": none) by git's plumbing."""
        index = str(self.path / "index-of-test")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(index)
        os.environ["GIT_INDEX_FILE"] = index
        try:
            if parent and self.tip():
                self.git("read-tree", parent)
            blob = self.git("hash-object", "-w", "--stdin", data=data)
            self.git("update-index", "--add", "--cacheinfo", f"100644,{blob},{path}")
            tree = self.git("write-tree")
        finally:
            del os.environ["GIT_INDEX_FILE"]
        parents = ["-p", parent] if parent and self.tip() else []
        made = self.git("commit-tree", tree, *parents, "-m", "remote")
        self.git("update-ref", "refs/heads/main", made)
        return made

    def tip(self) -> str:
        return self.git("for-each-ref", "--format=%(objectname)", "refs/heads/main")


@pytest.fixture
def remote(tmp_path: pathlib.Path) -> Remote:
    return Remote(tmp_path / "remote.git")


@pytest.fixture
def repository(tmp_path: pathlib.Path) -> Repository:
    return Repository(str(tmp_path / "local.git"), "main", create=True)


def local_commit(repository: Repository, path: str, data: bytes) -> str:
    parent = repository.tip()
    made = repository.commit({path: data}, "local", AUTHOR, parent)
    repository.move(repository.ref, made, parent)
    return made


# -- synchronise -------------------------------------------------------------------------------------------------


def test_nothing_on_both_sides(repository: Repository, remote: Remote) -> None:
    assert synchronise(repository, remote.url, "") == ""


def test_fetch_forward(repository: Repository, remote: Remote) -> None:
    for n in range(2):
        made = remote.commit(f"domains/d{n}.example.toml", b"")
        assert synchronise(repository, remote.url, "") == "fetched"
        assert repository.tip() == made
    assert synchronise(repository, remote.url, "") == ""
    assert repository.tip(REMOTE_REF) == made


def test_push_what_only_we_have(repository: Repository, remote: Remote) -> None:
    made = local_commit(repository, "domains/a.example.toml", b"")
    assert synchronise(repository, remote.url, "") == "pushed"
    assert remote.tip() == made
    made = local_commit(repository, "domains/b.example.toml", b"")
    assert synchronise(repository, remote.url, "") == "pushed"
    assert remote.tip() == made
    assert remote.git("fsck", "--strict") == ""


def test_rewritten_history_is_refused(repository: Repository, remote: Remote) -> None:
    remote.commit("domains/a.example.toml", b"")
    remote.commit("domains/b.example.toml", b"")
    synchronise(repository, remote.url, "")
    ours = repository.tip()
    remote.commit("domains/evil.example.toml", b"", parent=f"{ours}^")
    with pytest.raises(Rewritten, match=ours):
        synchronise(repository, remote.url, "")
    assert repository.tip() == repository.tip(REMOTE_REF) == ours


def test_both_sides_changed(repository: Repository, remote: Remote) -> None:
    remote.commit("domains/a.example.toml", b"")
    synchronise(repository, remote.url, "")
    theirs = remote.commit("domains/b.example.toml", b"")
    ours = local_commit(repository, "domains/c.example.toml", b"")
    with pytest.raises(Rewritten):
        synchronise(repository, remote.url, "")
    assert (repository.tip(), remote.tip()) == (ours, theirs)


def test_a_remote_that_went_back_is_pushed_forward(repository: Repository, remote: Remote) -> None:
    """It has nothing that we do not have: our branch contains it."""
    first = remote.commit("domains/a.example.toml", b"")
    second = remote.commit("domains/b.example.toml", b"")
    synchronise(repository, remote.url, "")
    remote.git("update-ref", "refs/heads/main", first)
    assert synchronise(repository, remote.url, "") == "pushed"
    assert remote.tip() == second


def test_a_deleted_branch_is_refused(repository: Repository, remote: Remote) -> None:
    made = remote.commit("domains/a.example.toml", b"")
    synchronise(repository, remote.url, "")
    remote.git("update-ref", "-d", "refs/heads/main")
    for _ in range(2):
        with pytest.raises(Rewritten, match="was deleted"):
            synchronise(repository, remote.url, "")
    assert repository.tip() == made


def test_push_of_what_is_no_fast_forward_is_refused(repository: Repository, remote: Remote) -> None:
    remote.commit("domains/a.example.toml", b"")
    synchronise(repository, remote.url, "")
    theirs = remote.commit("domains/b.example.toml", b"")
    ours = local_commit(repository, "domains/c.example.toml", b"")
    with pytest.raises(Refused):
        push(repository, remote.url, "", ours)
    assert remote.tip() == theirs


@pytest.mark.parametrize("url", ["git://127.0.0.1/x", "http://127.0.0.1/x", "/tmp/x", "ext::sh -c id", "x:y"])
def test_other_kinds_of_remote_are_refused(repository: Repository, url: str) -> None:
    with pytest.raises(RepositoryError, match="must be file://, ssh:// or https://"):
        synchronise(repository, url, "")


def test_a_remote_that_is_not_there(repository: Repository, tmp_path: pathlib.Path) -> None:
    with pytest.raises(RepositoryError, match="fetch from"):
        synchronise(repository, f"file://{tmp_path}/nothing.git", "")


def test_a_remote_that_sends_too_much(repository: Repository, remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptt.directory.remote.MAX_RECEIVED_BYTES", 10_000)
    remote.commit("README", os.urandom(200_000))
    with pytest.raises(RepositoryError, match="more than 10000 bytes"):
        synchronise(repository, remote.url, "")
    assert repository.tip() == ""


def test_secrets_in_a_url_are_not_shown() -> None:
    assert shown("https://user:secret@git.example/x.git") == "https://git.example/x.git"
    assert shown("ssh://git@git.example:22/x.git") == "ssh://git.example:22/x.git"


# -- the service -------------------------------------------------------------------------------------------------


def test_the_service_follows_its_remote(remote: Remote, make_base: Callable[..., Any], until: Any) -> None:
    first = remote.commit("domains/a.example.toml", b"")
    base = make_base(remote=remote.url)
    control = base.control()
    assert control.commit == first
    running = gevent.spawn(control.run)
    second = remote.commit("users/a.example/anna.toml", b"")
    until(lambda: control.commit == second)
    local = base.commit({"users/a.example/bob.toml": ""})
    until(lambda: control.commit == remote.tip() == local)
    bad = remote.commit("users/a.example/x.toml", b"\n\nfoo = 1\n")
    until(base.alarm)
    assert control.commit == local
    assert (event := base.events("directory commit refused")[0])["commit"] == bad
    assert (event["file"], event["line"]) == ("users/a.example/x.toml", 3)
    good = remote.commit("users/a.example/x.toml", b"")
    until(lambda: control.commit == good)
    assert base.alarm() == 0
    control.stop()
    running.get(timeout=5)


def test_the_remote_is_away(remote: Remote, make_base: Callable[..., Any], tmp_path: pathlib.Path) -> None:
    first = remote.commit("domains/a.example.toml", b"")
    away = tmp_path / "away.git"
    shutil.move(remote.path, away)
    base = make_base(remote=remote.url)
    control = base.control()  # starts all the same
    assert control.commit == ""
    assert base.counters.counters["ptt_directory_fetch_errors_total", ()] == 1
    assert base.events("directory fetch failed")
    assert control.status()["remote_problem"]
    assert base.alarm() == 0
    shutil.move(away, remote.path)
    assert control.fetch()
    assert control.commit == first
    assert control.status()["remote_problem"] == ""
    shutil.move(remote.path, away)
    assert not control.fetch()
    again = base.control()
    assert again.commit == first


def test_a_rewritten_remote_is_an_alarm(remote: Remote, make_base: Callable[..., Any]) -> None:
    remote.commit("domains/a.example.toml", b"")
    base = make_base(remote=remote.url)
    control = base.control()
    good = control.commit
    remote.commit("domains/evil.example.toml", b"", parent="")
    remote.git("update-ref", "refs/heads/main", remote.git("commit-tree", f"{remote.tip()}^{{tree}}", "-m", "new root"))
    for _ in range(2):
        assert not control.fetch()
    assert (control.commit, base.alarm()) == (good, 1)
    assert len(base.events("directory remote refused")) == 1
    assert control.refresh()
    assert base.alarm() == 1  # until a person has looked
    remote.git("update-ref", "refs/heads/main", good)
    assert control.fetch()
    assert base.alarm() == 0


# -- the commands ------------------------------------------------------------------------------------------------


def test_a_command_pushes(remote: Remote, make_base: Callable[..., Any]) -> None:
    remote.commit("domains/a.example.toml", b"")
    base = make_base(remote=remote.url)
    place = Place("user", "anna@a.example")
    done = apply(base.config.directory, lambda tree: added(tree, place, User()), "m", AUTHOR)
    assert done.warning == ""
    assert remote.tip() == base.repository.tip() == done.commit


def test_a_command_while_the_remote_is_away(
    remote: Remote, make_base: Callable[..., Any], tmp_path: pathlib.Path
) -> None:
    remote.commit("domains/a.example.toml", b"")
    base = make_base(remote=remote.url)
    control = base.control()
    shutil.move(remote.path, tmp_path / "away.git")
    place = Place("user", "anna@a.example")
    done = apply(base.config.directory, lambda tree: added(tree, place, User()), "m", AUTHOR)
    assert "fetch from" in done.warning
    assert control.refresh()
    assert control.commit == done.commit
    shutil.move(tmp_path / "away.git", remote.path)
    assert control.fetch()
    assert remote.tip() == done.commit


def test_a_command_while_another_host_pushes(
    remote: Remote, make_base: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    remote.commit("domains/a.example.toml", b"")
    base = make_base(remote=remote.url)
    place = Place("user", "anna@a.example")
    tries = []

    def edit(tree: Any) -> dict[str, bytes | None]:
        if not tries:
            remote.commit("domains/b.example.toml", b"")
        tries.append(tree.commit)
        return added(tree, place, User())

    done = apply(base.config.directory, edit, "m", AUTHOR)
    assert len(tries) == 2
    assert remote.tip() == base.repository.tip() == done.commit
    assert remote.git("ls-tree", "-r", "--name-only", "main").split() == [
        "domains/a.example.toml",
        "domains/b.example.toml",
        "users/a.example/anna.toml",
    ]


# -- https -------------------------------------------------------------------------------------------------------


def certificate(folder: pathlib.Path, subject: str) -> pathlib.Path:
    """A self-signed certificate for 127.0.0.1, with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    now = datetime.datetime.now(datetime.UTC)
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(alternative, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    file = folder / "server.pem"
    file.write_bytes(
        made.public_bytes(pem) + key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return file


class Handler(http.server.BaseHTTPRequestHandler):
    """git's http-backend (CGI) behind a user and a password."""

    protocol_version = "HTTP/1.1"
    root: pathlib.Path

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        body = self._body()
        wanted = "Basic " + base64.b64encode(b"ptt:token").decode()
        if self.headers.get("Authorization") != wanted:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        path, _, query = self.path.partition("?")
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(self.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "http.receivepack",
            "GIT_CONFIG_VALUE_0": "true",
            "REMOTE_USER": "ptt",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
        }
        out = subprocess.run(["git", "http-backend"], input=body, stdout=subprocess.PIPE, env=environment).stdout
        head, _, content = out.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        self.send_response(int(fields.pop("Status", "200").split()[0]))
        for field, value in fields.items():
            self.send_header(field, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body


@contextlib.contextmanager
def serving(root: pathlib.Path, file: pathlib.Path) -> Iterator[str]:
    """The repositories below ``root`` behind https; gives the URL of the remote."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Here", (Handler,), {"root": root}))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that hang up
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_port}/remote.git"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """One for all tests: libgit2 trusts it from the first use to the end of the process."""
    return certificate(tmp_path_factory.mktemp("authority"), "trusted")


@pytest.fixture
def trusted(tmp_path: pathlib.Path, remote: Remote, authority: pathlib.Path) -> Iterator[str]:
    with serving(tmp_path, authority) as url:
        yield url


@pytest.fixture
def credentials(tmp_path: pathlib.Path, authority: pathlib.Path) -> pathlib.Path:
    folder = tmp_path / "git-credentials"
    folder.mkdir()
    (folder / "https").write_text("ptt:token\n")
    (folder / "https").chmod(0o600)
    shutil.copy(authority, folder / "ca.pem")
    return folder


def test_a_certificate_that_is_not_trusted(
    tmp_path: pathlib.Path, remote: Remote, repository: Repository, credentials: pathlib.Path
) -> None:
    remote.commit("domains/a.example.toml", b"")
    with (
        serving(tmp_path, certificate(tmp_path, "somebody else")) as url,
        pytest.raises(RepositoryError, match="certificate"),
    ):
        synchronise(repository, url, str(credentials))
    assert repository.tip() == ""


def test_https_with_credentials(
    trusted: str, repository: Repository, remote: Remote, credentials: pathlib.Path
) -> None:
    made = remote.commit("domains/a.example.toml", b"")
    assert synchronise(repository, trusted, str(credentials)) == "fetched"
    assert repository.tip() == made
    ours = local_commit(repository, "domains/b.example.toml", b"")
    assert synchronise(repository, trusted, str(credentials)) == "pushed"
    assert remote.tip() == ours


@pytest.mark.parametrize(
    ("content", "mode", "reason"),
    [
        ("ptt:wrong", 0o600, "refused our credentials"),
        ("ptt:token", 0o644, "chmod 600"),
        ("token", 0o600, "USER:PASSWORD"),
        (None, 0, "No such file"),
    ],
)
def test_credentials_that_do_not_work(
    trusted: str,
    repository: Repository,
    remote: Remote,
    credentials: pathlib.Path,
    content: str | None,
    mode: int,
    reason: str,
) -> None:
    remote.commit("domains/a.example.toml", b"")
    (credentials / "https").unlink()
    if content is not None:
        (credentials / "https").write_text(content)
        (credentials / "https").chmod(mode)
    with pytest.raises(RepositoryError, match=reason) as caught:
        synchronise(repository, trusted, str(credentials))
    assert "token" not in str(caught.value)
    assert repository.tip() == ""
