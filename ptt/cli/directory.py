"""``ptt user``, ``ptt alias``, ``ptt domain``: each change is one commit to the git database.

A change that breaks a rule is refused before it is committed, with the file and line it would be wrong at. The service
need not run; if it does, it follows within a second. Exit codes: 0 done, 1 failed, 2 wrong usage.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Protocol

import click

from ptt.config import Config
from ptt.directory import names
from ptt.directory.compiler import Refused
from ptt.directory.edit import Edit, EditError, Tree, added, apply, changed, removed
from ptt.directory.passwords import generate_password, hash_password, scram_verifier
from ptt.directory.records import Alias, Domain, Record, User
from ptt.directory.repository import Author, Repository, RepositoryError
from ptt.directory.schema import FLAT, Kind, Mistake, Place, parse, path_of, place_of
from ptt.smtp.saslprep import MAX_PASSWORD_BYTES, prepare


class Shared(Protocol):
    """What the ``ptt`` command hands on."""

    account: int  # user id of who runs it

    @property
    def config(self) -> Config: ...


@click.group()
def user() -> None:
    """Users who may submit mail."""


@click.group()
def alias() -> None:
    """Addresses that stand for others."""


@click.group()
def domain() -> None:
    """Domains that are ours."""


# -- user --------------------------------------------------------------------------------------------------------

_stdin_option = click.option("--password-stdin", is_flag=True, help="read the password, one line, from standard input")
_generate_option = click.option("--generate", is_flag=True, help="make a random password and print it once")
json_option = click.option("--json", "as_json", is_flag=True, help="one JSON array")


@user.command("add")
@click.argument("name", metavar="NAME@DOMAIN")
@_stdin_option
@_generate_option
@click.option("--address", "addresses", multiple=True, metavar="ADDRESS", help='further sender; "*@DOMAIN" for all')
@click.pass_obj
def user_add(shared: Shared, name: str, password_stdin: bool, generate: bool, addresses: tuple[str, ...]) -> None:
    """Add a user."""
    place = place_named("user", name)
    password = _password(password_stdin, generate)
    record = User(hash_password(password), scram_verifier(password), False, tuple(names.fold(a) for a in addresses))
    commit_edit(shared, lambda tree: added(tree, place, record), f"user: add {place.name}", f"added user {place.name}")
    _show_generated(password, generate)


@user.command("passwd")
@click.argument("name", metavar="NAME@DOMAIN")
@_stdin_option
@_generate_option
@click.pass_obj
def user_passwd(shared: Shared, name: str, password_stdin: bool, generate: bool) -> None:
    """Change a user's password."""
    place = place_named("user", name)
    password = _password(password_stdin, generate)
    keys = {"password": hash_password(password), "scram": scram_verifier(password)}
    edit: Edit = lambda tree: changed(tree, place, **keys)  # noqa: E731
    commit_edit(shared, edit, f"user: change the password of {place.name}", f"changed the password of {place.name}")
    _show_generated(password, generate)


@user.command("address")
@click.argument("name", metavar="NAME@DOMAIN")
@click.option("--add", "more", multiple=True, metavar="ADDRESS", help='further sender; "*@DOMAIN" for all')
@click.option("--remove", "less", multiple=True, metavar="ADDRESS", help="a sender no more")
@click.pass_obj
def user_address(shared: Shared, name: str, more: tuple[str, ...], less: tuple[str, ...]) -> None:
    """Change the senders that a user may use beside the own address."""
    if not more and not less:
        raise click.UsageError("say what: --add ADDRESS, --remove ADDRESS")
    place = place_named("user", name)
    added_now, removed_now = ([names.fold(address) for address in given] for given in (more, less))

    def edit(tree: Tree) -> dict[str, bytes | None]:
        record = record_at(tree, place)
        before = [names.fold(address) for address in record.addresses] if isinstance(record, User) else []
        if missing := [address for address in removed_now if address not in before]:
            raise EditError(f"{place.name} has no address {', '.join(missing)}")
        left = [address for address in dict.fromkeys((*before, *added_now)) if address not in removed_now]
        return changed(tree, place, addresses=left or None)

    commit_edit(shared, edit, f"user: addresses of {place.name}", f"changed the addresses of {place.name}")


@user.command("disable")
@click.argument("name", metavar="NAME@DOMAIN")
@click.pass_obj
def user_disable(shared: Shared, name: str) -> None:
    """Let a user submit no more."""
    place = place_named("user", name)
    edit: Edit = lambda tree: changed(tree, place, disabled=True)  # noqa: E731
    commit_edit(shared, edit, f"user: disable {place.name}", f"disabled {place.name}")


@user.command("enable")
@click.argument("name", metavar="NAME@DOMAIN")
@click.pass_obj
def user_enable(shared: Shared, name: str) -> None:
    """Let a disabled user submit again."""
    place = place_named("user", name)
    edit: Edit = lambda tree: changed(tree, place, disabled=None)  # noqa: E731
    commit_edit(shared, edit, f"user: enable {place.name}", f"enabled {place.name}")


@user.command("remove")
@click.argument("name", metavar="NAME@DOMAIN")
@click.pass_obj
def user_remove(shared: Shared, name: str) -> None:
    """Remove a user."""
    place = place_named("user", name)
    commit_edit(shared, lambda tree: removed(tree, place), f"user: remove {place.name}", f"removed user {place.name}")


@user.command("list")
@json_option
@click.pass_obj
def user_list(shared: Shared, as_json: bool) -> None:
    """List all users. Verifiers are not shown."""

    def row(name: str, record: Record) -> dict[str, object]:
        assert isinstance(record, User)  # noqa: S101
        state = "disabled" if record.disabled else "enabled" if record.password else "no password"
        return {"name": name, "state": state, "addresses": list(record.addresses)}

    list_records(shared, "user", row, as_json)


# -- alias -------------------------------------------------------------------------------------------------------


@alias.command("add")
@click.argument("name", metavar="NAME@DOMAIN")
@click.argument("targets", metavar="TARGET...", nargs=-1, required=True)
@click.pass_obj
def alias_add(shared: Shared, name: str, targets: tuple[str, ...]) -> None:
    """Add an alias, or further targets to one."""
    place = place_named("alias", name)
    for target in targets:
        if wrong := names.target_mistake(target):
            raise click.UsageError(wrong)

    def edit(tree: Tree) -> dict[str, bytes | None]:
        before = _targets(tree, place)
        if before is None:
            return added(tree, place, Alias(tuple(dict.fromkeys(targets))))
        return changed(tree, place, targets=list(dict.fromkeys((*before, *targets))))

    commit_edit(
        shared, edit, f"alias: {place.name} to {shortened(targets)}", f"{place.name} leads to {', '.join(targets)}"
    )


@alias.command("remove")
@click.argument("name", metavar="NAME@DOMAIN")
@click.argument("targets", metavar="[TARGET...]", nargs=-1)
@click.pass_obj
def alias_remove(shared: Shared, name: str, targets: tuple[str, ...]) -> None:
    """Remove an alias, or some of its targets."""
    place = place_named("alias", name)

    def edit(tree: Tree) -> dict[str, bytes | None]:
        before = _targets(tree, place) or ()
        if missing := [t for t in targets if t not in before]:
            raise EditError(f"{place.name} does not lead to {', '.join(missing)}")
        left = [t for t in before if t not in targets]
        return changed(tree, place, targets=left) if targets and left else removed(tree, place)

    what = f"{shortened(targets)} from {place.name}" if targets else place.name
    commit_edit(shared, edit, f"alias: remove {what}", f"removed {what}")


@alias.command("list")
@json_option
@click.pass_obj
def alias_list(shared: Shared, as_json: bool) -> None:
    """List all aliases."""

    def row(name: str, record: Record) -> dict[str, object]:
        assert isinstance(record, Alias)  # noqa: S101
        return {"name": name, "targets": list(record.targets)}

    list_records(shared, "alias", row, as_json)


def _targets(tree: Tree, place: Place) -> tuple[str, ...] | None:
    record = record_at(tree, place)
    return record.targets if isinstance(record, Alias) else None


def shortened(targets: tuple[str, ...], most: int = 3) -> str:
    return ", ".join(targets[:most]) + (f" and {len(targets) - most} more" if len(targets) > most else "")


# -- domain ------------------------------------------------------------------------------------------------------


@domain.command("add")
@click.argument("name", metavar="DOMAIN")
@click.option("--no-sign", is_flag=True, help="send this domain's mail without a DKIM signature")
@click.option("--subdomains", is_flag=True, help="its subdomains are ours too, signed as this domain")
@click.option("--postmaster", default="", metavar="ADDRESS", help="who answers for it [postmaster@DOMAIN]")
@click.pass_obj
def domain_add(shared: Shared, name: str, no_sign: bool, subdomains: bool, postmaster: str) -> None:
    """Add a domain."""
    place = place_named("domain", name)
    record = Domain(not no_sign, subdomains, names.fold(postmaster))
    commit_edit(
        shared, lambda tree: added(tree, place, record), f"domain: add {place.name}", f"added domain {place.name}"
    )


@domain.command("remove")
@click.argument("name", metavar="DOMAIN")
@click.pass_obj
def domain_remove(shared: Shared, name: str) -> None:
    """Remove a domain that has no users and aliases any more."""
    place = place_named("domain", name)
    commit_edit(
        shared, lambda tree: removed(tree, place), f"domain: remove {place.name}", f"removed domain {place.name}"
    )


@domain.command("list")
@json_option
@click.pass_obj
def domain_list(shared: Shared, as_json: bool) -> None:
    """List all domains."""

    def row(name: str, record: Record) -> dict[str, object]:
        assert isinstance(record, Domain)  # noqa: S101
        postmaster = record.postmaster or f"postmaster@{name}"
        return {"name": name, "sign": record.sign, "subdomains": record.subdomains, "postmaster": postmaster}

    list_records(shared, "domain", row, as_json)


# -- common ------------------------------------------------------------------------------------------------------


def place_named(kind: Kind, name: str) -> Place:
    """The place of a name as the user typed it; a wrong one is wrong usage."""
    folded = names.fold_domain(name) if kind in FLAT else names.fold(name)
    if kind not in FLAT and "@" not in name:
        raise click.UsageError(f"{name!r} must be NAME@DOMAIN")
    local, owner = names.split(folded)
    wrong = names.domain_mistake(owner) or (names.file_local_mistake(local) if kind not in FLAT else "")
    found = place_of(path_of(Place(kind, folded)))
    if wrong or isinstance(found, Mistake):
        raise click.UsageError(wrong or (found.text if isinstance(found, Mistake) else ""))
    return found


def record_at(tree: Tree, place: Place) -> Record | None:
    """The record at a place, None if there is none. Raises EditError."""
    text = tree.text(place)
    found = None if text is None else parse(path_of(place), text.encode())
    if isinstance(found, list):
        raise EditError("\n".join(str(m) for m in found))
    return None if found is None else found[1]


def _password(from_stdin: bool, generate: bool) -> str:
    if from_stdin and generate:
        raise click.UsageError("--password-stdin and --generate exclude each other")
    if generate:
        return generate_password()
    if from_stdin:
        password = sys.stdin.readline(MAX_PASSWORD_BYTES * 2).rstrip("\r\n")
    elif not _at_terminal():
        raise click.UsageError("there is no terminal to ask for a password: give --password-stdin or --generate")
    else:
        password = str(click.prompt("Password", hide_input=True, confirmation_prompt=True))
    try:
        prepare(password)
    except ValueError as e:
        raise click.ClickException(str(e)) from e
    return password


def _at_terminal() -> bool:
    return sys.stdin.isatty()


def _show_generated(password: str, generated: bool) -> None:
    if generated:
        click.echo(f"password: {password}")


def commit_edit(shared: Shared, edit: Edit, message: str, done: str) -> None:
    with reported():
        result = apply(shared.config.directory, edit, message, _author(shared.account))
        if result.warning:
            click.echo(f"committed here only, the service pushes it later: {result.warning}", err=True)
        click.echo(f"{done} (commit {result.commit[:12]})", err=True)


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Let what may go wrong with the database end the command with its reason."""
    try:
        yield
    except Refused as e:
        raise click.ClickException("nothing was committed:\n" + "\n".join(str(m) for m in e.mistakes)) from e
    except (EditError, RepositoryError, OSError) as e:
        raise click.ClickException(str(e)) from e


def _author(account: int) -> Author:
    """Who runs the command: the person behind sudo, else the account."""
    name = os.environ.get("SUDO_USER", "")
    if not name:
        try:
            name = pwd.getpwuid(account).pw_name
        except KeyError:
            name = str(account)
    return Author(name, f"{name}@{socket.gethostname()}")


def list_records(shared: Shared, kind: Kind, row: Callable[[str, Record], dict[str, object]], as_json: bool) -> None:
    mistakes = []
    rows = []
    with reported():
        settings = shared.config.directory
        repository = Repository(settings.repository, settings.branch)
        for found in Tree(repository, repository.tip()).records(kind):
            if isinstance(found, Mistake):
                mistakes.append(found)
            else:
                rows.append(row(*found))
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    else:
        for shown in rows:
            click.echo("  ".join(_cell(key, value) for key, value in shown.items()).rstrip())
    for mistake in mistakes:
        click.echo(str(mistake), err=True)
    if mistakes:
        sys.exit(1)


def _cell(key: str, value: object) -> str:
    if isinstance(value, bool):
        return key if value else f"no-{key}"
    return ", ".join(value) if isinstance(value, list) else f"{value!s:30}" if key == "name" else str(value)
