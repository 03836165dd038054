"""The text of the first ``ptt.toml``. Pure."""

from __future__ import annotations

import json

import msgspec

_TEXT = """\
# PTT's configuration. Every key is described in docs/configuration.md; what is not here has its default.
# Paths are relative to this file. Passwords and keys are never in here: it names files.
# `ptt check` says whether it is right and the world around it ready.

hostname = {hostname}
{role}
pool = 0  # workers; 0: one for each core

{listeners}
[admin]
listen = {admin}  # /metrics and /healthz

[dns]
# resolvers = ["127.0.0.1:53"]  # default: those of /etc/resolv.conf

# A zone that PTT publishes its DKIM keys in, by signed dynamic update (RFC 2136). The key in tsig.key is
# ready to be given to the primary server; in BIND: include it, and in the zone
#   update-policy {{ grant ptt subdomain _domainkey.{domain}. TXT; }};
# [[dns.zones]]
# name = {quoted_domain}
# primary = "192.0.2.53:53"
# key_file = "tsig.key"

[relay]
{next_hop}# smarthost = "smtp.example.net:25"  # everything goes there instead of to the recipients' MX

[directory]
# remote = "ssh://git@git.example.net/mail.git"  # users, domains and aliases follow that repository
{users}"""

_SUBMISSION = """\
[[listen]]  # users, TLS from the first byte (RFC 8314); the world's port for it is 465
address = {implicit}
service = "submission"
tls = "implicit"

[[listen]]  # users, STARTTLS (RFC 6409); 587
address = {starttls}
service = "submission"
tls = "starttls"
"""

_RELAY = """\
[[listen]]  # other roles of ours, each with an internal certificate
address = {relay}
service = "relay"
tls = "starttls"
# trusted = ["127.0.0.0/8"]  # networks that may relay without one
"""

_SEPARATE = """
[users]  # each kind of process has its own user: none but the key process can open a private key
queue = {queue}
worker = {worker}
signer = {signer}
control = {control}
"""

_SHARED = """
# [users] is left out: {why}. All processes share one user, so each of them could open the private keys.
"""


class Choices(msgspec.Struct, frozen=True):
    """What the first configuration says. ``users``: kind of process -> number, or why they are not separate."""

    hostname: str
    domain: str
    role: str
    next_hop: str
    implicit: str
    starttls: str
    relay: str
    admin: str
    users: dict[str, int] | str


def quote(text: str) -> str:
    """A TOML basic string (JSON's escapes are TOML's)."""
    return json.dumps(text)


def render(choices: Choices) -> str:
    """The file's text."""
    listeners = ""
    if choices.role in ("all", "submission"):
        listeners += _SUBMISSION.format(implicit=quote(choices.implicit), starttls=quote(choices.starttls)) + "\n"
    if choices.role != "submission":
        listeners += _RELAY.format(relay=quote(choices.relay))
    users = choices.users
    return _TEXT.format(
        hostname=quote(choices.hostname),
        role=f"role = {quote(choices.role)}  # all, submission, signer or relay",
        listeners=listeners,
        admin=quote(choices.admin),
        domain=choices.domain,
        quoted_domain=quote(choices.domain),
        next_hop=f"next_hop = {quote(choices.next_hop)}  # the next role\n" if choices.next_hop else "",
        users=_SHARED.format(why=users) if isinstance(users, str) else _SEPARATE.format(**users),
    )
