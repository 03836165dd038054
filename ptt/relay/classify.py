"""What a refusal is about: rate, reputation, policy, mailbox, quota, greylisting, network, system, or other. Pure.

The rules are data: ``replies.toml`` beside this file, read and compiled once. A peer's text is hostile: it is cut to
MAX_TEXT characters, and the rules' expressions may only repeat within bounds and not nested, so the work is bounded.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from importlib import resources

import msgspec

from ptt.relay.outcome import MAX_TEXT, Delivered, Outcome

CLASSES = ("rate", "reputation", "policy", "mailbox", "quota", "greylisting", "network", "system", "other")

RULES = "replies.toml"
MAX_REPEAT = 99
"""Of a bounded repetition in a rule: with MAX_TEXT characters some 50,000 steps for each place in the rules at most."""

REMEMBERED = 1024
"""Texts whose class is remembered: the recipients of a message mostly get the same. 1 MiB at most."""

_CODES = re.compile(r"\s*([245]\d\d)?[ -]?\s*([245]\.\d{1,3}\.\d{1,3})?")
_UNBOUNDED = re.compile(r"(?<!\\)[*+]|\{\d*,\}|\)\{|\{\d{3}|,\d{3,}\}")
_NOT_REPLIED = frozenset({"DNS", "connect", "TLS", "STARTTLS"})


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"about": "class"}):
    """One rule as the file has it. See the head of the file."""

    about: str
    text: tuple[str, ...] = ()
    not_text: tuple[str, ...] = ()
    enhanced: tuple[str, ...] = ()
    code: tuple[str, ...] = ()


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    rule: tuple[Rule, ...]


class _Compiled(msgspec.Struct, frozen=True):
    about: str
    text: re.Pattern[str] | None
    not_text: re.Pattern[str] | None
    enhanced: re.Pattern[str] | None
    code: re.Pattern[str] | None

    def matches(self, text: str, enhanced: str, code: str) -> bool:
        return (
            (self.enhanced is None or self.enhanced.fullmatch(enhanced) is not None)
            and (self.code is None or self.code.fullmatch(code) is not None)
            and (self.text is None or self.text.search(text) is not None)
            and (self.not_text is None or self.not_text.search(text) is None)
        )


def compile_rules(data: bytes) -> tuple[_Compiled, ...]:
    """The rules of a file. Raises ValueError (also msgspec's) for a class or expression that is not allowed."""
    compiled = []
    for rule in msgspec.toml.decode(data, type=_File).rule:
        if rule.about not in CLASSES or not (rule.text or rule.enhanced or rule.code):
            raise ValueError(f"a rule for {rule.about!r}: no such class, or nothing to match")
        both = (rule.text, rule.not_text, rule.enhanced, rule.code)
        compiled.append(_Compiled(rule.about, *map(_any_of, both)))
    return tuple(compiled)


def _any_of(expressions: Sequence[str]) -> re.Pattern[str] | None:
    for expression in expressions:
        if _UNBOUNDED.search(expression):
            raise ValueError(f"{expression!r}: repetition must be bounded (at most {MAX_REPEAT}) and not nested")
    try:
        return re.compile("|".join(f"(?:{e})" for e in expressions), re.IGNORECASE) if expressions else None
    except re.error as e:
        raise ValueError(f"{expressions!r}: {e}") from e


@functools.cache
def rules() -> tuple[_Compiled, ...]:
    """The rules of the package."""
    return compile_rules(resources.files("ptt.relay").joinpath(RULES).read_bytes())


@functools.lru_cache(maxsize=REMEMBERED)
def classify_text(text: str, enhanced: str = "") -> str:
    """The class of a reply such as "550 5.1.1 no such user". ``enhanced``: where the text does not begin with it."""
    text = text[:MAX_TEXT]
    found = _CODES.match(text)
    code, status = (found[1] or "", found[2] or "") if found else ("", "")
    status = status or enhanced
    return next((rule.about for rule in rules() if rule.matches(text, status, code)), "other")


def classify(outcome: Outcome) -> str:
    """The class of an outcome; "" for one that is delivered. What no peer said is the network's, or our own words."""
    if isinstance(outcome, Delivered):
        return ""
    if not outcome.reply and (outcome.phase in _NOT_REPLIED or outcome.enhanced.startswith("4.4.")):
        return "network"
    return classify_text(outcome.text, outcome.enhanced)


def class_of_note(text: str, phase: str) -> str:
    """The class of a reply as the queue has it; "" for what is no attempt at a peer (phase "sign")."""
    if phase == "sign" or not text:
        return ""
    return "network" if phase in _NOT_REPLIED else classify_text(text)
