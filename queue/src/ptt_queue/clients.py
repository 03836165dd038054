"""What the store remembers of clients, so that each of their puts and settles is executed once. In ``state``."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from ptt_queue.protocol import CLIENT_ID_BYTES
from ptt_queue.store import Transaction


class ClientRecord(msgspec.Struct, array_like=True):
    """What is remembered of a client: its last executed request, and those whose answer was not the usual one."""

    last: int
    unusual: dict[int, str]  # request number -> refusal, "lost" or an error's text
    seen: int  # ms


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(ClientRecord).decode


def find(txn: Transaction, id: bytes) -> ClientRecord | None:
    raw = txn.get_record(txn.state, b"c" + id)
    return None if raw is None else _decode(raw)


def keep(txn: Transaction, id: bytes, record: ClientRecord) -> None:
    txn.replace_record(txn.state, b"c" + id, _encode(record))


def forget(txn: Transaction, id: bytes) -> None:
    txn.delete_record(txn.state, b"c" + id)


def all_of(txn: Transaction) -> Iterator[tuple[bytes, ClientRecord]]:
    for key, _ in txn.entries(b"c"):
        if len(key) == 1 + CLIENT_ID_BYTES and (record := find(txn, key[1:])):
            yield key[1:], record
