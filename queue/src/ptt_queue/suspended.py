"""Suspensions: lanes, or whole groups, whose tasks wait though they are due.

In ``state`` under ``p`` + 0 (a lane) or 1 (a group) + name.

One record for each, whatever waits behind it: no task is touched. The dispatcher has them in memory.
"""

from __future__ import annotations

import msgspec

from ptt_queue import keys
from ptt_queue.store import Transaction
from ptt_queue.types import Suspension

MAX_SUSPENSIONS = 10_000  # some 3 MiB in memory
MAX_REASON = 500  # characters

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Suspension).decode


def _key(name: str, site: bool) -> bytes:
    return b"p" + bytes((site,)) + name.encode()


def valid(what: Suspension) -> bool:
    """Can this be kept?"""
    try:
        return bool(keys.lane_bytes(what.name)) and what.name.isprintable() and len(what.reason) <= MAX_REASON
    except ValueError:
        return False


def keep(txn: Transaction, what: Suspension) -> bool:
    """In place of a former one of the same name. False: it is not valid, or there are too many."""
    if not valid(what):
        return False
    key = _key(what.name, what.site)
    if txn.get_record(txn.state, key) is None and len(txn.entries(b"p")) >= MAX_SUSPENSIONS:
        return False
    txn.replace_record(txn.state, key, _encode(what))
    return True


def remove(txn: Transaction, name: str, site: bool) -> Suspension | None:
    """The one that was there."""
    if len(name.encode()) > keys.MAX_LANE_BYTES:
        return None
    key = _key(name, site)
    found = txn.get_record(txn.state, key)
    if found is None:
        return None
    txn.delete_record(txn.state, key)
    return _decode(found)


def all_of(txn: Transaction) -> list[Suspension]:
    """Lanes, then groups, by name; those that have lapsed may be among them."""
    return [_decode(raw[1:]) for _, raw in txn.entries(b"p")]


def lapsed(what: Suspension, now: int) -> bool:
    return 0 < what.until <= now
