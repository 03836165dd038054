"""ARC sets (RFC 8617): the three fields that a sealer adds. Pure; as dkimpy makes them, which the tests compare.

A set is made in two steps around the private key::

    before = chain(head)                          # of the message as it came
    cv = "none" if before.instance == 1 else ...  # verified by dkimpy, ``ptt.signer.chain``
    results = authentication_results(...)         # ARC-Authentication-Results, finished
    half = message_signature(...)                 # signed like a DKIM-Signature
    whole = seal(before, cv, results, half.signed(...), ...)
    added = whole.signed(...) + half.signed(...) + results

Everything is in the relaxed form (RFC 8617, 4.1.2 and 4.1.3).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from ptt.dkim.canonical import header_fields, squeeze
from ptt.dkim.field import MAX_INSTANCE, Algorithm, Chosen, Unsigned, half

RESULTS, MESSAGE, SEAL = b"arc-authentication-results", b"arc-message-signature", b"arc-seal"
_SET = (RESULTS, MESSAGE, SEAL)  # in the order in which a seal covers them (RFC 8617, 5.1.1)

Status = Literal["none", "pass", "fail"]
"""cv= of a seal: what a verifier says of the sets below it."""

MAX_RESULTS = 8192  # bytes of Authentication-Results that are taken over; a filter's are some hundred

_INSTANCE = re.compile(rb"[:;] *i *= *(\d{1,3}) *(?:;|\Z)")
_FAILED = re.compile(rb"[:;] *cv *= *fail *(?:;|\Z)", re.IGNORECASE)
_AUTHSERV = re.compile(rb" *([^\s;()\"]+)(?: +\d+)? *;")


class Chain(NamedTuple):
    """The ARC sets of a message."""

    instance: int  # of the set that comes next
    fields: tuple[bytes, ...]  # canonical, in the order in which a seal covers them
    whole: bool  # each instance from 1 has its three fields, once
    ended: bool  # no set may follow: the newest says cv=fail (RFC 8617, 5.1.2), or there are 50


def chain(head: bytes) -> Chain:
    """The sets in a header."""
    found = header_fields(head, _SET)
    sets: dict[int, dict[bytes, list[bytes]]] = {}
    broken = False
    for name, values in found.items():
        for value in values:
            number = _INSTANCE.search(value)
            if number is None:
                broken = True
            else:
                sets.setdefault(int(number[1]), {}).setdefault(name, []).append(value)
    last = max(sets, default=0)
    whole = not broken and list(range(1, last + 1)) == sorted(sets)
    whole = whole and all(len(one.get(name, ())) == 1 for one in sets.values() for name in _SET)
    fields = tuple(sets[number][name][0] for number in sorted(sets) for name in _SET) if whole else ()
    failed = any(_FAILED.search(value) for value in sets.get(last, {}).get(SEAL, ()))
    return Chain(last + 1, fields, whole, failed or last >= MAX_INSTANCE)


def keys_of(before: Chain) -> list[str]:
    """The names of the key records that a verifier of the chain asks for, each once, without final dot."""
    names: dict[str, None] = {}
    for value in before.fields:
        if not value.startswith(RESULTS):
            text = value.partition(b":")[2].replace(b" ", b"").decode("ascii", "replace")
            tags = dict(part.partition("=")[::2] for part in text.split(";"))
            names[f"{tags.get('s', '')}._domainkey.{tags.get('d', '')}".lower()] = None
    return list(names)


def authentication_results(head: bytes, authserv_id: str, trusted: bool, instance: int) -> bytes:
    """ARC-Authentication-Results with its CRLF: what the message's Authentication-Results fields of this server say, or
    "none" (RFC 8601, 2.2), also where they cannot be ``trusted``, because whoever wrote the message wrote them.
    """
    name = b"authentication-results"
    found = header_fields(head, (name,)).get(name, []) if trusted else []
    results: list[bytes] = []
    for field in found:
        value = field.partition(b":")[2]
        server = _AUTHSERV.match(value)
        if server is not None and server[1].decode("latin-1").lower() == authserv_id.lower():
            rest = value[server.end() :].strip(b" ;")
            results += [rest] if rest != b"none" else []
    text = b"; ".join(results)
    if not text or len(text) > MAX_RESULTS:
        text = b"none"
    folded = text.replace(b"; ", b";\r\n\t")
    return b"ARC-Authentication-Results: i=%d; %s;\r\n\t%s\r\n" % (instance, authserv_id.encode("ascii"), folded)


def message_signature(
    chosen: Chosen, body_hash: bytes, instance: int, domain: str, selector: str, algorithm: Algorithm, time: int
) -> Unsigned:
    """ARC-Message-Signature without its signature. ``time``: seconds since the epoch."""
    hashed = base64.b64encode(body_hash).decode("ascii")
    how = f"i={instance}; a={algorithm}; c=relaxed/relaxed; t={time};"
    tags = f"{how}\r\n\td={domain}; s={selector};\r\n\tbh={hashed};\r\n\t"
    return half(b"ARC-Message-Signature", tags.encode("ascii") + chosen.names + b";\r\n\tb=", chosen)


def seal(
    before: Chain,
    status: Status,
    added: Sequence[bytes],
    domain: str,
    selector: str,
    algorithm: Algorithm,
    time: int,
) -> Unsigned:
    """ARC-Seal without its signature. ``added``: the finished ARC-Authentication-Results and ARC-Message-Signature.

    It covers all sets, or, where those before it are broken, its own alone (RFC 8617, 5.1.2).
    """
    covered = list(before.fields) if status != "fail" else []
    covered += [_canonical(field) for field in added]
    chosen = Chosen(b"", b"".join(field + b"\r\n" for field in covered), "relaxed")
    tags = f"i={before.instance}; a={algorithm}; cv={status}; t={time};\r\n\td={domain}; s={selector};\r\n\tb="
    return half(b"ARC-Seal", tags.encode("ascii"), chosen)


def _canonical(field: bytes) -> bytes:
    name, _, value = squeeze(field.replace(b"\r\n", b"")).partition(b":")
    return name.lower() + b":" + value.strip(b" ")
