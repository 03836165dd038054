"""Submitters' keys: a message with a key that is known is not stored a second time, inside the key's window.

In ``state``: ``k`` + hash of the key -> when it expires (6) + id of the message (12); and ``x`` + when it expires +
hash, so that the oldest are found. Both are written in the transaction that stores the message.
"""

from __future__ import annotations

import hashlib

from ptt_queue.store import Transaction
from ptt_queue.types import NewMessage

MAX_WINDOW_MS = 7 * 86_400_000  # so long a key is kept at most
_HASH_BYTES = 16
_TIME_BYTES = 6


def hashed(key: bytes) -> bytes:
    """As a submitter's key stands in the store."""
    return hashlib.blake2b(key, digest_size=_HASH_BYTES).digest()


def find(txn: Transaction, message: NewMessage, now: int) -> bytes:
    """The id of the other message that was stored under this one's key; b"" when there is none."""
    known: bytes | None = txn.txn.get(b"k" + hashed(message.once), db=txn.state)
    if known is None or int.from_bytes(known[:_TIME_BYTES], "big") <= now or known[_TIME_BYTES:] == message.id:
        return b""
    return known[_TIME_BYTES:]


def remember(txn: Transaction, message: NewMessage, now: int) -> None:
    """Keep a stored message's key, if it has one. Removes two that have expired, so they cannot pile up."""
    until = min(message.once_until, now + MAX_WINDOW_MS)
    if not message.once or until <= now:
        return
    prune(txn, now, 2)
    name, at = hashed(message.once), until.to_bytes(_TIME_BYTES, "big")
    txn.txn.put(b"k" + name, at + message.id, db=txn.state)
    txn.txn.put(b"x" + at + name, b"", db=txn.state)


def prune(txn: Transaction, now: int, most: int) -> None:
    """Remove at most ``most`` keys that have expired."""
    cursor = txn.txn.cursor(db=txn.state)
    found = cursor.set_range(b"x")
    for _ in range(most):
        key: bytes = cursor.key() if found else b""
        if not key.startswith(b"x") or int.from_bytes(key[1 : 1 + _TIME_BYTES], "big") > now:
            return
        found = cursor.delete()
        name = b"k" + key[1 + _TIME_BYTES :]
        known = txn.txn.get(name, db=txn.state)
        if known is not None and known[:_TIME_BYTES] == key[1 : 1 + _TIME_BYTES]:  # else it was used again
            txn.txn.delete(name, db=txn.state)
            found = cursor.set_range(key)
