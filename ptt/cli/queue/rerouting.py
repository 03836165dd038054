"""``ptt queue requeue``: recipients into the lanes that the configuration gives them now, or into one that is named."""

from __future__ import annotations

from typing import Any

import click
import msgspec
from ptt_queue.keys import lane_bytes
from ptt_queue.types import Item, NewTask, Settle

from ptt.cli.queue.acting import Done, check_choice, choosing, chosen, count, remaining, report
from ptt.cli.queue.group import queue
from ptt.cli.queue.rows import envelope_of, recipients_of
from ptt.cli.queue.selection import Criteria, Match
from ptt.cli.queue_access import opened
from ptt.config import Config
from ptt.message import Stage
from ptt.plan import lane_of


@queue.command(help="Put these recipients into the lanes that the configuration gives them now (stage deliver).")
@choosing
@click.option("--to", default="", metavar="LANE", help="into this lane: another domain's servers, or hop:HOST:PORT")
@click.pass_obj
def requeue(obj: Any, ids: tuple[str, ...], wanted: Criteria, everything: bool, to: str, as_json: bool) -> None:
    named = check_choice(ids, wanted, everything)
    try:
        lane_bytes(to)
    except ValueError as e:
        raise click.BadParameter(str(e)) from e
    done = Done()
    with opened(obj.config, changing=True) as opening:
        for match in chosen(opening.reader, named, wanted, done):
            if moved := rerouted(match, obj.config, to):
                entry = match.entry
                settle = Settle(entry.message, entry.number, [*moved, *remaining(match)])
                count(opening.changes.amend(settle), done)
    report("requeue", done, as_json)


def rerouted(match: Match, config: Config, to: str) -> list[NewTask]:
    """The tasks of the recipients that match, one for each lane, else as they were; [] when nothing changes."""
    entry, lanes = match.entry, dict[str, list[Item]]()
    bounce, recipients = envelope_of(entry).bounce, recipients_of(entry)
    for item in entry.items:
        if item.id in match.items:
            lane = to.lower() or lane_of(recipients[item.id].address, config, bounce)
            lanes.setdefault(lane, []).append(item)
    if entry.stage != Stage.DELIVER or set(lanes) == {entry.lane} or "" in lanes:
        return []
    same = NewTask(
        entry.stage,
        entry.lane,
        [],
        entry.due,
        state=entry.state,
        attempts=entry.attempts,
        note=entry.note,
        maybe=entry.maybe,
    )
    return [msgspec.structs.replace(same, lane=lane, items=items) for lane, items in lanes.items()]
