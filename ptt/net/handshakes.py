"""TLS handshakes of a worker's clients: so many at once, for each is work and memory for somebody unknown.

Who finds no room waits; a handshake that has had ``PATIENCE_SECONDS`` is then broken off for it. So clients that
begin handshakes and never end them cannot keep others out, and one on a slow line has all its time while there is room.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from gevent.lock import BoundedSemaphore

from ptt.net.stream import ReadTimeout, Stream

MAX_HANDSHAKES = 200  # at once: some 10 MiB, and a second of work on one core
PATIENCE_SECONDS = 3.0  # several round trips of the slowest line


class Handshakes:
    """The handshakes under way."""

    def __init__(self, most: int = MAX_HANDSHAKES, clock: Callable[[], float] = time.monotonic) -> None:
        self._room = BoundedSemaphore(most)
        self._clock = clock
        self._running: dict[Stream, float] = {}  # when each began; the oldest first

    @contextlib.contextmanager
    def turn(self, stream: Stream, timeout: float) -> Iterator[None]:
        """Shake hands over ``stream`` inside of this. Raises ReadTimeout when there was no room in ``timeout``."""
        deadline = self._clock() + timeout
        while not self._room.acquire(timeout=self._until_old()):
            self._break_off()
            if self._clock() >= deadline:
                raise ReadTimeout(f"{stream.peer} found no room for its handshake")
        self._running[stream] = self._clock()
        try:
            yield
        finally:
            self._running.pop(stream, None)
            self._room.release()

    def _until_old(self) -> float:
        """Seconds until the oldest one has had its patience."""
        began = next(iter(self._running.values()), None)
        return PATIENCE_SECONDS if began is None else max(0.01, began + PATIENCE_SECONDS - self._clock())

    def _break_off(self) -> None:
        """Close the oldest one, if it is old; its greenlet then makes room."""
        for stream, began in self._running.items():
            if self._clock() - began >= PATIENCE_SECONDS:
                del self._running[stream]
                stream.close()
            return
