"""Domains and addresses as the git database spells them. Pure.

Everything is lower case: names of users and aliases are compared without regard to case, though RFC 5321 2.4 lets a
domain tell ``Smith`` from ``smith``; in our own domains we do not. Domains are in ASCII form (A-labels, RFC 5890).
"""

from __future__ import annotations

import re
import unicodedata

MAX_LOCAL_BYTES = 64  # RFC 5321 4.5.3.1.1
MAX_DOMAIN_BYTES = 253  # RFC 1035 2.3.4, without the root's dot
SUBADDRESS = "+"  # RFC 5233: user+detail@domain belongs to user@domain

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_ATEXT = re.compile(r"[a-z0-9!#$%&'*+\-/=?^_`{|}~.]*")  # RFC 5322 3.2.3, lower case, and the dot of dot-atom
_NOT_IN_FILES = frozenset('/*?|`$\\"<>:')  # a separator, or trouble in a shell or on another file system


def fold_domain(domain: str) -> str:
    """A domain in lower case and ASCII form; one that has no ASCII form comes back in lower case."""
    lower = domain.lower().removesuffix(".")
    if lower.isascii() or len(lower) > MAX_DOMAIN_BYTES:  # its ASCII form is longer still; to find that out is slow
        return lower
    try:
        return lower.encode("idna").decode("ascii")
    except UnicodeError:
        return lower


def fold(address: str) -> str:
    """An address as it is looked up: lower case, domain in ASCII form, local part in NFC."""
    local, at, domain = address.rpartition("@")
    if not at:
        return address.lower()
    return f"{unicodedata.normalize('NFC', local).lower()}@{fold_domain(domain)}"


def split(address: str) -> tuple[str, str]:
    """(local part, domain) at the last "@"; ("", address) if there is none."""
    local, _, domain = address.rpartition("@")
    return local, domain


def without_detail(address: str) -> str:
    """``user+detail@domain`` -> ``user@domain``; other addresses unchanged."""
    local, domain = split(address)
    base = local.partition(SUBADDRESS)[0]
    return f"{base}@{domain}" if base else address


def domain_mistake(domain: str) -> str:
    """What is wrong with a domain as a name in the database; "" if nothing."""
    if domain != domain.lower():
        return f"domain {domain!r} must be in lower case"
    if not domain.isascii():
        return f"domain {domain!r} must be in its ASCII form (xn--...)"
    if len(domain) > MAX_DOMAIN_BYTES:
        return "domain is longer than 253 bytes"
    if not all(_LABEL.fullmatch(label) for label in domain.split(".")):
        return f"{domain!r} is not a domain"
    return ""


def local_mistake(local: str) -> str:
    """What is wrong with a local part (dot-atom, RFC 5321 4.1.2, or its UTF-8 form, RFC 6531 3.3); "" if nothing."""
    if len(local.encode("utf-8", "surrogatepass")) > MAX_LOCAL_BYTES:
        return "local part is longer than 64 bytes"
    if not local or local.startswith(".") or local.endswith(".") or ".." in local:
        return f"{local!r} is not a local part: a dot at an end, two dots, or nothing"
    if local != local.lower():
        return f"local part {local!r} must be in lower case"
    if not _ATEXT.fullmatch("".join(c for c in local if c.isascii())):
        return f"local part {local!r} has a character that needs quoting"
    if unicodedata.normalize("NFC", local) != local:
        return f"local part {local!r} is not in normalisation form C"
    if any(unicodedata.category(c)[0] in "CZ" for c in local if not c.isascii()):
        return f"local part {local!r} has a control character or a space"
    return ""


def file_local_mistake(local: str) -> str:
    """As ``local_mistake``, for the name of a file: some characters are refused there."""
    if bad := sorted(_NOT_IN_FILES & set(local)):
        return f"{local!r} may not contain {' '.join(bad)}"
    return local_mistake(local)


def address_mistake(address: str) -> str:
    """What is wrong with an address of the database; "" if nothing."""
    local, domain = split(address)
    if "@" not in address:
        return f"{address!r} is not an address: no @"
    return local_mistake(local) or domain_mistake(domain)


def target_mistake(address: str) -> str:
    """As ``address_mistake``, for where an alias leads: another domain may tell upper from lower case."""
    local, at, domain = address.rpartition("@")
    return address_mistake(f"{local.lower()}{at}{domain}")


def parents(domain: str) -> list[str]:
    """``a.b.example`` -> ``["b.example", "example"]``: the domains above it, nearest first."""
    labels = domain.split(".")
    return [".".join(labels[n:]) for n in range(1, len(labels))]
