"""How a child of the supervisor starts: its arguments, its configuration, its user, and the word that it is ready.

    child = child.start("worker")     # parses the arguments, loads the configuration
    ...                               # imports are done by now
    child.enter()                     # own user, limits, death with the supervisor
    listeners = child.listen          # descriptors that the supervisor bound
    ...
    child.ready()                     # "ptt: ready" waits for it

Plain Python; imports no gevent. A child can also be started by hand: only ``--config`` is needed then.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence

import msgspec

from ptt.config import Config, ConfigError, load
from ptt.log import Log
from ptt.service import logfiles, privileges
from ptt.service.privileges import Kind

USAGE = 2  # exit code of a wrong configuration


class Child(msgspec.Struct):
    """What a child was started with."""

    kind: Kind
    name: str  # "worker.0", on each line of its log
    file: str  # the configuration's file
    config: Config
    log: Log
    listen: list[tuple[int, int]]  # (index in config.listen, descriptor); the index is -1 for a Unix socket or admin
    uids: frozenset[int]  # users whose connections it accepts on a Unix socket
    clients: int  # workers that will connect; 0: unknown
    started: int  # ms since the epoch; with name and pid, which process it is
    parent: int = 0
    ready_fd: int = -1
    files_fd: int = -1  # a socket over which the supervisor sends log files
    census: tuple[int, int] = (-1, -1)  # of a worker: its number, and the memory that the workers count in

    def enter(self) -> None:
        """Change to the process's own user, set its limits. Raises UserError, PermissionError."""
        privileges.enter(self.kind, self.config, self.parent)
        if self.files_fd >= 0:
            low = os.dup(self.files_fd)  # the supervisor's number may be high, which select(2) and limits do not like
            os.close(self.files_fd)
            self.files_fd = low
            signal.signal(signal.SIGHUP, lambda *_: self.reopen())

    def reopen(self) -> None:
        """Take the log files that the supervisor has opened again. Called at SIGHUP: by ``enter``'s handler, or by that
        of a process with a loop of its own.
        """
        if self.files_fd >= 0:
            with socket.socket(fileno=os.dup(self.files_fd)) as sock:
                logfiles.receive(sock)

    def ready(self) -> None:
        """Tell the supervisor, once, that this process does its work now."""
        if self.ready_fd >= 0:
            with contextlib.suppress(OSError):  # a supervisor that is gone ends us by signal
                os.write(self.ready_fd, b"1")
            os.close(self.ready_fd)
            self.ready_fd = -1

    def sockets(self) -> list[int]:
        """The descriptors alone."""
        return [fd for _, fd in self.listen]


def listen_fd(text: str) -> tuple[int, int]:
    """``"FD"`` or ``"INDEX:FD"`` -> (index or -1, descriptor). Raises ValueError."""
    index, _, fd = text.rpartition(":")
    return int(index or -1), int(fd)


def user_ids(text: str) -> frozenset[int]:
    """``"0,61801"`` -> the ids. Raises ValueError."""
    return frozenset(int(x) for x in text.split(",") if x)


def parser(kind: Kind) -> argparse.ArgumentParser:
    """The arguments that every child takes; a child may add its own before ``start``."""
    found = argparse.ArgumentParser(prog=f"ptt {kind}")
    found.add_argument("--config", required=True)
    found.add_argument("--role", default=None)
    found.add_argument("--pool", type=int, default=None)
    found.add_argument("--name", default=kind)
    found.add_argument("--listen-fd", type=listen_fd, action="append", default=[])
    found.add_argument("--ready-fd", type=int, default=-1)
    found.add_argument("--files-fd", type=int, default=-1)
    found.add_argument("--census", type=listen_fd, default=(-1, -1))
    found.add_argument("--uids", type=user_ids, default=frozenset({0, os.getuid()}))
    found.add_argument("--clients", type=int, default=0)
    found.add_argument("--parent", type=int, default=0)
    return found


def start(kind: Kind, argv: Sequence[str] | None = None) -> Child:
    """Parse the arguments and load the configuration, whose mistakes end the process with code 2."""
    return from_arguments(kind, parser(kind).parse_args(argv))


def from_arguments(kind: Kind, found: argparse.Namespace) -> Child:
    """The child that parsed arguments describe (see ``parser``)."""
    try:
        config = load(found.config, role=found.role, pool=found.pool)
    except ConfigError as e:
        sys.stderr.write(f"{e}\n")
        raise SystemExit(USAGE) from e
    return Child(
        kind,
        found.name,
        os.path.abspath(found.config),
        config,
        Log(found.name, config.log.level, deliveries=bool(config.log.deliveries) and found.files_fd >= 0),
        found.listen_fd,
        found.uids,
        found.clients,
        int(time.time() * 1000),
        found.parent,
        found.ready_fd,
        found.files_fd,
        found.census,
    )
