"""``ptt group``: each change is one commit to the git database, as with ``ptt alias``."""

from __future__ import annotations

import click

from ptt.cli.directory import Shared, commit_edit, json_option, list_records, place_named, record_at, shortened
from ptt.directory import names
from ptt.directory.edit import EditError, Tree, added, changed, removed
from ptt.directory.records import Group, Record

_POSTS = ("everyone", "members", "listed")


@click.group()
def group() -> None:
    """Addresses that stand for others, and who may use them."""


@group.command("add")
@click.argument("name", metavar="NAME@DOMAIN")
@click.argument("members", metavar="MEMBER...", nargs=-1, required=True)
@click.option("--owner", "owners", multiple=True, metavar="ADDRESS", help="may always post")
@click.option("--post", type=click.Choice(_POSTS), help="who of our users may post [everyone]")
@click.option("--poster", "posters", multiple=True, metavar="ADDRESS", help="may post, with --post listed")
@click.pass_obj
def group_add(
    shared: Shared,
    name: str,
    members: tuple[str, ...],
    owners: tuple[str, ...],
    post: str | None,
    posters: tuple[str, ...],
) -> None:
    """Add a group, or further members, owners and posters to one."""
    place = place_named("group", name)
    for member in members:
        if wrong := names.target_mistake(member):
            raise click.UsageError(wrong)
    more = {"members": members, "owners": _folded(owners), "posters": _folded(posters)}

    def edit(tree: Tree) -> dict[str, bytes | None]:
        found = record_at(tree, place)
        before = found if isinstance(found, Group) else Group(())
        keys: dict[str, object] = {
            key: list(dict.fromkeys((*getattr(before, key), *values))) for key, values in more.items() if values
        }
        if post is not None:
            keys["post"] = post
        if isinstance(found, Group):
            return changed(tree, place, **keys)
        lists = {key: tuple(dict.fromkeys(values)) for key, values in more.items()}
        return added(tree, place, Group(lists["members"], lists["owners"], post or "everyone", lists["posters"]))  # type: ignore[arg-type]

    said = shortened(members)
    commit_edit(shared, edit, f"group: {said} into {place.name}", f"{said} in {place.name}")


@group.command("remove")
@click.argument("name", metavar="NAME@DOMAIN")
@click.argument("members", metavar="[MEMBER...]", nargs=-1)
@click.pass_obj
def group_remove(shared: Shared, name: str, members: tuple[str, ...]) -> None:
    """Remove a group, or some of its members."""
    place = place_named("group", name)

    def edit(tree: Tree) -> dict[str, bytes | None]:
        found = record_at(tree, place)
        before = found.members if isinstance(found, Group) else ()
        if missing := [m for m in members if m not in before]:
            raise EditError(f"{place.name} has no member {', '.join(missing)}")
        left = [m for m in before if m not in members]
        return changed(tree, place, members=left) if members and left else removed(tree, place)

    what = f"{shortened(members)} from {place.name}" if members else place.name
    commit_edit(shared, edit, f"group: remove {what}", f"removed {what}")


@group.command("list")
@json_option
@click.pass_obj
def group_list(shared: Shared, as_json: bool) -> None:
    """List all groups."""

    def row(name: str, record: Record) -> dict[str, object]:
        assert isinstance(record, Group)  # noqa: S101
        return {"name": name, "post": record.post, "members": list(record.members), "owners": list(record.owners)}

    list_records(shared, "group", row, as_json)


def _folded(addresses: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(names.fold(address) for address in addresses)
