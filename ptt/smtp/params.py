"""The parameters of MAIL and RCPT: SIZE (RFC 1870), BODY (RFC 6152, 3030), SMTPUTF8 (RFC 6531), AUTH (RFC 4954),
RET, ENVID, NOTIFY, ORCPT (RFC 3461, 6533), HOLDFOR, HOLDUNTIL (RFC 4865), MT-PRIORITY (RFC 6710), and further ones by
name. Values, parsed and written; the encodings of values are in ``encodings``.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from ptt.smtp.encodings import utf8_xtext_decode, utf8_xtext_encode, xtext_decode, xtext_encode
from ptt.smtp.errors import ProtocolError
from ptt.smtp.reply import Reply

MAX_ENVID = 100  # characters of the decoded value, RFC 3461 4.4
MAX_ORCPT = 500  # characters of the encoded value, RFC 3461 4.2
MAX_SIZE_DIGITS = 20  # RFC 1870 6
MAX_HOLD_DIGITS = 9  # RFC 4865 5

# esmtp-keyword = (ALPHA / DIGIT) *(ALPHA / DIGIT / "-"); esmtp-value = 1*(%d33-60 / %d62-126 / UTF8-non-ascii)
_PARAMETER = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*)(?:=([^\x00-\x20=\x7f-\x9f]+))?\Z")
_DATE_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?(?:[Zz]|[+-][0-9]{2}:[0-9]{2})\Z"
)
_PRIORITY = re.compile(r"(?:0|-?[1-9])\Z")
_ORCPT = re.compile(r"([A-Za-z0-9!#$%&'*+./?^_`{|}~-]+);(.+)\Z")


class MailParams(NamedTuple):
    """What came with MAIL, decoded. ``extra`` holds the parameters named by ``ServerConfig.mail_parameters``."""

    size: int | None = None  # octets that the client declares
    body: str = ""  # "", "7BIT", "8BITMIME" or "BINARYMIME"
    smtputf8: bool = False
    ret: str = ""  # "", "FULL" or "HDRS"
    envid: str = ""
    auth: str = ""  # "<>" or a mailbox: RFC 4954 5; informative
    extra: tuple[tuple[str, str], ...] = ()
    hold_for: int | None = None  # seconds
    hold_until: int | None = None  # seconds since the epoch
    priority: int | None = None  # -9 to 9


class RcptParams(NamedTuple):
    """What came with RCPT, decoded. ``extra`` holds the parameters named by ``ServerConfig.rcpt_parameters``."""

    notify: str = ""  # "", "NEVER" or a list of SUCCESS,FAILURE,DELAY
    orcpt: str = ""  # "rfc822;user@example.org" or "utf-8;üser@example.org"
    extra: tuple[tuple[str, str], ...] = ()


NO_MAIL_PARAMS = MailParams()
NO_RCPT_PARAMS = RcptParams()


def _size(value: str) -> int | None:
    return int(value) if len(value) <= MAX_SIZE_DIGITS and value.isascii() and value.isdecimal() else None


def _body(value: str) -> str | None:
    return value.upper() if value.upper() in ("7BIT", "8BITMIME", "BINARYMIME") else None


def _ret(value: str) -> str | None:
    return value.upper() if value.upper() in ("FULL", "HDRS") else None


def _envid(value: str) -> str | None:
    decoded = xtext_decode(value)
    good = decoded is not None and len(decoded) <= MAX_ENVID and decoded.isascii() and decoded.isprintable()
    return decoded if good else None


def _auth(value: str) -> str | None:
    decoded = xtext_decode(value)
    return decoded if decoded is not None and decoded.isprintable() else None


def _notify(value: str) -> str | None:
    words = value.upper().split(",")
    if words == ["NEVER"]:
        return "NEVER"
    good = len(set(words)) == len(words) and set(words) <= {"SUCCESS", "FAILURE", "DELAY"}
    return ",".join(words) if good else None


def _orcpt(value: str) -> str | None:
    """addr-type ";" xtext, or what RFC 6533 3 has for the type utf-8. The decoded address is kept, without controls."""
    found = _ORCPT.match(value) if len(value) <= MAX_ORCPT else None
    if found is None:
        return None
    decode = utf8_xtext_decode if found[1].lower() == "utf-8" else xtext_decode
    decoded = decode(found[2])
    return f"{found[1]};{decoded}" if decoded and decoded.isprintable() else None


def _hold_for(value: str) -> int | None:
    """RFC 4865 5: 1 to 9 digits."""
    return int(value) if 0 < len(value) <= MAX_HOLD_DIGITS and value.isascii() and value.isdecimal() else None


def _hold_until(value: str) -> int | None:
    """RFC 4865 5: Internet date-time (RFC 3339 5.6), in whole seconds or parts of them."""
    if not _DATE_TIME.match(value):
        return None
    try:
        return max(0, int(datetime.datetime.fromisoformat(value.upper()).timestamp()))
    except (ValueError, OverflowError):
        return None


def _priority(value: str) -> int | None:
    """RFC 6710 6."""
    return int(value) if _PRIORITY.match(value) else None


# keyword -> (field, parser of its value; None: it has no value)
_MAIL: dict[str, tuple[str, Callable[[str], Any] | None]] = {
    "SIZE": ("size", _size),
    "BODY": ("body", _body),
    "SMTPUTF8": ("smtputf8", None),
    "RET": ("ret", _ret),
    "ENVID": ("envid", _envid),
    "HOLDFOR": ("hold_for", _hold_for),
    "HOLDUNTIL": ("hold_until", _hold_until),
    "MT-PRIORITY": ("priority", _priority),
    "AUTH": ("auth", _auth),
}
_RCPT: dict[str, tuple[str, Callable[[str], Any] | None]] = {"NOTIFY": ("notify", _notify), "ORCPT": ("orcpt", _orcpt)}


def parse_mail_params(text: str, offered: frozenset[str]) -> MailParams:
    """What follows the path of MAIL. ``offered``: the keywords in upper case that are allowed.

    Raises ProtocolError with reply 501 (bad syntax) or 555 (RFC 5321 4.1.1.11: not recognised).
    """
    if not text.strip(" "):
        return NO_MAIL_PARAMS
    params = MailParams(**_parse(text, offered, _MAIL))
    if params.hold_for is not None and params.hold_until is not None:
        raise _bad("HOLDUNTIL")  # RFC 4865 4: one or the other
    return params


def parse_rcpt_params(text: str, offered: frozenset[str]) -> RcptParams:
    """What follows the path of RCPT; as ``parse_mail_params``."""
    return RcptParams(**_parse(text, offered, _RCPT)) if text.strip(" ") else NO_RCPT_PARAMS


def _parse(
    text: str, offered: frozenset[str], table: dict[str, tuple[str, Callable[[str], Any] | None]]
) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    extra: dict[str, str] = {}
    for word in text.split():
        found = _PARAMETER.match(word)
        if found is None:
            raise ProtocolError("bad parameter", Reply(501, "5.5.4", "Syntax error in a parameter"))
        keyword, value = found[1].upper(), found[2]
        if keyword not in offered:
            raise ProtocolError("unknown parameter", Reply(555, "5.5.4", f"Parameter {keyword[:40]} not supported"))
        if keyword not in table:
            if keyword in extra:
                raise _bad(keyword)
            extra[keyword] = value or ""
            continue
        field, parse = table[keyword]
        parsed = value is None if parse is None else parse(value) if value is not None else None
        if field in fields or parsed is None or parsed is False:
            raise _bad(keyword)
        fields[field] = parsed
    return {**fields, "extra": tuple(extra.items())} if extra else fields


def _bad(keyword: str) -> ProtocolError:
    return ProtocolError("bad parameter", Reply(501, "5.5.4", f"Bad value of parameter {keyword[:40]}"))


def format_mail_params(params: MailParams, offered: frozenset[str]) -> str:
    """The parameters as they follow a path, each with a space before it; only those with a keyword in ``offered``."""
    words = []
    if params.size is not None and "SIZE" in offered:
        words.append(f" SIZE={params.size}")
    if params.body and "BODY" in offered:
        words.append(f" BODY={params.body}")
    if params.smtputf8 and "SMTPUTF8" in offered:
        words.append(" SMTPUTF8")
    if params.ret and "RET" in offered:
        words.append(f" RET={params.ret}")
    if params.envid and "ENVID" in offered:
        words.append(f" ENVID={xtext_encode(params.envid)}")
    if params.hold_for is not None and "HOLDFOR" in offered:
        words.append(f" HOLDFOR={params.hold_for}")
    if params.hold_until is not None and "HOLDUNTIL" in offered:
        until = datetime.datetime.fromtimestamp(params.hold_until, datetime.UTC)
        words.append(f" HOLDUNTIL={until:%Y-%m-%dT%H:%M:%SZ}")
    if params.priority is not None and "MT-PRIORITY" in offered:
        words.append(f" MT-PRIORITY={params.priority}")
    words += [f" {k}={v}" if v else f" {k}" for k, v in params.extra if k in offered]
    return "".join(words)


def format_rcpt_params(params: RcptParams, offered: frozenset[str]) -> str:
    """As ``format_mail_params``, for RCPT."""
    words = []
    if params.notify and "NOTIFY" in offered:
        words.append(f" NOTIFY={params.notify}")
    if params.orcpt and "ORCPT" in offered:
        kind, _, address = params.orcpt.partition(";")
        encode = utf8_xtext_encode if kind.lower() == "utf-8" else xtext_encode
        words.append(f" ORCPT={kind};{encode(address)}")
    words += [f" {k}={v}" if v else f" {k}" for k, v in params.extra if k in offered]
    return "".join(words)
