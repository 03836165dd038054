"""What ``ptt check`` finds: one line each, with what to do about it."""

from __future__ import annotations

from typing import Literal

import msgspec

Level = Literal["ok", "warn", "fail"]


class Finding(msgspec.Struct, frozen=True):
    """``what`` was looked at, ``text`` says how it is, ``advice`` what to do ("" when it is good)."""

    level: Level
    what: str
    text: str
    advice: str = ""


def ok(what: str, text: str) -> Finding:
    return Finding("ok", what, text)


def warn(what: str, text: str, advice: str) -> Finding:
    """Mail flows, but a person should look."""
    return Finding("warn", what, text, advice)


def fail(what: str, text: str, advice: str) -> Finding:
    """Mail does not flow, or not safely."""
    return Finding("fail", what, text, advice)
