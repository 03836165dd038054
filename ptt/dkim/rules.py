"""How a domain wants its mail signed: the table ``[dkim]`` of its file in the git database. Pure.

A key that is absent has the default here. ``docs/signing.md`` says for people what each means.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec

from ptt.dkim.canonical import Canon
from ptt.dkim.keys import valid_name

Kind = Literal["rsa", "ed25519"]

MAX_SELECTORS = 4  # signatures of one domain: verifiers look at some ten of a message (RFC 6376, 8.4)
MAX_ALSO = 3  # further domains
MAX_OVERSIGN = 20  # further fields
MIN_EXPIRES = 3600  # RFC 6376, 3.5: x= is no defence against replay; mail may wait hours in the next queue

# RFC 6376, 5.4.1: what is changed or removed on the way, or is no statement of the author's.
_NEVER = re.compile(r"received|return-path|bcc|resent-bcc|dkim-signature|authentication-results|arc-.*")
_FIELD_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,76}")  # RFC 5322, 2.2, in lower case, without what h= cannot hold

_AUTHSERV = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,252}")


class Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The table ``[dkim]``."""

    algorithms: tuple[Kind, ...] = ("rsa", "ed25519")  # the newest served key of each signs
    selectors: tuple[str, ...] = ()  # just these keys, as far as served; not replaced by age
    also: tuple[str, ...] = ()  # domains that sign this domain's mail too, each by its own table
    canonicalization: Literal["relaxed/relaxed", "relaxed/simple", "simple/relaxed", "simple/simple"] = (
        "relaxed/relaxed"
    )
    oversign: tuple[str, ...] = ()  # fields that are signed beside the usual ones, once more than they occur
    expires_seconds: Annotated[int, msgspec.Meta(ge=0, le=2**31)] = 0  # x= so long after t=; 0: no x=
    identity: Literal["domain", "author"] = "domain"  # i=: "author": the subdomain of From
    arc: Literal["no", "beside", "instead"] = "no"  # an ARC set, beside the DKIM signatures or in their place
    authserv_id: str = ""  # whose Authentication-Results the set takes over; empty: this host's

    @property
    def header_canon(self) -> Canon:
        return "simple" if self.canonicalization.startswith("simple") else "relaxed"

    @property
    def body_canon(self) -> Canon:
        return "simple" if self.canonicalization.endswith("simple") else "relaxed"


DEFAULT = Rules()


def mistakes(rules: Rules) -> Iterator[tuple[str, str, str]]:
    """Every value that breaks a rule, which its type allows: (key, value or "", what is wrong)."""
    if rules == DEFAULT:
        yield "", "", "the table is empty, or says what holds without it"
    if not rules.algorithms:
        yield "algorithms", "", "names none; sign = false is how mail goes out unsigned"
    if rules.selectors and rules.algorithms != DEFAULT.algorithms:
        yield "algorithms", "", "means nothing beside selectors"
    if rules.arc == "instead" and rules.also:
        yield "also", "", 'means nothing with arc = "instead": a set has one seal'
    if rules.authserv_id and rules.arc == "no":
        yield "authserv_id", "", "means nothing without arc"
    if rules.authserv_id and not _AUTHSERV.fullmatch(rules.authserv_id):
        yield "authserv_id", "", "is not the name of a server (RFC 8601, 2.2)"
    if 0 < rules.expires_seconds < MIN_EXPIRES:
        yield "expires_seconds", "", f"less than {MIN_EXPIRES} would end while mail is on its way"
    for key, values, most in (
        ("algorithms", rules.algorithms, len(DEFAULT.algorithms)),
        ("selectors", rules.selectors, MAX_SELECTORS),
        ("also", rules.also, MAX_ALSO),
        ("oversign", rules.oversign, MAX_OVERSIGN),
    ):
        if len(values) > most:
            yield key, "", f"more than {most}"
            continue
        for n, value in enumerate(values):
            if wrong := _mistake(key, value):
                yield key, value, wrong
            elif value in values[:n]:
                yield key, value, f"{value!r} is named twice"


def _mistake(key: str, value: str) -> str:
    if key in ("selectors", "also") and not valid_name(value):
        return f"{value[:80]!r} is not a {'selector' if key == 'selectors' else 'domain'} in lower case"
    if key == "oversign" and not _FIELD_NAME.fullmatch(value):
        return f"{value[:80]!r} is not the name of a header field in lower case"
    if key == "oversign" and _NEVER.fullmatch(value):
        return f"{value!r} is changed or removed on the way (RFC 6376, 5.4.1)"
    return ""
