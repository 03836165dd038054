"""Renewal of this host's certificates by its own authority: the supervisor starts ``ptt tls renew --due`` each hour.

Only where ``ca.key`` lies beside the authority. The command tells the supervisor to reload (SIGHUP) when it did so.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

from ptt.config import Config
from ptt.log import Log

LOOK_SECONDS = 3600.0
END_SECONDS = 60.0  # then it is killed


class Renewal:
    """``look`` is called several times a minute and never waits."""

    def __init__(self, config: Config, file: str, env: dict[str, str], log: Log) -> None:
        self._key = os.path.join(os.path.dirname(config.tls.internal_ca), "ca.key")
        self._command = [sys.executable, "-P", "-m", "ptt", "tls", "renew", "--due", "--config", file]
        self._env = env
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._at = 0.0  # when it was started, or is next, monotonic

    def look(self, running: bool) -> None:
        """Start the command when it is time and the service is ``running``; notice how it ended."""
        now = time.monotonic()
        if self._process is not None:
            code = self._process.poll()
            if code is None and now - self._at > END_SECONDS:
                self._process.kill()
                code = self._process.wait()
            if code is not None:
                self._process = None
                self._at = now + LOOK_SECONDS
                if code:
                    self._log.error("certificates not renewed", code=code)
        elif running and now >= self._at and os.path.exists(self._key):
            self._at = now
            try:
                self._process = subprocess.Popen(self._command, env=self._env, stdin=subprocess.DEVNULL)
            except OSError as e:
                self._at = now + LOOK_SECONDS
                self._log.error("certificates not renewed", reason=e.strerror or str(e))

    def stop(self) -> None:
        """End a command that still runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
