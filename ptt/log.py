"""The log: one JSON line for each event, with the message's id on every line that concerns it.

Called by every process; writes with one ``write`` a line, so lines of several processes never mix.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
import traceback
from typing import Any

import msgspec

DELIVERIES_FD = 1000  # above what the supervisor opens, below the usual limit of 1024

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_encode = msgspec.json.Encoder(enc_hook=str).encode


@functools.lru_cache(maxsize=4)
def _second(now: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))


class Log:
    """A process's log. ``process`` names it on each line ("worker.0"); ``fd`` is where lines go."""

    def __init__(self, process: str, level: str = "info", fd: int = 2, *, deliveries: bool = False) -> None:
        """``deliveries``: is the delivery log open, under ``DELIVERIES_FD``?"""
        self.process = process
        self.deliveries = deliveries
        self.level = _LEVELS[level]
        self.fd = fd

    def event(self, event: str, level: str = "info", **fields: Any) -> None:
        """Write one line. ``id``: the shown id, wherever a message is concerned. Never raises OSError."""
        if _LEVELS[level] >= self.level:
            self._write(self.fd, {"level": level, "process": self.process, "event": event, **fields})

    def delivery(self, event: str, **fields: Any) -> None:
        """Write one line to the delivery log, if there is one. Never raises OSError."""
        if self.deliveries:
            self._write(DELIVERIES_FD, {"event": event, **fields})

    def _write(self, fd: int, line: dict[str, Any]) -> None:
        now = time.time()
        with contextlib.suppress(OSError):  # a log that cannot be written must not stop mail
            os.write(fd, _encode({"time": f"{_second(int(now))}.{int(now % 1 * 1000):03d}Z", **line}) + b"\n")

    def error(self, event: str, **fields: Any) -> None:
        self.event(event, "error", **fields)

    def warning(self, event: str, **fields: Any) -> None:
        self.event(event, "warning", **fields)

    def debug(self, event: str, **fields: Any) -> None:
        self.event(event, "debug", **fields)

    def exception(self, event: str, error: BaseException, **fields: Any) -> None:
        """An unexpected exception of our own, with its traceback."""
        trace = "".join(traceback.format_exception(error))
        self.event(event, "error", error=type(error).__name__, traceback=trace, **fields)
