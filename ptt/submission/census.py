"""How many connections are open, and how many came lately, over all workers: counters in memory that they share.

The memory is a header and a column for each worker. A worker writes in its own column alone and reads all of them, so
nothing is locked and nobody is asked; a connection that comes to two workers in the same instant may be counted by
neither for the other, so a limit may be exceeded by the number of workers less one. The supervisor makes the memory,
and clears the column of a worker that ended.

A key (an address, a network, a user) has a counter in each of two rows, found by a keyed hash that nobody outside can
predict, and its count is the lower of the two: keys that share one counter are told apart by the other. The count is
never too low; with 10,000 keys in use it is too high for one key in ten, mostly by one.

Arrivals are counted by the minute in two halves; the rate is this minute's count and the part of the last one that is
not a minute ago yet, as if arrivals had been even in it.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
from typing import Final, NamedTuple

BUCKETS: Final = 32_768  # of a row: several times the connections of a busy host
WINDOW_SECONDS: Final = 60.0

_HEADER: Final = 64  # octets: the key of the hash
_KEY: Final = 16
_OPEN, _EVEN, _ODD = 8, 8 + 2 * BUCKETS, 8 + 4 * BUCKETS  # counters in a column; 0 and 1: the minutes of the halves
_COLUMN: Final = 8 + 6 * BUCKETS
_BYTES: Final = 4  # of a counter
_INDICES: Final = struct.Struct("<II")
_ZEROS: Final = memoryview(bytes(2 * BUCKETS * _BYTES)).cast("I")


class Place(NamedTuple):
    """The counters of one key."""

    first: int
    second: int


def make(pool: int) -> int:
    """The memory for ``pool`` workers, as a descriptor that they inherit. Raises OSError."""
    fd = os.memfd_create("ptt-census", os.MFD_CLOEXEC)
    os.ftruncate(fd, _HEADER + pool * _COLUMN * _BYTES)
    os.pwrite(fd, os.urandom(_KEY), 0)
    return fd


def clear(fd: int, index: int) -> None:
    """Forget what worker ``index`` has counted, which has ended. Raises OSError."""
    os.pwrite(fd, bytes(_COLUMN * _BYTES), _HEADER + index * _COLUMN * _BYTES)


class Census:
    """The counters as worker ``index`` sees them. ``fd``: of ``make``."""

    def __init__(self, fd: int, index: int) -> None:
        clear(fd, index)
        memory = memoryview(mmap.mmap(fd, os.fstat(fd).st_size))
        self._secret = bytes(memory[:_KEY])
        counters = memory[_HEADER:].cast("I")
        self._columns = [counters[at : at + _COLUMN] for at in range(0, len(counters), _COLUMN)]
        self._own = self._columns[index]

    def place(self, key: bytes) -> Place:
        """Where the counters of ``key`` are."""
        first, second = _INDICES.unpack(hashlib.blake2b(key, digest_size=_INDICES.size, key=self._secret).digest())
        return Place(first % BUCKETS, BUCKETS + second % BUCKETS)

    def open(self, place: Place) -> int:
        """How many are open, in all workers."""
        return self._count(_OPEN, place, self._columns)

    def add(self, place: Place, change: int) -> None:
        """One more (1) or less (-1) is open in this worker."""
        for index in place:
            self._own[_OPEN + index] += change

    def arrivals(self, place: Place, now: float) -> float:
        """How many came in the last minute, to all workers. ``now``: seconds of the monotonic clock of the host."""
        minute, part = divmod(now, WINDOW_SECONDS)
        last = self._of_minute(int(minute) - 1, place)
        return self._of_minute(int(minute), place) + last * (1 - part / WINDOW_SECONDS)

    def arrive(self, place: Place, now: float) -> None:
        """One came to this worker."""
        minute = int(now // WINDOW_SECONDS)
        half, flag = self._half(minute)
        if self._own[flag] != minute:
            self._own[half : half + 2 * BUCKETS] = _ZEROS
            self._own[flag] = minute
        for index in place:
            self._own[half + index] += 1

    @staticmethod
    def _half(minute: int) -> tuple[int, int]:
        """Where the arrivals of a minute are, and the counter that says which minute that is."""
        return (_ODD, 1) if minute % 2 else (_EVEN, 0)

    def _count(self, start: int, place: Place, columns: list[memoryview[int]]) -> int:
        first, second = start + place.first, start + place.second
        return min(sum(column[first] for column in columns), sum(column[second] for column in columns))

    def _of_minute(self, minute: int, place: Place) -> int:
        start, flag = self._half(minute)
        return self._count(start, place, [column for column in self._columns if column[flag] == minute])
