"""What of a TOML table does not fit the structure that it is to become: every mistake at once."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any, Literal

import msgspec


def mistakes_in(table: dict[str, Any], struct: type[msgspec.Struct], where: str = "") -> Iterator[str]:
    """Every key of ``table`` that is unknown, missing or of the wrong type, as one line each.

    Takes what is wrong out of the table, so that the rest can be looked at too.
    """
    fields = {f.name: f for f in msgspec.structs.fields(struct)}
    for key, field in fields.items():
        if field.required and key not in table:
            yield f"{where}{key}: is missing"
    for key, value in list(table.items()):
        if key not in fields:
            del table[key]
            yield f"{where}{key}: unknown key; known here: {', '.join(sorted(fields))}"
            continue
        kind = fields[key].type
        inner = (typing.get_args(kind) or (kind,))[0]
        section = isinstance(inner, type) and issubclass(inner, msgspec.Struct)
        if section and isinstance(value, dict) and inner is kind:
            yield from mistakes_in(value, inner, f"{where}{key}.")
        elif section and isinstance(value, list) and inner is not kind:
            for n, part in enumerate(value):
                if isinstance(part, dict):
                    yield from mistakes_in(part, inner, f"{where}{key}[{n}].")
                else:
                    yield f"{where}{key}[{n}]: must be a table"
        else:
            try:
                msgspec.convert(value, kind)
            except msgspec.ValidationError as e:
                del table[key]
                yield f"{where}{key}: {_wanted(kind, section) or str(e).partition(' - at `$')[0]}"


def _wanted(kind: Any, section: bool) -> str:
    """What would be right, where msgspec's own words would not help."""
    if typing.get_origin(kind) is Literal:
        return f"must be one of {', '.join(typing.get_args(kind))}"
    return ("must be a table" if isinstance(kind, type) else "must be a list of tables") if section else ""
