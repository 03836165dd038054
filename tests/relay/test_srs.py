"""The rewritten senders of forwarded mail: vectors, and that only what we made is believed."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptt.relay.srs import MIN_SECRET, Srs, is_srs, read_secrets

DAY = 86_400
SECRET = b"0123456789abcdef"
OTHER = b"fedcba9876543210"


class Clock:
    def __init__(self, days: float = 20_000) -> None:
        self.days = days

    def __call__(self) -> float:
        return self.days * DAY


def srs(*secrets: bytes, clock: Clock | None = None) -> Srs:
    return Srs(secrets or (SECRET,), clock or Clock())


def test_the_hash_is_an_hmac_of_what_it_vouches_for() -> None:
    """Day 20,000 is 544 of 1,024: 17 * 32 + 0, "ra"."""
    digest = hmac.digest(SECRET, b"ra=example.org=anna", hashlib.sha256)
    bits = int.from_bytes(digest[:5], "big")
    expected = "".join("abcdefghijklmnopqrstuvwxyz234567"[bits >> shift & 31] for shift in range(35, -1, -5))
    made = srs().forward("Anna@example.org", "ours.example")
    assert made == f"SRS0={expected}=ra=example.org=Anna@ours.example"


VECTORS = [
    "SRS0=qq2o2lwf=ra=example.org=anna@first.example",
    "SRS1=gm22ey4e=first.example==qq2o2lwf=ra=example.org=anna@second.example",
    "SRS1=3kaaabmk=first.example==qq2o2lwf=ra=example.org=anna@third.example",
]


def test_vectors() -> None:
    """Fixed: addresses that are on their way must stay good."""
    first = srs().forward("anna@example.org", "first.example")
    assert first == VECTORS[0]
    second = srs(OTHER).forward(first, "second.example")
    assert second == VECTORS[1]
    third = srs().forward(second, "third.example")
    assert third == VECTORS[2]


def test_the_way_back_skips_whoever_is_between() -> None:
    """SRS1 leads to the first forwarder, at any number of them, and that one knows the author."""
    one, two, three = srs(), srs(OTHER), srs(b"x" * 16)
    first = one.forward("anna@example.org", "a.example")
    second = two.forward(first, "b.example")
    third = three.forward(second, "c.example")
    assert len(third) == len(second)
    assert three.reverse(third) == two.reverse(second) == first
    assert one.reverse(first) == "anna@example.org"


@pytest.mark.parametrize("age", [0, 1, 21])
def test_valid_for_three_weeks(age: int) -> None:
    clock = Clock(1023)  # the number of the day starts anew in between
    made = srs(clock=clock).forward("anna@example.org", "ours.example")
    clock.days += age
    assert srs(clock=clock).reverse(made) == "anna@example.org"


@pytest.mark.parametrize("age", [22, 500, 1023, -1])
def test_not_valid_any_more(age: int) -> None:
    clock = Clock(1023)
    made = srs(clock=clock).forward("anna@example.org", "ours.example")
    clock.days += age
    assert srs(clock=clock).reverse(made) is None


def test_case_is_not_kept_on_the_way() -> None:
    made = srs().forward("anna@example.org", "ours.example")
    assert srs().reverse(made.upper()) == "ANNA@EXAMPLE.ORG"
    assert srs().reverse(made.lower()) == "anna@example.org"
    again = srs(OTHER).forward(made.lower(), "b.example")
    back = srs(OTHER).reverse(again)
    assert back is not None
    assert srs().reverse(back) == "anna@example.org"


def test_secrets_may_be_changed() -> None:
    made = srs(OTHER).forward("anna@example.org", "ours.example")
    assert srs(SECRET, OTHER).reverse(made) == "anna@example.org"
    assert srs(SECRET).reverse(made) is None


@pytest.mark.parametrize(
    "address",
    [
        "SRS0=aaaaaaaa=ra=example.org=anna@ours.example",
        "SRS0=a=ra=example.org=anna@ours.example",
        "SRS0=aaaaaaaa=!!=example.org=anna@ours.example",
        "SRS0=@ours.example",
        "SRS0@ours.example",
        "SRS1=aaaaaaaa=a.example==x=ra=example.org=anna@ours.example",
        "SRS1=aaaaaaaa==x@ours.example",
        "anna@ours.example",
        "@",
        "",
    ],
)
def test_what_we_did_not_make(address: str) -> None:
    assert srs().reverse(address) is None


@pytest.mark.parametrize(
    "sender",
    ["", "anna", '"a b"@example.org', "anna@[192.0.2.1]", "anna@b\u00fccher.example", f"{'x' * 60}@example.org"],
)
def test_senders_that_stay(sender: str) -> None:
    assert srs().forward(sender, "ours.example") == ""


@given(
    local=st.from_regex(r"[a-zA-Z0-9=+.!#-]{1,30}", fullmatch=True),
    host=st.from_regex(r"[a-z0-9]{1,5}\.[a-z]{2,5}", fullmatch=True),
)
def test_whatever_is_sent_on_comes_back(local: str, host: str) -> None:
    """Also local parts that are full of separators, and those that look like SRS."""
    sender = f"{local}@{host}"
    made = srs().forward(sender, "ours.example")
    if made:
        assert is_srs(made)
        assert srs().reverse(made) == sender


@given(at=st.integers(0, 45), what=st.characters(codec="ascii", exclude_categories=["C"]))
def test_a_change_is_noticed(at: int, what: str) -> None:
    made = srs().forward("anna@example.org", "ours.example")
    local = made.rpartition("@")[0]
    at %= len(local)
    changed = local[:at] + what + local[at + 1 :]
    back = srs().reverse(changed + "@ours.example")
    assert back is None or back.lower() == "anna@example.org"


def test_secret_files() -> None:
    assert read_secrets("a" * 16 + "\n\n" + " " + "b" * 20 + "\n") == [b"a" * 16, b"b" * 20]
    for text in ("", "\n", "short", "a" * MIN_SECRET + "\nshort"):
        with pytest.raises(ValueError, match="needs lines"):
            read_secrets(text)
    with pytest.raises(ValueError, match="octets"):
        Srs([b"short"], Clock())
