"""Slots: never more than there may be, whoever asks, waits, and goes."""

import random

from ptt_queue.session import Session
from ptt_queue.slots import ASK_EVERY_MS, MAX_WAITING, Slots
from ptt_queue.types import SlotLimit

NOW = 1_700_000_000_000
SITE = [SlotLimit("site", 2)]


def sessions(count: int) -> list[Session]:
    return [Session() for _ in range(count)]


def test_as_many_as_there_may_be_and_the_others_in_turn() -> None:
    slots, (a, b) = Slots(), sessions(2)
    for number, session in enumerate((a, a, b, b), 1):
        slots.open(session, number, SITE, 1000, NOW)
    assert slots.news() == [(a, 1, True), (a, 2, True), (a, 0, ["site"])]
    slots.close(a, ["site"], NOW)
    assert slots.news() == [(b, 3, True)]
    slots.close(b, ["site"], NOW)
    assert slots.news() == [(b, 4, True)]
    slots.close(b, ["site", "site", "other"], NOW)
    slots.open(a, 5, SITE, 1000, NOW)
    assert slots.news() == [(a, 5, True)]


def test_a_session_that_goes_takes_its_slots_and_its_questions_along() -> None:
    slots, (a, b) = Slots(), sessions(2)
    for session, number in ((a, 1), (a, 2), (a, 3), (b, 4), (b, 5)):
        slots.open(session, number, SITE, 1000, NOW)
    slots.news()
    slots.leave(a, NOW)
    assert slots.news() == [(b, 4, True), (b, 5, True)]


def test_all_of_them_or_none() -> None:
    slots, (a,) = Slots(), sessions(1)
    both = [SlotLimit("site", 9), SlotLimit("source@site", 1)]
    slots.open(a, 1, both, 1000, NOW)
    slots.open(a, 2, both, 1000, NOW)
    slots.open(a, 3, [SlotLimit("site", 9)], 1000, NOW)
    assert [n for _, n, told in slots.news() if told is True] == [1, 3]
    slots.close(a, ["site", "source@site"], NOW)
    assert [n for _, n, told in slots.news() if told is True] == [2]


def test_time() -> None:
    slots, (a,) = Slots(), sessions(1)
    for number in (1, 2, 3):
        slots.open(a, number, SITE, 1000, NOW)
    slots.news()
    assert slots.next_wake(NOW) == NOW + 1000
    slots.wake(NOW + 1000)
    assert slots.news() == [(a, 3, False)]
    slots.close(a, ["site"], NOW + 1001)
    assert slots.news() == []
    slots.open(a, 4, SITE, 1000, NOW + ASK_EVERY_MS)
    assert slots.news() == [(a, 4, True)]


def test_a_rate_of_new_ones() -> None:
    slots, (a,) = Slots(), sessions(1)
    rate = [SlotLimit("site", 0, 2.0)]
    for number in (1, 2, 3):
        slots.open(a, number, rate, 10_000, NOW)
    told = []
    for at in range(NOW, NOW + 1500, 100):
        slots.wake(at)
        told += [(at - NOW, number) for _, number, granted in slots.news() if granted is True]
    assert told == [(0, 1), (500, 2), (1000, 3)]


def test_nothing_before_all_have_told_what_they_have() -> None:
    slots, (a, b) = Slots(closed=True), sessions(2)
    slots.open(a, 1, SITE, 1000, NOW)
    slots.opened(b, {"site": 2})
    assert slots.news() == []
    slots.start(NOW)
    assert slots.news() == [(b, 0, ["site"])]
    slots.close(b, ["site"], NOW)
    assert slots.news() == [(a, 1, True)]


def test_the_questions_that_wait_are_bounded() -> None:
    slots, (a,) = Slots(), sessions(1)
    for number in range(MAX_WAITING + 3):
        slots.open(a, number, SITE, 1000, NOW)
    assert [told for _, number, told in slots.news() if number > 1] == [False]


def test_never_more_whatever_happens() -> None:
    """A model: what each session was granted and has not given back, at every moment at most the limit."""
    rng = random.Random(1)
    for _ in range(50):
        slots, alive = Slots(), sessions(3)
        held: dict[Session, int] = dict.fromkeys(alive, 0)
        now, number = NOW, 0
        for _ in range(300):
            now += rng.randrange(50)
            session = rng.choice(alive)
            match rng.randrange(10):
                case 0:
                    slots.leave(session, now)
                    del held[session]
                    alive.remove(session)
                    alive.append(Session())
                    held[alive[-1]] = 0
                case 1 | 2 | 3 if held[session]:
                    held[session] -= 1
                    slots.close(session, ["site"], now)
                case _:
                    number += 1
                    slots.open(session, number, SITE, rng.randrange(200), now)
            slots.wake(now)
            for told, n, granted in slots.news():
                if n and granted is True and told in held:
                    held[told] += 1
            assert sum(held.values()) <= 2
        for session in list(alive):
            slots.leave(session, now)
        assert not slots._names
