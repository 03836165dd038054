"""What an attempt says about its site: less at a time, nobody there, or all is well. Pure.

The worker proposes; the queue process holds the width of the site for the whole pool (``ptt_queue.width``): it doubles
with each round of good deliveries until it has met with trouble, then it grows by one, halves with trouble, and is one
message at a time where nobody answers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from ptt.relay.classify import classify
from ptt.relay.outcome import Deferred, Outcome

RATE_PAUSE_SECONDS = 60.0
"""A peer that says "too fast" gets nothing for a minute, from nobody: what rates are mostly counted over."""

PROBE_SECONDS = 60.0
"""After an attempt that reached nobody; doubled with each in a row (by the queue process), to 16 minutes at most."""

SLOW_SECONDS = 15.0
"""An attempt that took longer says nothing for more of them, though it succeeded: a slow site gets no more places."""

_SITE = frozenset({"rate", "reputation", "policy", "system", "network", "other"})
"""Classes of temporary refusals that are about us or the site. The others are about the recipient."""


class Verdict(NamedTuple):
    """``trouble``: "" it went well, "none" neither well nor badly. ``pause``: seconds for which nothing goes there."""

    trouble: Literal["", "none", "some", "dead"]
    pause: float = 0.0


def verdict(outcomes: Iterable[Outcome], seconds: float, last: bool = False) -> Verdict:
    """What the outcomes of one attempt say. ``last``: the message has expired, so the next one need not wait for it."""
    all_of = list(outcomes)
    deferred = [o for o in all_of if isinstance(o, Deferred) and not o.seven_bit]
    if deferred and all(o.phase == "connect" for o in all_of):
        return Verdict("dead", 0.0 if last else PROBE_SECONDS)
    about = {classify(o) for o in deferred if o.phase not in ("DNS", "route", "limit")}
    if "rate" in about:
        return Verdict("some", RATE_PAUSE_SECONDS)
    if about & _SITE:
        return Verdict("some")
    return Verdict("none" if deferred or seconds > SLOW_SECONDS else "")
