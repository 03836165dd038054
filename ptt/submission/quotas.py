"""Limits of users and domains (``[limits]`` in the git database) as replies and as the queue's meters: pure functions.

The meters are counted by the queue process in the transaction that stores the message: exact for all workers, and kept
over a restart. Recipients count as they are after the expansion of aliases.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from ptt_queue.types import Meter, Over

from ptt.directory.records import Limits
from ptt.message import Note, encode
from ptt.smtp.reply import Reply

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
HELD = "quota"
"""The policy that the note of a message names that was held because of one."""

Pair = tuple[Limits | None, Limits | None]
"""Those of a user, and those of the user's domain."""


def fits(limits: Pair, recipients: int, size: int | None) -> Reply | None:
    """The refusal of one message with so many recipients and octets (None: not known), or None."""
    for one in filter(None, limits):
        if one.max_recipients is not None and recipients > one.max_recipients:
            return Reply(452, "4.5.3", f"at most {one.max_recipients} recipients a message are allowed to this user")
        if one.max_message_bytes is not None and size is not None and size > one.max_message_bytes:
            return Reply(552, "5.3.4", f"at most {one.max_message_bytes} bytes a message are allowed to this user")
    return None


def meters(limits: Pair, user: str, recipients: int, size: int, now: int) -> tuple[list[Meter], Over]:
    """What a message counts. It is held over quota only if all of its limits say so. ``now``: ms since the epoch."""
    found: list[Meter] = []
    hold = True
    for one, owner in zip(limits, (f"user {user}", f"domain {user.rpartition('@')[2]}"), strict=True):
        counted = _counted(one, owner, recipients, size, now) if one is not None else []
        hold = hold and (not counted or one is None or one.over == "hold")
        found += counted
    return found, Over.HOLD if found and hold else Over.REFUSE


def _counted(limits: Limits, owner: str, recipients: int, size: int, now: int) -> list[Meter]:
    wanted = [
        ("messages", 1, limits.messages_per_hour, limits.messages_per_day),
        ("recipients", recipients, limits.recipients_per_hour, limits.recipients_per_day),
        ("bytes", size, limits.bytes_per_hour, limits.bytes_per_day),
    ]
    found = []
    for what, amount, hourly, daily in wanted:
        for limit, window, length in ((hourly, HOUR_MS, "hour"), (daily, DAY_MS, "day")):
            if limit is not None:
                note = encode(Note(now, [], held=HELD)) if limits.over == "hold" else b""
                found.append(Meter(f"{owner}: {what} per {length}", amount, limit, window, note))
    return found


def never(counted: Sequence[Meter]) -> Reply | None:
    """The refusal of a message that alone is more than a quota, which waiting does not change; or None."""
    for meter in counted:
        if meter.amount > meter.limit:
            return Reply(550, "5.7.1", f"quota of {_words(meter)}: this message alone has {meter.amount}")
    return None


def used_up(counted: Sequence[Meter], key: str, until: int) -> tuple[Reply, str]:
    """The refusal because the meter ``key`` has no room until then (ms), and the meter in words."""
    words = next((_words(meter) for meter in counted if meter.key == key), key)
    again = time.strftime("%H:%M UTC", time.gmtime(until / 1000))
    return Reply(452, "4.7.1", f"quota of {words} is used up: try again after {again}"), words


def _words(meter: Meter) -> str:
    owner, _, what = meter.key.partition(": ")
    return f"{meter.limit} {what} for {owner}"
