"""The pages about metrics and configuration say what the code does."""

from __future__ import annotations

import json
import pathlib
import typing
from collections.abc import Iterator
from typing import Any

import msgspec

from ptt.config import Config, Listen, Zone
from ptt.service.pages import metrics_page

DOCS = pathlib.Path(__file__).parents[2] / "docs"


def test_metrics_page() -> None:
    text = (DOCS / "metrics.md").read_text()
    assert text == metrics_page(), "python -m ptt.service.pages > docs/metrics.md"


def keys(struct: Any) -> Iterator[tuple[str, str]]:
    """(key, default as TOML) of a section and of those below it."""
    for field in msgspec.structs.fields(struct):
        inner = (typing.get_args(field.type) or (field.type,))[0]
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            yield from keys(inner)
        elif field.required:
            yield field.name, "(must be given)"
        else:
            default = list(field.default) if isinstance(field.default, tuple) else field.default
            yield field.name, f"`{json.dumps(default)}`"


def test_configuration_page_has_every_key_with_its_default() -> None:
    rows = {
        tuple(cell.strip() for cell in row.split("|")[1:3])
        for row in (DOCS / "configuration.md").read_text().splitlines()
    }
    wanted = {(f"`{key}`", default) for key, default in keys(Config)}
    assert {(f"`{key}`", default) for struct in (Listen, Zone) for key, default in keys(struct)} <= wanted
    documented = {row for row in rows if len(row) == 2 and row[0].startswith("`")}
    assert documented == wanted
