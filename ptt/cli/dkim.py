"""``ptt dkim keygen|publish|rotate|status``: keys and their records. No command here opens a private key.

``keygen`` starts the key process for that one task; ``publish`` brings public keys into DNS now, which the running
service does by itself; ``rotate`` asks the running service; ``status`` shows what it last saw, and rotations.
"""

from __future__ import annotations

import datetime
import json
import os
import stat
import subprocess
import sys
from typing import BinaryIO, Protocol, get_args

import click
import msgspec
from rich.console import Console
from rich.table import Column, Table

from ptt.config import Config
from ptt.dkim.keys import record_name, record_strings
from ptt.service.privileges import UserError, account_of
from ptt.signer.keystore import KeyRefused, key_path, refusal
from ptt.signer.rotation import STEPS, Rotation, book_path, read_book
from ptt.signer.state import KeyAlgorithm, KeyState, PublicKey, all_public_keys, public_keys, read_state, state_path

FAILED = 1
CONTROL_SECONDS = 10.0


class Shared(Protocol):
    """What the ``ptt`` command hands on: the configuration and its file."""

    @property
    def config(self) -> Config: ...
    @property
    def file(self) -> str: ...


class Row(msgspec.Struct):
    """One key as ``status`` shows it. ``file``: "ok" or what is wrong with the private key's file."""

    domain: str
    selector: str
    algorithm: str
    file: str
    served: bool
    why: str
    checked: int  # ms since the epoch; 0: never
    record: str
    retired: bool = False  # still served, signs no more
    rotation: Rotation | None = None  # of the domain, while one is under way


@click.group()
def dkim() -> None:
    """Make DKIM keys, publish and rotate them, and see which of them DNS serves."""


@dkim.command()
@click.option("--domain", required=True, help="the signing domain (d=)")
@click.option("--selector", help="the selector (s=); default: s and today's date")
@click.option("--algorithm", type=click.Choice(get_args(KeyAlgorithm)), default="rsa2048", show_default=True)
@click.option("--derive", is_flag=True, help="from a passphrase instead of at random: docs/signing.md says the risk")
@click.option("--passphrase-file", type=click.File("rb"), help="its first line; default: the terminal is asked")
@click.option("--json", "as_json", is_flag=True, help="one JSON object")
@click.pass_obj
def keygen(
    shared: Shared,
    domain: str,
    selector: str | None,
    algorithm: str,
    derive: bool,
    passphrase_file: BinaryIO | None,
    as_json: bool,
) -> None:
    """Make a key pair. The private key stays with the key process; the record for DNS is printed."""
    if passphrase_file is not None:
        _check_passphrase_file(passphrase_file, derive)
    if not shared.config.signs:
        raise click.ClickException(f"role {shared.config.role} has no key process; make keys on the signer's host")
    domain = domain.lower()
    selector = selector or f"s{datetime.datetime.now(datetime.UTC):%Y%m%d}"
    command = [sys.executable, "-P", "-m", "ptt.signer.keyprocess", "--config", shared.file]
    command += ["--generate", domain, selector, "--algorithm", algorithm, *(["--derive"] if derive else [])]
    # The key process reads the passphrase, from the file or the terminal: this command never has it.
    made = subprocess.run(command, stdin=passphrase_file, stdout=subprocess.PIPE, text=True, check=False)
    if made.returncode:
        sys.exit(made.returncode)
    name, record = record_name(domain, selector), made.stdout.strip()
    if as_json:
        found = {"domain": domain, "selector": selector, "algorithm": algorithm, "name": name, "record": record}
        click.echo(json.dumps(found))
        return
    strings = "\n    ".join(f'"{part}"' for part in record_strings(record))
    click.echo(f"{name}. IN TXT (\n    {strings} )")


def _check_passphrase_file(file: BinaryIO, derive: bool) -> None:
    if not derive:
        raise click.UsageError("--passphrase-file goes with --derive")
    found = os.fstat(file.fileno())
    if stat.S_ISREG(found.st_mode) and stat.S_IMODE(found.st_mode) & 0o077:
        raise click.ClickException(f"{file.name}: others may read it; chmod 600 {file.name}")


@dkim.command()
@click.option("--domain", help="only this domain's keys")
@click.option("--json", "as_json", is_flag=True, help="one JSON array")
@click.pass_obj
def publish(shared: Shared, domain: str | None, as_json: bool) -> None:
    """Bring the public keys into DNS where the zone is ours, and say what is served. Fails if one is not."""
    from ptt.dns.publish import publish_once

    results = publish_once(shared.config, domain and domain.lower())
    if as_json:
        rows = [
            {"domain": r.key.domain, "selector": r.key.selector, "served": r.served, "updated": r.updated, "why": r.why}
            for r in results
        ]
        click.echo(json.dumps(rows))
    else:
        for result in results:
            name = record_name(result.key.domain, result.key.selector)
            how = ("written" if result.updated else "served") if result.served else "not served"
            click.echo(f"{name}: {how}" + (f" ({result.why})" if result.why else ""))
        if not results:
            click.echo("no keys" + (f" for {domain}" if domain else "") + ": ptt dkim keygen makes one", err=True)
    if not results or not all(result.served for result in results):
        sys.exit(FAILED)


@dkim.command()
@click.option("--domain", help="only this domain's keys")
@click.option("--json", "as_json", is_flag=True, help="one JSON array")
@click.pass_obj
def status(shared: Shared, domain: str | None, as_json: bool) -> None:
    """Every key, its file, and whether DNS serves it, as the running service last saw."""
    config = shared.config
    public = config.signer.public
    keys = public_keys(public, domain.lower()) if domain else all_public_keys(public)
    states = {(s.domain, s.selector): s for s in read_state(state_path(config))}
    rotations = {rotation.domain: rotation for rotation in _rotations(config)}
    rows = [_row(config, key, states.get((key.domain, key.selector)), rotations.get(key.domain)) for key in keys]
    if as_json:
        click.echo(json.dumps([msgspec.to_builtins(row) for row in rows]))
        return
    table = Table(
        "domain", Column("selector", no_wrap=True, overflow="fold"), "algorithm", "key file", "in DNS", "checked"
    )
    for row in rows:
        checked = _when(row.checked)
        shown = ("retired" if row.retired else "served") if row.served else row.why
        table.add_row(row.domain, row.selector, row.algorithm, row.file, shown, checked)
    console = Console()
    console.print(table)
    for rotation in rotations.values():
        if domain in (None, rotation.domain):
            console.print(_described(rotation), highlight=False, markup=False, soft_wrap=True)


@dkim.command()
@click.option("--domain", required=True, help="the signing domain (d=)")
@click.option("--now", is_flag=True, help="the keys are compromised: out of DNS at once, waiting mail is signed again")
@click.option("--json", "as_json", is_flag=True, help="one JSON object")
@click.pass_obj
def rotate(shared: Shared, domain: str, now: bool, as_json: bool) -> None:
    """Replace all keys of a domain by new ones, step by step; the running service does it."""
    from ptt.net.rpc import RpcClient, RpcError, RpcUnavailable

    client = RpcClient(os.path.join(shared.config.run, "control.sock"), CONTROL_SECONDS)
    try:
        rotation = msgspec.convert(client.call("rotate", [domain.lower(), now]), Rotation)
    except RpcUnavailable as e:
        raise click.ClickException(f"the service does not answer ({e}); only a running one rotates keys") from e
    except RpcError as e:
        raise click.ClickException(str(e)) from e
    finally:
        client.close()
    click.echo(json.dumps(msgspec.to_builtins(rotation)) if as_json else _described(rotation))


def _rotations(config: Config) -> list[Rotation]:
    """What is under way; [] where the caller may not look into control's directory."""
    try:
        return list(read_book(book_path(config)).rotations)
    except (OSError, ValueError) as e:
        click.echo(f"rotations cannot be shown: {e}", err=True)
        return []


def _described(rotation: Rotation) -> str:
    """A rotation in lines: from what to what, its steps with their times, what it waits for."""
    why = " (compromise)" if rotation.now else ""
    old, new = ", ".join(rotation.old), ", ".join(key.selector for key in rotation.new)
    lines = [f"rotation of {rotation.domain}{why}: {old} -> {new}"]
    lines += [f"  {step:8}  since {_when(rotation.times[step])}" for step in STEPS if step in rotation.times]
    if rotation.wait:
        until = f", until {_when(rotation.due)}" if rotation.due else ""
        lines.append(f"  waits for {rotation.wait}{until}")
    return "\n".join(lines)


def _row(config: Config, key: PublicKey, state: KeyState | None, rotation: Rotation | None) -> Row:
    why = "not checked yet"
    if state is not None and state.record != key.record:
        state, why = None, "another key was checked under this name"
    return Row(
        key.domain,
        key.selector,
        key.algorithm,
        _file(config, key),
        state is not None and state.served,
        why if state is None else state.why,
        0 if state is None else state.checked,
        key.record,
        state is not None and state.retired,
        rotation,
    )


def _file(config: Config, key: PublicKey) -> str:
    """What the status of the private key's file tells; the file is not opened."""
    try:
        found = os.lstat(key_path(config.signer.keys, key.domain, key.selector))
        return refusal(found, account_of("signer", config).uid) or "ok"
    except PermissionError:
        return "only the key process's user and root can see it"
    except OSError as e:
        return e.strerror or "cannot be seen"
    except (KeyRefused, UserError) as e:
        return str(e)


def _when(ms: int) -> str:
    if not ms:
        return "never"
    return datetime.datetime.fromtimestamp(ms / 1000, datetime.UTC).strftime("%Y-%m-%d %H:%M:%SZ")
