"""The DKIM-Signature field (RFC 6376, 3.5): which fields are signed, in which words, and how it is read back.

A signature is made in two steps around the private key, which is elsewhere::

    chosen = choose(header_fields(head, SIGNED))                        # once for a message
    half = unsigned(chosen, body_hash(...), "example.org", "s1", "rsa-sha256", now)
    signature = ...(half.data)                                          # the key process
    line = half.signed(signature)                                       # goes before the message, ends in CRLF

The field is folded when it is made and never after, so it is right under the simple form too.
"""

from __future__ import annotations

import base64
import functools
import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

from ptt.dkim.canonical import Canon, squeeze

Algorithm = Literal["rsa-sha256", "ed25519-sha256"]

# RFC 6376, 5.4.1 and 8.15. These are signed once more than they occur, also when they are absent, so that a
# second From or Subject, or a Content-Type that turns the body into something else, cannot be put in later.
ALWAYS = (
    b"from",
    b"to",
    b"cc",
    b"subject",
    b"date",
    b"message-id",
    b"reply-to",
    b"mime-version",
    b"content-type",
    b"content-transfer-encoding",
)
# These too, but only when they occur: a mailing list that gives its own to a message without them
# breaks nothing. RFC 8058, 4 wants both List-Unsubscribe fields under the signature.
IF_PRESENT = (b"list-unsubscribe", b"list-unsubscribe-post", b"in-reply-to", b"references")
# Signed as they occur: a forwarder may add its own above (RFC 5322, 3.6.6).
ONCE = (b"sender", b"resent-date", b"resent-from", b"resent-to", b"resent-cc", b"resent-message-id")

SIGNED: frozenset[bytes] = frozenset(ALWAYS + IF_PRESENT + ONCE)
"""Every field that may be signed: what ``header_fields`` has to find."""

_GROUPS = ((ALWAYS, 1, True), (IF_PRESENT, 1, False), (ONCE, 0, False))  # names, once more, when absent too

MAX_INSTANCES = 8  # of one name: RFC 5322, 3.6 allows one (Resent fields: one a hop); the lowest ones are signed
LINE = 76  # RFC 5322, 2.1.1 recommends 78
SHAPES = 512  # h= texts remembered: one for each combination of fields that occurs

MAX_INSTANCE = 50  # RFC 8617, 4.2.1: of an ARC set

MAX_DATA = 1024 * 1024  # of all that one signature covers; a To with a thousand recipients is 64 KiB
MAX_FIELD = 8192  # bytes of a signature field that is read back; ours are under 4 KiB with every name 8 times

_FIELD_NAME = b"dkim-signature"
_ARC_MESSAGE, _ARC_SEAL = b"arc-message-signature", b"arc-seal"
_SIGNED_FIELDS = (_FIELD_NAME, _ARC_MESSAGE, _ARC_SEAL)  # what a key process signs: RFC 6376, 3.5; RFC 8617, 4.1
_DOMAINS = re.compile(rb"@([A-Za-z0-9._-]{1,253})")
_ONE_FIELD = re.compile(
    rb"(dkim-signature|arc-message-signature|arc-seal):([^\r\n]*(?:\r\n[ \t][^\r\n]*)*)", re.IGNORECASE
)


class BadSignatureField(ValueError):
    """Data that should end in an unsigned DKIM-Signature field does not; the message says why."""


class Chosen(NamedTuple):
    """What is signed of a header."""

    names: bytes  # h=, folded
    data: bytes  # the canonical fields in the order of h=, each with its CRLF
    canon: Canon


class Unsigned(NamedTuple):
    """A signature field that lacks its signature."""

    field: bytes  # as it goes into the message, up to and with "b="
    data: bytes  # what is signed: the chosen fields and this one

    def signed(self, signature: bytes) -> bytes:
        """The finished field with its CRLF."""
        text = base64.b64encode(signature)
        first = LINE - 3  # behind a tab, counted as one column, and "b="
        lines = [text[:first], *(text[at : at + LINE - 1] for at in range(first, len(text), LINE - 1))]
        return self.field + b"\r\n\t".join(lines) + b"\r\n"


@functools.lru_cache(SHAPES)
def _groups(oversign: tuple[str, ...]) -> tuple[tuple[tuple[bytes, ...], int, bool], ...]:
    """What is signed when a domain wants ``oversign`` signed as From is."""
    own = tuple(name.encode("ascii") for name in oversign)
    groups = [(tuple(n for n in names if n not in own), extra, absent) for names, extra, absent in _GROUPS]
    return groups[0], (own, 1, True), *groups[1:]


@functools.lru_cache(SHAPES)
def wanted(oversign: tuple[str, ...]) -> frozenset[bytes]:
    """What ``header_fields`` has to find for such a domain."""
    return SIGNED.union(name.encode("ascii") for name in oversign)


def choose(
    fields: Mapping[bytes, list[bytes]],
    canon: Canon = "relaxed",
    oversign: tuple[str, ...] = (),
    once: tuple[bytes, ...] = (),
) -> Chosen:
    """Which fields are signed and how often; ``fields`` as ``header_fields`` found them under the same form.

    ``oversign``: lower-case names of fields that are signed once more than they occur, beside the usual ones;
    ``once``: of others that are signed as often.
    Several fields of one name are taken from the bottom up (RFC 6376, 5.4.2).
    """
    shape: list[tuple[bytes, int]] = []
    data: list[bytes] = []
    groups = _groups(oversign) if oversign else _GROUPS
    for names, extra, absent in (*groups, (once, 0, False)) if once else groups:
        for name in names:
            values = fields.get(name)
            if values:
                taken = values[: -MAX_INSTANCES - 1 : -1]
                data += taken
                shape.append((name, len(taken) + extra))
            elif absent:
                shape.append((name, 1))
    data.append(b"")
    return Chosen(_folded_names(tuple(shape)), b"\r\n".join(data), canon)


@functools.lru_cache(SHAPES)
def _folded_names(shape: tuple[tuple[bytes, int], ...]) -> bytes:
    """The list of names for h=, folded at its colons (RFC 6376, 3.5: FWS is allowed around them)."""
    lines = [b"h="]
    for name in (name for name, count in shape for _ in range(count)):
        if len(lines[-1]) + len(name) + 1 >= LINE:
            lines.append(b" ")
        lines[-1] += name + b":"
    return b"\r\n\t".join(lines)[:-1]


def unsigned(
    chosen: Chosen,
    body_hash: bytes,
    domain: str,
    selector: str,
    algorithm: Algorithm,
    time: int,
    body_canon: Canon = "relaxed",
    expires: int = 0,
    identity: str = "",
) -> Unsigned:
    """The field without its signature, and what is to be signed. ``time``: seconds since the epoch, for t=; so is
    ``expires``, for x=, 0: none. ``identity``: the domain for i=, the signing one or below it; "": none."""
    lasting = f" x={expires};" if expires else ""
    whose = f" i=@{identity};" if identity else ""
    hashed = base64.b64encode(body_hash).decode("ascii")
    tags = (
        (
            f"v=1; a={algorithm}; c={chosen.canon}/{body_canon}; t={time};{lasting}\r\n"
            f"\td={domain}; s={selector};{whose}\r\n"
            f"\tbh={hashed};\r\n\t"
        ).encode("ascii")
        + chosen.names
        + b";\r\n\tb="
    )
    return half(b"DKIM-Signature", tags, chosen)


def half(name: bytes, tags: bytes, chosen: Chosen) -> Unsigned:
    """A signature field of this name, folded, whose ``tags`` end in "b=", over what was chosen."""
    field = name + b": " + tags
    if chosen.canon == "simple":
        return Unsigned(field, chosen.data + field)
    return Unsigned(field, chosen.data + name.lower() + b":" + squeeze(tags.replace(b"\r\n", b"")))


def signature_tags(data: bytes) -> dict[str, str]:
    """The tags of the unsigned signature field at the end of ``data``, which was canonicalised in either form.

    The key process looks here at what it is asked to sign. Raises BadSignatureField for anything but one whole
    DKIM-Signature, ARC-Message-Signature or ARC-Seal: b= empty and last, no tag twice; the former two with From signed
    and no l=, the last one over ARC sets and nothing else.
    """
    match = _last_field(data)
    tags: dict[str, str] = {}
    try:
        text = match[2].translate(None, b" \t\r\n").decode("ascii")
    except UnicodeDecodeError as e:
        raise BadSignatureField("the signature field is not ASCII") from e
    for part in text.split(";"):
        name, equals, value = part.partition("=")
        if not equals or name in tags:
            raise BadSignatureField(f"tag {name[:20]!r} is malformed or there twice")
        tags[name] = value
    if not text.endswith(";b="):
        raise BadSignatureField("b= is not empty and last")
    kind = match[1].lower()
    if kind == _ARC_SEAL:
        _check_seal(data, tags)
        return tags
    if kind == _ARC_MESSAGE:
        _check_instance(tags)
    elif tags.get("v") != "1":
        raise BadSignatureField("v= is not 1")
    elif "i" in tags and not _at_or_below(tags["i"], tags.get("d", "")):
        raise BadSignatureField("i= is not in d= (RFC 6376, 3.5)")
    if "l" in tags:
        raise BadSignatureField("l= is never signed")
    names = f":{tags.get('h', '').lower()}:"
    if ":from:" not in names:
        raise BadSignatureField("From is not signed (RFC 6376, 5.4)")
    if kind == _ARC_MESSAGE and (":arc-seal:" in names or ":authentication-results:" in names):
        raise BadSignatureField("ARC-Seal or Authentication-Results is signed (RFC 8617, 4.1.2)")
    return tags


def _last_field(data: bytes) -> re.Match[bytes]:
    """The name and the text of the signature field in which ``data`` ends. Raises BadSignatureField."""
    tail = data[-MAX_FIELD:].lower()
    for name in _SIGNED_FIELDS:
        at = tail.rfind(b"\r\n" + name + b":")
        match = _ONE_FIELD.fullmatch(data, len(data) - len(tail) + at + 2 if at >= 0 else 0)
        if match is not None:
            return match
    raise BadSignatureField("what is to be signed does not end in a DKIM-Signature field, or one of ARC")


def _check_instance(tags: Mapping[str, str]) -> int:
    number = tags.get("i", "")
    if "v" in tags or not re.fullmatch(r"[1-9]\d?", number) or int(number) > MAX_INSTANCE:
        raise BadSignatureField("i= is not the number of an ARC set, or there is a v= (RFC 8617, 4.1)")
    return int(number)


def _check_seal(data: bytes, tags: Mapping[str, str]) -> None:
    """A seal covers the sets up to its own, or its own alone when they are broken: nothing else is signed as one."""
    number, status = _check_instance(tags), tags.get("cv")
    if not tags.keys().isdisjoint(("h", "bh", "c", "l")) or status not in ("none", "pass", "fail"):
        raise BadSignatureField("the ARC-Seal has a tag of other fields, or no cv= (RFC 8617, 4.1.3)")
    if (number == 1) is not (status == "none"):
        raise BadSignatureField("cv=none is for the first set, and for it alone (RFC 8617, 5.1.1)")
    one = [b"arc-authentication-results", _ARC_MESSAGE, _ARC_SEAL]
    names = [line.partition(b":")[0] for line in data.split(b"\r\n")]
    if names != one * (1 if status == "fail" else number):
        raise BadSignatureField("an ARC-Seal covers ARC sets and nothing else (RFC 8617, 5.1.1)")


def _at_or_below(identity: str, domain: str) -> bool:
    found = identity.lower().rpartition("@")[2]
    return "@" in identity and (found == domain or found.endswith("." + domain))


def author_domain(fields: Mapping[bytes, list[bytes]], domain: str) -> str:
    """The domain of From, for i=, where it is below ``domain``; else "". ``fields`` as ``header_fields`` found them."""
    found = _DOMAINS.findall(fields.get(b"from", [b""])[-1])
    author = found[-1].decode("ascii").lower().rstrip(".") if found else ""
    return author if author.endswith("." + domain) else ""
