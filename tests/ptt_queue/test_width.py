"""How the width of a group moves, and what the dispatcher makes of it."""

from ptt_queue import keys
from ptt_queue.dispatcher import Dispatcher
from ptt_queue.types import GroupLimit, State, Trouble
from ptt_queue.width import MAX_DOUBLED, SHRINK_EVERY_MS, Width

NOW = 1_700_000_000_000


def test_it_doubles_at_first_and_grows_by_one_after_trouble() -> None:
    width = Width(40, 5)
    for _ in range(5):
        width.grow(40)
    assert width.most == 10
    for _ in range(100):
        width.grow(40)
    assert (width.most, width.troubled) == (40, False)
    width.shrink(NOW)
    assert (width.most, width.troubled) == (20, True)
    for _ in range(20):
        width.grow(40)
    assert width.most == 20
    width.grow(40)
    assert width.most == 21


def test_what_fails_together_is_one_sign() -> None:
    width = Width(40)
    for n in range(10):
        width.shrink(NOW + n)
    assert width.most == 20
    width.shrink(NOW + SHRINK_EVERY_MS)
    assert width.most == 10
    for n in range(2, 20):
        width.shrink(NOW + n * SHRINK_EVERY_MS)
    assert width.most == 1


def test_nobody_there_is_one_at_a_time_and_comes_back() -> None:
    width = Width(40)
    assert [width.close() for _ in range(7)] == [1, 2, 4, 8, 16, 16, 2**MAX_DOUBLED]
    assert width.most == 1
    for _ in range(19):
        width.grow(40)
    assert width.most == 20
    assert width.close() == 1


def test_a_limit_that_changes_and_none() -> None:
    width = Width(40, 5)
    width.cap(3, 40)
    assert width.most == 3
    width.cap(60, 3)
    for _ in range(100):
        width.grow(60)
    assert width.most == 60
    none = Width(0)
    none.shrink(NOW)
    none.close()
    none.grow(0)
    assert none.most == 0


def served(dispatcher: Dispatcher, now: int) -> int:
    """How many tokens are to be had now for the lane, each of which is kept."""
    group = dispatcher.group_of("a")
    count = 0
    while dispatcher.acquire(group, now):
        count += 1
    return count


def test_the_dispatcher_gives_as_many_tokens() -> None:
    dispatcher = Dispatcher([2], GroupLimit(8, start=2))
    key = keys.index_key(2, State.WAITING, "a", 1, NOW, b"m" * 12, 1)
    dispatcher.note(key, NOW, NOW)
    group = dispatcher.group_of("a")
    assert served(dispatcher, NOW) == 2
    for _ in range(2):
        dispatcher.free(group, NOW, well=True)
    assert served(dispatcher, NOW) == 4
    dispatcher.report(group, Trouble.DEAD, 10_000, NOW)
    for _ in range(4):
        dispatcher.free(group, NOW)
    assert served(dispatcher, NOW) == 0
    assert served(dispatcher, NOW + 10_000) == 1
    dispatcher.report(group, Trouble.DEAD, 10_000, NOW + 10_000)
    dispatcher.free(group, NOW + 10_000)
    assert served(dispatcher, NOW + 20_000) == 0
    assert served(dispatcher, NOW + 30_000) == 1
    dispatcher.free(group, NOW + 30_000, well=True)
    assert served(dispatcher, NOW + 30_000) == 2


def test_a_lane_that_waits_for_the_end_of_a_pause_is_served_then() -> None:
    dispatcher = Dispatcher([2], GroupLimit(8))
    group = dispatcher.group_of("a")
    dispatcher.report(group, Trouble.SOME, 5_000, NOW)
    dispatcher.note(keys.index_key(2, State.WAITING, "a", 1, NOW, b"m" * 12, 1), NOW, NOW)
    assert dispatcher.next_lane(2, NOW) is None
    wake = dispatcher.next_wake()
    assert wake is not None
    assert NOW + 4_000 < wake <= NOW + 5_000
    dispatcher.wake(NOW + 5_000)
    assert dispatcher.next_lane(2, NOW + 5_000) is not None
