"""One compiled LMDB file, open for reading: shared by all who read it in this process.

py-lmdb opens a file only once in a process, so the environment is kept here under its path and counted. Look-ups may
come from the loop and from threads; the lock, a real one, guards only opening and closing.
"""

from __future__ import annotations

import sys

import gevent.monkey
import lmdb

_lock = gevent.monkey.get_original("threading", "Lock")()
_open: dict[str, tuple[lmdb.Environment, int]] = {}  # path -> environment, how many use it


class ReadFile:
    """A file that is never changed. Raises lmdb.Error from the constructor if it cannot be opened."""

    def __init__(self, path: str) -> None:
        self.path = path
        with _lock:
            environment, users = _open.get(path) or (_environment(path), 0)
            _open[path] = environment, users + 1
        self._environment = environment
        self._closed = False

    def get(self, key: bytes) -> bytes | None:
        with self._environment.begin() as transaction:
            value: bytes | None = transaction.get(key)
        return value

    def has(self, prefix: bytes) -> bool:
        """Is there a key that starts with ``prefix``?"""
        with self._environment.begin() as transaction, transaction.cursor() as cursor:
            return bool(cursor.set_range(prefix) and cursor.key().startswith(prefix))

    def items(self, prefix: bytes, most: int = sys.maxsize) -> list[tuple[bytes, bytes]]:
        """The keys that start with ``prefix``, sorted, at most ``most``, with their values: a copy in memory."""
        found: list[tuple[bytes, bytes]] = []
        with self._environment.begin() as transaction, transaction.cursor() as cursor:
            if cursor.set_range(prefix):
                for key, value in cursor:
                    if not key.startswith(prefix) or len(found) >= most:
                        break
                    found.append((key, value))
        return found

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        with _lock:
            environment, users = _open.pop(self.path)
            if users > 1:
                _open[self.path] = environment, users - 1
            else:
                environment.close()


def _environment(path: str) -> lmdb.Environment:
    return lmdb.open(path, subdir=False, readonly=True, lock=False, create=False, max_spare_txns=2)
