"""run/supervisor.json: which processes run and how often they were started. Written by the supervisor, read by all."""

from __future__ import annotations

import contextlib
import os

import msgspec

from ptt.config import Config
from ptt.service.privileges import Kind

MAX_FILE = 1024 * 1024  # a few hundred processes


class ProcessState(msgspec.Struct, frozen=True):
    """One process. ``started``: ms since the epoch; ``pid`` 0: waits to be started again."""

    name: str
    kind: Kind
    pid: int
    started: int
    restarts: int
    ready: bool


class ServiceState(msgspec.Struct, frozen=True):
    """The service. ``pid`` and ``started`` are the supervisor's."""

    pid: int
    started: int
    version: str
    role: str
    ready: bool
    stopping: bool
    processes: list[ProcessState]


_decode = msgspec.json.Decoder(ServiceState).decode


def path(config: Config) -> str:
    return os.path.join(config.run, "supervisor.json")


def read(config: Config) -> ServiceState | None:
    """What the supervisor last wrote, or None. It does not tell whether that supervisor still lives."""
    try:
        with open(path(config), "rb") as file:
            return _decode(file.read(MAX_FILE))
    except (OSError, msgspec.MsgspecError):
        return None


def write(config: Config, state: ServiceState) -> None:
    """Replace the file in one step. Raises OSError."""
    final = path(config)
    temporary = f"{final}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    # Control's group may make files in run/: a link that waits there under our name must not lead root elsewhere.
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with open(fd, "wb") as file:
        os.fchmod(fd, 0o644)  # whatever the umask: control reads it, it holds nothing secret
        file.write(msgspec.json.format(msgspec.json.encode(state), indent=1) + b"\n")
    os.replace(temporary, final)


def remove(config: Config) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path(config))
