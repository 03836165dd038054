"""The queue for commands: what they read comes from its store, beside the service; what they change goes through the
queue process, or into the store when the service is stopped.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from typing import Protocol

import click
import msgspec
from ptt_queue import offline
from ptt_queue.client import QueueClient, connect_unix
from ptt_queue.errors import QueueError, StoreBusy
from ptt_queue.offline import Reader
from ptt_queue.protocol import Ref
from ptt_queue.types import Act, Acted, Amended, NewMessage, Place, Refusal, Settle, Stats, Suspension

from ptt.config import Config
from ptt.service import privileges

PROBE_SECONDS = 2.0
CALL_SECONDS = 30.0


class Changes(Protocol):
    """How commands change a queue, live or stopped."""

    def act(self, verb: Act, messages: Sequence[bytes], tasks: Sequence[Ref] = ()) -> Acted: ...
    def amend(self, settle: Settle, bodies: Sequence[bytes] = ()) -> Amended: ...
    def repair(self, tasks: Sequence[Ref], delete: bool) -> int: ...
    def put(self, message: NewMessage, body: bytes) -> Refusal | None: ...
    def suspend(self, what: Suspension) -> bool: ...
    def resume(self, name: str, site: bool = False) -> bool: ...


class Live:
    """Through the queue process."""

    def __init__(self, client: QueueClient) -> None:
        self._client = client
        self.act = client.act
        self.amend = client.amend
        self.repair = client.repair
        self.suspend = client.suspend
        self.resume = client.resume

    def put(self, message: NewMessage, body: bytes) -> Refusal | None:
        return self._client.put(message, body, lease=False).refused


class Opened(msgspec.Struct, frozen=True):
    """A queue that can be read and changed. ``live``: the queue process, when it runs."""

    reader: Reader
    changes: Changes
    live: QueueClient | None = None

    def place(self, stage: int, lane: str) -> Place | None:
        """Where the dispatcher has this lane; None when the service is stopped."""
        return self.live.place(stage, lane) if self.live else None

    def stats(self) -> Stats | None:
        """The numbers of the queue process; None when the service is stopped."""
        return self.live.stats() if self.live else None


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@contextlib.contextmanager
def opened(config: Config, changing: bool = False) -> Iterator[Opened]:
    """The queue, whether the service runs or not. Raises click.ClickException with what to do.

    ``changing``: the command changes something; a stopped store is then owned as long as it is open.
    """
    path, store = os.path.join(config.run, "queue.sock"), config.queue
    if not is_live(config):
        with _stopped(config, changing) as queue:
            yield queue
        return
    with (
        _reported(),
        QueueClient(path, CALL_SECONDS) as client,
        offline.read(store.path, store.map_bytes, live=True) as reader,
    ):
        yield Opened(reader, Live(client), client)


def is_live(config: Config) -> bool:
    """Does the queue process run? Raises click.ClickException when we may not ask it."""
    path = os.path.join(config.run, "queue.sock")
    try:
        connect_unix(path, PROBE_SECONDS).close()
    except PermissionError as e:
        raise click.ClickException(f"{path}: you may not talk to the queue; run this as root") from e
    except OSError:
        return False
    return True


def become_owner(config: Config) -> None:
    """So that no file of the store comes to belong to root. Raises click.ClickException when there is no queue."""
    if not os.path.exists(config.queue.path):
        raise click.ClickException(f"there is no queue in {config.queue.path}")
    privileges.preload("queue")
    privileges.become("queue", config)


@contextlib.contextmanager
def _stopped(config: Config, changing: bool) -> Iterator[Opened]:
    become_owner(config)
    path, map_bytes = config.queue.path, config.queue.map_bytes
    with _reported():
        if changing:
            with offline.own(path, map_bytes) as owner:
                yield Opened(owner, owner)
        else:
            with offline.read(path, map_bytes) as reader:
                yield Opened(reader, _Nothing())


class _Nothing:
    """Changes of a command that makes none."""

    def _refuse(self, *_: object) -> click.ClickException:
        return click.ClickException("opened for reading only")

    def act(self, verb: Act, messages: Sequence[bytes], tasks: Sequence[Ref] = ()) -> Acted:
        raise self._refuse()

    def amend(self, settle: Settle, bodies: Sequence[bytes] = ()) -> Amended:
        raise self._refuse()

    def repair(self, tasks: Sequence[Ref], delete: bool) -> int:
        raise self._refuse()

    def put(self, message: NewMessage, body: bytes) -> Refusal | None:
        raise self._refuse()

    def suspend(self, what: Suspension) -> bool:
        raise self._refuse()

    def resume(self, name: str, site: bool = False) -> bool:
        raise self._refuse()


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    try:
        yield
    except StoreBusy as e:
        raise click.ClickException(f"the queue process is starting or ending, or another command runs: {e}") from e
    except QueueError as e:
        raise click.ClickException(f"queue: {e}") from e
