"""Who may send what: pure decisions. Each returns the reply that refuses, or None for yes."""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ptt.directory.records import Limits
from ptt.message import domain_of
from ptt.smtp.grammar import parse_mailbox
from ptt.smtp.reply import Reply
from ptt.submission import headers
from ptt.submission.headers import Header

NOT_YOURS = Reply(553, "5.7.1", "{sender} is not an address of {user}; `ptt user address` on the server adds it")
FIELD_NOT_YOURS = Reply(550, "5.7.1", "{field}: {sender} is not an address of {user}; `ptt user address` adds it")
NO_LONGER = Reply(550, "5.7.1", "{user} may send no more")
NO_AUTHOR = Reply(550, "5.6.0", "the From field names no address that can be read")
TOO_MANY_AUTHORS = Reply(550, "5.6.0", "the Sender and Resent fields are too long")
NOTIFICATION = Reply(550, "5.5.3", "a notification (null sender) has one recipient")
NO_DOMAIN = Reply(550, "5.1.2", "the recipient needs a domain")
FULL = Reply(452, "4.3.1", "the queue is full, try again later")
STILL_FULL = Reply(421, "4.3.1", "the queue is full, try again later")
CLOSED_GROUP = Reply(550, "5.7.1", "{user} may not write to the group {address}")
LOOP = Reply(554, "5.4.6", "this message has passed too many hops, it seems to loop")
NO_RELAY = Reply(550, "5.7.1", "this service relays for its own roles and for trusted networks only")
"""The replies of a refusal; braces are filled in by the decisions below."""

FULL_SECONDS = (
    60.0  # for so long a full queue is told at each MAIL; after that the connection ends, to leave us in peace
)

OTHER_AUTHORS = {b"sender": "Sender", b"resent-from": "Resent-From", b"resent-sender": "Resent-Sender"}
"""Fields beside From that say who sends (RFC 5322 3.6.2, 3.6.6)."""

ROLES_SERVED = {
    "all": frozenset({"submission", "signer", "relay"}),
    "submission": frozenset[str](),
    "signer": frozenset({"submission", "relay"}),  # the relay's bounces are signed too
    "relay": frozenset({"signer", "submission"}),
}
"""Whose mail each role takes from the role before it (DESIGN: submission -> signer -> relay)."""


class Pressure(Protocol):
    """What is asked of ``ptt.spool.Spool``: the mark above which the queue takes nothing, and for how long it has."""

    @property
    def refusing(self) -> str: ...

    @property
    def refusing_seconds(self) -> float: ...


class _NoPressure(NamedTuple):
    refusing: str = ""
    refusing_seconds: float = 0.0


NO_PRESSURE: Pressure = _NoPressure()


class Directory(Protocol):
    """What policy asks of the git database's snapshot."""

    commit: str

    def may_send_as(self, user: str, address: str) -> bool: ...

    def expand(self, address: str) -> list[str] | None: ...

    def signing_domain(self, address_domain: str) -> str: ...

    def our_domain(self, name: str) -> object | None: ...

    def route(self, domain: str) -> object | None: ...

    def may_post(self, user: str, address: str) -> bool: ...

    def limits(self, user: str) -> tuple[Limits | None, Limits | None] | None: ...


def pressed(pressure: Pressure, arriving: bool = False) -> Reply | None:
    """Has the queue no room for a message (RFC 3463, 3.4)? ``arriving``: the question is about a connection."""
    if not pressure.refusing:
        return None
    return STILL_FULL if arriving or pressure.refusing_seconds > FULL_SECONDS else FULL


def sender(directory: Directory, user: str, address: str) -> Reply | None:
    """May this user use this reverse-path?

    The null one is everybody's, for notifications of what was received (RFC 5321 4.5.5, RFC 8098 3): they have one
    recipient (``recipient``), and their From is the user's as with all mail.
    """
    if directory.may_send_as(user, address or user):
        return None
    if not directory.may_send_as(user, user):  # disabled or removed since the login
        return NO_LONGER._replace(text=NO_LONGER.text.format(user=user))
    return Reply(NOT_YOURS.code, NOT_YOURS.enhanced, NOT_YOURS.text.format(sender=address, user=user))


def authors(directory: Directory, user: str, header: Header, addresses: Sequence[str]) -> Reply | None:
    """May this user write these fields From (``addresses``), Sender, Resent-From and Resent-Sender?

    Each must name addresses of the user, and be written so that nobody reads another address in it. Resent-From does
    not excuse a From of somebody else's: a recipient sees From alone, and no signature of ours would be aligned with it
    (RFC 7489 3.1).
    """
    if not addresses and b"from" in header.names:
        return NO_AUTHOR
    named = [("From", address) for address in addresses]
    if not OTHER_AUTHORS.keys().isdisjoint(header.names):
        values = [(shown, value) for name, shown in OTHER_AUTHORS.items() for value in headers.fields(header, name)]
        if sum(len(value) for _, value in values) > headers.MAX_FROM_BYTES:  # parsing takes a microsecond an octet
            return TOO_MANY_AUTHORS
        for shown, value in values:
            found = headers.addresses(value)
            if not found and b"@" in value:
                return _unreadable(shown)
            named += [(shown, address) for address in found]
    for field, address in named:
        if parse_mailbox(address) is None:  # such as "<a@bank.example>" me@example.org
            return _unreadable(field)
        if not directory.may_send_as(user, address):
            text = FIELD_NOT_YOURS.text.format(field=field, sender=address, user=user)
            return FIELD_NOT_YOURS._replace(text=text)
    return None


def _unreadable(field: str) -> Reply:
    return NO_AUTHOR._replace(text=f"the {field} field has an address that cannot be read")


def recipient(address: str, notification: bool = False) -> Reply | None:
    """Is this a forward-path that we can send to? ``notification``: a further one of mail from a user's null sender."""
    if notification:
        return NOTIFICATION
    return None if domain_of(address) else NO_DOMAIN


@functools.lru_cache(maxsize=4096)  # a client with a connection for each message is asked about each time
def trusted(client: str, networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]) -> bool:
    """Is the client's address in one of the networks? An IPv4 address mapped into IPv6 counts as IPv4."""
    address = ipaddress.ip_address(client)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return any(address.version == n.version and address in n for n in networks)


def signing_domain(directory: Directory, header_from: Sequence[str], header: Header, envelope_sender: str) -> str:
    """Which domain signs: From's, with which DMARC compares it (RFC 7489 3.1), if it is ours; else that of Sender, else
    that of the envelope; "" when none is.
    """
    for address in header_from[:1]:
        if domain := directory.signing_domain(domain_of(address)):
            return domain
    for address in [*headers.addresses(headers.field(header, b"sender"))[:1], envelope_sender]:
        if domain := directory.signing_domain(domain_of(address)):
            return domain
    return ""
