"""Dialog files: a conversation with a server as text, run against a bare session and against the living service.

::

    # a comment
    @tls                          the connection begins under TLS (else in clear)
    @set max_recipients=2         a setting of the server that the dialog needs
    S: 220 *                      one whole reply, as str(Reply) shows it, matched like a file name
    C: EHLO client.example        sent with CRLF; escapes as in Python (\\n \\x00); lines in a row go in one write
    C- no line end                sent without CRLF
    TLS                           both sides do the handshake
    CLOSED                        the server has closed the connection

``$name`` in a C or S line is replaced by a variable: $sender, $recipient, $auth (the response of AUTH PLAIN), ...
"""

from __future__ import annotations

import codecs
import string
from collections.abc import Mapping
from typing import NamedTuple


class Step(NamedTuple):
    """One step: ``kind`` is "C", "S", "TLS" or "CLOSED"; ``data`` what is sent, ``pattern`` what is expected."""

    line: int
    kind: str
    data: bytes = b""
    pattern: str = ""


class Dialog(NamedTuple):
    """A parsed file."""

    tls: bool
    settings: dict[str, int]
    steps: list[Step]


def parse(text: str, variables: Mapping[str, str]) -> Dialog:
    """Read a dialog. Raises ValueError (with the line's number) for a line that is none, KeyError for a variable."""
    tls = False
    settings: dict[str, int] = {}
    steps: list[Step] = []
    for number, raw in enumerate(text.splitlines(), 1):
        word, _, rest = raw.partition(" ")
        if word == "@tls":
            tls = True
        elif word == "@set":
            name, _, value = rest.partition("=")
            settings[name] = int(value)
        elif word in ("TLS", "CLOSED"):
            steps.append(Step(number, word))
        elif word == "S:":
            steps.append(Step(number, "S", pattern=string.Template(rest).substitute(variables)))
        elif word in ("C:", "C-"):
            data = _bytes(string.Template(rest).substitute(variables)) + (b"\r\n" if word == "C:" else b"")
            if steps and steps[-1].kind == "C":
                steps[-1] = steps[-1]._replace(data=steps[-1].data + data)
            else:
                steps.append(Step(number, "C", data))
        elif raw.strip() and not raw.startswith("#"):
            raise ValueError(f"line {number}: {raw!r} is no step of a dialog")
    return Dialog(tls, settings, steps)


def _bytes(text: str) -> bytes:
    return codecs.decode(text.encode("utf-8"), "unicode_escape").encode("latin-1")
