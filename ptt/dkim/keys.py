"""The public key's record in DNS (RFC 6376, 3.6.1; RFC 8463, 4): text out, parts in. And the names of both."""

from __future__ import annotations

import base64
import binascii
import re
from typing import NamedTuple

MAX_STRING = 255  # RFC 1035, 3.3: a character-string of a TXT record
_DNS_NAME_MAX = 253  # RFC 1035, 2.3.4, in presentation form
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\Z")


class BadRecord(ValueError):
    """The text is not a usable key record; the message says what is wrong."""


class Record(NamedTuple):
    """What a key record says. ``key`` is SubjectPublicKeyInfo (DER) for rsa, 32 octets for ed25519; empty: revoked."""

    kind: str  # "rsa" or "ed25519"
    key: bytes


def valid_name(name: str) -> bool:
    """Is this a domain or selector as we keep them: lower-case LDH labels (and _), no dot at the ends?

    Such a name is also safe as a file name: it holds no slash and no empty, "." or ".." part.
    """
    return len(name) <= _DNS_NAME_MAX and all(_LABEL.match(label) for label in name.split("."))


def record_name(domain: str, selector: str) -> str:
    """Where the record lives, without final dot."""
    return f"{selector}._domainkey.{domain}"


def record_text(kind: str, key: bytes) -> str:
    """The record's text. ``kind`` and ``key`` as in ``Record``."""
    return f"v=DKIM1; k={kind}; p={base64.b64encode(key).decode('ascii')}"


def record_strings(text: str) -> list[str]:
    """The text cut into the character-strings of a TXT record; a verifier joins them with nothing between."""
    return [text[at : at + MAX_STRING] for at in range(0, len(text), MAX_STRING)]


def parse_record(text: str) -> Record:
    """The record that DNS serves. Raises BadRecord."""
    tags: dict[str, str] = {}
    for n, part in enumerate(text.split(";")):
        name, equals, value = part.partition("=")
        name = name.strip()
        if not equals:
            if part.strip():
                raise BadRecord(f"{part.strip()!r} is not tag=value")
            continue
        if name in tags:
            raise BadRecord(f"tag {name!r} is there twice")
        if name == "v" and (n != 0 or value.strip() != "DKIM1"):
            raise BadRecord("v= must come first and be DKIM1")
        tags[name] = value.strip()
    if "p" not in tags:
        raise BadRecord("there is no p=")
    kind = tags.get("k", "rsa")
    if kind not in ("rsa", "ed25519"):
        raise BadRecord(f"unknown kind of key {kind!r}")
    try:
        key = base64.b64decode("".join(tags["p"].split()), validate=True)
    except (binascii.Error, ValueError) as e:
        raise BadRecord("p= is not base64") from e
    return Record(kind, key)


def same_key(left: str, right: str) -> bool:
    """Do two records offer the same key, however they are written? A record that cannot be read equals none."""
    try:
        return parse_record(left) == parse_record(right) and bool(parse_record(left).key)
    except BadRecord:
        return False
