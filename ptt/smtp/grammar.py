"""The grammar of paths and mailboxes (RFC 5321 4.1.2), one regular expression per production.

Where we differ from the RFC:

- A space is allowed between ``FROM:`` or ``TO:`` and the path (RFC 5321 3.3 forbids it, many clients send it).
- A source route is parsed and thrown away (RFC 5321 4.1.1.3: "SHOULD be ignored").
- Characters beyond ASCII are parsed as RFC 6531 3.3 says; the session refuses them unless SMTPUTF8 was given.
  C1 controls (U+0080 to U+009F) are not: they have no place in an address and do harm on terminals.
- A quoted local part is brought into its shortest equal form, unquoted where it can be (RFC 5321 4.1.2: "the
  sending system SHOULD transmit the form that uses the minimum quoting possible"), so that one mailbox has one
  spelling for policy.
- General-address-literals other than IPv6 (none was ever registered) are refused, and so is the empty ``""``.
"""

from __future__ import annotations

import ipaddress
import re

MAX_LOCAL = 64  # octets, RFC 5321 4.5.3.1.1
MAX_DOMAIN = 255  # octets, RFC 5321 4.5.3.1.2
MAX_PATH = 256  # octets with the angle brackets, RFC 5321 4.5.3.1.3
MAX_LABEL = 63  # octets, RFC 1035 2.3.4

# All characters from U+00A0 on are allowed (RFC 6531 3.3: UTF8-non-ascii), so the classes name what is not: those
# compile in a tenth of the time of classes that name it, which a worker's start would notice.

# Dot-string = Atom *("." Atom); Atom = 1*atext: all but controls, space and specials (RFC 5322 3.2.3)
_ATEXT = r'[^\x00-\x20"(),.:;<>@\[\\\]\x7f-\x9f]+'
_DOT_STRING = rf"{_ATEXT}(?:\.{_ATEXT})*"
# Quoted-string = DQUOTE *QcontentSMTP DQUOTE; qtextSMTP = %d32-33 / %d35-91 / %d93-126; quoted-pairSMTP = "\" %d32-126
_QUOTED = r'"(?:[^\x00-\x1f"\\\x7f-\x9f]|\\[\x20-\x7e])+"'
_LOCAL = rf"(?:{_DOT_STRING}|{_QUOTED})"
# Domain = sub-domain *("." sub-domain); sub-domain = Let-dig [Ldh-str]: between the excluded lie "-", 0-9, A-Z, a-z
_LABEL = rf"(?!-)[^\x00-,./:-@\[-`\x7b-\x9f]{{1,{MAX_LABEL}}}(?<!-)"
_DOMAIN = rf"{_LABEL}(?:\.{_LABEL})*"
# address-literal = "[" ( IPv4-address-literal / IPv6-address-literal ) "]"; the numbers are checked afterwards
_LITERAL = r"\[[0-9A-Za-z:.]{3,60}\]"
_MAILBOX = rf"(?P<local>{_LOCAL})@(?P<domain>{_DOMAIN}|{_LITERAL})"
# A-d-l = At-domain *( "," At-domain )
_ROUTE = rf"(?:@{_DOMAIN}(?:,@{_DOMAIN})*:)?"

_PATH = re.compile(rf" *<{_ROUTE}{_MAILBOX}>(?= |\Z)")
_POSTMASTER = re.compile(r" *<(?P<local>postmaster)>(?= |\Z)", re.I)  # RFC 5321 4.1.1.3
_NULL_PATH = re.compile(r" *<>(?= |\Z)")
_WHOLE_MAILBOX = re.compile(rf"{_MAILBOX}\Z")
_WHOLE_DOT_STRING = re.compile(rf"{_DOT_STRING}\Z")
_PAIR = re.compile(r"\\(.)")
_ESCAPED = re.compile(r'(["\\])')


def parse_reverse_path(text: str) -> tuple[str, str] | None:
    """``<sender> rest`` -> (address, rest); the address of the null path is "". None when it is not a Reverse-path."""
    null = _NULL_PATH.match(text)
    return ("", text[null.end() :]) if null else _path(text)


def parse_forward_path(text: str) -> tuple[str, str] | None:
    """``<recipient> rest`` -> (address, rest); ``<postmaster>`` needs no domain. None when it is not a Forward-path."""
    parsed = _path(text)
    if parsed is None and (alone := _POSTMASTER.match(text)):
        return alone["local"], text[alone.end() :]
    return parsed


def parse_mailbox(text: str) -> str | None:
    """An address without brackets in its one spelling, or None when it is not a Mailbox."""
    found = _WHOLE_MAILBOX.match(text)
    return _address(found) if found else None


def _path(text: str) -> tuple[str, str] | None:
    found = _PATH.match(text)
    if found is None:
        return None
    address = _address(found)
    return (address, text[found.end() :]) if address is not None else None


def _address(found: re.Match[str]) -> str | None:
    local, domain = found["local"], found["domain"]
    if local[0] == '"':
        local = _shortest(local)
    if domain[0] == "[" and not _is_literal(domain[1:-1]):
        return None
    address = f"{local}@{domain}"
    if address.isascii():
        fits = len(local) <= MAX_LOCAL and len(domain) <= MAX_DOMAIN and len(address) + 2 <= MAX_PATH
    else:
        fits = _octets(local) <= MAX_LOCAL and _octets(domain) <= MAX_DOMAIN and _octets(address) + 2 <= MAX_PATH
    return address if fits else None


def _octets(text: str) -> int:
    return len(text.encode("utf-8"))


def _shortest(quoted: str) -> str:
    """The shortest spelling of a Quoted-string: "joe" is joe, and only quotes and backslashes are escaped."""
    content = _PAIR.sub(r"\1", quoted[1:-1])
    if _WHOLE_DOT_STRING.match(content):
        return content
    return '"' + _ESCAPED.sub(r"\\\1", content) + '"'


def _is_literal(content: str) -> bool:
    try:
        if content[:5].lower() == "ipv6:":
            ipaddress.IPv6Address(content[5:])
        else:
            ipaddress.IPv4Address(content)
    except ValueError:
        return False
    return True
