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

MAX_INSTANCES = 8  # of one name: RFC 5322, 3.6 allows one (Resent fields: one a hop); the lowest ones are signed
LINE = 76  # RFC 5322, 2.1.1 recommends 78
SHAPES = 512  # h= texts remembered: one for each combination of fields that occurs

MAX_DATA = 1024 * 1024  # of all that one signature covers; a To with a thousand recipients is 64 KiB
MAX_FIELD = 8192  # bytes of a signature field that is read back; ours are under 4 KiB with every name 8 times

_FIELD_NAME = b"dkim-signature"
_ONE_FIELD = re.compile(rb"dkim-signature:([^\r\n]*(?:\r\n[ \t][^\r\n]*)*)", re.IGNORECASE)


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


def choose(fields: Mapping[bytes, list[bytes]], canon: Canon = "relaxed") -> Chosen:
    """Which fields are signed and how often; ``fields`` as ``header_fields`` found them under the same form.

    Several fields of one name are taken from the bottom up (RFC 6376, 5.4.2).
    """
    shape: list[tuple[bytes, int]] = []
    data: list[bytes] = []
    for names, extra, absent in ((ALWAYS, 1, True), (IF_PRESENT, 1, False), (ONCE, 0, False)):
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
) -> Unsigned:
    """The field without its signature, and what is to be signed. ``time``: seconds since the epoch, for t=."""
    hashed = base64.b64encode(body_hash).decode("ascii")
    tags = (
        (
            f"v=1; a={algorithm}; c={chosen.canon}/{body_canon}; t={time};\r\n"
            f"\td={domain}; s={selector};\r\n"
            f"\tbh={hashed};\r\n\t"
        ).encode("ascii")
        + chosen.names
        + b";\r\n\tb="
    )
    field = b"DKIM-Signature: " + tags
    if chosen.canon == "simple":
        return Unsigned(field, chosen.data + field)
    return Unsigned(field, chosen.data + _FIELD_NAME + b":" + squeeze(tags.replace(b"\r\n", b"")))


def signature_tags(data: bytes) -> dict[str, str]:
    """The tags of the unsigned DKIM-Signature field at the end of ``data``, which was canonicalised in either form.

    The key process looks here at what it is asked to sign. Raises BadSignatureField for anything but one whole
    field, version 1, b= empty and last, no tag twice, From signed, no l=.
    """
    tail = data[-MAX_FIELD:].lower()
    at = tail.rfind(b"\r\n" + _FIELD_NAME)
    at = len(data) - len(tail) + at + 2 if at >= 0 else 0
    match = _ONE_FIELD.fullmatch(data, at)
    if match is None:
        raise BadSignatureField("what is to be signed does not end in a DKIM-Signature field")
    tags: dict[str, str] = {}
    try:
        text = match[1].translate(None, b" \t\r\n").decode("ascii")
    except UnicodeDecodeError as e:
        raise BadSignatureField("the DKIM-Signature field is not ASCII") from e
    for part in text.split(";"):
        name, equals, value = part.partition("=")
        if not equals or name in tags:
            raise BadSignatureField(f"tag {name[:20]!r} is malformed or there twice")
        tags[name] = value
    if not text.endswith(";b=") or tags.get("v") != "1":
        raise BadSignatureField("v= is not 1, or b= is not empty and last")
    if "l" in tags:
        raise BadSignatureField("l= is never signed")
    if "from" not in tags.get("h", "").lower().split(":"):
        raise BadSignatureField("From is not signed (RFC 6376, 5.4)")
    return tags
