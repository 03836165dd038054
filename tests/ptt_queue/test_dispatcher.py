"""Lanes, groups and tokens: pure, with a clock of numbers."""

import random

from ptt_queue import keys
from ptt_queue.dispatcher import Dispatcher
from ptt_queue.types import GroupLimit

NOW = 1_000_000
SIGN, DELIVER = 1, 2


def key(lane, due=NOW, number=1, priority=1, stage=DELIVER):
    return keys.index_key(stage, 0, lane, priority, due, b"i" * 12, number)


def make(in_flight=2, per_second=0.0, **more):
    return Dispatcher([DELIVER], GroupLimit(in_flight, per_second), **more)


def note(dispatcher, lane, due=NOW, stage=DELIVER, now=NOW):
    return dispatcher.note(key(lane, due, stage=stage), due, now)


def turn(dispatcher, now=NOW, stage=DELIVER):
    """The lane whose turn it is takes a token and has more to do."""
    lane = dispatcher.next_lane(stage, now)
    if lane is None:
        return None
    if lane.group:
        assert dispatcher.acquire(lane.group, now)
    dispatcher.again(lane)
    return lane


def test_lanes_take_turns():
    dispatcher = make(in_flight=0)
    for lane in "abc":
        note(dispatcher, lane)
    assert [turn(dispatcher).name for _ in range(6)] == list("abcabc")


def test_lane_asleep_wakes_when_due():
    dispatcher = make()
    note(dispatcher, "a", NOW + 500)
    assert turn(dispatcher) is None
    assert dispatcher.next_wake() == NOW + 500
    dispatcher.wake(NOW + 499)
    assert not dispatcher.ready([DELIVER])
    dispatcher.wake(NOW + 500)
    assert turn(dispatcher, NOW + 500).name == "a"
    assert dispatcher.next_wake() is None


def test_an_earlier_task_wakes_the_lane_earlier():
    dispatcher = make()
    note(dispatcher, "a", NOW + 500)
    note(dispatcher, "a", NOW + 100)
    note(dispatcher, "a", NOW + 900)
    dispatcher.wake(NOW + 100)
    assert dispatcher.ready([DELIVER])


def test_blocked_group_parks_its_lanes_and_frees_them_one_by_one():
    dispatcher = make()
    group = dispatcher.group_of("a")
    for lane in "abcd":
        dispatcher.assign(lane, "site", GroupLimit(1), NOW)
        note(dispatcher, lane)
    first = turn(dispatcher)
    assert first.name == "a"
    assert turn(dispatcher) is None
    assert not dispatcher.ready([DELIVER])
    assert first.group is not group
    names = []
    for _ in range(4):
        dispatcher.free(first.group, NOW)
        names.append(turn(dispatcher).name)
        assert turn(dispatcher) is None
    assert names == ["b", "c", "d", "a"]


def test_a_lane_that_has_nothing_after_all_hands_its_turn_on():
    dispatcher = make(in_flight=1)
    for lane in "abc":
        dispatcher.assign(lane, "site", GroupLimit(1), NOW)
        note(dispatcher, lane)
    first = turn(dispatcher)
    assert turn(dispatcher) is None
    dispatcher.free(first.group, NOW)
    empty = dispatcher.next_lane(DELIVER, NOW)
    dispatcher.rest(empty, NOW + 1000, NOW)
    assert turn(dispatcher).name != empty.name


def test_a_fresh_task_does_not_overtake():
    dispatcher = make(in_flight=1)
    note(dispatcher, "a")
    lane = turn(dispatcher)
    assert turn(dispatcher) is None  # parked
    assert not dispatcher.acquire(lane.group, NOW, fresh=True)
    dispatcher.free(lane.group, NOW)
    assert dispatcher.acquire(dispatcher.group_of("b"), NOW, fresh=True)


def test_rate():
    dispatcher = make(in_flight=0, per_second=100)
    note(dispatcher, "a")
    now, taken = NOW, 0
    while now < NOW + 1000:
        dispatcher.wake(now)
        while turn(dispatcher, now):
            taken += 1
        now = int(dispatcher.next_wake()) + 1
    assert 100 <= taken <= 112  # a second, and what may go ahead of its time


def test_assigning_moves_tokens_in_flight():
    dispatcher = make(in_flight=5)
    note(dispatcher, "a")
    lane = turn(dispatcher)
    old = lane.group
    dispatcher.assign("a", "site", GroupLimit(1), NOW)
    new = dispatcher.group_of("b")
    assert new is not dispatcher.group_of("a")
    assert dispatcher.group_of("a").in_flight == 1
    assert turn(dispatcher) is None
    dispatcher.free(old, NOW)
    assert dispatcher.group_of("a").in_flight == 0
    assert turn(dispatcher).name == "a"


def test_assigning_a_larger_limit_unparks():
    dispatcher = make(in_flight=1)
    note(dispatcher, "a")
    assert turn(dispatcher)
    assert turn(dispatcher) is None
    dispatcher.assign("a", "site", GroupLimit(2), NOW)
    assert turn(dispatcher).name == "a"
    assert turn(dispatcher) is None


def test_tokens_are_never_exceeded_and_no_lane_is_forgotten():  # noqa: PLR0912
    """Random life: in flight stays within the limits, and at the end every lane can be served."""
    rng = random.Random(7)
    dispatcher = make(in_flight=3)
    names = [f"lane{n}" for n in range(12)]
    held, now = [], NOW
    for _ in range(5000):
        now += rng.randrange(3)
        dispatcher.wake(now)
        match rng.randrange(5):
            case 0:
                note(dispatcher, rng.choice(names), now + rng.randrange(-5, 20), now=now)
            case 1:
                dispatcher.assign(rng.choice(names), f"site{rng.randrange(3)}", GroupLimit(2), now)
            case 2 if held:
                dispatcher.free(held.pop(rng.randrange(len(held))), now)
            case _:
                lane = dispatcher.next_lane(DELIVER, now)
                if lane is None:
                    continue
                if rng.randrange(3) == 0:
                    dispatcher.rest(lane, rng.choice([None, now + 10]), now)
                else:
                    assert dispatcher.acquire(lane.group, now)
                    held.append(lane.group)
                    dispatcher.again(lane)
        for group in dispatcher._groups.values():
            if group.name.startswith("\0"):
                assert group.in_flight <= 3
    for group in held:
        dispatcher.free(group, now)
    assert not any(g.in_flight for g in dispatcher._groups.values())
    for name in names:
        note(dispatcher, name, now, now=now)
    dispatcher.wake(now + 100)
    served = set()
    while lane := dispatcher.next_lane(DELIVER, now + 100):
        served.add(lane.name)
        dispatcher.rest(lane, None, now + 100)
    assert served == set(names)


def test_memory_is_bounded_and_ready_lanes_come_first():
    dispatcher = make(max_lanes=10)
    for n in range(10):
        assert note(dispatcher, f"late{n}", NOW + 1000)
    assert not note(dispatcher, "one more late", NOW + 1000)
    assert dispatcher.overflow
    for n in range(10):
        assert note(dispatcher, f"ready{n}", stage=SIGN)
    assert len(dispatcher.lanes) == 10
    assert dispatcher.full()
    assert not note(dispatcher, "one more ready", stage=SIGN)
    assert {turn(dispatcher, stage=SIGN).name for _ in range(10)} == {f"ready{n}" for n in range(10)}


def test_a_blocked_group_does_not_crowd_out_the_others():
    dispatcher = make(max_lanes=40)
    for n in range(60):
        dispatcher.assign(f"site{n}", "site", GroupLimit(1), NOW)
        note(dispatcher, f"site{n}")
    assert turn(dispatcher)
    assert turn(dispatcher) is None
    assert note(dispatcher, "other")
    assert turn(dispatcher).name == "other"


def test_what_is_idle_takes_no_memory():
    dispatcher = make()
    for n in range(100):
        note(dispatcher, f"lane{n}")
        lane = dispatcher.next_lane(DELIVER, NOW)
        dispatcher.acquire(lane.group, NOW)
        dispatcher.rest(lane, None, NOW)
        dispatcher.free(lane.group, NOW)
    assert not dispatcher.lanes
    assert not dispatcher._groups


def _ready(dispatcher):
    """The lanes that may be leased from now, in turn; each is put back."""
    found = []
    while (lane := dispatcher.next_lane(2, NOW)) is not None:
        found.append(lane)
    for lane in found:
        dispatcher.again(lane)
    return sorted(lane.name for lane in found)


def test_a_suspended_lane_gets_its_group_back():
    dispatcher = Dispatcher([2], GroupLimit(2))
    dispatcher.assign("a", "site", GroupLimit(5), NOW)
    for lane in ("a", "b"):
        dispatcher.note(keys.index_key(2, 0, lane, 1, NOW, b"i" * 12, 1), NOW, NOW)
    site = dispatcher.group_of("a")
    assert dispatcher.acquire(site, NOW)
    for lane in ("a", "b"):
        dispatcher.suspend(lane, False, 0)
    assert _ready(dispatcher) == []
    assert not dispatcher.acquire(dispatcher.group_of("a"), NOW)
    assert not dispatcher.shares("a", site)
    dispatcher.free(site, NOW)  # what was in flight ends
    dispatcher.assign("b", "site", GroupLimit(5), NOW)  # it changes its group meanwhile
    assert _ready(dispatcher) == []
    for lane in ("a", "b"):
        dispatcher.resume(lane, False, NOW)
    assert _ready(dispatcher) == ["a", "b"]
    assert {dispatcher.group_of(lane).name for lane in ("a", "b")} == {"site"}
    assert (dispatcher.group_of("a").lanes, dispatcher.group_of("a").in_flight) == (2, 0)


def test_suspensions_lapse_by_time():
    dispatcher = Dispatcher([2], GroupLimit(2))
    dispatcher.assign("b", "site", GroupLimit(5), NOW)
    for lane in ("a", "b"):
        dispatcher.note(keys.index_key(2, 0, lane, 1, NOW, b"i" * 12, 1), NOW, NOW)
    dispatcher.suspend("a", False, NOW + 10)
    dispatcher.suspend("site", True, NOW + 20)
    dispatcher.suspend("never", False, 0)
    assert _ready(dispatcher) == []
    assert dispatcher.next_wake() == NOW + 10
    dispatcher.wake(NOW + 10)
    assert _ready(dispatcher) == ["a"]
    assert dispatcher.lapsed
    assert dispatcher.next_wake() == NOW + 20
    dispatcher.wake(NOW + 20)
    assert _ready(dispatcher) == ["a", "b"]
    assert dispatcher.next_wake() is None


def test_a_suspension_is_set_anew():
    dispatcher = Dispatcher([2], GroupLimit(2))
    dispatcher.note(keys.index_key(2, 0, "a", 1, NOW, b"i" * 12, 1), NOW, NOW)
    dispatcher.suspend("a", False, NOW + 10)
    dispatcher.suspend("a", False, 0)
    dispatcher.wake(NOW + 10)
    assert _ready(dispatcher) == []
    dispatcher.resume("a", False, NOW + 10)
    assert _ready(dispatcher) == ["a"]
