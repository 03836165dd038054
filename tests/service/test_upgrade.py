"""Upgrade in place, socket activation, what systemd is told, log files that are opened again: on the whole service."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import signal
import smtplib
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from ptt.cli.sandbox import Sandbox
from ptt.service import handover
from ptt.service.notify import Notify

pytestmark = pytest.mark.slow


def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


class Box(Sandbox):
    """A sandbox with a delivery log and a log file."""

    def adapt(self, document) -> None:  # type: ignore[no-untyped-def]
        super().adapt(document)
        document["log"] = {"file": str(self.directory / "service.log"), "deliveries": str(self.directory / "acct.log")}
        document["drain_seconds"] = 30

    def processes(self) -> dict[str, int]:
        with contextlib.suppress(OSError, ValueError):
            state = json.loads((pathlib.Path(self.config.run) / "supervisor.json").read_text())
            return {p["name"]: p["pid"] for p in state["processes"] if p["ready"]}
        return {}

    def submit(self, subject: str) -> None:
        with self.client() as client:
            client.sendmail(self.user, ["r@dest.example"], f"Subject: {subject}\r\n\r\nhello\r\n")


@pytest.fixture(scope="module")
def box() -> Iterator[Box]:
    directory = pathlib.Path(tempfile.mkdtemp(prefix="ptt-up-"))
    directory.chmod(0o755)
    one = Box(directory / "ptt", pool=2)
    try:
        one.prepare()
        one.start()
        yield one
    finally:
        one.stop()
        shutil.rmtree(directory)


def test_the_delivery_log_has_a_line_for_each_recipient(box: Box) -> None:
    box.submit("accounted")
    account = box.directory / "acct.log"
    until(lambda: '"event":"delivered"' in account.read_text())
    line = json.loads(account.read_text().splitlines()[-1])
    assert (line["event"], line["to"], line["user"]) == ("delivered", "r@dest.example", box.user)
    assert line["reply"].startswith("250")


def test_logs_are_opened_again_at_sighup(box: Box) -> None:
    """As logrotate does it: rename, SIGHUP. Every process writes to the new file, whoever it runs as."""
    names = ("service.log", "acct.log")
    for name in names:
        (box.directory / name).rename(box.directory / f"{name}.1")
    os.kill(box.pid_of("service"), signal.SIGHUP)
    until(lambda: all((box.directory / name).exists() for name in names))
    until(lambda: (box.directory / "service.log").read_text().count("certificates reloaded") == 2)
    box.submit("after")
    until(lambda: '"event":"delivered"' in (box.directory / "acct.log").read_text())
    text = (box.directory / "service.log").read_text()
    until(lambda: '"event":"signatures made"' in (box.directory / "service.log").read_text())  # by the key process
    assert '"event":"accepted"' in text or '"event":"accepted"' in (box.directory / "service.log").read_text()


def test_an_upgrade_refuses_no_connection(box: Box) -> None:
    """A client that connects all the time gets a greeting each time; every process is a new one in the end."""
    supervisor, before = box.pid_of("service"), box.processes()
    host, port = box.address("submission", "starttls")
    greeted, failed, stop = [0], [], threading.Event()

    def connect() -> None:
        while not stop.is_set():
            try:
                with socket.create_connection((host, port), timeout=30) as sock:
                    assert sock.recv(100).startswith(b"220")
                greeted[0] += 1
            except (OSError, AssertionError) as e:
                failed.append(repr(e))

    threads = [threading.Thread(target=connect) for _ in range(2)]
    for thread in threads:
        thread.start()
    context = ssl.create_default_context(cafile=box.config.tls.internal_ca)
    with contextlib.closing(smtplib.SMTP(host, port, timeout=30)) as under_way:
        under_way.starttls(context=context)
        under_way.login(box.user, box.password)
        under_way.mail(box.user)
        under_way.rcpt("r@dest.example")
        os.kill(supervisor, signal.SIGUSR2)
        try:
            until(lambda: len(now := box.processes()) == len(before) and not set(now.values()) & set(before.values()))
            box.submit("after the upgrade")
            # The old worker ends what is under way.
            assert under_way.data("Subject: under way\r\n\r\nhello\r\n")[0] == 250
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert failed == []
    assert greeted[0] > 20
    assert box.ended() is None
    assert box.pid_of("service") == supervisor
    until(lambda: not any(pathlib.Path(f"/proc/{pid}").exists() for pid in before.values()))
    until(lambda: sum(1 for _ in box.delivered()) >= 4)


def test_an_upgrade_that_would_not_start_is_refused(box: Box) -> None:
    before = box.processes()
    text = box.file.read_text()
    box.file.write_text(text + "\n[nonsense]\n")
    try:
        os.kill(box.pid_of("service"), signal.SIGUSR2)
        until(lambda: '"event":"upgrade refused"' in (box.directory / "service.log").read_text())
    finally:
        box.file.write_text(text)
    assert box.processes() == before
    box.submit("goes on")


def test_what_systemd_is_told(tmp: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(tmp / "notify"))
        heard.setblocking(False)
        notify = Notify({"NOTIFY_SOCKET": str(tmp / "notify"), "WATCHDOG_USEC": "10000000"})
        notify.ready()
        notify.reloading()
        notify.alive()
        notify.alive()  # not again before half of the time
        notify.stopping()
        said = [heard.recv(200).decode().split("\n")[0] for _ in range(4)]
        assert said == ["READY=1", "RELOADING=1", "WATCHDOG=1", "STOPPING=1"]
        with pytest.raises(BlockingIOError):
            heard.recv(200)
    Notify({}).ready()  # nobody asks


def test_sockets_of_systemd(box: Box) -> None:
    """As in socket activation: descriptors from 3 on, matched by their addresses."""
    code = """
import os, socket, sys
from ptt.config import load
from ptt.service import handover, layout
sock = socket.socket()
sock.bind(("127.0.0.1", int(sys.argv[2])))
sock.listen()
os.dup2(sock.fileno(), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
given = handover.activated(load(sys.argv[1]))
[(address, [one])] = given.tcp.items()
assert one.fileno() == 3
assert given.take(address) is one and given.take(address) is one  # without SO_REUSEPORT: for every worker
assert given.take("127.0.0.1:1") is None
"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    file = box.directory / "activated.toml"
    host = box.config.listen[0].address
    file.write_text(box.file.read_text().replace(host, f"127.0.0.1:{port}"))
    subprocess.run([sys.executable, "-c", code, str(file), str(port)], check=True)
    assert handover.activated(box.config).tcp == {}  # not for this process
