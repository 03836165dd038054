"""The queue for commands: through the queue process, or in its store when the service is stopped."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from typing import Protocol

import click
from ptt_queue import admin, files
from ptt_queue.client import QueueClient, connect_unix
from ptt_queue.errors import QueueError, StoreBusy
from ptt_queue.store import Store
from ptt_queue.types import Act, Acted, Entry, Filter, Page

from ptt.config import Config
from ptt.service import privileges

PROBE_SECONDS = 2.0
CALL_SECONDS = 30.0


class Queue(Protocol):
    """What the commands need of a queue, live or stopped."""

    def list(self, filter: Filter) -> Page: ...
    def show(self, message: bytes) -> Sequence[Entry]: ...
    def act(self, verb: Act, messages: Sequence[bytes]) -> Acted: ...


class Live:
    """The queue process."""

    def __init__(self, client: QueueClient) -> None:
        self._client = client
        self.list = client.list
        self.show = client.show

    def act(self, verb: Act, messages: Sequence[bytes]) -> Acted:
        verbs = {
            Act.RETRY: self._client.retry,
            Act.HOLD: self._client.hold,
            Act.RELEASE: self._client.release,
            Act.DELETE: self._client.delete,
        }
        return verbs[verb](messages)


class Stopped:
    """The store of a service that does not run; nobody else may own it meanwhile."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def list(self, filter: Filter) -> Page:
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

    def act(self, verb: Act, messages: Sequence[bytes]) -> Acted:
        txn = self._store.begin()
        try:
            changes = admin.act(txn, verb, messages, now_ms(), (), {})
            txn.commit()
        except BaseException:
            txn.abort()
            raise
        return Acted(changes.changed, changes.leased)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@contextlib.contextmanager
def opened(config: Config) -> Iterator[Queue]:
    """The queue, whether the service runs or not. Raises click.ClickException with what to do."""
    path = os.path.join(config.run, "queue.sock")
    try:
        connect_unix(path, PROBE_SECONDS).close()
    except PermissionError as e:
        raise click.ClickException(f"{path}: you may not talk to the queue; run this as root") from e
    except OSError:
        with _stopped(config) as queue:
            yield queue
        return
    with _reported(), QueueClient(path, CALL_SECONDS) as client:
        yield Live(client)


@contextlib.contextmanager
def _stopped(config: Config) -> Iterator[Queue]:
    if not os.path.exists(config.queue.path):
        raise click.ClickException(f"there is no queue in {config.queue.path}")
    privileges.preload("queue")
    privileges.become("queue", config)  # so that no file of the store comes to belong to root
    with _reported():
        try:
            owner = files.take(config.queue.path)
        except StoreBusy as e:
            raise click.ClickException(f"the queue process is starting or ending: try again ({e})") from e
        try:
            store = Store(config.queue.path, config.queue.map_bytes)
            try:
                yield Stopped(store)
            finally:
                store.close()
        finally:
            os.close(owner)


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    try:
        yield
    except QueueError as e:
        raise click.ClickException(f"queue: {e}") from e
