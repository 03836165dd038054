"""When a deferred delivery is tried again: exponential back-off with jitter, until the message expires. Pure."""

from __future__ import annotations

import random

from ptt.config import Retry

JITTER = 0.15
"""Share of the delay by which it varies either way: what was deferred together does not come back together."""


def delay_seconds(retry: Retry, attempts: int) -> float:
    """How long to wait after a failed attempt that ``attempts`` others preceded, without jitter."""
    try:
        return min(retry.ceiling_seconds, retry.first_seconds * retry.factor**attempts)
    except OverflowError:
        return retry.ceiling_seconds


def next_attempt(retry: Retry, attempts: int, now: int, expires: int, rng: random.Random) -> int:
    """When to try again, in ms since the epoch, after a failed attempt that ``attempts`` others preceded.

    0: never, the message has expired (``expires`` 0: it never does). The last attempt is at the moment of expiry,
    not up to a delay before it.
    """
    if 0 < expires <= now:
        return 0
    delay = delay_seconds(retry, attempts) * rng.uniform(1 - JITTER, 1 + JITTER)
    due = now + max(1, int(delay * 1000))
    return min(due, expires) if expires > 0 else due
