"""May a user's mail go to this recipient? Asked at RCPT, so that a typing error is told at once and not by a bounce.

A domain that DNS says does not exist, or that takes no mail (null MX, RFC 7505), is refused; whatever else DNS says or
does not say in time, the recipient is taken, and the relay finds out.
"""

from __future__ import annotations

import random
import re
from typing import Protocol

from ptt.config import Config
from ptt.message import domain_of
from ptt.relay import mx
from ptt.relay.outcome import Failed
from ptt.smtp.reply import Reply
from ptt.submission import policy, quotas

LOOKUP_SECONDS = 2.0  # that all recipients of a message may wait for DNS; then they are taken unchecked
MAX_AHEAD = 100  # look-ups that one read of pipelined commands starts

# As they come pipelined; what is spelled otherwise is looked up when its turn comes.
_PIPELINED = re.compile(rb"\nRCPT TO:<[^<>@\r\n]{1,64}@([A-Za-z0-9.-]{1,253})>", re.I)
_REFUSED = {"5.1.2": 550, "5.1.10": 556}  # RFC 7505 4.2 names 556


class Lookup(Protocol):
    """What is asked of ``ptt.dns.resolver.Resolver``."""

    def mx_soon(self, name: str, seconds: float) -> list[tuple[int, str]]: ...

    def ask_mx(self, name: str) -> None: ...


def looks_up(config: Config) -> bool:
    """Does DNS decide where the mail of this host's users goes, and is there a resolver to ask?

    A host whose role is submission has none unless it is configured: only the relay needs one.
    """
    if config.role == "all":
        return not (config.relay.next_hop or config.relay.smarthost)
    return config.role == "submission" and bool(config.dns.resolvers)


class Recipients:
    """``lookup``: None where DNS is not asked."""

    def __init__(self, directory: policy.Directory, lookup: Lookup | None = None) -> None:
        self.directory = directory
        self.lookup = lookup
        self._rng = random.Random()  # noqa: S311  (an order that nobody uses)

    def refusal(self, user: str, address: str, number: int, seconds: float) -> Reply | None:
        """The reply that refuses the address, or None. ``number``: it is the so manieth of its message.

        Waits at most ``seconds`` for DNS.
        """
        if (limits := self.directory.limits(user)) and (refusal := quotas.fits(limits, number, None)):
            return refusal
        if not self.directory.may_post(user, address):
            return policy.CLOSED_GROUP._replace(text=policy.CLOSED_GROUP.text.format(address=address, user=user))
        domain = domain_of(address)
        if self.lookup is None or not self._asked_of_dns(domain):
            return None
        found = mx.route(domain, _Soon(self.lookup, seconds), frozenset(), self._rng)
        if isinstance(found, Failed) and (code := _REFUSED.get(found.enhanced)):
            return Reply(code, found.enhanced, found.text)
        return None

    def ahead(self, data: bytes) -> None:
        """Start the look-ups for pipelined commands, so that they do not wait for one another."""
        if self.lookup is None:
            return
        domains = {domain.decode("ascii").lower() for domain in _PIPELINED.findall(data)[:MAX_AHEAD]}
        for domain in filter(self._asked_of_dns, domains):
            self.lookup.ask_mx(domain)

    def _asked_of_dns(self, domain: str) -> bool:
        """Not address literals, and not what the git database knows."""
        known = self.directory
        return not domain.startswith("[") and known.our_domain(domain) is None and known.route(domain) is None


class _Soon:
    """A look-up that has little time."""

    def __init__(self, lookup: Lookup, seconds: float) -> None:
        self.lookup = lookup
        self.seconds = seconds

    def mx(self, name: str) -> list[tuple[int, str]]:
        return self.lookup.mx_soon(name, self.seconds)

    def addresses(self, host: str) -> list[str]:
        raise NotImplementedError  # a route to hosts is all that is wanted
