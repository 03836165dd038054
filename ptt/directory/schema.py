"""The files of the git database: one file -> one record, or mistakes with file and line. Pure.

    domains/DOMAIN.toml            Domain
    users/DOMAIN/LOCALPART.toml    User
    aliases/DOMAIN/NAME.toml       Alias

What must hold between files is in ``ptt.directory.rules``. ``docs/git-database.md`` is the same for people.
"""

from __future__ import annotations

import base64
import binascii
import re
import tomllib
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import msgspec

from ptt.directory import names

Kind = Literal["domain", "user", "alias"]
FOLDERS: dict[str, Kind] = {"domains": "domain", "users": "user", "aliases": "alias"}
SUFFIX = ".toml"

MAX_FILE_BYTES = 65_536  # 1,000 alias targets of 64 bytes; a parser in Python needs some 40 ms for so much
MAX_ADDRESSES = 1_000  # of one user
MAX_TARGETS = 1_000  # of one alias: the most recipients that one message may have by default
MAX_TEXT = 512  # characters of a verifier; ours have 97 and 140

# Bounds of an argon2id verifier, so that no commit makes one check cost more than some seconds (RFC 9106 4 and 7.4).
MAX_ARGON2_MEMORY_KIB = 262_144
MAX_ARGON2_TIME = 10
MAX_ARGON2_LANES = 8
MIN_SCRAM_ITERATIONS = 4_096  # RFC 7677 4
MAX_SCRAM_ITERATIONS = 10_000_000

_ARGON2 = re.compile(
    r"\$argon2id\$v=19\$m=([1-9]\d{0,9}),t=([1-9]\d{0,9}),p=([1-9]\d{0,9})\$[A-Za-z0-9+/]{11,86}\$[A-Za-z0-9+/]{22,172}"
)
_SCRAM = re.compile(r"SCRAM-SHA-256\$([1-9]\d{0,9}):([A-Za-z0-9+/=]+)\$([A-Za-z0-9+/=]+):([A-Za-z0-9+/=]+)")


class Mistake(NamedTuple):
    """Something that breaks a rule, at a line (from 1) of a file."""

    path: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


class Domain(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``domains/DOMAIN.toml``."""

    sign: bool = True  # DKIM: mail of this domain waits for its signature; false: it goes out unsigned
    subdomains: bool = False  # addresses under subdomains are ours too, signed with d= this domain
    postmaster: str = ""  # who answers for the domain; empty: postmaster@DOMAIN


class User(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``users/DOMAIN/LOCALPART.toml``. The login name is LOCALPART@DOMAIN."""

    password: str = ""  # argon2id in PHC form; empty: cannot log in
    scram: str = ""  # SCRAM-SHA-256 in the form of RFC 5803
    disabled: bool = False
    addresses: tuple[str, ...] = ()  # may be sender too; "*@domain" is every address of a domain


class Alias(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``aliases/DOMAIN/NAME.toml``."""

    targets: tuple[str, ...]


Record = Domain | User | Alias
_STRUCTS: dict[Kind, type[Domain] | type[User] | type[Alias]] = {"domain": Domain, "user": User, "alias": Alias}


_FIELDS = {struct: {f.name: f for f in msgspec.structs.fields(struct)} for struct in _STRUCTS.values()}


class Place(NamedTuple):
    """What a path says: the kind of record and its name (a domain, or an address)."""

    kind: Kind
    name: str


def path_of(place: Place) -> str:
    """The path of a record: the inverse of ``place_of``."""
    if place.kind == "domain":
        return f"domains/{place.name}{SUFFIX}"
    local, domain = names.split(place.name)
    return f"{'users' if place.kind == 'user' else 'aliases'}/{domain}/{local}{SUFFIX}"


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
    if len(rest) != (1 if kind == "domain" else 2) or not rest[-1].endswith(SUFFIX):
        shape = "DOMAIN.toml" if kind == "domain" else "DOMAIN/NAME.toml"
        return Mistake(path, 1, f"must be {folder}/{shape}")
    stem = rest[-1].removesuffix(SUFFIX)
    if kind == "domain":
        wrong = names.domain_mistake(stem)
        return Mistake(path, 1, wrong) if wrong else Place(kind, stem)
    wrong = names.domain_mistake(rest[0]) or names.file_local_mistake(stem)
    if not wrong and names.SUBADDRESS in stem and kind == "user":
        wrong = f"a user's name may not contain {names.SUBADDRESS}, which separates subaddresses"
    return Mistake(path, 1, wrong) if wrong else Place(kind, f"{stem}@{rest[0]}")


def line_of(text: str, key: str, value: str = "") -> int:
    """The line (from 1) of a top-level key, or of a quoted ``value`` at or below it; 1 if neither is found."""
    found = 1
    assignment = re.compile(rf"\s*[\"']?{re.escape(key)}[\"']?\s*[.=]")
    for number, line in enumerate(text.split("\n"), 1):
        if found == 1 and assignment.match(line):
            found = number
            if not value:
                break
        if value and number >= found and (f'"{value}"' in line or f"'{value}'" in line):
            return number
    return found


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
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as e:  # ValueError: TOMLDecodeError, and an integer of 5,000 digits
        return [_syntax_mistake(path, e)]
    struct = _STRUCTS[place.kind]
    if mistakes := list(_type_mistakes(path, text, table, struct)):
        return mistakes
    record: Record = msgspec.convert(table, struct)
    mistakes = [Mistake(path, line_of(text, key, value), wrong) for key, value, wrong in _value_mistakes(record)]
    return mistakes or (place, record)


def _syntax_mistake(path: str, error: Exception) -> Mistake:
    if isinstance(error, RecursionError):
        return Mistake(path, 1, "is nested too deeply")
    line = re.search(r"at line (\d+)", str(error))
    return Mistake(path, int(line[1]) if line else 1, f"is not TOML: {error}"[:MAX_TEXT])


def _type_mistakes(path: str, text: str, table: dict[str, Any], struct: type[Record]) -> Iterator[Mistake]:
    fields = _FIELDS[struct]
    for key, value in table.items():
        if key not in fields:
            shown = key[:64]
            yield Mistake(path, line_of(text, key), f"unknown key {shown!r}; known here: {', '.join(fields)}")
            continue
        try:
            msgspec.convert(value, fields[key].type)
        except (msgspec.ValidationError, RecursionError) as e:
            yield Mistake(path, line_of(text, key), f"{key}: {str(e).partition(' - at `$')[0]}")
    for key, field in fields.items():
        if field.required and key not in table:
            yield Mistake(path, 1, f"{key}: is missing")


_Found = tuple[str, str, str]  # key, value (to find the line; may be ""), what is wrong


def _value_mistakes(record: Record) -> Iterator[_Found]:
    if isinstance(record, Domain):
        if record.postmaster and (wrong := names.address_mistake(record.postmaster)):
            yield "postmaster", "", f"postmaster: {wrong}"
    elif isinstance(record, User):
        yield from _each("password", (record.password,), argon2_mistake)
        yield from _each("scram", (record.scram,), scram_mistake)
        yield from _list("addresses", record.addresses, MAX_ADDRESSES, _sender_mistake)
    else:
        if not record.targets:
            yield "targets", "", "targets: must name at least one address"
        yield from _list("targets", record.targets, MAX_TARGETS, names.target_mistake)


def _each(key: str, values: tuple[str, ...], check: Callable[[str], str]) -> Iterator[_Found]:
    for value in values:
        if value and (wrong := check(value)):
            yield key, "", f"{key}: {wrong}"


def _list(key: str, values: tuple[str, ...], most: int, check: Callable[[str], str]) -> Iterator[_Found]:
    if len(values) > most:
        yield key, "", f"{key}: more than {most}"
        return
    seen = set()
    for value in values:
        if wrong := check(value):
            yield key, value, f"{key}: {wrong}"
        elif value in seen:
            yield key, value, f"{key}: {value!r} is named twice"
        seen.add(value)


def _sender_mistake(address: str) -> str:
    return names.domain_mistake(address[2:]) if address.startswith("*@") else names.address_mistake(address)


def argon2_mistake(text: str) -> str:
    """What is wrong with an argon2id verifier in PHC form; "" if nothing. The verifier itself is never quoted."""
    if len(text) > MAX_TEXT or not (found := _ARGON2.fullmatch(text)):
        return "is not an argon2id hash ($argon2id$v=19$m=...,t=...,p=...$SALT$HASH)"
    memory, time, lanes = (int(x) for x in found.groups())
    if memory > MAX_ARGON2_MEMORY_KIB or time > MAX_ARGON2_TIME or lanes > MAX_ARGON2_LANES:
        most = f"m={MAX_ARGON2_MEMORY_KIB},t={MAX_ARGON2_TIME},p={MAX_ARGON2_LANES}"
        return f"asks for more work than {most}"
    return "" if memory >= 8 * lanes else "has less memory than 8 KiB for each lane (RFC 9106 3.1)"


def scram_mistake(text: str) -> str:
    """What is wrong with a SCRAM-SHA-256 verifier (RFC 5803 2: authInfo$authValue); "" if nothing."""
    if len(text) > MAX_TEXT or not (found := _SCRAM.fullmatch(text)):
        return "is not of the form SCRAM-SHA-256$ITERATIONS:SALT$STOREDKEY:SERVERKEY (RFC 5803)"
    if not MIN_SCRAM_ITERATIONS <= int(found[1]) <= MAX_SCRAM_ITERATIONS:
        return f"iterations must be {MIN_SCRAM_ITERATIONS} to {MAX_SCRAM_ITERATIONS}"
    try:
        salt, stored, server = (base64.b64decode(x, validate=True) for x in found.groups()[1:])
    except binascii.Error:
        return "salt and keys must be base64"
    if len(stored) != 32 or len(server) != 32 or len(salt) < 8:
        return "the keys must have 32 bytes, the salt 8 or more"
    return ""


def dump(record: Record) -> bytes:
    """A record as TOML. Values that are their defaults are left out."""
    lines = []
    for field in msgspec.structs.fields(record):
        value = getattr(record, field.name)
        if value == field.default:
            continue
        if isinstance(value, tuple):
            items = "".join(f"    {_quote(v)},\n" for v in value)
            lines.append(f"{field.name} = [\n{items}]\n" if value else f"{field.name} = []\n")
        else:
            lines.append(f"{field.name} = {_quote(value) if isinstance(value, str) else str(value).lower()}\n")
    return "".join(lines).encode()


def _quote(text: str) -> str:
    # JSON's escapes are a subset of those of a TOML basic string
    return msgspec.json.encode(text).decode()
