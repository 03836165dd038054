"""What systemd is told (sd_notify(3)): ready, reloading, stopping, alive. Nothing is said where nobody asks for it."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping


class Notify:
    """``NOTIFY_SOCKET`` names the socket; ``WATCHDOG_USEC`` is the time within which ``alive`` must be said."""

    def __init__(self, env: Mapping[str, str] = os.environ) -> None:
        self._address = env.get("NOTIFY_SOCKET", "")
        usec = env.get("WATCHDOG_USEC", "")
        for_us = env.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._interval = int(usec) / 2e6 if usec.isdigit() and for_us else 0.0
        self._last = 0.0

    def ready(self) -> None:
        self._say("READY=1\nSTATUS=all processes are ready")

    def reloading(self) -> None:
        self._say(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self._say("STOPPING=1\nSTATUS=draining")

    def alive(self) -> None:
        """Called several times a second; says so as often as systemd wants to hear it."""
        now = time.monotonic()
        if self._interval and now - self._last >= self._interval:
            self._last = now
            self._say("WATCHDOG=1")

    def _say(self, text: str) -> None:
        if not self._address.startswith(("/", "@")):
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(text.encode(), address)
