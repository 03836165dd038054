"""``ptt dns plan|apply|check``: the records that sending mail wants: what is there, what would be, what is wrong."""

from __future__ import annotations

import json
import sys
from typing import Any, Protocol

import click
import msgspec

from ptt.config import Config
from ptt.dkim.keys import record_strings
from ptt.dns.records import Records, Row

FAILED = 1


class Shared(Protocol):
    """What the ``ptt`` command hands on."""

    @property
    def config(self) -> Config: ...


@click.group()
def dns() -> None:
    """See, write and check the records in DNS: DKIM keys, SPF, DMARC, and this host's own name."""


@dns.command()
@click.option("--json", "as_json", is_flag=True, help="one JSON array")
@click.pass_obj
def plan(shared: Shared, as_json: bool) -> None:
    """What is there at the primary servers, and what `apply` would do. Writes nothing."""
    rows = _records(shared).plan()
    _show(rows, as_json, "to write: ptt dns apply")
    if any(row.action == "unknown" for row in rows):
        sys.exit(FAILED)


@dns.command()
@click.option("--json", "as_json", is_flag=True, help="one JSON array")
@click.pass_obj
def apply(shared: Shared, as_json: bool) -> None:
    """Write what is missing or an old one of ours, where `dns.zones` says that it is ours to write."""
    rows = _records(shared).apply()
    _show(rows, as_json, "written")
    if any(row.action == "unknown" for row in rows):
        sys.exit(FAILED)


@dns.command()
@click.option("--json", "as_json", is_flag=True, help="one JSON array")
@click.pass_obj
def check(shared: Shared, as_json: bool) -> None:
    """Ask every authoritative server and the resolver for each record; and for this host's address and PTR."""
    from ptt.cli.check_dns import host

    found: list[dict[str, Any]] = []
    for want, faults in _records(shared).check():
        found.append({"what": want.kind, "name": want.name, "level": "fail" if faults else "ok", "why": faults})
    for one in host(shared.config):
        found.append({"what": one.what, "name": shared.config.hostname, "level": one.level, "why": [one.text]})
    if as_json:
        click.echo(json.dumps(found))
    for row in () if as_json else found:
        click.echo(
            f"{row['level']:4}  {row['what']:8}  {row['name']}" + "".join(f"\n      {why}" for why in row["why"])
        )
    if any(row["level"] == "fail" for row in found):
        sys.exit(FAILED)


def _records(shared: Shared) -> Records:
    if not shared.config.signs:
        raise click.ClickException(f"role {shared.config.role} has no keys; ask on the signer's host")
    return Records(shared.config)


def _show(rows: list[Row], as_json: bool, written: str) -> None:
    if as_json:
        click.echo(json.dumps([msgspec.to_builtins(row) for row in rows]))
        return
    for row in rows:
        click.echo("\n".join(_lines(row)))
    if rows:
        right = sum(row.action == "none" for row in rows)
        ours = sum(row.action in ("add", "replace") for row in rows)
        unknown = sum(row.action == "unknown" for row in rows)
        left = len(rows) - right - ours - unknown
        end = f", {unknown} not known: see why" if unknown else ""
        click.echo(f"{right} right, {ours} {written}, {left} left to you (!){end}")
    else:
        click.echo("no keys, so no domains: ptt dkim keygen makes one", err=True)


def _lines(row: Row) -> list[str]:
    """A record as a diff: what is there, what would be; and why nothing is done."""
    if row.action == "none":
        return [f"  {row.name} TXT {_short(text)}" for text in row.there]
    there = [f"{'-' if row.action == 'replace' else ' '} {row.name} TXT {_short(text)}" for text in row.there]
    if row.action in ("add", "replace"):
        return [*there, f"+ {row.name} TXT {_short(row.value)}"]
    meaning = {
        "foreign": "somebody else wrote what is there, so it stays",
        "not ours": f'dns.zones of {row.zone} has no "{row.kind}" in manage' if row.zone else "in no zone of dns.zones",
        "unknown": "nothing is known of it",
    }[row.action]
    ask = row.action != "unknown" and (row.kind == "dkim" or not row.there)  # a second policy would void the first
    proposal = [f"  put it there yourself: {row.name}. TXT {_quoted(row.value)}"] if ask else []  # in full, to copy
    return [*there, f"! {row.name} TXT: {row.why} ({meaning})", *proposal]


def _quoted(text: str) -> str:
    return " ".join(f'"{part}"' for part in record_strings(text))


def _short(text: str) -> str:
    """A key is longer than a line; its beginning tells it from another."""
    return f'"{text}"' if len(text) <= 100 else f'"{text[:96]}..."'
