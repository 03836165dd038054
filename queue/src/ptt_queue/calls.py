"""What a client has asked and not heard of yet, and how requests and answers are made and read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from ptt_queue import protocol
from ptt_queue.errors import QueueError
from ptt_queue.protocol import PutAnswer, SettleAnswer, Welcome
from ptt_queue.types import Acted, Amended, Entry, Page, Place, Stats, Task


class Held:
    __slots__ = ("marked", "task", "then")

    def __init__(self, task: Task, then: str) -> None:
        self.task = task
        self.then = then  # the lane whose token came with it
        self.marked = False


class Call:
    """A request on its way. ``done`` is set by ``Link.receive``, with ``result`` or ``error``."""

    __slots__ = (
        "abandoned",
        "blob",
        "bodies",
        "done",
        "driver",
        "error",
        "kind",
        "number",
        "result",
        "sent",
        "task",
        "what",
    )

    def __init__(self, kind: str, what: Any) -> None:
        self.kind = kind
        self.what = what  # the request's own arguments
        self.number = 0
        self.blob: tuple[bytes, ...] = ()
        self.bodies: list[tuple[bytes, bytes]] = []  # (message id, body) that travel in parts before the request
        self.task: Held | None = None  # settle: the lease that ends
        self.sent = False  # it may have been executed
        self.abandoned = False
        self.driver: Any = None  # the driver's own
        self.done = False
        self.result: Any = None
        self.error: QueueError | None = None


PAYLOADS: dict[str, Any] = {
    kind: msgspec.msgpack.Decoder(payload).decode
    for kind, payload in {
        "hello": Welcome,
        "put": PutAnswer,
        "settle": SettleAnswer,
        "lease": list[Task],
        "extend": list[bool],
        "stats": Stats,
        "list": Page,
        "show": list[Entry],
        "act": Acted,
        "amend": Amended,
        "repair": int,
        "place": Place,
        "suspend": bool,
        "resume": bool,
        "open": bool,
    }.items()
}

REQUESTS: dict[str, Callable[..., protocol.Request]] = {
    "lease": protocol.Lease,
    "body": protocol.Body,
    "extend": protocol.Extend,
    "stats": protocol.GetStats,
    "list": protocol.GetList,
    "show": protocol.GetShow,
    "act": protocol.DoAct,
    "amend": protocol.Amend,
    "place": protocol.GetPlace,
    "repair": protocol.Repair,
    "suspend": protocol.Suspend,
    "resume": protocol.Resume,
    "open": protocol.Open,
}
