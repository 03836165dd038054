"""What every test may use: free ports, short paths, a random seed that is printed, real peers; and loopback only."""

from __future__ import annotations

import datetime
import ipaddress
import os
import pathlib
import random
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import gevent.socket
import pytest

from ptt.service.certificates import issue, make_ca

sys.path.insert(0, str(pathlib.Path(__file__).parent / "peers"))
pytest_plugins = ["peer_programs", "peer_dns", "peer_postfix", "peer_exim", "peer_verifiers"]

SEED = int(os.environ.get("PTT_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 2**31)
os.environ["PTT_TEST_SEED"] = str(SEED)  # the processes among which the tests are divided inherit it


def pytest_report_header() -> str:
    return f"random seed: {SEED} (PTT_TEST_SEED={SEED} repeats it)"


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers that depend only on the printed seed and the test's name."""
    return random.Random(f"{SEED} {request.node.nodeid}")


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """A function: each call returns another port of 127.0.0.1 that is free over TCP and UDP."""
    given: set[int] = set()

    def take() -> int:
        for _ in range(1000):
            with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
                tcp.bind(("127.0.0.1", 0))
                port = tcp.getsockname()[1]
                try:
                    udp.bind(("127.0.0.1", port))
                except OSError:
                    continue
            if port not in given:
                given.add(port)
                return port
        raise RuntimeError("no free port")

    return take


@pytest.fixture
def tmp() -> Iterator[pathlib.Path]:
    """A directory with a short path, so that Unix sockets fit into it (108 bytes)."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="ptt"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def _is_local(address: Any) -> bool:
    if not isinstance(address, tuple):
        return True  # a Unix socket's path
    host = str(address[0])
    if host in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


@pytest.fixture(scope="session", autouse=True)
def loopback_only() -> Iterator[None]:
    """A connection or datagram to anything but this host fails the test."""
    patch = pytest.MonkeyPatch()

    def guarded(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: socket.socket, *arguments: Any) -> Any:
            if not _is_local(arguments[-1]):
                pytest.fail(f"the test tried to reach {arguments[-1]}, which is not this host")
            return method(self, *arguments)

        return call

    for kind in (socket.socket, gevent.socket.socket):
        for name in ("connect", "connect_ex", "sendto"):
            patch.setattr(kind, name, guarded(getattr(kind, name)))
    yield
    patch.undo()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    """PEM files: "ca", "relay" and "submission" (internal), "mx" (no role), "stranger" (of another CA); "NAME.key"."""
    directory = tmp_path_factory.mktemp("certificates")
    now = datetime.datetime.now(datetime.UTC)
    ca, other = make_ca("Test CA", now), make_ca("Other CA", now)
    files = {"ca": directory / "ca.pem"}
    files["ca"].write_bytes(ca.certificate_pem())
    for name, authority, roles in (
        ("relay", ca, ["relay"]),
        ("submission", ca, ["submission"]),
        ("mx", ca, []),
        ("stranger", other, ["relay"]),
    ):
        pair = issue(authority, ["mx.example.org", "127.0.0.1"], roles, now, 30)
        files[name], files[f"{name}.key"] = directory / f"{name}.pem", directory / f"{name}.key"
        files[name].write_bytes(pair.certificate_pem())
        files[f"{name}.key"].write_bytes(pair.key_pem())
    return files
