"""Counting connections over several workers, and who is one too many."""

from __future__ import annotations

import os
import random

import pytest

from ptt.config import Connections
from ptt.submission import census
from ptt.submission.admission import Admission, Seat, keys, refusal
from ptt.submission.census import BUCKETS, WINDOW_SECONDS, Census


class Clock:
    def __init__(self) -> None:
        self.now = 6000.0

    def __call__(self) -> float:
        return self.now


def pool(workers: int, **limits: int) -> tuple[list[Admission], Clock, int]:
    fd, clock = census.make(workers), Clock()
    found = Connections(**{"per_address": 0, "per_network": 0, **limits}, exempt=())  # type: ignore[arg-type]
    return [Admission(found, Census(fd, n), clock) for n in range(workers)], clock, fd


def enter(one: Admission, address: str) -> Seat:
    found = one.enter(address, roles=False)
    assert isinstance(found, Seat), found
    return found


def test_a_limit_holds_over_all_workers() -> None:
    (one, other), _, fd = pool(2, per_address=3)
    seats = [enter(w, "192.0.2.1") for w in (one, one, other)]
    for worker in (one, other):
        assert worker.enter("192.0.2.1", roles=False) == "address"
        assert worker.enter("::ffff:192.0.2.1", roles=False) == "address"
        enter(worker, "192.0.2.2").release()
    seats[0].release()
    seats[0].release()  # once is enough
    seats.append(enter(other, "192.0.2.1"))
    assert one.enter("192.0.2.1", roles=False) == "address"
    census.clear(fd, 1)  # the supervisor saw it end
    assert isinstance(one.enter("192.0.2.1", roles=False), Seat)
    os.close(fd)


def test_a_worker_that_is_started_again_begins_with_nothing() -> None:
    (one, other), clock, fd = pool(2, per_address=1)
    enter(other, "192.0.2.1")
    assert one.enter("192.0.2.1", roles=False) == "address"
    again = Admission(other.limits, Census(fd, 1), clock)
    enter(again, "192.0.2.1").release()
    enter(one, "192.0.2.1").release()


@pytest.mark.parametrize(
    ("first", "second", "other"),
    [("192.0.2.1", "192.0.2.255", "192.0.3.1"), ("2001:db8::1", "2001:db8::ffff:0:0:1", "2001:db8:0:1::1")],
)
def test_networks(first: str, second: str, other: str) -> None:
    (one,), _, _ = pool(1, per_network=1)
    enter(one, first)
    assert one.enter(second, roles=False) == "network"
    enter(one, other)


def test_what_addresses_count_under() -> None:
    assert keys("192.0.2.1") == keys("::ffff:192.0.2.1") == (b"a\xc0\0\2\1", b"n\xc0\0\2")
    assert keys("2001:db8::1")[1] == b"n\x20\x01\x0d\xb8\0\0\0\0"
    with pytest.raises(ValueError, match="not appear"):
        keys("nonsense")


def test_rates_over_all_workers() -> None:
    (one, other), clock, _ = pool(2, address_per_minute=10)
    for n in range(10):
        enter((one, other)[n % 2], "192.0.2.1").release()
        clock.now += 1
    assert one.enter("192.0.2.1", roles=False) == "address rate"
    assert other.enter("192.0.2.1", roles=False) == "address rate"
    enter(one, "192.0.2.2")
    clock.now = 6000.0 + WINDOW_SECONDS  # a new minute: all of the last one still counts
    assert one.enter("192.0.2.1", roles=False) == "address rate"
    clock.now += WINDOW_SECONDS / 2  # half of it
    for _ in range(5):
        enter(other, "192.0.2.1").release()
    assert one.enter("192.0.2.1", roles=False) == "address rate"
    clock.now += 3 * WINDOW_SECONDS  # the halves are from other minutes, and count no more
    for _ in range(10):
        enter(one, "192.0.2.1").release()
    assert one.enter("192.0.2.1", roles=False) == "address rate"


def test_users() -> None:
    (one, other), _, _ = pool(2, per_user=2)
    seats = [enter(w, f"192.0.2.{n}") for n, w in enumerate((one, other, one))]
    assert [seat.login("me@example.org") for seat in seats] == ["", "", "user"]
    assert one.free().login("me@example.org") == "user"
    assert seats[2].login("you@example.org") == ""
    seats[0].release()
    assert seats[2].login("me@example.org") == ""
    assert seats[2].login("me@example.org") == ""  # its own place is not in its way
    assert seats[2].login("me@example.org", 2) == ""
    assert seats[2].login("me@example.org", 1) == "user"
    assert seats[2].login("you@example.org", 0) == "user"


def test_a_role_may_come_in_to_show_its_certificate() -> None:
    (one,), _, _ = pool(1, per_address=1)
    enter(one, "192.0.2.1")
    found = one.enter("192.0.2.1", roles=True)
    assert isinstance(found, Seat)
    assert found.over == "address"


def test_no_limits() -> None:
    (one,), _, _ = pool(1, per_user=0, address_per_minute=0, network_per_minute=0)
    for _ in range(5000):
        assert enter(one, "192.0.2.1").login("me") == ""


def test_every_reason_has_words() -> None:
    for reason in ("address", "network", "user", "address rate", "network rate"):
        assert str(refusal(reason)).startswith("421 4.7.0 too many")


def test_counts_are_never_too_low_and_rarely_too_high(rng: random.Random) -> None:
    counts = Census(census.make(1), 0)
    held = {rng.randbytes(5): rng.randrange(1, 4) for _ in range(10_000)}
    for key, number in held.items():
        counts.add(counts.place(key), number)
    found = {key: counts.open(counts.place(key)) for key in held}
    assert all(found[key] >= number for key, number in held.items())
    assert sum(found[key] > number for key, number in held.items()) < 1500
    for key, number in held.items():
        counts.add(counts.place(key), -number)
    assert not any(counts.open(counts.place(key)) for key in held)
    assert BUCKETS > 10_000
