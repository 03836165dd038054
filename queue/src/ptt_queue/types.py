"""The nouns of the queue: what crosses its interface, in memory and on the wire.

The queue knows opaque bytes, stages, lanes, groups, due times and leases. It knows nothing of mail.
All times are whole milliseconds since the epoch (UTC).

* A *message* is a body stored once, an opaque ``meta`` and one or more tasks.
* A *task* is the unit that is leased: one message x one lane in one stage, with the items (stable ids)
  that are still to be done there.
* A *lane* is what one task waits for (a domain, a next hop). A *group* is a set of lanes with common limits.
"""

from __future__ import annotations

import enum

import msgspec

MESSAGE_ID_BYTES = 12
"""A message id: 6 bytes of milliseconds, 6 random bytes. Chosen by the client, so ids sort by time."""

DEFAULT_CLASS = 1
"""Priority classes: 0 urgent, 1 normal, 2 bulk."""


class State(enum.IntEnum):
    """Where a task is in the store. Leased is not a state of the store: leases live in the dispatcher."""

    WAITING = 0  # ready when due <= now, delayed otherwise
    HELD = 1  # an operator or a policy stopped it; never leased
    FAILED = 2  # given up, kept for the operator; never leased


class Item(msgspec.Struct, array_like=True, frozen=True):
    """One recipient of a message, opaque to the queue. ``id`` is unique in its message and never reused."""

    id: int
    data: bytes


class NewTask(msgspec.Struct, array_like=True, frozen=True):
    """A task to be stored: with a new message, or in place of a task that is being settled.

    ``then`` names the lane whose token is wanted together with the lease, for a task that will move on
    at once to that lane (a message that is signed and delivered in one go). Empty: none.
    """

    stage: int
    lane: str
    items: list[Item]
    due: int
    then: str = ""
    state: State = State.WAITING
    attempts: int = 0
    note: bytes = b""  # opaque: the result of the last attempt
    maybe: bool = False  # an earlier attempt may have succeeded without our knowing


class Meter(msgspec.Struct, array_like=True, frozen=True):
    """A counter that a put must fit into: ``amount`` is added to what was counted under ``key`` in this window, unless
    that would be more than ``limit``. Windows are fixed: aligned to their length (ms) from the epoch.

    ``held``: the note of tasks that are held because this meter had no room (see ``Over``).
    """

    key: str
    amount: int
    limit: int
    window: int
    held: bytes = b""


class Metered(msgspec.Struct, frozen=True):
    """A counter as the operator sees it. ``limit``: as it was told last; ``until``: when its window ends, ms."""

    key: str
    used: int
    limit: int
    window: int
    until: int


class Over(enum.StrEnum):
    """What becomes of a message for which a meter has no room."""

    REFUSE = "refuse"
    HOLD = "hold"  # stored with its tasks held, and nothing counted


class NewMessage(msgspec.Struct, array_like=True, frozen=True):
    """A message to be stored. Its body travels beside it, or was staged before under the same id."""

    id: bytes
    meta: bytes
    tasks: list[NewTask]
    size: int  # of the body, in bytes
    created: int
    expires: int = 0  # 0: never
    priority: int = DEFAULT_CLASS
    staged: bool = False  # the body was sent before, in parts, with ``stage``
    once: bytes = b""  # the submitter's key: a second message with it is not stored until ``once_until``
    once_until: int = 0
    meters: list[Meter] = []  # all must have room; looked at when it is put, not when it comes with a settle
    over: Over = Over.REFUSE


class Task(msgspec.Struct, array_like=True, frozen=True):
    """A leased task, with what its holder needs of its message. The body is read apart."""

    message: bytes
    number: int  # unique in its message, never reused
    stage: int
    lane: str
    items: list[Item]
    due: int
    attempts: int
    note: bytes
    maybe: bool
    then: bool  # the token of the lane named by ``then`` came with the lease
    meta: bytes
    prefix: bytes  # bytes that a former stage put in front of the body (a signature field)
    size: int
    created: int
    expires: int
    priority: int


class Refusal(enum.StrEnum):
    """Why a message was not stored."""

    FULL = "full"  # above a high-water mark: try later
    DUPLICATE = "duplicate"  # the id is taken by another message
    INVALID = "invalid"  # malformed: the client's fault
    FAILED = "failed"  # the store could not write
    METER = "meter"  # a meter has no room: see PutResult


class Entry(msgspec.Struct, array_like=True, frozen=True):
    """A task as the operator sees it, whatever its state. ``leased``: a worker is at it now."""

    message: bytes
    number: int
    stage: int
    state: State
    lane: str
    priority: int
    due: int
    attempts: int
    maybe: bool
    leased: bool
    items: list[Item]
    note: bytes
    meta: bytes
    size: int
    created: int
    expires: int


class Filter(msgspec.Struct, array_like=True, frozen=True):
    """Which tasks to list: those that match all that is given. ``after``: the former page's, b"" for the first."""

    stage: int | None = None
    state: State | None = None
    lane: str | None = None
    after: bytes = b""
    most: int = 100


class Page(msgspec.Struct, array_like=True, frozen=True):
    """A part of a listing. ``after`` is b"" on the last page; a page may be empty and not the last."""

    entries: list[Entry]
    after: bytes


class Act(enum.StrEnum):
    """What an operator can do to tasks that no worker is at."""

    RETRY = "retry"  # due now, whatever its state
    HOLD = "hold"  # waiting -> held
    RELEASE = "release"  # held -> waiting, due as before
    DELETE = "delete"


class Acted(msgspec.Struct, array_like=True, frozen=True):
    """``changed``: tasks. ``leased``: tasks that were left alone because a worker is at them."""

    changed: int
    leased: int


class Place(msgspec.Struct, array_like=True, frozen=True):
    """Where the dispatcher has a lane of a stage, and what its tasks wait for."""

    place: str  # "active": its turn comes; "parked": its group has no token; "asleep": all due later; "": not in memory
    group: str  # "": the lane is a group of its own
    lanes: int  # of the group in memory
    in_flight: int  # of the group now
    limit: GroupLimit
    next_at: int  # when the rate allows the next one, ms; 0: it does not hinder
    most: int = 0  # tasks in flight now: the limit, or fewer while it is in trouble


class Suspension(msgspec.Struct, array_like=True, frozen=True):
    """A lane, or a group (``site``), none of whose tasks in limited stages is leased, those that come included."""

    name: str
    site: bool
    since: int
    until: int  # ms; 0: until it is resumed
    reason: str = ""


class Amended(enum.StrEnum):
    """What became of an operator's settle (``QueueClient.amend``)."""

    DONE = "done"
    LEASED = "leased"  # a worker is at the task: nothing was changed
    GONE = "gone"  # there is no such task any more
    INVALID = "invalid"  # the new tasks or messages cannot be stored


class Stats(msgspec.Struct, frozen=True):
    """The queue in numbers. ``commit_counts``: per bucket of ``commit_bounds`` (seconds), the last one above all."""

    tasks: list[tuple[int, State, int]]  # stage, state, how many
    messages: int
    used_bytes: int
    max_bytes: int
    free_bytes: int  # of the file system
    leased: int
    clients: int
    lanes: int  # in memory
    damaged: int  # records moved aside
    commits: int
    commit_bounds: list[float]
    commit_counts: list[int]
    commit_seconds: float
    requests: dict[str, int]
    epoch: int
    refusing: str = ""  # the mark above which nothing is taken: one of pressure.MARKS
    body_bytes: int = 0  # of all messages
    oldest: int = 0  # when the oldest message was made (ms since the epoch); 0: there is none


class PutResult(msgspec.Struct, array_like=True, frozen=True):
    """``refused`` is None when the message is on stable storage. ``leased``: tasks leased with the put.

    ``first``: the id of the message that was stored under the same key before; this one was not stored. Else b"".
    ``meter``: the key of a meter that had no room until ``until`` (ms): refused with METER, or stored and held.
    """

    refused: Refusal | None
    leased: list[Task]
    first: bytes = b""
    meter: str = ""
    until: int = 0


class Settle(msgspec.Struct, array_like=True, frozen=True):
    """The end of a lease: the task is replaced, in one transaction, by ``tasks`` (none: it is done).

    Acknowledge: no tasks. Retry: the same items with a later ``due``. Hold: ``state`` HELD. Fail: FAILED, or
    done together with ``puts`` (messages stored in the same transaction, their bodies beside the request).
    ``prefix``, when not None, replaces the message's prefix. With ``lease`` the new tasks that are due and
    for which there is a token are leased to the caller at once.
    """

    message: bytes
    number: int
    tasks: list[NewTask] = []
    prefix: bytes | None = None
    puts: list[NewMessage] = []
    lease: bool = False


class SettleResult(msgspec.Struct, array_like=True, frozen=True):
    """``stored`` is False when the lease was no longer the caller's: nothing was changed then."""

    stored: bool
    leased: list[Task]


class GroupLimit(msgspec.Struct, array_like=True, frozen=True):
    """Limits of a group: tasks in flight at once, and tasks per second (0: no limit).

    ``start``: tasks in flight before any has ended well (0: as many as the limit). See ``ptt_queue.width``.
    """

    in_flight: int
    per_second: float = 0.0
    start: int = 0


class Trouble(enum.StrEnum):
    """What a client says of a lease's group before it settles."""

    NONE = "none"  # neither good nor bad: the group is given no more for it
    SOME = "some"  # less at a time
    DEAD = "dead"  # nobody is there: one at a time


class SlotLimit(msgspec.Struct, array_like=True, frozen=True):
    """A slot that is wanted: ``most`` of this name at once, and so many new ones per second (0: no limit)."""

    name: str
    most: int
    per_second: float = 0.0
