"""What must hold of the values of one record. Pure. Its types were checked by ``ptt.directory.schema``."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Callable, Iterator

from ptt.config import split_address
from ptt.directory import names
from ptt.directory.records import Alias, Domain, Group, Limits, Record, Route, User
from ptt.dkim import rules

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

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")  # of credentials and sources: names on a host
MAX_UNIX_PATH = 107  # octets that a Unix socket's address has room for

# Keys that mean nothing for a kind of route.
_NOT_FOR: dict[str, tuple[str, ...]] = {
    "smarthost": (),
    "mx": ("host", "credentials"),
    "lmtp": ("tls", "credentials", "fallback", "source"),
    "discard": ("host", "tls", "credentials", "fallback", "source"),
}
_ROUTE_DEFAULT = Route("mx")

Found = tuple[str, str, str]  # key, value (to find the line; may be ""), what is wrong


def value_mistakes(record: Record) -> Iterator[Found]:
    """Every value of a record that breaks a rule."""
    if isinstance(record, Domain):
        if record.postmaster and (wrong := names.address_mistake(record.postmaster)):
            yield "postmaster", "", f"postmaster: {wrong}"
        if record.limits is not None and record.limits.connections is not None:
            yield "limits.connections", "", "limits.connections: is for users only"
        if record.dkim is not None:
            yield from _dkim(record, record.dkim)
    elif isinstance(record, User):
        yield from _each("password", (record.password,), argon2_mistake)
        yield from _each("scram", (record.scram,), scram_mistake)
        yield from _list("addresses", record.addresses, MAX_ADDRESSES, _sender_mistake)
    elif isinstance(record, Route):
        yield from _route(record)
    elif isinstance(record, Alias):
        yield from _targets("targets", record.targets)
    else:
        yield from _group(record)
    if isinstance(record, Domain | User) and record.limits == Limits():
        yield "limits", "", "limits: the table is empty"


def _dkim(domain: Domain, table: rules.Rules) -> Iterator[Found]:
    if not domain.sign:
        yield "dkim", "", "dkim: means nothing with sign = false"
    for key, value, wrong in rules.mistakes(table):
        full = f"dkim.{key}" if key else "dkim"
        yield full, value, f"{full}: {wrong}"


def _group(group: Group) -> Iterator[Found]:
    yield from _targets("members", group.members)
    yield from _list("owners", group.owners, MAX_ADDRESSES, names.address_mistake)
    yield from _list("posters", group.posters, MAX_ADDRESSES, _sender_mistake)
    if group.posters and group.post != "listed":
        yield "posters", "", 'posters: means nothing without post = "listed"'


def _targets(key: str, values: tuple[str, ...]) -> Iterator[Found]:
    if not values:
        yield key, "", f"{key}: must name at least one address"
    yield from _list(key, values, MAX_TARGETS, names.target_mistake)


def _route(route: Route) -> Iterator[Found]:
    unfit = _NOT_FOR[route.via]
    for key in unfit:
        if getattr(route, key) != getattr(_ROUTE_DEFAULT, key):
            yield key, "", f'{key}: means nothing with via = "{route.via}"'
    if "host" not in unfit and (wrong := _route_host_mistake(route)):
        yield "host", "", f"host: {wrong}"
    if "fallback" not in unfit and route.fallback and (wrong := _host_mistake(route.fallback)):
        yield "fallback", "", f"fallback: {wrong}"
    for key in ("credentials", "source"):
        value = getattr(route, key)
        if key not in unfit and value and not _FILE_NAME.fullmatch(value):
            yield key, "", f"{key}: {value[:64]!r} is no name: letters, digits, - and _, 64 at most"
    if "tls" not in unfit and route.credentials and route.tls == "none":
        yield "tls", "", 'tls: with credentials "none" is not possible, no password is sent in clear'


def _route_host_mistake(route: Route) -> str:
    if route.via != "lmtp" or not route.host.startswith("unix:"):
        return _host_mistake(route.host)
    path = route.host.removeprefix("unix:")
    if not path.startswith("/") or not path.isprintable() or len(path.encode()) > MAX_UNIX_PATH:
        return f"must be unix: and an absolute path of at most {MAX_UNIX_PATH} octets"
    return ""


def _host_mistake(text: str) -> str:
    """What is wrong with HOST:PORT, where the host is a name or an address."""
    try:
        host, port = split_address(text)
    except ValueError as e:
        return str(e)
    if port == 0:
        return f"{text!r}: the port must be 1 to 65535"
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return names.domain_mistake(host)
    return ""


def _each(key: str, values: tuple[str, ...], check: Callable[[str], str]) -> Iterator[Found]:
    for value in values:
        if value and (wrong := check(value)):
            yield key, "", f"{key}: {wrong}"


def _list(key: str, values: tuple[str, ...], most: int, check: Callable[[str], str]) -> Iterator[Found]:
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
