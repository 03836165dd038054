"""What the queue holds in memory: connections, leases, and the changes of the group that is being executed."""

from __future__ import annotations

from collections.abc import Callable

from ptt_queue.clients import ClientRecord
from ptt_queue.group import Group
from ptt_queue.store import Transaction


class Lease:
    """A task that a client works on. ``key``: message id and number; ``index_key``: where it waits in the store."""

    __slots__ = (
        "index_key",
        "key",
        "marked",
        "maybe",
        "session",
        "settling",
        "size",
        "then",
        "token",
        "waited",
        "well",
    )

    def __init__(self, session: Session, key: bytes, index_key: bytes, size: int, maybe: bool) -> None:
        self.session = session
        self.key = key
        self.index_key = index_key
        self.size = size  # of the body
        self.maybe = maybe  # an attempt before this lease may have succeeded
        self.marked = False  # this attempt may have succeeded: its final dot may have left
        self.well = True  # its client has not told of trouble
        self.token: Group | None = None
        self.then: Group | None = None  # the token of the lane that the task moves on to
        self.waited = True  # it was in the store before it was leased
        self.settling = False  # settled in the group that is not committed yet


class Session:
    """One connection of a client."""

    __slots__ = ("alive", "broken", "client", "lease_value", "leases", "refusing", "staged", "wants_leases")

    def __init__(self) -> None:
        self.alive = True
        self.broken = ""  # why the server is to close the connection
        self.client = b""  # its id; b"" until its hello
        self.wants_leases = False
        self.refusing = ""  # the mark above which the queue refuses, as this client was told
        self.lease_value = b""  # what the index says of a task that it leases
        self.leases: dict[bytes, Lease] = {}
        self.staged: dict[bytes, Staged] = {}


class Staged:
    """A body that arrives in parts. ``failed``: why it will not be stored, as the refusal of its put."""

    __slots__ = ("bytes", "chunks", "failed")

    def __init__(self, chunks: int = 0, size: int = 0, failed: str = "") -> None:
        self.chunks = chunks
        self.bytes = size
        self.failed = failed


Sent = tuple[Session, tuple[bytes, ...]]
"""What is to be sent to a client: one frame, in pieces."""


class Batch:
    """One group: its transaction and what is changed in memory when that is committed, or undone when it is not."""

    def __init__(self, txn: Transaction, now: int) -> None:
        self.txn = txn
        self.now = now
        self.answers: list[Sent] = []
        self.granted: list[Lease] = []
        self.ended: list[Lease] = []
        self.noted: list[bytes] = []  # index keys of tasks that wait now
        self.records: dict[bytes, tuple[int, dict[int, str]]] = {}  # client -> its record before this group
        self.committed: list[Callable[[], object]] = []
        self.aborted: list[Callable[[], object]] = []

    def touch(self, client: bytes, record: ClientRecord) -> None:
        """Before a client's record is changed."""
        if client not in self.records:
            self.records[client] = (record.last, dict(record.unusual))
