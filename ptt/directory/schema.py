"""The files of the git database: one file -> one record, or mistakes with file and line. Pure.

    domains/DOMAIN.toml            Domain
    users/DOMAIN/LOCALPART.toml    User
    aliases/DOMAIN/NAME.toml       Alias
    groups/DOMAIN/NAME.toml        Group
    routes/DOMAIN.toml             Route; routes/default.toml for all others

The records are in ``ptt.directory.records``, the rules for one value in ``ptt.directory.values``, what must hold
between files in ``ptt.directory.rules``. ``docs/git-database.md`` is the same for people.
"""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import msgspec

from ptt.directory import names
from ptt.directory.records import Alias, Domain, Group, Limits, Record, Route, User
from ptt.directory.values import MAX_TEXT, value_mistakes
from ptt.dkim.rules import Rules

Kind = Literal["domain", "user", "alias", "group", "route"]
FOLDERS: dict[str, Kind] = {
    "domains": "domain",
    "users": "user",
    "aliases": "alias",
    "groups": "group",
    "routes": "route",
}
FLAT: frozenset[Kind] = frozenset({"domain", "route"})  # FOLDER/DOMAIN.toml; the others are FOLDER/DOMAIN/NAME.toml
SUFFIX = ".toml"

MAX_FILE_BYTES = 65_536  # 1,000 alias targets of 64 bytes; a parser in Python needs some 40 ms for so much
MAX_DOTS = 100  # outside strings, on one line: the parser's time grows with the square of the parts of a key
MAX_OF_FILE = 100  # mistakes that are told of one file: each is looked for in it


class Mistake(NamedTuple):
    """Something that breaks a rule, at a line (from 1) of a file."""

    path: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


_STRUCTS: dict[Kind, type[Domain] | type[User] | type[Alias] | type[Group] | type[Route]] = {
    "domain": Domain,
    "user": User,
    "alias": Alias,
    "group": Group,
    "route": Route,
}
_FIELDS: dict[type, dict[str, msgspec.structs.FieldInfo]] = {
    struct: {f.name: f for f in msgspec.structs.fields(struct)} for struct in (*_STRUCTS.values(), Limits, Rules)
}
_TABLES: dict[str, type] = {"limits": Limits, "dkim": Rules}  # keys that are tables of their own


_STRING = re.compile(r""""(?:[^"\\]|\\.)*"|'[^']*'""")

_FOLDER_OF = {kind: folder for folder, kind in FOLDERS.items()}


class Place(NamedTuple):
    """What a path says: the kind of record and its name (a domain, or an address)."""

    kind: Kind
    name: str


def path_of(place: Place) -> str:
    """The path of a record: the inverse of ``place_of``."""
    folder = _FOLDER_OF[place.kind]
    if place.kind in FLAT:
        return f"{folder}/{place.name}{SUFFIX}"
    local, domain = names.split(place.name)
    return f"{folder}/{domain}/{local}{SUFFIX}"


def ignored(path: str) -> bool:
    """Names at the root that are not ours: hidden ones, and a README."""
    top = path.partition("/")[0]
    return top.startswith(".") or (top == path and top.upper().startswith("README"))


def place_of(path: str) -> Place | Mistake:
    """What record a path holds, or what is wrong with the path."""
    folder, *rest = path.split("/")
    kind = FOLDERS.get(folder)
    if kind is None or not rest:
        return Mistake(path, 1, f"does not belong here; the folders are {', '.join(FOLDERS)}")
    if len(rest) != (1 if kind in FLAT else 2) or not rest[-1].endswith(SUFFIX):
        shape = "DOMAIN.toml" if kind in FLAT else "DOMAIN/NAME.toml"
        return Mistake(path, 1, f"must be {folder}/{shape}")
    stem = rest[-1].removesuffix(SUFFIX)
    if kind in FLAT:
        wrong = names.domain_mistake(stem)
        return Mistake(path, 1, wrong) if wrong else Place(kind, stem)
    wrong = names.domain_mistake(rest[0]) or names.file_local_mistake(stem)
    if not wrong and names.SUBADDRESS in stem and kind == "user":
        wrong = f"a user's name may not contain {names.SUBADDRESS}, which separates subaddresses"
    return Mistake(path, 1, wrong) if wrong else Place(kind, f"{stem}@{rest[0]}")


def line_of(text: str, key: str, value: str = "") -> int:
    """The line (from 1) of a key, or of a quoted ``value`` at or below it; 1 if neither is found.

    ``key``: one of the top level, or TABLE.KEY.
    """
    lines = text.split("\n")
    top, _, inner = key.partition(".")
    found = _first(lines, 1, re.compile(rf"\s*\[{{0,2}}\s*[\"']?{re.escape(top)}[\"']?\s*[\].=]")) or 1
    if inner:
        found = _first(lines, found, re.compile(rf"(.*[\s.,{{])?[\"']?{re.escape(inner)}[\"']?\s*[.=]")) or found
    if value:
        quoted = re.escape(value)
        found = _first(lines, found, re.compile(rf".*(\"{quoted}\"|'{quoted}')")) or found
    return found


def _first(lines: list[str], start: int, pattern: re.Pattern[str]) -> int:
    """The number of the first line from ``start`` on that begins with the pattern; 0 if none does."""
    return next((n for n in range(start, len(lines) + 1) if pattern.match(lines[n - 1])), 0)


def parse(path: str, data: bytes) -> tuple[Place, Record] | list[Mistake]:
    """Read one file. Returns where it belongs and its record, or every mistake in it."""
    place = place_of(path)
    if isinstance(place, Mistake):
        return [place]
    if len(data) > MAX_FILE_BYTES:
        return [Mistake(path, 1, f"is larger than {MAX_FILE_BYTES} bytes")]
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as e:
        return [Mistake(path, data.count(b"\n", 0, e.start) + 1, "is not UTF-8")]
    if line := _deep_line(text):
        return [Mistake(path, line, f"is nested too deeply: a key of more than {MAX_DOTS} parts")]
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as e:  # ValueError: TOMLDecodeError, and an integer of 5,000 digits
        return [_syntax_mistake(path, e)]
    struct = _STRUCTS[place.kind]
    if mistakes := list(itertools.islice(_type_mistakes(path, text, table, struct), MAX_OF_FILE)):
        return mistakes
    record: Record = msgspec.convert(table, struct)
    found = itertools.islice(value_mistakes(record), MAX_OF_FILE)
    mistakes = [Mistake(path, line_of(text, key, value), wrong) for key, value, wrong in found]
    return mistakes or (place, record)


def _deep_line(text: str) -> int:
    """The number of a line with more than MAX_DOTS dots outside strings; 0 if there is none."""
    if text.count(".") <= MAX_DOTS:
        return 0
    lines = text.split("\n")
    several = '"""' in text or "'''" in text  # strings of several lines: then nothing is taken for a string
    dotted = ((n, line) for n, line in enumerate(lines, 1) if line.count(".") > MAX_DOTS)
    return next((n for n, line in dotted if several or _STRING.sub("", line).count(".") > MAX_DOTS), 0)


def _syntax_mistake(path: str, error: Exception) -> Mistake:
    if isinstance(error, RecursionError):
        return Mistake(path, 1, "is nested too deeply")
    line = re.search(r"at line (\d+)", str(error))
    return Mistake(path, int(line[1]) if line else 1, f"is not TOML: {error}"[:MAX_TEXT])


def _type_mistakes(path: str, text: str, table: dict[str, Any], struct: type, inside: str = "") -> Iterator[Mistake]:
    fields = _FIELDS[struct]
    for key, value in table.items():
        full = f"{inside}.{key}" if inside else key
        if key not in fields:
            known = f"unknown key {full[:64]!r}; known here: {', '.join(fields)}"
            yield Mistake(path, line_of(text, full), known)
        elif key in _TABLES and not inside and isinstance(value, dict):
            yield from _type_mistakes(path, text, value, _TABLES[key], key)
        else:
            try:
                msgspec.convert(value, fields[key].type)
            except (msgspec.ValidationError, RecursionError) as e:
                yield Mistake(path, line_of(text, full), f"{full}: {str(e).partition(' - at `$')[0]}")
    for key, field in fields.items():
        if field.required and key not in table:
            yield Mistake(path, 1, f"{key}: is missing")


def dump(record: Record) -> bytes:
    """A record as TOML. Values that are their defaults are left out."""
    lines = []
    tables = []
    for field in msgspec.structs.fields(record):
        value = getattr(record, field.name)
        if value == field.default:
            continue
        if isinstance(value, tuple):
            items = "".join(f"    {_quote(v)},\n" for v in value)
            lines.append(f"{field.name} = [\n{items}]\n" if value else f"{field.name} = []\n")
        elif isinstance(value, Limits | Rules):
            tables.append(f"\n[{field.name}]\n")
            tables += [f"{k} = {_value(v)}\n" for k, v in msgspec.to_builtins(value).items()]
        else:
            lines.append(f"{field.name} = {_value(value)}\n")
    return "".join(lines + tables).encode()


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_quote, value))}]"
    return _quote(value) if isinstance(value, str) else str(value).lower()


def _quote(text: str) -> str:
    # JSON's escapes are a subset of those of a TOML basic string
    return msgspec.json.encode(text).decode()
