"""Watches the queue process: a request that it does not answer for 5 s means that it is stuck.

Its one thread answers requests in turn, so a question of ours that waits is the same as everybody's requests waiting.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

STUCK_SECONDS = 5.0  # DESIGN 4: no commit for so long with requests waiting
ASK_SECONDS = 1.0


class Watchdog:
    """A thread that asks the queue process a question each second.

    ``pid`` tells the process that should answer, 0 while there is none. ``ask`` asks, and returns whether there was
    an answer in ``STUCK_SECONDS``. ``stuck`` is told the process that did not answer, if it is still the same.
    """

    def __init__(
        self,
        pid: Callable[[], int],
        ask: Callable[[], bool],
        stuck: Callable[[int], None],
        interval: float = ASK_SECONDS,
    ) -> None:
        self._pid = pid
        self._ask = ask
        self._stuck = stuck
        self._interval = interval
        self._ended = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """End it; it may be in the middle of a question, which nobody waits for."""
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(self._interval):
            asked = self._pid()
            if asked and not self._ask() and self._pid() == asked and not self._ended.is_set():
                self._stuck(asked)
