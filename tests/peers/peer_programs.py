"""Real programs in tests: found or reported as missing, started, waited for, ended by their process id."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator

import pytest

PATH = os.environ.get("PATH", "") + os.pathsep + "/usr/sbin" + os.pathsep + "/sbin"
START_SECONDS = 20.0
STOP_SECONDS = 10.0


def need(program: str) -> str:
    """The path of ``program``. Where it is missing the test is skipped, or fails as root when CI=true."""
    found = shutil.which(program, path=PATH)
    if found is None:
        missing(f"{program} is not installed (as root: sh tests/install-peers.sh)")
    return str(found)


def missing(reason: str) -> None:
    """Skip; or fail as root with CI=true, where every peer must be present."""
    if os.environ.get("CI") == "true" and os.geteuid() == 0:
        pytest.fail(reason)
    pytest.skip(reason)


def wait_until(condition: Callable[[], object], what: str, seconds: float = START_SECONDS) -> None:
    """Poll ``condition`` until it is true; raises AssertionError after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds} s")
        time.sleep(0.01)


class Program:
    """A program in the foreground, with its output in a file. ``ready`` is polled after each start."""

    def __init__(self, command: list[str], log: pathlib.Path, ready: Callable[[], object]) -> None:
        self._command = command
        self._ready = ready
        self._child: subprocess.Popen[bytes] | None = None
        self.log = log

    @property
    def pid(self) -> int:
        assert self._child is not None
        return self._child.pid

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            wait_until(self._is_ready, f"start of {self._command[0]}")
        except AssertionError as e:
            self.stop()
            raise AssertionError(f"{e}\n{self.log.read_text(errors='replace')[-2000:]}") from e

    def _is_ready(self) -> object:
        assert self._child is not None
        if self._child.poll() is not None:
            raise AssertionError(f"{self._command[0]} ended with {self._child.returncode}")
        return self._ready()

    def stop(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.terminate()
        try:
            child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@pytest.fixture(scope="session")
def program() -> Callable[[str], str]:
    """A function: the path of a program, or the test is skipped (with CI=true: fails)."""
    return need


@pytest.fixture(scope="session")
def absent() -> Callable[[str], None]:
    """A function (reason): skips the test (with CI=true: fails it) for a peer that is no program on the path."""
    return missing


@pytest.fixture(scope="session")
def peer_dir() -> Iterator[Callable[[str], pathlib.Path]]:
    """A function: a new directory that other users may enter (pytest closes its own to them at each start)."""
    made: list[pathlib.Path] = []

    def make(name: str) -> pathlib.Path:
        path = pathlib.Path(tempfile.mkdtemp(prefix=f"ptt-peer-{name}-"))
        path.chmod(0o755)
        made.append(path)
        return path

    yield make
    for path in made:
        shutil.rmtree(path, ignore_errors=True)
