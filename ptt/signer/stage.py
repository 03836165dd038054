"""Stage ``sign`` of a message, in a worker: which keys, what is hashed, the signature fields.

    signing = build(config)
    signing.sign(envelope, show_id(id), body) -> Signed(prefix, domain, selectors) | Wait(reason, detail)

``prefix`` goes before the message. Mail of a domain that signs is never let through unsigned: without a usable key or a
key process the answer is ``Wait``, and the mail stays in its stage.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import gevent
import msgspec

from ptt.config import Config
from ptt.dkim import arc, canonical, field
from ptt.dkim.canonical import Canon
from ptt.dkim.field import Algorithm, Chosen, Unsigned
from ptt.dkim.rules import DEFAULT, Rules
from ptt.dns.resolver import TemporaryFailure
from ptt.message import Envelope
from ptt.net.rpc import RpcError, RpcUnavailable
from ptt.signer import chain
from ptt.signer.client import Request, SignerClient
from ptt.signer.state import KeyView, PublicKey, choose_keys

_KEY_TAGS = re.compile(rb"\td=([^;\s]+); s=([^;\s]+);")  # as ptt.dkim.field writes them
MAX_HEADER = 4 * 1024 * 1024  # of a message that is signed: 15 ms of work on the loop in one piece

Reason = Literal[
    "no key for domain",
    "key not in DNS",
    "key process unavailable",
    "key refused",
    "header too large to sign",
    "ARC chain not verified",
]


class Signed(msgspec.Struct, frozen=True):
    """The finished fields, with CRLF, and with which keys they were made."""

    prefix: bytes
    domain: str
    selectors: list[str]


class Wait(msgspec.Struct, frozen=True):
    """Not now. ``reason`` is one of few, for counting; ``detail`` says more to a person."""

    reason: Reason
    detail: str


Signer = tuple[PublicKey, Rules]
"""A key that signs, and how its domain wants it."""


def algorithm(key: PublicKey) -> Algorithm:
    """a= of a key's signatures."""
    return "ed25519-sha256" if key.algorithm == "ed25519" else "rsa-sha256"


class ArcSet(NamedTuple):
    """An ARC set that lacks its two signatures."""

    key: PublicKey
    before: arc.Chain
    status: arc.Status
    results: bytes
    half: Unsigned
    now: int

    def sealed(self, client: SignerClient, shown_id: str) -> bytes:
        """Its three fields. Raises RpcError."""
        names = self.key.domain, self.key.selector
        (signature,) = client.sign(Request(shown_id, *names, self.half.data))
        own = self.half.signed(signature)
        seal = arc.seal(self.before, self.status, (self.results, own), *names, algorithm(self.key), self.now)
        (signature,) = client.sign(Request(shown_id, *names, seal.data))
        return seal.signed(signature) + own + self.results


def _no_lookup(name: str) -> list[bytes]:
    raise TemporaryFailure(f"{name}: there is no resolver here")


class Signing:
    """Signs messages. ``rules``: how a domain wants it; ``clock``: seconds since the epoch, for t=; ``hostname``: whose
    Authentication-Results an ARC set takes over; ``lookup``: the TXT records of a name, for the keys of ARC chains.
    """

    def __init__(
        self,
        client: SignerClient,
        keys: KeyView,
        clock: Callable[[], float] = time.time,
        rules: Callable[[str], Rules] = lambda _domain: DEFAULT,
        hostname: str = "",
        lookup: chain.Lookup = _no_lookup,
    ) -> None:
        self._hostname = hostname
        self._lookup = lookup
        self._client = client
        self._keys = keys
        self._clock = clock
        self._rules = rules

    def sign(self, envelope: Envelope, shown_id: str, body: bytes) -> Signed | Wait:
        """``body``: the whole message, header and all, with CRLF line ends. Yields to other greenlets."""
        domain = envelope.signing_domain
        if not domain:  # nobody's: it has no signature of ours
            return Signed(b"", "", [])
        signers = self._signers(domain)
        if isinstance(signers, Wait):
            return signers
        if canonical.body_start(body) > MAX_HEADER:
            return Wait("header too large to sign", f"{MAX_HEADER} bytes are allowed")
        arc_set = self._arc_set(envelope, signers[0], body)
        if isinstance(arc_set, Wait):
            return arc_set
        if arc_set is not None and signers[0][1].arc == "instead":
            signers = []
        halves = prepare(signers, body, int(self._clock()), _pause)
        if max((len(half.data) for half in halves), default=0) > field.MAX_DATA:
            return Wait("header too large to sign", f"{field.MAX_DATA} bytes of signed fields are allowed")
        requests = [
            Request(shown_id, key.domain, key.selector, half.data)
            for (key, _), half in zip(signers, halves, strict=True)
        ]
        try:
            signatures = self._client.sign(*requests) if requests else []
            sealed = arc_set.sealed(self._client, shown_id) if arc_set else b""
        except RpcUnavailable as e:
            return Wait("key process unavailable", str(e))
        except RpcError as e:
            return Wait("key refused", str(e))
        finished = [half.signed(signature) for half, signature in zip(halves, signatures, strict=True)]
        keys = [arc_set.key for arc_set in (arc_set,) if arc_set] + [key for key, _ in signers]
        return Signed(b"".join([sealed, *finished]), domain, list(dict.fromkeys(key.selector for key in keys)))

    def _arc_set(self, envelope: Envelope, signer: Signer, message: bytes) -> ArcSet | Wait | None:
        """The ARC set that the message gets; None where its domain wants none, or none may follow those it has."""
        key, rules = signer
        if rules.arc == "no":
            return None
        start = canonical.body_start(message)
        before = arc.chain(message[:start])
        try:
            status = None if before.ended else chain.verify(before, message, self._lookup)
        except chain.Unknown as e:
            return Wait("ARC chain not verified", str(e))
        if status is None:
            return None
        trusted = bool(rules.authserv_id) or not envelope.user  # nobody but who wrote it stands behind a user's mail
        server = rules.authserv_id or self._hostname
        results = arc.authentication_results(message[:start], server, trusted, before.instance)
        found = canonical.header_fields(message[:start], field.wanted((*rules.oversign, "dkim-signature")))
        chosen = field.choose(found, "relaxed", rules.oversign, (b"dkim-signature",))
        now = int(self._clock())
        hashed = canonical.body_hash(message, start, pause=_pause)
        half = arc.message_signature(chosen, hashed, before.instance, key.domain, key.selector, algorithm(key), now)
        if len(half.data) > field.MAX_DATA:
            return Wait("header too large to sign", f"{field.MAX_DATA} bytes of signed fields are allowed")
        return ArcSet(key, before, status, results, half, now)

    def _signers(self, domain: str) -> list[Signer] | Wait:
        """The keys that sign the mail of a domain: its own, then those of the domains that sign it too. All or none."""
        signers: list[Signer] = []
        own = self._rules(domain)
        for name in (domain, *own.also):
            rules = own if name == domain else self._rules(name)
            active = self._keys.active(name)
            keys = active.signing if rules is DEFAULT else choose_keys(active.usable, rules)
            if not keys:
                return Wait("key not in DNS" if active.known else "no key for domain", name)
            signers += [(key, rules) for key in keys]
        return signers

    def is_revoked(self, prefix: bytes) -> bool:
        """Was one of the signatures in ``prefix``, which this class made, made with a key that is compromised now?"""
        revoked = self._keys.revoked()
        return bool(revoked) and any(
            (domain.decode("ascii"), selector.decode("ascii")) in revoked
            for domain, selector in _KEY_TAGS.findall(prefix)
        )


def _pause() -> None:
    """Let other greenlets run. Not a thread: one that hashes beside a busy loop waits 0.2 s for the interpreter at
    each piece (3 MiB took 11 s instead of 21 ms)."""
    gevent.sleep(0)


def prepare(
    signers: Sequence[Signer], message: bytes, now: int, pause: Callable[[], object] | None = None
) -> list[Unsigned]:
    """What is to be signed with each key: the header and the body, canonicalised once for each form that the domains
    want, and one signature field for each key.
    """
    start = canonical.body_start(message)
    forms: dict[tuple[Canon, tuple[str, ...]], tuple[dict[bytes, list[bytes]], Chosen]] = {}
    hashes: dict[Canon, bytes] = {}
    halves = []
    for key, rules in signers:
        form = rules.header_canon, rules.oversign
        if form not in forms:
            names = field.wanted(rules.oversign) if rules.oversign else field.SIGNED
            found = canonical.header_fields(message[:start], names, rules.header_canon)
            forms[form] = found, field.choose(found, *form)
        fields, chosen = forms[form]
        body_canon = rules.body_canon
        if body_canon not in hashes:
            hashes[body_canon] = canonical.body_hash(message, start, body_canon, pause)
        halves.append(
            field.unsigned(
                chosen,
                hashes[body_canon],
                key.domain,
                key.selector,
                algorithm(key),
                now,
                body_canon,
                now + rules.expires_seconds if rules.expires_seconds else 0,
                field.author_domain(fields, key.domain) if rules.identity == "author" else "",
            )
        )
    return halves


def build(
    config: Config, rules: Callable[[str], Rules] = lambda _domain: DEFAULT, lookup: chain.Lookup = _no_lookup
) -> Signing:
    """The stage as a worker has it, from its configuration. ``rules``: of the git database; ``lookup``: TXT records."""
    client = SignerClient(os.path.join(config.run, "signer.sock"), config.signer.processes)
    return Signing(client, KeyView(config), rules=rules, hostname=config.hostname, lookup=lookup)
