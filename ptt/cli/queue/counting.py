"""``ptt queue stats``: the queue in numbers, by stage and state, by lane and age (as qshape does), and its disk."""

from __future__ import annotations

import heapq
import json
from collections.abc import Sequence
from typing import Any

import click
import msgspec
from ptt_queue.keys import IndexKey
from ptt_queue.offline import Reader, Space
from ptt_queue.types import State, Stats, Suspension

from ptt.cli.queue.group import queue
from ptt.cli.queue.metering import usage
from ptt.cli.queue.rows import clean, envelope_of, stage_name
from ptt.cli.queue.selection import Criteria, found
from ptt.cli.queue.suspending import shown, told
from ptt.cli.queue_access import now_ms, opened
from ptt.message import domain_of

AGES = (5, 10, 20, 40, 80, 160, 320, 640, 1280)  # minutes, as qshape has them; the last column is above all
MAX_METERS = 1000  # of which --json tells; ``ptt queue meters`` has all
MAX_LANES = 50_000  # counted one by one: beyond that the smallest are told together


class Lane(msgspec.Struct):
    """The tasks of a lane in a stage: how many in each state, and in each column of ages."""

    lane: str
    stage: str
    total: int = 0
    ready: int = 0
    delayed: int = 0
    working: int = 0
    held: int = 0
    failed: int = 0
    ages: list[int] = msgspec.field(default_factory=lambda: [0] * (len(AGES) + 1))


class Tally:
    """Counts from the keys of the index alone: no record of a message is read."""

    def __init__(self, now: int) -> None:
        self.now = now
        self.all = Lane("all lanes", "")
        self.stages: dict[str, Lane] = {}
        self.lanes: dict[tuple[int, str], Lane] = {}
        self.others = Lane("other lanes", "")

    def count(self, key: IndexKey, leased: bool) -> None:
        stage = stage_name(key.stage)
        lane = self.lanes.get((key.stage, key.lane))
        if lane is None:
            if len(self.lanes) >= MAX_LANES:
                self._prune()
            lane = self.lanes[key.stage, key.lane] = Lane(key.lane, stage)
        state = "working" if leased else _state(key, self.now)
        minutes = (self.now - int.from_bytes(key.message[:6], "big")) // 60_000
        column = next((n for n, most in enumerate(AGES) if minutes < most), len(AGES))
        for one in (lane, self.all, self.stages.setdefault(stage, Lane("all lanes", stage))):
            one.total += 1
            one.ages[column] += 1
            setattr(one, state, getattr(one, state) + 1)

    def _prune(self) -> None:
        """Half of the lanes, those with least, become others."""
        ranked = sorted(self.lanes.items(), key=lambda item: item[1].total)
        for key, lane in ranked[: len(ranked) // 2]:
            _add(self.others, lane)
            del self.lanes[key]

    def top(self, most: int) -> list[Lane]:
        """The largest lanes, and the rest as one if there is any."""
        ranked = sorted(self.lanes.values(), key=lambda lane: (-lane.total, lane.lane))
        rest = msgspec.structs.replace(self.others, ages=list(self.others.ages))
        for lane in ranked[most:]:
            _add(rest, lane)
        return ranked[:most] + ([rest] if rest.total else [])


def _add(to: Lane, lane: Lane) -> None:
    for name in ("total", "ready", "delayed", "working", "held", "failed"):
        setattr(to, name, getattr(to, name) + getattr(lane, name))
    to.ages = [a + b for a, b in zip(to.ages, lane.ages, strict=True)]


def _state(key: IndexKey, now: int) -> str:
    if key.state is State.WAITING:
        return "ready" if key.due <= now else "delayed"
    return key.state.name.lower()


def tally(reader: Reader, now: int, senders: bool = False) -> Tally:
    """``senders``: by the domains of the senders in place of lanes; for that all messages' records are read."""
    counted = Tally(now)
    for match in found(reader, Criteria(), now) if senders else ():
        entry = match.entry
        sender = domain_of(envelope_of(entry).sender) or "<>"
        place = (entry.stage, entry.state, sender, entry.priority, entry.due, entry.message, entry.number)
        counted.count(IndexKey(*place), entry.leased)
    if senders:
        return counted
    for key, leased in reader.walk():
        counted.count(key, leased)
    return counted


@queue.command()
@click.option("--lanes", default=20, type=click.IntRange(0), show_default=True, help="so many of the largest lanes")
@click.option("--senders", is_flag=True, help="count by the senders' domains; reads all messages' records")
@click.option("--json", "as_json", is_flag=True, help="one JSON object")
@click.pass_obj
def stats(obj: Any, lanes: int, senders: bool, as_json: bool) -> None:
    """The queue in numbers: tasks by stage, state, lane and age; disk and commits."""
    with opened(obj.config) as opening:
        counted = tally(opening.reader, now_ms(), senders)
        space, process = opening.reader.space(), opening.stats()
        waiting = opening.reader.suspended(now_ms())
        meters = largest(opening.reader, now_ms()) if as_json else []
    if as_json:
        click.echo(json.dumps(as_builtins(counted, lanes, space, process, meters, waiting)))
        return
    for text in (*table([*counted.stages.values(), counted.all], counted.top(lanes)), *numbers(space, process)):
        click.echo(text)
    for what in waiting[:lanes]:
        click.echo(f"suspended: {told(what)}")
    if len(waiting) > lanes:
        click.echo(f"{len(waiting)} destinations are suspended: see ptt queue suspended")


def largest(reader: Reader, now: int) -> list[dict[str, Any]]:
    """The counters whose windows have not ended that are nearest to their limits."""
    current = (m for m in reader.meters() if m.until > now)
    return [
        msgspec.to_builtins(usage(m)) for m in heapq.nlargest(MAX_METERS, current, lambda m: m.used / (m.limit or 1))
    ]


def as_builtins(
    counted: Tally,
    lanes: int,
    space: Space,
    process: Stats | None,
    meters: list[dict[str, Any]],
    suspended: Sequence[Suspension],
) -> dict[str, Any]:
    return {
        "ages_minutes": list(AGES),
        "all": msgspec.to_builtins(counted.all),
        "stages": [msgspec.to_builtins(lane) for lane in counted.stages.values()],
        "lanes": [msgspec.to_builtins(lane) for lane in counted.top(lanes)],
        "disk": msgspec.to_builtins(space),
        "meters": meters,
        "suspended": [msgspec.to_builtins(shown(what)) for what in suspended],
        "process": msgspec.to_builtins(process) if process else None,
    }


def table(sums: list[Lane], lanes: list[Lane]) -> list[str]:
    """Two tables: by state, and by age in minutes."""
    states = ("total", "ready", "delayed", "working", "held", "failed")
    rows = [*lanes, *sums]
    width = min(48, max(len(clean(lane.lane)) for lane in rows))
    lines = [f"{'':<{width}}  {'stage':<8}" + "".join(f"{name:>9}" for name in states)]
    for lane in rows:
        counts = "".join(f"{getattr(lane, name):>9}" for name in states)
        lines.append(f"{clean(lane.lane)[:width]:<{width}}  {lane.stage:<8}{counts}")
    heads = [*(f"<{most}" for most in AGES), f"{AGES[-1]}+"]
    lines += ["", f"{'age in minutes':<{width}}  {'stage':<8}" + "".join(f"{head:>8}" for head in heads)]
    for lane in rows:
        ages = "".join(f"{count:>8}" for count in lane.ages)
        lines.append(f"{clean(lane.lane)[:width]:<{width}}  {lane.stage:<8}{ages}")
    return [*lines, ""]


def numbers(space: Space, process: Stats | None) -> list[str]:
    lines = [
        (
            f"{space.messages} messages; {_mib(space.used)} in use of a file of {_mib(space.file)}, "
            f"{_mib(max(0, space.file - space.used))} free in it; {_mib(space.free)} free on its disk"
        ),
    ]
    if space.damaged:
        lines.append(f"{space.damaged} tasks set aside as damaged: see ptt queue quarantine")
    if process is None:
        return [*lines, "the service is stopped"]
    mean = 1000 * process.commit_seconds / process.commits if process.commits else 0.0
    lines.append(f"{process.commits} commits, {mean:.1f} ms at the mean; {process.clients} clients")
    lines.append(f"{process.body_bytes} bytes of bodies")
    if process.refusing:
        lines.append(f"takes no mail for now: above its mark of {process.refusing}")
    return lines


def _mib(count: int) -> str:
    return f"{count / 1048576:.1f} MiB"
