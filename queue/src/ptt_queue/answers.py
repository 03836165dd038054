"""What a client's record keeps of a put whose answer was not the usual one, so that it can be given again. Pure."""

from __future__ import annotations

from ptt_queue.protocol import PutAnswer
from ptt_queue.types import Refusal

HELD = "held"  # stored, but held: a meter had no room


def remembered(answer: PutAnswer) -> str:
    """An unusual answer, as the client's record keeps it."""
    name = answer.refused.value if answer.refused else HELD
    return f"{name} {answer.until} {answer.meter}" if answer.meter else name


def recalled(was: str | None, first: bytes) -> PutAnswer:
    """The answer to a put that was executed before, without its leases."""
    name, _, rest = (was or "").partition(" ")
    until, _, meter = rest.partition(" ")
    refused = Refusal(name) if name and name != HELD else None
    return PutAnswer(refused, [], b"" if refused else first, meter, int(until or 0))
