"""What of messages and tasks a crash may not change, and what requests make of them."""

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

from ptt_queue.types import Item, NewMessage, NewTask, State, Task


class TaskView(NamedTuple):
    """A task as far as a crash may not change it; its items name it. ``maybe`` None: either will do."""

    stage: int
    state: State
    lane: str
    items: tuple[Item, ...]
    attempts: int
    note: bytes
    maybe: bool | None


class View(NamedTuple):
    """A message as the store should show it."""

    body: bytes  # digest
    prefix: bytes
    tasks: tuple[TaskView, ...]


Views = dict[bytes, View | None]  # by message id; None: it is not there


class Gone(Exception):
    """The queue process does not answer any more."""


class Call(NamedTuple):
    """One request. ``key``: (connection, number) as on the wire. ``after``: what it makes of messages.

    ``unknown`` is the same as far as it can be said without its answer. ``sure``: it was executed when answered.
    """

    kind: str
    key: tuple[int, int]
    after: Views
    unknown: Views
    sure: bool = True


def digest(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()[:12]


def view_of(task: NewTask, maybe: bool | None) -> TaskView:
    return TaskView(task.stage, task.state, task.lane, tuple(task.items), task.attempts, task.note, maybe)


def view_of_put(message: NewMessage, body: bytes, maybe: bool | None) -> View:
    return View(digest(body), b"", tuple(view_of(t, maybe) for t in message.tasks))


def with_maybe(view: View, maybe: bool | None, tasks: Iterable[Task] | None = None) -> View:
    """The view with ``maybe`` for these tasks (None: for all)."""
    of = None if tasks is None else {tuple(t.items) for t in tasks}
    return view._replace(tasks=tuple(t._replace(maybe=maybe) if of is None or t.items in of else t for t in view.tasks))
