"""What TLS a connection must have: decided here, and nowhere else. Pure.

The operator's word (``none``, ``opportunistic``, ``encrypt``, ``verify``) is the least; what the destination publishes,
DANE (RFC 7672) and MTA-STS (RFC 8461), demands more, never less, except of ``none``:

==========================================  ==========================================================
the operator says ``none``                  no TLS
the host has usable TLSA records            TLS with a certificate that one of them names; they replace
                                            authorities and MTA-STS (RFC 8461 2: those never override DANE)
MTA-STS ``enforce``                         TLS, a certificate of a public authority with the host's name,
                                            and the host is in the policy; else the host is not used
``verify``                                  TLS, a certificate of a public authority with the host's name
TLSA records, none of them usable           TLS, any certificate (RFC 7672 2.2)
``encrypt``                                 TLS, any certificate
MTA-STS ``testing``                         as for ``enforce``; if that fails, it is said, and what follows is tried
``opportunistic``, the host had TLS lately  TLS, any certificate
``opportunistic``                           TLS, any certificate, if the host offers it; else, and where the
                                            handshake fails, a new connection in clear
==========================================  ==========================================================
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from ptt.relay.dane import Tlsas
from ptt.relay.mtasts import Sts

INTERNAL = "internal"  # the level of the hops between our roles

Trust = Literal["off", "any", "authorities", "dane", "roles"]


class Policy(NamedTuple):
    """What is known of a destination before a host is chosen."""

    level: str = "opportunistic"  # the operator's word, or INTERNAL
    domain: str = ""  # the destination, which a certificate under DANE-TA may name too (RFC 7672 3.2.2)
    dane: bool = False  # DNSSEC vouches for the hosts: their TLSA records count
    sts: Sts | None = None  # MTA-STS, with mode enforce or testing

    @property
    def internal(self) -> bool:
        """Does it lead to a role of ours?"""
        return self.level == INTERNAL

    @property
    def key(self) -> str:
        """Connections that were opened under policies of the same key are as good for one as for the other."""
        if not self.dane and self.sts is None:
            return self.level
        dane = f"+dane {self.domain}" if self.dane else ""
        sts = f"+sts {' '.join(self.sts.mx)}" if self.sts is not None and self.sts.mode == "enforce" else ""
        return self.level + dane + sts


class Demand(NamedTuple):
    """What one connection must have. ``mode``: for the log and ``ptt_tls_total``. ``required``: no mail without TLS."""

    mode: str
    trust: Trust
    required: bool
    tlsa: Tlsas | None = None


OFF = Demand("none", "off", False)
CLEAR = Demand("clear", "off", False)
OPPORTUNISTIC = Demand("opportunistic", "any", False)
AS_BEFORE = Demand("opportunistic", "any", True)
ENCRYPT = Demand("encrypt", "any", True)
UNUSABLE = Demand("dane-unusable", "any", True)
VERIFY = Demand("verify", "authorities", True)
STS = Demand("mta-sts", "authorities", True)
TESTING = Demand("mta-sts-testing", "authorities", True)
ROLES = Demand(INTERNAL, "roles", True)


def demands(policy: Policy, host: str, tlsa: Tlsas | None, had_tls: bool) -> tuple[Demand, ...] | str:
    """What a connection to ``host`` must have; after the first, what may be tried instead when TLS fails, on a new
    connection each. A text: why the host must not be used now.

    ``tlsa``: the host's TLSA records, where ``policy.dane``. ``had_tls``: it had TLS lately.
    """
    if policy.internal:
        return (ROLES,)
    if policy.level == "none":
        return (OFF,)
    if tlsa is not None and tlsa.records:
        return (Demand("dane", "dane", True, tlsa),)
    sts = policy.sts
    if sts is not None and sts.mode == "enforce":
        return (STS,) if sts.names(host) else f"{host} is not in the MTA-STS policy of {policy.domain}"
    if policy.level == "verify":
        return (VERIFY,)
    least = _least(policy.level, tlsa is not None, had_tls)
    return (TESTING, *least) if sts is not None and sts.names(host) else least


def _least(level: str, unusable: bool, had_tls: bool) -> tuple[Demand, ...]:
    if unusable:
        return (UNUSABLE,)
    if level == "encrypt":
        return (ENCRYPT,)
    return (AS_BEFORE,) if had_tls else (OPPORTUNISTIC, CLEAR)
