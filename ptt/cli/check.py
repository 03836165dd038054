"""``ptt check``: is the configuration valid, and is the world around it ready to send. Changes nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import click
import msgspec

from ptt.cli.check_certificates import certificates
from ptt.cli.check_dns import check as dns
from ptt.cli.check_files import disk, keys, ownership, repository, users
from ptt.cli.check_host import descriptors, ports
from ptt.cli.check_secrets import secrets
from ptt.cli.findings import Finding, fail, ok
from ptt.config import Config

CHECKS: tuple[Callable[[Config], Iterator[Finding]], ...] = (
    users,
    ownership,
    certificates,
    keys,
    secrets,
    disk,
    descriptors,
    ports,
    repository,
    dns,
)

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="one JSON object a line")
@click.pass_obj
def check(obj: Any, as_json: bool) -> None:
    """Is this configuration valid, and is the world around it (DNS, ports, certificates, disk, users) ready to send?"""
    config = obj.config
    worst = 0
    for finding in findings(obj.file, config):
        worst = max(worst, int(finding.level == "fail"))
        if as_json:
            click.echo(msgspec.json.encode(finding))
            continue
        click.echo(f"{click.style(f'{finding.level:4}', fg=_COLOURS[finding.level])}  {finding.what}: {finding.text}")
        if finding.advice:
            click.echo(f"      -> {finding.advice}")
    sys.exit(worst)


def findings(file: str, config: Config) -> Iterator[Finding]:
    """Everything, as it is found. A check that fails unexpectedly is a finding, not the end."""
    yield ok("configuration", f"{file} is valid; role {config.role}, {config.workers} workers")
    for one in CHECKS:
        try:
            yield from one(config)
        except Exception as e:  # whatever a library raises on what it finds here
            yield fail(
                one.__name__, f"could not be checked: {type(e).__name__}: {e}", "run it as root, or see the text"
            )
