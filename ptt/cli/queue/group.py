"""The group that the commands join, and what all of them need."""

from __future__ import annotations

import re
from collections.abc import Sequence

import click

from ptt.message import parse_id

_UNITS = {"": 1000, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


@click.group()
def queue() -> None:
    """Look at the mail that waits; try, hold, bounce, delete or move it."""


def duration(_context: click.Context, _parameter: click.Parameter, value: str | None) -> int | None:
    """ "90", "15m", "2h", "3d" -> milliseconds. Raises click.BadParameter."""
    if value is None:
        return None
    found = re.fullmatch(r"([0-9]{1,9})([smhd]?)", value)
    if not found:
        raise click.BadParameter(f"{value!r} is no duration: write 90, 15m, 2h or 3d")
    return int(found[1]) * _UNITS[found[2]]


def parsed(ids: Sequence[str]) -> list[bytes]:
    """Message ids from the command line; what is none is wrong usage."""
    try:
        return [parse_id(text) for text in ids]
    except ValueError as e:
        raise click.BadParameter(f"{e}: an id has 20 characters, as the 250 and the log show it") from e


def plural(count: int, noun: str) -> str:
    """ "1 task", "2 tasks"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
