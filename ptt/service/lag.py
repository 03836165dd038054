"""How long a process's event loop lets others wait: a greenlet that sleeps and looks how late it wakes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import gevent

from ptt.metrics import Counters

TICK_SECONDS = 0.1
KEPT = 150  # ticks, 15 s: a scrape that comes each 15 s misses no stall


class Lag:
    """``run`` never returns; it keeps the gauge ``ptt_loop_lag_seconds`` of the process ``name``."""

    def __init__(
        self,
        counters: Counters,
        name: str,
        sleep: Callable[[float], None] = gevent.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._counters = counters
        self._name = name
        self._sleep = sleep
        self._clock = clock
        self._late: deque[float] = deque(maxlen=KEPT)

    def run(self) -> None:
        while True:
            self.tick()

    def tick(self) -> None:
        """One sleep, and how late it ended."""
        began = self._clock()
        self._sleep(TICK_SECONDS)
        self._late.append(max(0.0, self._clock() - began - TICK_SECONDS))
        self._counters.gauge("ptt_loop_lag_seconds", self._name, value=max(self._late))
