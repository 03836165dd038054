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


QUOTA_FACTOR = 4.0
"""A full mailbox is not emptied in minutes: four times the delay, up to the ceiling."""

SOON = frozenset({"greylisting", "rate"})
"""Classes after which a later attempt is not put off longer and longer: greylisting ends minutes after the first one
(RFC 6647 2.2), and for a rate the whole site is paused."""


def delay_for(retry: Retry, attempts: int, about: str) -> float:
    """The delay after a reply of this class (``ptt.relay.classify``), without jitter."""
    if about in SOON:
        return delay_seconds(retry, min(attempts, 1))
    delay = delay_seconds(retry, attempts)
    return min(retry.ceiling_seconds, delay * QUOTA_FACTOR) if about == "quota" else delay


def next_attempt(retry: Retry, attempts: int, now: int, expires: int, rng: random.Random, about: str = "") -> int:
    """When to try again, in ms since the epoch, after a failed attempt that ``attempts`` others preceded.

    0: never, the message has expired (``expires`` 0: it never does). The last attempt is at the moment of expiry,
    not up to a delay before it. ``about``: the class of the reply.
    """
    if 0 < expires <= now:
        return 0
    delay = delay_for(retry, attempts, about) * rng.uniform(1 - JITTER, 1 + JITTER)
    due = now + max(1, int(delay * 1000))
    return min(due, expires) if expires > 0 else due
