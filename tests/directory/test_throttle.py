"""Back-off: what counts, how long answers wait, who is locked out and who is not, and how much is remembered."""

import pytest

from ptt.directory import throttle
from ptt.directory.throttle import (
    FREE,
    KNOWN_SECONDS,
    LEAK_SECONDS,
    LONGEST_DELAY_SECONDS,
    MAX_OF_LOGIN,
    MAX_OF_NETWORK,
    MAX_OF_USER,
    Throttle,
    network_of,
)

HOME, OFFICE, AWAY = "192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24"
ANNA, BOB = "anna@a.example", "bob@a.example"


class Clock:
    def __init__(self) -> None:
        self.now = 5000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def made(clock: Clock) -> Throttle:
    return Throttle(clock)


@pytest.mark.parametrize(
    ("client", "network"),
    [
        ("192.0.2.77", "192.0.2.0/24"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.77", "192.0.2.0/24"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("nonsense", ""),
    ],
)
def test_networks(client: str, network: str) -> None:
    assert network_of(client) == network


def test_delays_grow_to_a_ceiling(made: Throttle) -> None:
    delays = [made.failed(ANNA, AWAY).delay for _ in range(12)]
    assert delays[:FREE] == [0.0] * FREE
    assert delays[FREE : FREE + 4] == [0.5, 1.0, 2.0, 4.0]
    assert delays == sorted(delays)
    assert delays[-1] == LONGEST_DELAY_SECONDS


def test_a_network_is_refused_whoever_it_asks_for_and_no_other_is(made: Throttle) -> None:
    locked = [made.failed(f"u{n}@a.example", AWAY).locked for n in range(MAX_OF_NETWORK)]
    assert locked == [""] * (MAX_OF_NETWORK - 1) + ["network"]
    assert made.refuses(ANNA, AWAY)
    assert not made.refuses(ANNA, HOME)


def test_a_user_who_is_attacked_from_everywhere(made: Throttle) -> None:
    """Strangers are refused; the user is not, where the user has logged in lately."""
    made.succeeded(ANNA, HOME)
    locked = [made.failed(ANNA, f"10.0.{n}.0/24").locked for n in range(MAX_OF_USER)]
    assert locked[-1] == "user"
    assert made.refuses(ANNA, AWAY)
    assert not made.refuses(ANNA, HOME)
    assert made.failed(ANNA, HOME).delay == 0.0
    assert not made.refuses(BOB, AWAY)


def test_who_does_not_exist_is_locked_alike(made: Throttle) -> None:
    """Nothing here knows who exists; a user and nobody give the same sequence."""
    for user in (ANNA, "nobody@a.example"):
        said = [(made.refuses(user, f"10.0.{n}.0/24"), made.failed(user, f"10.0.{n}.0/24")) for n in range(MAX_OF_USER)]
        assert [refused for refused, _ in said] == [False] * MAX_OF_USER
        assert said[-1][1] == (LONGEST_DELAY_SECONDS, "user")
        assert made.refuses(user, AWAY)


def test_a_device_with_an_old_password_locks_out_nobody_else(made: Throttle) -> None:
    for user in (ANNA, BOB):
        made.succeeded(user, OFFICE)
    assert [made.failed(BOB, OFFICE).locked for _ in range(MAX_OF_LOGIN)][-1] == "login"
    assert made.refuses(BOB, OFFICE)
    assert not made.refuses(BOB, HOME)
    assert not made.refuses(ANNA, OFFICE)
    assert not made.refuses("new@a.example", OFFICE)


def test_an_attackers_own_account_forgives_nothing(made: Throttle) -> None:
    for _ in range(MAX_OF_NETWORK):
        made.succeeded(BOB, AWAY)
        made.failed("someone@a.example", AWAY)
    assert made.refuses("other@a.example", AWAY)


def test_a_lock_ends_by_itself_and_lets_one_try_at_a_time(made: Throttle, clock: Clock) -> None:
    for n in range(MAX_OF_USER):
        made.failed(ANNA, f"10.0.{n}.0/24")
    assert made.refuses(ANNA, AWAY)
    clock.now += LEAK_SECONDS
    assert not made.refuses(ANNA, AWAY)
    assert made.failed(ANNA, AWAY).locked == "user"
    assert made.refuses(ANNA, AWAY)
    clock.now += LEAK_SECONDS * MAX_OF_USER
    assert made.failed(ANNA, AWAY).delay == 0.0


def test_a_network_is_not_known_for_ever(made: Throttle, clock: Clock) -> None:
    made.succeeded(ANNA, HOME)
    clock.now += KNOWN_SECONDS - 1
    assert made.known(ANNA, HOME)
    assert not made.known(BOB, HOME)
    assert not made.known(ANNA, OFFICE)
    clock.now += 1
    assert not made.known(ANNA, HOME)


def test_a_good_login_ends_the_pairs_own_count(made: Throttle) -> None:
    made.succeeded(ANNA, HOME)
    for _ in range(MAX_OF_LOGIN - 1):
        made.failed(ANNA, HOME)
    made.succeeded(ANNA, HOME)
    assert made.failed(ANNA, HOME) == (0.0, "")


def test_memory_is_bounded(made: Throttle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "MAX_COUNTS", 10)
    monkeypatch.setattr(throttle, "MAX_KNOWN", 10)
    for n in range(100):
        made.failed(f"u{n}@a.example" * 100, f"10.0.{n}.0/24")
        made.succeeded(f"u{n}@a.example", HOME)
    assert len(made._users) == len(made._networks) == len(made._known) == 10
    assert max(map(len, made._users._counts)) == throttle.MAX_KEY
