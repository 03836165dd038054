"""What else is in a random life: meters, submitters' keys, suspensions, and the operator's settle.

What they leave in the store beside messages is in the ledger, too, under names that are no message ids: so the audit
finds a message that is there without its count, or the other way round. Names are fresh after each request whose
outcome is not known, and in each life.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from typing import TYPE_CHECKING

import msgspec
from ptt_queue import meters, once, suspended
from ptt_queue.errors import RequestFailed, Unavailable
from ptt_queue.store import Store
from ptt_queue.types import Amended, Meter, NewMessage, NewTask, Over, PutResult, Refusal, Settle, State, Suspension
from views import Gone, View, Views, digest, view_of, view_of_put

if TYPE_CHECKING:
    from ledger import Workload

HOUR = 3_600_000
LIMIT = 4
VICTIM = b"victim "
END = 1 << 47  # ms: after all windows
WINDOW = 366 * 24 * HOUR  # does not end meanwhile


def mark(value: bytes) -> View:
    """Something in the store that is no message."""
    return View(digest(value), b"", ())


def marks(store: Store) -> Views:
    """What of that is in a store."""
    txn = store.begin(write=False)
    try:
        found: Views = {
            b"meter " + m.key.encode(): mark(b"%d" % m.used) for m in meters.listing(txn, "", b"", 10**6)[0]
        }
        found |= {b"suspended " + s.name.encode(): mark(b"") for s in suspended.all_of(txn)}
        found |= {b"once " + key[1:]: mark(value[6:]) for key, value in txn.entries(b"k")}
        return found
    finally:
        txn.abort()


def victims(store: Store, damaged: Collection[bytes]) -> Views:
    """The messages that were made unreadable and are still there."""
    txn = store.begin(write=False)
    try:
        return {VICTIM + id: mark(b"") for id in damaged if txn.has_message(id)}
    finally:
        txn.abort()


def forget(store: Store) -> None:
    """Remove it, as the time would, and the operator."""
    txn = store.begin()
    meters.prune(txn, END, 10**6)
    once.prune(txn, END, 10**6)
    for what in suspended.all_of(txn):
        suspended.remove(txn, what.name, what.site)
    txn.commit()


ROWS = {b"meter": "S11 counted", b"suspended": "S12 suspended", b"once": "S13 submitter's key"}


def row_of(name: bytes) -> str:
    """Of the state table."""
    return ROWS[name.split(b" ")[0]]


def fresh(w: Workload, kind: str) -> str:
    return f"{kind}-{w.tag}-{len(w.doubtful)}.example"


def _refused(w: Workload, message: NewMessage, result: PutResult) -> Views | None:
    """What it is when it was not even looked at."""
    if result.refused not in (Refusal.FULL, Refusal.FAILED):
        return None
    w.refused[f"put: {result.refused}"] += 1
    return {message.id: None}


def put_metered(w: Workload, over: Over) -> None:
    """A put that has room, or is refused or held: the message and its count come together, or neither does."""
    key, amount = fresh(w, "m"), w.rng.randrange(1, 3)
    used = w.counted.get(key, 0)
    message, body = w.message(900)
    message = msgspec.structs.replace(message, meters=[Meter(key, amount, LIMIT, WINDOW, b"quota")], over=over)
    fits = used + amount <= LIMIT
    stored = message if fits else meters.held(message, b"quota")
    will: Views = {message.id: None if over is Over.REFUSE and not fits else view_of_put(stored, body, False)}
    if fits:
        will[b"meter " + key.encode()] = mark(b"%d" % (used + amount))

    def after(_n: int, result: PutResult) -> Views | None:
        if (views := _refused(w, message, result)) is not None:
            return views
        assert (result.refused, bool(result.meter)) == (None if fits or over is Over.HOLD else Refusal.METER, not fits)
        w.counted[key] = used + amount * fits
        return None

    w.do("put, metered", [w.client.link.put(message, body, False)], [will], after)


def put_once(w: Workload) -> None:
    """A submitter's key: the second message with it is not stored."""
    key = fresh(w, "k").encode()
    message, body = w.message(900)
    message = msgspec.structs.replace(message, once=key, once_until=message.created + 100 * HOUR)
    first = w.once.get(key, b"")
    name = b"once " + once.hashed(key)
    will: Views = (
        {message.id: None} if first else {message.id: view_of_put(message, body, False), name: mark(message.id)}
    )

    def after(_n: int, result: PutResult) -> Views | None:
        if (views := _refused(w, message, result)) is not None:
            return views
        assert (result.refused, result.first) == (None, first)
        w.once.setdefault(key, message.id)
        return None

    w.do("put, once", [w.client.link.put(message, body, False)], [will], after)


def suspend(w: Workload) -> None:
    """Suspend a lane, or resume it."""
    name = fresh(w, "s")
    on = not w.suspended.get(name)
    link = w.client.link
    call = link.suspend(Suspension(name, False, 1, 0, "x" * w.rng.choice((0, 400)))) if on else link.resume(name, False)
    with contextlib.suppress(RequestFailed):
        (good,) = w.do(
            "suspend" if on else "resume", [call], [{b"suspended " + name.encode(): mark(b"") if on else None}]
        )
        assert good
        w.suspended[name] = on


def amend(w: Workload) -> None:
    """The operator's settle: a task goes, or is held, and a message comes of it."""
    ids = w.known()
    if not ids:
        return
    id = w.rng.choice(ids)
    view = w.view(id)
    try:
        entries = w.client.show(id)
    except Unavailable as e:
        raise Gone(str(e)) from e
    entry = w.rng.choice(entries)
    (old,) = [t for t in view.tasks if t.items == tuple(entry.items)]
    left = [t for t in view.tasks if t is not old]
    new = [NewTask(2, "amended.example", entry.items, entry.due, state=State.HELD, attempts=7)] * w.rng.randrange(2)
    word, body = w.message(700, stage=1)
    tasks = (*left, *(view_of(t, entry.maybe or old.maybe) for t in new))
    will: Views = {id: view._replace(tasks=tasks) if tasks else None, word.id: view_of_put(word, body, False)}
    call = w.client.link.amend(Settle(id, entry.number, new, puts=[word]), [body])
    with contextlib.suppress(RequestFailed):
        (outcome,) = w.do("amend", [call], [will])
        assert outcome is Amended.DONE, outcome


def repair(w: Workload, id: bytes) -> None:
    """Delete a message that was made unreadable, once it was set aside."""
    for _ in range(100):
        w.lease(100)
        (changed,) = w.do(
            "repair",
            [w.client.link.repair([(id, 1)], True)],
            [{VICTIM + id: None}],
            lambda n, done: {} if not done else None,
        )
        if changed:
            return
    raise AssertionError("what cannot be read was not set aside")
