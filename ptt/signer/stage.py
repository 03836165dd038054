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
from typing import Literal

import gevent
import msgspec

from ptt.config import Config
from ptt.dkim import canonical, field
from ptt.dkim.canonical import Canon
from ptt.dkim.field import Chosen, Unsigned
from ptt.dkim.rules import DEFAULT, Rules
from ptt.message import Envelope
from ptt.net.rpc import RpcError, RpcUnavailable
from ptt.signer.client import Request, SignerClient
from ptt.signer.state import KeyView, PublicKey, choose_keys

_KEY_TAGS = re.compile(rb"\td=([^;\s]+); s=([^;\s]+);")  # as ptt.dkim.field writes them
MAX_HEADER = 4 * 1024 * 1024  # of a message that is signed: 15 ms of work on the loop in one piece

Reason = Literal[
    "no key for domain", "key not in DNS", "key process unavailable", "key refused", "header too large to sign"
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


class Signing:
    """Signs messages. ``rules``: how a domain wants it; ``clock``: seconds since the epoch, for t=."""

    def __init__(
        self,
        client: SignerClient,
        keys: KeyView,
        clock: Callable[[], float] = time.time,
        rules: Callable[[str], Rules] = lambda _domain: DEFAULT,
    ) -> None:
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
        halves = prepare(signers, body, int(self._clock()), _pause)
        if max(len(half.data) for half in halves) > field.MAX_DATA:
            return Wait("header too large to sign", f"{field.MAX_DATA} bytes of signed fields are allowed")
        requests = [
            Request(shown_id, key.domain, key.selector, half.data)
            for (key, _), half in zip(signers, halves, strict=True)
        ]
        try:
            signatures = self._client.sign(*requests)
        except RpcUnavailable as e:
            return Wait("key process unavailable", str(e))
        except RpcError as e:
            return Wait("key refused", str(e))
        finished = [half.signed(signature) for half, signature in zip(halves, signatures, strict=True)]
        return Signed(b"".join(finished), domain, [key.selector for key, _ in signers])

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
                "ed25519-sha256" if key.algorithm == "ed25519" else "rsa-sha256",
                now,
                body_canon,
                now + rules.expires_seconds if rules.expires_seconds else 0,
                field.author_domain(fields, key.domain) if rules.identity == "author" else "",
            )
        )
    return halves


def build(config: Config, rules: Callable[[str], Rules] = lambda _domain: DEFAULT) -> Signing:
    """The stage as a worker has it, from its configuration. ``rules``: of the git database."""
    client = SignerClient(os.path.join(config.run, "signer.sock"), config.signer.processes)
    return Signing(client, KeyView(config), rules=rules)
