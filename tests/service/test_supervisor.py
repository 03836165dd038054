"""The supervisor with processes that only say that they are ready: start, restart, stop, locks, kill -9."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytestmark = pytest.mark.slow

CONFIG = """\
hostname = "mail.example"
pool = 2
drain_seconds = {drain}
[admin]
listen = "127.0.0.1:0"
"""

# Replaces the processes by ones that say "ready" and end on SIGTERM, or (STUBBORN) do not.
SCRIPT = """
import os, sys
from ptt.config import load
from ptt.service import locks, processes, supervisor
locks.FORMER_RUN_SECONDS = 1.0
CHILD = '''
import os, signal, sys, time
from ptt.service import child
me = child.start(sys.argv.pop(1))
me.enter()
stubborn = me.kind in os.environ.get("PYTHONSTUBBORN", "")
signal.signal(signal.SIGTERM, (lambda *_: None) if stubborn else (lambda *_: sys.exit(0)))
if me.kind in os.environ.get("PYTHONREFUSES", ""):
    sys.exit(2)
me.log.event("here", pid=os.getpid(), fds=me.sockets())
me.ready()
while True:
    signal.pause()
'''
real = processes._spec
def fake(config, file, name, kind, arguments, fds):
    spec = real(config, file, name, kind, arguments, fds)
    return processes.Spec(name, kind, ("-P", "-c", CHILD, kind, *spec.arguments[3:]), spec.fds)
processes._spec = fake
supervisor.queue_question = lambda config: lambda: True
supervisor.main()
"""


class Service:
    """A supervisor in a directory of its own."""

    def __init__(self, directory: pathlib.Path, drain: float = 5.0, **env: str) -> None:
        self.directory = directory
        self.file = directory / "ptt.toml"
        self.file.write_text(CONFIG.format(drain=drain))
        self.env = {**os.environ, **env}
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> subprocess.Popen[str]:
        if self.process is not None:  # killed: its children may hold the other ends for a while
            for pipe in (self.process.stdout, self.process.stderr):
                if pipe is not None:
                    pipe.close()
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, "--config", str(self.file)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.env,
        )
        return self.process

    def ready(self) -> subprocess.Popen[str]:
        process = self.start()
        assert process.stdout is not None
        assert process.stdout.readline() == "ptt: ready\n"
        return process

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.directory / "run/supervisor.json").read_text())
        return found

    def named(self, name: str) -> dict[str, Any]:
        return next(p for p in self.state()["processes"] if p["name"] == name)

    def pids(self) -> list[int]:
        return [p["pid"] for p in self.state()["processes"]]


@pytest.fixture
def service(tmp_path: pathlib.Path) -> Iterator[Callable[..., Service]]:
    made: list[Service] = []

    def make(**options: Any) -> Service:
        made.append(Service(tmp_path, **options))
        return made[-1]

    yield make
    for one in made:
        if one.process is not None:
            with contextlib.suppress(OSError):
                one.process.send_signal(signal.SIGTERM)
                one.process.send_signal(signal.SIGINT)
            one.process.wait(timeout=20)
            for pipe in (one.process.stdout, one.process.stderr):
                if pipe is not None:
                    pipe.close()


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return False


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def test_starts_all_and_stops_in_order(service: Callable[..., Service]) -> None:
    one = service()
    process = one.ready()
    state = one.state()
    assert [p["name"] for p in state["processes"]] == ["queue", "signer.0", "control", "worker.0", "worker.1"]
    pids = one.pids()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert not any(alive(pid) for pid in pids)
    assert not (one.directory / "run/supervisor.json").exists()
    assert not any(event["event"] == "process ended" for event in events(err))


def test_restarts_what_dies_and_counts_it(service: Callable[..., Service]) -> None:
    one = service()
    one.ready()
    for name in ("worker.1", "queue"):
        old = one.named(name)["pid"]
        os.kill(old, signal.SIGKILL)
        until(lambda name=name, old=old: one.named(name)["ready"] and one.named(name)["pid"] not in (0, old))  # type: ignore[misc]
        assert one.named(name)["restarts"] == 1
    assert one.named("worker.0")["restarts"] == 0


def test_what_refuses_its_configuration_ends_the_start(service: Callable[..., Service]) -> None:
    one = service(PYTHONREFUSES="control")
    process = one.start()
    out, err = process.communicate(timeout=20)
    assert process.returncode == 2
    assert "ptt: ready" not in out
    assert any(e["event"] == "process ended" and e["child"] == "control" for e in events(err))


def test_second_start_is_refused(service: Callable[..., Service]) -> None:
    one = service()
    first = one.ready()
    second = subprocess.run(
        [sys.executable, "-m", "ptt.service.supervisor", "--config", str(one.file)], capture_output=True, text=True
    )
    assert second.returncode == 1
    assert f"already running in {one.directory}/run (process {first.pid})" in second.stderr
    assert first.poll() is None


def test_kill_9_of_the_supervisor_ends_all_and_the_next_start_waits_for_it(service: Callable[..., Service]) -> None:
    one = service()
    process = one.ready()
    pids = one.pids()
    process.kill()
    process.wait()
    one.ready()
    assert not any(alive(pid) for pid in pids)
    assert not set(pids) & set(one.pids())


def test_what_does_not_end_is_killed(service: Callable[..., Service]) -> None:
    one = service(drain=0.2, PYTHONSTUBBORN="worker")
    process = one.ready()
    pids = one.pids()
    process.send_signal(signal.SIGTERM)
    until(lambda: one.state()["stopping"])
    process.send_signal(signal.SIGTERM)  # at once
    began = time.monotonic()
    _, err = process.communicate(timeout=20)
    assert time.monotonic() - began < 4
    assert process.returncode == 0
    assert {e["child"] for e in events(err) if e["event"] == "killed"} >= {"worker.0", "worker.1"}
    assert not any(alive(pid) for pid in pids)


def test_a_former_run_that_does_not_end_is_killed(service: Callable[..., Service]) -> None:
    one = service(PYTHONSTUBBORN="signer")
    process = one.ready()
    stubborn = one.named("signer.0")["pid"]
    process.kill()
    process.wait()
    assert alive(stubborn)
    one.env["PYTHONSTUBBORN"] = ""
    one.ready()
    assert not alive(stubborn)


def test_taken_port_is_said(service: Callable[..., Service], tmp_path: pathlib.Path) -> None:
    import socket

    one = service()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with one.file.open("a") as file:
            file.write(f'[[listen]]\naddress = "127.0.0.1:{port}"\nservice = "relay"\n')
        process = one.start()
        out, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert out == ""
    assert f"cannot listen on 127.0.0.1:{port}: another program listens there" in err


def test_mistakes_are_all_said_and_nothing_starts(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "ptt.toml"
    file.write_text('hostnam = "x"\npool = "many"\n')
    done = subprocess.run(
        [sys.executable, "-m", "ptt.service.supervisor", "--config", str(file)], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert {"hostname: is missing", "hostnam: unknown key", "pool: Expected `int`, got `str`"} <= {
        line.removeprefix(f"{file}: ").partition(";")[0] for line in done.stderr.splitlines()
    }
    assert not (tmp_path / "run").exists()
