"""Is the ARC chain of a message good (RFC 8617, 5.2)? dkimpy verifies it, with keys that our resolver found before.

The verification is Python's arithmetic and a body hash for each set, so it runs in a thread: only mail of domains with
``arc`` that comes with sets is verified.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import dkim
import gevent
import gevent.pool

from ptt.dkim.arc import Chain, Status, keys_of
from ptt.dns.resolver import DnsError, TemporaryFailure

LOOKUPS = 10  # at once, of one message, which may name a hundred keys
SECONDS = 30.0  # for all of them

Lookup = Callable[[str], list[bytes]]
"""The texts of the TXT records of a name. Raises DnsError."""


class Unknown(Exception):
    """Whether the chain is good cannot be told now: DNS gave no answer. The text names the key."""


def verify(before: Chain, message: bytes, lookup: Lookup) -> Status | None:
    """cv= for the set that comes next; None: a former sealer has ended the chain. Yields. Raises Unknown."""
    if before.instance == 1:
        return "none"
    if not before.whole:
        return "fail"
    records: dict[bytes, bytes] = {}

    def ask(name: str) -> None:
        with contextlib.suppress(DnsError):
            try:
                records[name.encode("ascii", "replace")] = b"".join(lookup(name)[:1])
            except TemporaryFailure as e:
                raise Unknown(str(e)) from e

    asking = gevent.pool.Pool(LOOKUPS)
    try:
        with gevent.Timeout(SECONDS, Unknown(f"no answer about its keys within {SECONDS:g} s")):
            for _ in asking.imap_unordered(ask, keys_of(before)):
                pass
    finally:
        asking.kill()
    return gevent.get_hub().threadpool.apply(_verdict, (message, records))  # type: ignore[no-any-return]


def _verdict(message: bytes, records: dict[bytes, bytes]) -> Status | None:
    try:
        found = dkim.ARC(message).verify(lambda name, timeout=5: records.get(name.lower().rstrip(b".")))[0]
    except Exception:  # dkimpy's own, and those that what is malformed makes it raise
        return "fail"
    return "pass" if found == dkim.CV_Pass else None if found is None else "fail"
