"""``ptt limits``: what a user, or all users of a domain, may send. A change is one commit, as with ``ptt user``."""

from __future__ import annotations

import click
import msgspec

from ptt.cli.directory import Shared, commit_edit, place_named, record_at, reported
from ptt.directory.edit import EditError, Tree, changed
from ptt.directory.records import Domain, Limits, User
from ptt.directory.repository import Repository
from ptt.directory.schema import Place

_KEYS = Limits.__struct_fields__
_NONE = "none"


@click.command("limits")
@click.argument("name", metavar="NAME@DOMAIN|DOMAIN")
@click.argument("settings", metavar="[KEY=VALUE...]", nargs=-1)
@click.pass_obj
def limits(shared: Shared, name: str, settings: tuple[str, ...]) -> None:
    """Show the limits of a user, or of a domain's users together; with KEY=VALUE, change them.

    VALUE is a number, refuse or hold for the key "over", or none: no limit any more.
    """
    place = place_named("user" if "@" in name else "domain", name)
    if not settings:
        _show(shared, place)
        return
    values = dict(map(_setting, settings))

    def edit(tree: Tree) -> dict[str, bytes | None]:
        if not isinstance(record_at(tree, place), User | Domain):
            raise EditError(f"there is no {place.kind} {place.name}")
        return changed(tree, place, limits=values)

    said = ", ".join(settings)
    commit_edit(shared, edit, f"{place.kind}: limits of {place.name}: {said}", f"{place.name}: {said}")


def _setting(text: str) -> tuple[str, int | str | None]:
    """KEY=VALUE as it goes into the file; None: it is taken out."""
    key, equals, value = text.partition("=")
    if not equals or key not in _KEYS:
        raise click.UsageError(f"{text!r} is not KEY=VALUE with one of the keys {', '.join(_KEYS)}")
    if value == _NONE:
        return key, None
    if key == "over":
        return key, value
    if not (value.isascii() and value.isdecimal()):
        raise click.UsageError(f"{key}: {value!r} is no number, nor {_NONE}")
    return key, int(value)


def _show(shared: Shared, place: Place) -> None:
    with reported():
        settings = shared.config.directory
        repository = Repository(settings.repository, settings.branch)
        record = record_at(Tree(repository, repository.tip()), place)
        if not isinstance(record, User | Domain):
            raise EditError(f"there is no {place.kind} {place.name}")
    for key, value in msgspec.to_builtins(record.limits or Limits()).items():
        click.echo(f"{key}={value}")
