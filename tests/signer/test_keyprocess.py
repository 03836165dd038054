"""The key process as a process: what it serves, what the kernel refuses it, how it ends."""

import contextlib
import os
import pathlib
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import gevent
import gevent.pool
import pytest

from ptt.dkim.rules import DEFAULT
from ptt.message import Envelope
from ptt.net.frames import MAX_FRAME, frame
from ptt.signer import stage
from ptt.signer.state import PublicKey, public_keys

MESSAGE = b"From: a@example.org\r\n\r\nbody\r\n"
Until = Callable[[Callable[[], object]], None]

pytestmark = pytest.mark.slow


def request(key: PublicKey) -> list[Any]:
    return ["id1", key.domain, key.selector, stage.prepare([(key, DEFAULT)], MESSAGE, 1)[0].data]


def processor_status(pid: int, name: str) -> str:
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line for line in lines if line.startswith(f"{name}:")).split()[1]


def test_signs_and_stops(service: Any) -> None:
    key = service.key()
    child = service.start()
    with service.connect() as connection:
        ((signature, error),) = connection.call("sign", [request(key)])
        assert error is None
        assert len(signature) == 64
        assert service.kill(child, signal.SIGTERM) == 0
        with pytest.raises(ConnectionError):
            connection.call("who")
    assert '"event":"stopped"' in service.log.read_text()


def test_what_had_arrived_is_answered_before_the_end(service: Any) -> None:
    """The process is stopped while a request waits; then it gets SIGTERM and goes on: the answer comes first."""
    key = service.key()
    child = service.start()
    with service.connect() as connection:
        connection.call("who")
        child.send_signal(signal.SIGSTOP)
        connection.sock.sendall(frame([1, "sign", [request(key)]]))
        child.send_signal(signal.SIGTERM)
        child.send_signal(signal.SIGCONT)
        assert b"\x01\xc0" in connection.sock.recv(65536)  # [1, nil, ...
        assert child.wait(20) == 0


def test_knows_no_gevent() -> None:
    code = "import sys, ptt.signer.keyprocess; assert 'gevent' not in sys.modules, 'gevent'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_has_no_network_and_no_dumps(service: Any) -> None:
    """Look from outside: the filter is on, no descriptor is a network socket, no core file."""
    service.key()
    child = service.start()
    with service.connect() as connection:
        connection.call("who")
        assert processor_status(child.pid, "Seccomp") == "2"
        assert processor_status(child.pid, "NoNewPrivs") == "1"
        limits = pathlib.Path(f"/proc/{child.pid}/limits").read_text()
        core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
        assert core.split()[4:6] == ["0", "0"]
        if os.geteuid() == 0:  # a process that may not be looked into shows its descriptors to root alone
            links = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{child.pid}/fd")]
            inodes = {link[8:-1] for link in links if link.startswith("socket:")}
            assert inodes
            unix = pathlib.Path(f"/proc/{child.pid}/net/unix").read_text()
            assert all(inode in unix for inode in inodes)


def test_the_filter_refuses_sockets() -> None:
    code = """
import socket
from ptt.signer.isolation import refuse_networks
assert refuse_networks() == "", refuse_networks()
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_PACKET):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
        try:
            socket.socket(family, kind)
        except PermissionError:
            continue
        raise SystemExit(f"{family} {kind} was made")
socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
socket.socketpair()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_only_peers_of_known_users(service: Any) -> None:
    service.start("--uids", str(os.getuid() + 1))
    with service.connect() as connection, pytest.raises((ConnectionError, OSError)):
        connection.call("who")


def test_garbage_ends_its_own_connection_only(service: Any) -> None:
    service.start()
    with service.connect() as good:
        for garbage in (b"\xff" * 100, struct.pack("!I", MAX_FRAME + 1), frame("text"), frame([1, 2]), b"\0\0\0\1\xc1"):
            with service.connect() as bad:
                bad.sock.sendall(garbage)
                assert bad.sock.recv(10) == b""
        with service.connect() as slow:
            slow.sock.sendall(frame([7, "who", None])[:3])
            assert good.call("who")[0] == "signer"
            slow.sock.sendall(frame([7, "who", None])[3:])
            assert slow.sock.recv(1000)


def test_a_peer_that_does_not_read_stops_nobody(service: Any) -> None:
    """Its answers fill the socket; then nothing more is read from it, and others are served."""
    service.key()
    child = service.start()
    with service.connect() as deaf, service.connect() as good:
        deaf.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.sock.settimeout(0.2)
        with contextlib.suppress(TimeoutError):
            while True:
                deaf.sock.sendall(frame([7, "public", ""]) * 1000)
        assert good.call("who")[0] == "signer"
        memory = pathlib.Path(f"/proc/{child.pid}/statm").read_text().split()[1]
        assert int(memory) * os.sysconf("SC_PAGE_SIZE") < 200 * 1024 * 1024
        assert b"example.org" in deaf.sock.recv(65536)  # its answers are still there


def test_connections_spread_over_the_processes(service: Any) -> None:
    """A process that has connections leaves the next one to the other: no worker has both on one."""
    children = [service.start(), service.start()]
    for _ in range(5):
        with service.connect() as first:
            pids = {first.call("who")[1]}
            with service.connect() as second:
                pids.add(second.call("who")[1])
        assert pids == {child.pid for child in children}


def test_kill_under_load(service: Any, until: Until) -> None:
    """Key processes are killed and started again while messages are signed: each message gets its signature."""
    service.key()
    service.publish()
    service.start()
    service.start()
    signing = stage.build(service.config)
    envelope = Envelope("a@example.org", 0, "example.org")
    found: list[str] = []

    def one(number: int) -> None:
        while not isinstance(result := signing.sign(envelope, f"id{number}", MESSAGE), stage.Signed):
            assert result.reason in ("key process unavailable", "key not in DNS")
            found.append(result.reason)
            gevent.sleep(0.01)
        found.append("signed")

    pool = gevent.pool.Pool(20)
    load = gevent.spawn(lambda: list(pool.imap_unordered(one, range(4000))))
    for _ in range(4):
        before = len(found)
        while len(found) < before + 200:
            gevent.sleep(0.001)
        service.kill(service.children[0])
        service.start()
    load.get(timeout=30)
    assert found.count("signed") == 4000


def test_all_key_processes_down(service: Any) -> None:
    """The mail waits, with the reason; it is signed once one is back."""
    service.key()
    service.publish()
    child = service.start()
    signing = stage.build(service.config)
    envelope = Envelope("a@example.org", 0, "example.org")
    gevent.sleep(0.06)  # a state file younger than this is read again each time
    assert isinstance(signing.sign(envelope, "id1", MESSAGE), stage.Signed)
    service.kill(child)
    service.listener.close()
    waits = signing.sign(envelope, "id2", MESSAGE)
    assert isinstance(waits, stage.Wait)
    assert waits.reason == "key process unavailable"
    os.unlink(service.path)
    service.listener = socket.socket(socket.AF_UNIX)
    service.listener.bind(service.path)
    service.listener.listen(64)
    service.start()
    assert isinstance(signing.sign(envelope, "id3", MESSAGE), stage.Signed)


def test_generate(service: Any) -> None:
    run = subprocess.run(service.command("--generate", "example.org", "s1"), capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    (key,) = public_keys(service.config.signer.public, "example.org")
    assert run.stdout == key.record + "\n"
    for arguments, code, text in (
        (("example.org", "s1"), 1, "exists already"),
        (("../evil", "s1"), 1, "is not a domain"),
        (("example.org", "s2", "--algorithm", "md5"), 2, "invalid choice"),
    ):
        run = subprocess.run(service.command("--generate", *arguments), capture_output=True, text=True)
        assert run.returncode == code
        assert text in run.stderr
        assert run.stdout == ""


def test_wrong_usage(service: Any) -> None:
    run = subprocess.run(service.command(), capture_output=True, text=True)
    assert (run.returncode, "--listen-fd is missing" in run.stderr) == (2, True)
    service.file.write_text("nonsense = 1\n")
    run = subprocess.run(service.command("--listen-fd", "3"), capture_output=True, text=True)
    assert run.returncode == 2
    assert "nonsense" in run.stderr


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs to run as root")
def test_own_user(service: Any) -> None:
    """With a user of its own: it makes and opens the keys, nobody but it and root can read them."""
    signer, other = 61801, 61802
    for path in (service.base, service.base / "run"):
        path.chmod(0o755)
    service.write(f"[users]\nsigner = {signer}\nworker = {other}\nqueue = 61803\ncontrol = 61804")
    subprocess.run(service.command("--generate", "example.org", "s1", "--algorithm", "ed25519"), check=True, stdout=-3)
    pem = pathlib.Path(service.config.signer.keys, "example.org", "s1.pem")
    assert (pem.stat().st_uid, pem.stat().st_mode & 0o777) == (signer, 0o600)
    for user in (other, 65534):
        read = subprocess.run([shutil.which("cat") or "cat", str(pem)], user=user, group=user, capture_output=True)
        assert (read.returncode, b"Permission denied" in read.stderr) == (1, True)
        public = pathlib.Path(service.config.signer.public, "example.org", "s1.pub")
        assert subprocess.run(["cat", str(public)], user=user, group=user, stdout=-3).returncode == 0
    (key,) = public_keys(service.config.signer.public, "example.org")
    child = service.start()
    assert processor_status(child.pid, "Uid") == str(signer)
    assert os.stat(f"/proc/{child.pid}/fd").st_uid == 0  # not dumpable: not even its own user may look inside
    with service.connect() as connection:
        assert connection.call("sign", [request(key)])[0][1] is None
        assert connection.call("keygen", ["example.org", "s2", "ed25519"]).startswith("v=DKIM1")
        assert pem.with_name("s2.pem").stat().st_uid == signer
        os.chown(pem, other, other)
        ((signature, error),) = connection.call("sign", [request(key)])
        assert signature is None
        assert f"belongs to user {other}, must belong to the key process's user {signer}" in error


@pytest.mark.skipif(os.geteuid() != 0, reason="needs two users")
def test_another_user_may_have_mail_signed_but_makes_no_keys(service: Any) -> None:
    """A worker's user, by the credentials that the kernel tells."""
    worker = 60802
    service.base.chmod(0o755)
    pathlib.Path(service.path).chmod(0o666)
    pathlib.Path(service.path).parent.chmod(0o755)
    service.start("--uids", f"0,{worker}")
    os.seteuid(worker)
    try:
        with service.connect() as connection:
            assert connection.call("public", "") == []
            assert connection.call("sign", []) == []
            for method, names in (("keygen", 3), ("ensure", 3), ("remove", 2)):
                with pytest.raises(RuntimeError, match=f"user {worker} may not make or remove keys"):
                    connection.call(method, ["example.org", "s1", "ed25519"][:names])
    finally:
        os.seteuid(0)
    with service.connect() as connection:
        assert connection.call("ensure", ["example.org", "s1", "ed25519"]).startswith("v=DKIM1; k=ed25519")
