"""The operator's verbs on a store whose owner is stopped.

``read`` takes no lock and may be used at any time; ``own`` becomes the owner, so it fails while the service runs.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence

from ptt_queue import admin, files
from ptt_queue.store import Store
from ptt_queue.types import Act, Acted, Entry, Filter, Page, State


class Reader:
    """Lists and shows. Nobody is known to be at work: ``leased`` is False in all entries."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def list(self, filter: Filter) -> Page:
        """One page; each page has its own snapshot."""
        txn = self._store.begin(write=False)
        try:
            return admin.listing(txn, filter, ())
        finally:
            txn.abort()

    def show(self, message: bytes) -> Sequence[Entry]:
        txn = self._store.begin(write=False)
        try:
            return admin.show(txn, message, ())
        finally:
            txn.abort()

    def counts(self) -> Sequence[tuple[int, State, int]]:
        """(stage, state, how many tasks)."""
        return self._store.task_counts()


class Owner(Reader):
    """Also changes."""

    def act(self, verb: Act, messages: Sequence[bytes]) -> Acted:
        """Do it in one transaction, on stable storage on return."""
        txn = self._store.begin()
        try:
            done = admin.act(txn, verb, messages, int(time.time() * 1000), (), {})
            txn.commit()
        except BaseException:
            txn.abort()
            raise
        return Acted(done.changed, done.leased)


@contextlib.contextmanager
def read(path: str, map_bytes: int) -> Iterator[Reader]:
    """Raises StoreError, also when there is no queue."""
    store = Store(path, map_bytes, readonly=True)
    try:
        yield Reader(store)
    finally:
        store.close()


@contextlib.contextmanager
def own(path: str, map_bytes: int) -> Iterator[Owner]:
    """Raises StoreBusy while the service runs, StoreError."""
    lock = files.take(path)
    try:
        store = Store(path, map_bytes)
        try:
            yield Owner(store)
        finally:
            store.close()
    finally:
        os.close(lock)
