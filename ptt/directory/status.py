"""How the control process stands with the git database, in a file: for ``ptt git status``."""

from __future__ import annotations

import os

import msgspec

MAX_BYTES = 65_536


class Status(msgspec.Struct, frozen=True):
    """The content of data/control/directory.json."""

    last_fetch: float = 0.0  # Unix seconds of the last fetch that worked; 0: none yet
    alarm: str = ""  # why the newest commit is not in force, or ""
    fetch_problem: str = ""  # why the last fetch failed, or ""


_DECODER = msgspec.json.Decoder(Status)


def _path(data: str) -> str:
    return os.path.join(data, "control", "directory.json")


def read_status(data: str) -> Status | None:
    """The status that was written last; None if there is none that can be read. ``data``: ``config.data``."""
    try:
        with open(_path(data), "rb") as f:
            return _DECODER.decode(f.read(MAX_BYTES))
    except (OSError, msgspec.MsgspecError):
        return None


def write_status(data: str, status: Status) -> None:
    """Replace the file. Not synced: it is written again at the next start. Raises OSError."""
    path = _path(data)
    with open(f"{path}.new", "wb", opener=lambda p, f: os.open(p, f, 0o600)) as f:
        f.write(msgspec.json.encode(status))
    os.replace(f"{path}.new", path)
