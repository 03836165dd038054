"""The two locks of run/: one service for each directory, and none beside what a killed supervisor left.

``supervisor.lock`` makes a second start fail at once; ``children.lock`` is inherited by every process, so that it is
free only when the last process of a former run has ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time

from ptt.config import Config
from ptt.service import state

SUPERVISOR_LOCK = "supervisor.lock"
CHILDREN_LOCK = "children.lock"
FORMER_RUN_SECONDS = 5.0  # what a killed supervisor's processes get to end by themselves


class RunningError(Exception):
    """The service runs already, or what is left of it; the text says which process."""


def _lock(config: Config, name: str) -> int | None:
    """An open lock file of run/, locked; None when another process holds it. Raises OSError."""
    fd = os.open(os.path.join(config.run, name), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def held(config: Config) -> bool:
    """Does a service run in this directory?"""
    try:
        fd = os.open(os.path.join(config.run, SUPERVISOR_LOCK), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:  # not ours to look at: somebody else's service, or its remains
        return state.read(config) is not None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def take_locks(config: Config) -> tuple[int, int]:
    """The two locks of run/. Waits for the processes of a supervisor that was killed. Raises RunningError."""
    if (own := _lock(config, SUPERVISOR_LOCK)) is None:
        other = state.read(config)
        raise RunningError(f"already running in {config.run}" + (f" (process {other.pid})" if other else ""))
    deadline = time.monotonic() + FORMER_RUN_SECONDS
    killed = False
    while (children := _lock(config, CHILDREN_LOCK)) is None:
        if time.monotonic() > deadline:
            if killed:
                raise RunningError(f"processes of a former run hold {config.run}/{CHILDREN_LOCK}")
            _kill_former_run(config)
            killed, deadline = True, time.monotonic() + FORMER_RUN_SECONDS
        time.sleep(0.02)
    return own, children


def _kill_former_run(config: Config) -> None:
    former = state.read(config)
    if former is None:
        return
    for process in former.processes:
        with contextlib.suppress(OSError):
            with open(f"/proc/{process.pid}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
            if b"--parent" in words and str(former.pid).encode() in words:
                os.kill(process.pid, signal.SIGKILL)
