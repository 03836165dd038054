"""The real service as ``ptt init`` makes it: users, sockets, kill -9 of each process, metrics, health, check."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ptt.config import Config, load
from ptt.service.privileges import CALLS, KINDS, account_of

pytestmark = pytest.mark.slow

Samples = dict[tuple[str, Any], float]


def ptt(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ptt", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


class Service:
    """``ptt-worker`` on a fresh configuration, in a directory that other users can enter."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self.file = directory / "ptt.toml"
        done = ptt("init", str(directory), "--domain", "example.org", "--hostname", "mail.example.org", "--free-ports")
        assert done.returncode == 0, done.stderr
        text = self.file.read_text()
        silent = text.replace('# resolvers = ["127.0.0.1:53"]', 'resolvers = ["127.0.0.1:9"]\ntimeout_seconds = 0.3')
        assert silent != text
        self.file.write_text(silent)
        self.config: Config = load(self.file)
        self.log = (directory / "log").open("w")
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "ptt.service.supervisor", "--config", str(self.file), "--pool", "2"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ptt: ready\n", (self.directory / "log").read_text()

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def state(self) -> dict[str, dict[str, Any]]:
        found = json.loads((self.directory / "run/supervisor.json").read_text())
        return {process["name"]: process for process in found["processes"]}

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://{self.config.admin.listen}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as e:
            with e:
                return e.code, e.read().decode()

    def scrape(self) -> Samples:
        """The counters; a scrape that meets the death of the control process is tried again."""
        deadline = time.monotonic() + 10
        while True:
            try:
                status, text = self.get("/metrics")
                break
            except OSError:
                assert time.monotonic() < deadline
        assert status == 200
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            if family.type in ("counter", "histogram")
            for sample in family.samples
        }

    def up(self) -> bool:
        return all(process["ready"] for process in self.state().values())


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    directory = pathlib.Path(tempfile.mkdtemp(prefix="ptt-test-"))
    directory.chmod(0o755)
    one = Service(directory / "service")
    try:
        one.start()
        yield one
        assert one.stop() == 0
    finally:
        one.log.close()
        if one.process is not None and one.process.poll() is None:
            one.process.kill()
        shutil.rmtree(directory)


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def test_all_is_well(service: Service) -> None:
    status, text = service.get("/healthz")
    health = json.loads(text)
    assert status == 200
    assert set(health["processes"].values()) == {"up"}
    assert all("DKIM key" in reason for reason in health["reasons"])  # no DNS here
    assert service.get("/")[0] == 404


def test_counters_never_go_down(service: Service) -> None:
    """Each kind of process is killed, control too; what a scrape showed is never less in a later one."""
    seen = service.scrape()
    for name in ("worker.0", "signer.0", "queue", "control", "worker.1", "control"):
        old = service.state()[name]
        os.kill(old["pid"], signal.SIGKILL)
        until(lambda name=name, old=old: service.state()[name]["pid"] not in (0, old["pid"]) and service.up())  # type: ignore[misc]
        now = service.scrape()
        assert {key: (value, now.get(key)) for key, value in seen.items() if now.get(key, -1.0) < value} == {}
        seen = now
    restarts = {dict(labels)["process"]: value for (name, labels), value in seen.items() if "restarts" in name}
    assert {name: restarts[name] for name in ("worker.0", "signer.0", "queue")} == dict.fromkeys(
        ("worker.0", "signer.0", "queue"), 1
    )
    assert restarts["control"] == 2
    assert service.get("/healthz")[0] == 200


def test_a_stuck_queue_process_is_replaced(service: Service) -> None:
    old = service.state()["queue"]["pid"]
    os.kill(old, signal.SIGSTOP)
    until(lambda: service.state()["queue"]["pid"] not in (0, old) and service.up())
    assert '"queue process is stuck"' in (service.directory / "log").read_text()


def test_health_says_what_is_down(service: Service) -> None:
    pid = service.state()["worker.0"]["pid"]
    os.kill(pid, signal.SIGSTOP)  # it is there, so it is up; a dead one is not
    try:
        assert json.loads(service.get("/healthz")[1])["processes"]["worker.0"] == "up"
    finally:
        os.kill(pid, signal.SIGKILL)
    until(lambda: service.state()["worker.0"]["pid"] != pid)
    until(service.up)


def test_check_knows_that_it_runs(service: Service) -> None:
    done = ptt("check", "--json", "--config", str(service.file))
    found = {(f["level"], f["what"]): f["text"] for f in map(json.loads, done.stdout.splitlines())}
    assert "running as process" in found["ok", "service"]
    assert ("ok", "git database") in found
    assert ("ok", "internal CA") in found
    assert done.returncode == 1  # the resolver does not answer
    assert ("fail", "resolver") in found


def test_reload_reaches_the_processes(service: Service) -> None:
    assert service.process is not None
    service.process.send_signal(signal.SIGHUP)
    until(lambda: "certificates reloaded" in (service.directory / "log").read_text())


# -- as root: every kind of process has its own user -----------------------------------------------------------------


needs_root = pytest.mark.skipif(os.getuid() != 0, reason="separate users need root")


@contextlib.contextmanager
def user(config: Config, kind: Any) -> Iterator[None]:
    """Act as the user of a kind of process, with its groups."""
    account = account_of(kind, config)
    groups = os.getgroups()
    gids = sorted({account_of(other, config).gid for other in CALLS[kind]})
    os.setgroups(gids)
    os.setegid(account.gid)
    os.seteuid(account.uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@pytest.mark.root
@needs_root
def test_each_process_runs_as_its_own_user(service: Service) -> None:
    config = service.config
    for process in service.state().values():
        status = pathlib.Path(f"/proc/{process['pid']}/status").read_text()
        uids = next(line for line in status.splitlines() if line.startswith("Uid:")).split()[1:]
        assert set(uids) == {str(account_of(process["kind"], config).uid)}
        assert "NoNewPrivs:\t1" in status
    assert len({account_of(kind, config).uid for kind in KINDS} | {0}) == 5


@pytest.mark.root
@needs_root
def test_nobody_else_opens_a_private_key(service: Service) -> None:
    config = service.config
    (key,) = pathlib.Path(config.signer.keys).glob("*/*.pem")
    with user(config, "signer"):
        assert key.read_bytes().startswith(b"-----BEGIN PRIVATE KEY")
    for kind in ("queue", "worker", "control"):
        with user(config, kind), pytest.raises(PermissionError):
            key.read_bytes()
    for process in service.state().values():  # nor does the memory of the key process tell
        if process["kind"] == "signer":
            with user(config, "worker"), pytest.raises(PermissionError):
                os.listdir(f"/proc/{process['pid']}/fd")


@pytest.mark.root
@needs_root
def test_who_reads_what(service: Service) -> None:
    """Files of one process that others could misuse are closed to them; those they need are open."""
    config = service.config
    allowed = {
        config.tls.internal_key: {"worker"},
        config.tls.public_key: {"worker"},
        str(service.directory / "tsig.key"): {"control"},
        str(service.directory / "tls/ca.key"): set(),
        os.path.join(config.queue.path, "data.mdb"): {"queue"},
        os.path.join(config.directory.repository, "HEAD"): {"control"},
        os.path.join(config.directory.snapshots, "current"): {"control", "worker"},
        os.path.join(config.run, "dkim.json"): {"control", "worker"},
        os.path.join(config.run, "supervisor.json"): {"queue", "worker", "signer", "control"},
        config.tls.internal_ca: {"queue", "worker", "signer", "control"},
    }
    for path, kinds in allowed.items():
        for kind in KINDS:
            with user(config, kind):
                assert os.access(path, os.R_OK, effective_ids=True) == (kind in kinds), (path, kind)


@pytest.mark.root
@needs_root
def test_who_may_call_whom(service: Service) -> None:
    for called in ("queue", "signer", "control"):
        path = os.path.join(service.config.run, f"{called}.sock")
        for kind in KINDS:
            with user(service.config, kind):
                may = os.access(path, os.W_OK, effective_ids=True)
            assert may == (called in CALLS[kind] or called == kind), (called, kind)
