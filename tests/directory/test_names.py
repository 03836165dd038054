"""How addresses are folded: what is one address has one spelling, whatever a stranger sends."""

from __future__ import annotations

import time

import pytest

from ptt.directory import names


@pytest.mark.parametrize(
    ("given", "folded"),
    [
        ("Anna@Example.ORG", "anna@example.org"),
        ("anna@example.org.", "anna@example.org"),
        ("u\u0308@b\u00fccher.example", "\u00fc@xn--bcher-kva.example"),
        ("\u00dc@B\u00dcCHER.example", "\u00fc@xn--bcher-kva.example"),
        ("ANNA", "anna"),
        ("a@b@c.example", "a@b@c.example"),
        ("a@\u00fc..example", "a@\u00fc..example"),  # has no ASCII form
        ("", ""),
    ],
)
def test_fold(given: str, folded: str) -> None:
    assert names.fold(given) == folded
    assert names.fold(folded) == folded


@pytest.mark.parametrize("domain", ["\u00e9" * 1000, "\u00e9." * 500 + "x", "\u00e9" * 253, "a." * 500 + "\u00e9"])
def test_a_long_name_of_a_stranger_costs_little(domain: str) -> None:
    """The ASCII form of 1,000 characters took some 15 ms, at each attempt to log in."""
    names.fold("a@\u00e9.example")
    began = time.process_time()
    for _ in range(10):
        names.fold(f"a@{domain}")
    assert time.process_time() - began < 0.1
