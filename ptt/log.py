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

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_encode = msgspec.json.Encoder(enc_hook=str).encode


@functools.lru_cache(maxsize=4)
def _second(now: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))


class Log:
    """A process's log. ``process`` names it on each line ("worker.0"); ``fd`` is where lines go."""

    def __init__(self, process: str, level: str = "info", fd: int = 2) -> None:
        self.process = process
        self.level = _LEVELS[level]
        self.fd = fd

    def event(self, event: str, level: str = "info", **fields: Any) -> None:
        """Write one line. ``id``: the shown id, wherever a message is concerned. Never raises OSError."""
        if _LEVELS[level] < self.level:
            return
        now = time.time()
        line = {
            "time": f"{_second(int(now))}.{int(now % 1 * 1000):03d}Z",
            "level": level,
            "process": self.process,
            "event": event,
            **fields,
        }
        with contextlib.suppress(OSError):  # a log that cannot be written must not stop mail
            os.write(self.fd, _encode(line) + b"\n")

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
