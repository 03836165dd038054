"""How values are written in parameters: xtext (RFC 3461 4) and its sibling for international addresses (RFC 6533 3)."""

from __future__ import annotations

import re

_XTEXT = re.compile(r"(?:[\x21-\x2a\x2c-\x3c\x3e-\x7e]|\+[0-9A-F]{2})*\Z")
_HEXCHAR = re.compile(r"\+([0-9A-F]{2})")

# QUCHAR / EmbeddedUnicodeChar; QUCHAR beyond ASCII is for sessions with SMTPUTF8, whom the caller knows
_UTF8_XTEXT = re.compile(r"(?:[\x21-\x2a\x2c-\x3c\x3e-\x5b\x5d-\x7e\xa0-\U0010ffff]|\\x\{[0-9A-Fa-f]{1,6}\})+\Z")
_EMBEDDED = re.compile(r"\\x\{([0-9A-Fa-f]{1,6})\}")
_MUST_EMBED = re.compile(r"[^\x21-\x2a\x2c-\x3c\x3e-\x5b\x5d-\x7e]")
_EMBEDDED_ASCII = frozenset((*range(0x01, 0x0A), *range(0x10, 0x1A), 0x20, 0x2B, 0x3D, 0x5C, 0x7F))  # HEXPOINT


def xtext_decode(text: str) -> str | None:
    """RFC 3461 4; bytes above 127 are UTF-8. None when it is not xtext."""
    if not _XTEXT.match(text):
        return None
    if "+" not in text:
        return text
    try:
        return _HEXCHAR.sub(lambda m: chr(int(m[1], 16)), text).encode("latin-1").decode("utf-8")
    except UnicodeDecodeError:
        return None


def xtext_encode(text: str) -> str:
    """RFC 3461 4: everything but printable ASCII without "+", "=" and space becomes "+" and two digits."""
    return "".join(chr(b) if 0x21 <= b <= 0x7E and b not in (0x2B, 0x3D) else f"+{b:02X}" for b in text.encode("utf-8"))


def utf8_xtext_decode(text: str) -> str | None:
    """RFC 6533 3: utf-8-addr-xtext or utf-8-addr-unitext. None when it is neither."""
    if not _UTF8_XTEXT.match(text) or not all(_is_hexpoint(m[1]) for m in _EMBEDDED.finditer(text)):
        return None
    return _EMBEDDED.sub(lambda m: chr(int(m[1], 16)), text)


def utf8_xtext_encode(text: str) -> str:
    """RFC 6533 3: utf-8-addr-xtext, which every server with DSN takes, with SMTPUTF8 or without."""
    return _MUST_EMBED.sub(lambda m: f"\\x{{{ord(m[0]):02X}}}", text)


def _is_hexpoint(digits: str) -> bool:
    """A code point that has to be embedded, written with two digits or without a leading zero; no surrogate."""
    code = int(digits, 16)
    if code < 0x80:
        return len(digits) == 2 and code in _EMBEDDED_ASCII
    return digits[0] != "0" and code <= 0x10FFFF and not 0xD800 <= code <= 0xDFFF
