"""The records of the git database, as they are written in its files. Pure.

A key that is absent has the default here. ``docs/git-database.md`` says for people what each means.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from ptt.dkim.rules import Rules

DEFAULT_ROUTE = "default"  # routes/default.toml: for every destination without a route of its own

# TOML's integers have 64 bits, and so have those of the snapshot. Zero allows nothing.
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The table ``[limits]`` of a user or a domain. None: no limit. Both apply, each with counters of its own."""

    messages_per_hour: Count | None = None
    messages_per_day: Count | None = None
    recipients_per_hour: Count | None = None
    recipients_per_day: Count | None = None
    bytes_per_hour: Count | None = None
    bytes_per_day: Count | None = None
    over: Literal["refuse", "hold"] = "refuse"  # what becomes of mail above one of the six: 452, or held in the queue
    max_recipients: Count | None = None  # of one message
    max_message_bytes: Count | None = None
    connections: Count | None = None  # at once, of one user


class Domain(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``domains/DOMAIN.toml``."""

    sign: bool = True  # DKIM: mail of this domain waits for its signature; false: it goes out unsigned
    subdomains: bool = False  # addresses under subdomains are ours too, signed with d= this domain
    postmaster: str = ""  # who answers for the domain; empty: postmaster@DOMAIN
    limits: Limits | None = None  # of all its users together
    dkim: Rules | None = None  # None: as ``ptt.dkim.rules.DEFAULT``


class User(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``users/DOMAIN/LOCALPART.toml``. The login name is LOCALPART@DOMAIN."""

    password: str = ""  # argon2id in PHC form; empty: cannot log in
    scram: str = ""  # SCRAM-SHA-256 in the form of RFC 5803
    disabled: bool = False
    addresses: tuple[str, ...] = ()  # may be sender too; "*@domain" is every address of a domain
    limits: Limits | None = None


class Alias(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``aliases/DOMAIN/NAME.toml``."""

    targets: tuple[str, ...]


class Group(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``groups/DOMAIN/NAME.toml``: an alias with a say in who may use it."""

    members: tuple[str, ...]
    owners: tuple[str, ...] = ()  # may always post
    post: Literal["everyone", "members", "listed"] = "everyone"  # among our users
    posters: tuple[str, ...] = ()  # who is "listed"


class Route(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``routes/DOMAIN.toml``: where mail for a destination goes."""

    via: Literal["smarthost", "mx", "lmtp", "discard"]
    host: str = ""  # HOST:PORT of the smarthost or LMTP server
    tls: Literal["", "none", "opportunistic", "encrypt", "verify"] = ""  # as [relay] tls of the host; "": that
    subdomains: bool = False  # the destination's subdomains too
    credentials: str = ""  # name of a file on the host; the secret is never here
    fallback: str = ""  # HOST:PORT where mail goes that the first host does not take
    source: str = ""  # name of the address that we connect from


Record = Domain | User | Alias | Group | Route
