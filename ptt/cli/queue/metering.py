"""``ptt queue meters``: the counters of the windows that have not ended, beside the service."""

from __future__ import annotations

from typing import Any

import click
import msgspec
from ptt_queue.types import Metered

from ptt.cli.queue.group import plural, queue
from ptt.cli.queue.rows import clean, iso
from ptt.cli.queue_access import now_ms, opened


class Usage(msgspec.Struct):
    """A counter, for ``--json``."""

    key: str
    used: int
    limit: int
    window_ms: int
    until: str


def usage(found: Metered) -> Usage:
    return Usage(found.key, found.used, found.limit, found.window, iso(found.until))


def told(found: Metered) -> str:
    """A counter for people."""
    share = f"{100 * found.used // found.limit}%" if found.limit else "-"
    return f"{found.used:>12} of {found.limit:<12} {share:>5}  until {iso(found.until)}  {clean(found.key)}"


@queue.command()
@click.argument("prefix", default="", metavar="[KEY-PREFIX]")
@click.option("--json", "as_json", is_flag=True, help="one JSON object a line")
@click.pass_obj
def meters(obj: Any, prefix: str, as_json: bool) -> None:
    """What has been used of quotas, in the windows that have not ended; of all, or of those whose keys begin so."""
    count = 0
    with opened(obj.config) as opening:
        now = now_ms()
        for found in opening.reader.meters(prefix):
            if found.until > now:
                click.echo(msgspec.json.encode(usage(found)).decode() if as_json else told(found))
                count += 1
    if not as_json:
        click.echo(plural(count, "counter") if count else "nothing is counted")
