"""``ptt git``: what is in force, what a commit would change for whom, and every mistake in it.

``validate``, ``plan`` and ``log`` work in a plain clone too, without configuration and service: for the CI of the
repository and for hooks. Exit codes: 0 good, 1 mistakes or failed, 2 wrong usage.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Protocol

import click
import msgspec
import pygit2

from ptt.cli.directory import reported
from ptt.config import Config
from ptt.directory.inspect import (
    ahead_behind,
    changes,
    commit_mistakes,
    history,
    resolve,
    worktree_mistakes,
)
from ptt.directory.reader import read_pointer
from ptt.directory.remote import REMOTE_REF, shown
from ptt.directory.repository import Repository, RepositoryError, disk_bytes
from ptt.directory.schema import Mistake
from ptt.directory.status import Status, read_status

LOGGED_CHANGES = 5  # of one commit in ``ptt git log``; --json has all


class Shared(Protocol):
    """What the ``ptt`` command hands on."""

    @property
    def file(self) -> str: ...
    @property
    def config(self) -> Config: ...


_json_option = click.option("--json", "as_json", is_flag=True, help="JSON")
_repository_option = click.option(
    "--repository", metavar="DIR", help="a clone [the service's repository; without ptt.toml: the clone around us]"
)


@click.group()
def git() -> None:
    """The git database: what is in force, what would change, what is wrong."""


@git.command("validate")
@click.argument("commit", metavar="[COMMIT]", default="")
@click.option("--worktree", metavar="DIR", help="the files in a directory, committed or not")
@_repository_option
@_json_option
@click.pass_obj
def validate(shared: Shared, commit: str, worktree: str | None, repository: str | None, as_json: bool) -> None:
    """Print every mistake of a commit with file and line; exit code 1 if there are any."""
    if worktree and commit:
        raise click.UsageError("COMMIT and --worktree exclude each other")
    with reported():
        if worktree:
            mistakes = worktree_mistakes(worktree)
        else:
            opened = _open(shared, repository)
            mistakes = commit_mistakes(opened, _commit(opened, commit))
    if as_json:
        click.echo(json.dumps([mistake._asdict() for mistake in mistakes], indent=1))
    _report(mistakes, quiet=as_json)
    sys.exit(1 if mistakes else 0)


def _report(mistakes: list[Mistake], quiet: bool) -> None:
    for mistake in [] if quiet else mistakes:
        click.echo(str(mistake))
    click.echo(f"{len(mistakes)} mistakes" if mistakes else "no mistakes", err=True)


@git.command("plan")
@click.argument("span", metavar="[A..B | B]", default="")
@_repository_option
@_json_option
@click.pass_obj
def plan(shared: Shared, span: str, repository: str | None, as_json: bool) -> None:
    """Say what would change for whom between two commits. A: what is in force; B: the branch."""
    with reported():
        opened = _open(shared, repository)
        before, dots, after = span.partition("..")
        if not dots:
            before, after = "", before
        old = resolve(opened, before) if before else _in_force(shared) or _parent(opened, _commit(opened, after))
        new = _commit(opened, after)
        found = changes(opened, old, new)
        mistakes = commit_mistakes(opened, new)
    if as_json:
        wrong = [mistake._asdict() for mistake in mistakes]
        told = {"from": old, "to": new, "changes": msgspec.to_builtins(found), "mistakes": wrong}
        click.echo(json.dumps(told, indent=1))
    else:
        for change in found:
            click.echo(str(change))
        if not found:
            click.echo("nothing changes for anybody")
        if old and not opened.is_ancestor(old, new):
            click.echo(f"{new[:12]} does not contain {old[:12]}: as a rewritten history it would be refused", err=True)
    if mistakes:
        click.echo(f"it would be refused: {mistakes[0]} (ptt git validate {new[:12]} prints all)", err=True)
        sys.exit(1)


@git.command("log")
@click.argument("commit", metavar="[COMMIT]", default="")
@click.option("-n", "most", type=click.IntRange(1, 10_000), default=20, show_default=True, help="commits")
@_repository_option
@_json_option
@click.pass_obj
def log(shared: Shared, commit: str, most: int, repository: str | None, as_json: bool) -> None:
    """The newest commits with what they changed, and which is in force."""
    with reported():
        opened = _open(shared, repository)
        in_force = _in_force(shared)
        for found in history(opened, _commit(opened, commit), most):
            what = changes(opened, found.parent, found.id)
            if as_json:
                row = {**found._asdict(), "in_force": found.id == in_force, "changes": msgspec.to_builtins(what)}
                click.echo(json.dumps(row))
                continue
            mark = "  (in force)" if found.id == in_force else ""
            click.echo(f"{found.id[:12]}  {_time(found.when)}  {found.author}: {found.subject}{mark}")
            for change in what[:LOGGED_CHANGES]:
                click.echo(f"    {change}")
            if len(what) > LOGGED_CHANGES:
                click.echo(f"    and {len(what) - LOGGED_CHANGES} more")


@git.command("status")
@_json_option
@click.pass_obj
def status(shared: Shared, as_json: bool) -> None:
    """What is in force, how the remote stands, and what is wrong."""
    with reported():
        found = _status(shared.config)
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    for key, value in found.items():
        cell = _time(int(value)) if isinstance(value, float) else "-" if value in ("", None) else value
        click.echo(f"{key.replace('_', ' ') + ':':15} {cell}")


def _status(config: Config) -> dict[str, object]:
    settings = config.directory
    repository = Repository(settings.repository, settings.branch)
    pointer = read_pointer(settings.snapshots)
    known = read_status(config.data) or Status()
    tip, remote = repository.tip(), repository.tip(REMOTE_REF) if settings.remote else ""
    ahead, behind = ahead_behind(repository, tip, remote) if tip and remote else (None, None)
    return {
        "in_force": pointer.commit if pointer else "",
        "branch": tip,
        "remote": shown(settings.remote) if settings.remote else "",
        "remote_branch": remote,
        "ahead": ahead,
        "behind": behind,
        "last_fetch": known.last_fetch or None,
        "alarm": known.alarm,
        "fetch_problem": known.fetch_problem,
        "repository": f"{disk_bytes(settings.repository) / (1 << 20):.1f} MiB",
    }


def _open(shared: Shared, directory: str | None) -> Repository:
    """The repository that is meant. Objects of a push that a hook is asked about are found too."""
    if directory is None and os.path.exists(shared.file):
        settings = shared.config.directory
        return Repository(settings.repository, settings.branch)
    found = pygit2.discover_repository(directory or ".")
    if found is None:
        raise RepositoryError(f"{directory or 'this directory'} is no clone, and there is no {shared.file}")
    opened = Repository(found, "main")
    if quarantine := os.environ.get("GIT_QUARANTINE_PATH"):  # git-receive-pack(1): not in the repository yet
        opened.git.odb.add_disk_alternate(quarantine)
    return opened


def _commit(repository: Repository, name: str) -> str:
    """A commit by its name; without one, the service's branch or a clone's HEAD."""
    if name:
        return resolve(repository, name)
    return repository.tip() or resolve(repository, "HEAD")


def _parent(repository: Repository, commit: str) -> str:
    return history(repository, commit, 1)[0].parent


def _in_force(shared: Shared) -> str:
    """The commit in force, where there is a service."""
    pointer = read_pointer(shared.config.directory.snapshots) if os.path.exists(shared.file) else None
    return pointer.commit if pointer else ""


def _time(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(seconds))
