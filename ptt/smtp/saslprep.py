"""SASLprep (RFC 4013): one password entered in two ways of writing is one password. Pure."""

from __future__ import annotations

import stringprep
import unicodedata

MAX_PASSWORD_BYTES = 1024

_PROHIBITED = (  # RFC 4013 2.3
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
)


def prepare(password: str) -> str:
    """SASLprep (RFC 4013) of a password. Raises ValueError, whose text never quotes the password."""
    mapped = "".join(
        " " if stringprep.in_table_c12(c) else c for c in password if not stringprep.in_table_b1(c)
    )  # RFC 4013 2.1
    text = unicodedata.normalize("NFKC", mapped)
    if not text:
        raise ValueError("the password is empty")
    if len(text.encode("utf-8", "surrogatepass")) > MAX_PASSWORD_BYTES:
        raise ValueError(f"the password is longer than {MAX_PASSWORD_BYTES} bytes")
    if any(prohibited(c) for c in text for prohibited in _PROHIBITED):
        raise ValueError("the password has a control character or another one that RFC 4013 prohibits")
    if any(stringprep.in_table_d1(c) for c in text):  # RFC 3454 6
        ends = stringprep.in_table_d1(text[0]) and stringprep.in_table_d1(text[-1])
        if not ends or any(stringprep.in_table_d2(c) for c in text):
            raise ValueError("the password mixes directions of writing (RFC 3454 6)")
    return text
