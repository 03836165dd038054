"""What the commands decide without a queue: counts of many lanes, durations, patterns, hostile timelines."""

from typing import Any

import click
import pytest
from ptt_queue.keys import IndexKey
from ptt_queue.types import Entry, GroupLimit, Item, Place, State

from ptt.cli.queue import counting
from ptt.cli.queue.bouncing import GIVEN_UP, failure
from ptt.cli.queue.group import duration
from ptt.cli.queue.rows import timeline, told_timeline, waits_for
from ptt.cli.queue.selection import Criteria, matches
from ptt.message import Envelope, Note, Recipient, Reply, encode

NOW = 1_800_000_000_000


def entry(**changes: Any) -> Entry:
    fields: dict[str, Any] = {
        "message": bytes(12), "number": 1, "stage": 2, "state": State.WAITING, "lane": "x.example", "priority": 1,
        "due": 0, "attempts": 0, "maybe": False, "leased": False, "items": [], "note": b"", "meta": b"", "size": 0,
        "created": 0, "expires": 0,
    }  # fmt: skip
    return Entry(**{**fields, **changes})


def key(lane: str, minutes: int, state: State = State.WAITING, due: int = 0) -> IndexKey:
    return IndexKey(2, state, lane, 1, due, (NOW - minutes * 60_000).to_bytes(6, "big") + bytes(6), 1)


def test_more_lanes_than_are_counted_one_by_one_are_told_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "MAX_LANES", 10)
    tally = counting.Tally(NOW)
    for n in range(100):
        tally.count(key("large", n), leased=False)
        tally.count(key(f"small{n}", 2000, State.HELD), leased=False)
    assert len(tally.lanes) <= 10
    first, rest = tally.top(1)
    assert (first.lane, first.total, first.ready) == ("large", 100, 100)
    assert (rest.lane, rest.total, rest.held, rest.ages[-1]) == ("other lanes", 100, 100, 100)
    assert (tally.all.total, tally.stages["deliver"].total) == (200, 200)


def test_ages_have_the_columns_of_qshape() -> None:
    tally = counting.Tally(NOW)
    for minutes in (0, 4, 5, 9, 1279, 1280, 10**6):
        tally.count(key("x", minutes), leased=False)
    assert tally.all.ages == [2, 2, 0, 0, 0, 0, 0, 0, 1, 2]
    tally.count(key("x", 0, due=NOW + 1), leased=True)
    tally.count(key("x", 0, due=NOW + 1), leased=False)
    tally.count(key("x", 0, State.FAILED), leased=False)
    assert (tally.all.working, tally.all.delayed, tally.all.failed) == (1, 1, 1)


@pytest.mark.parametrize(("text", "ms"), [("90", 90_000), ("15m", 900_000), ("2h", 7_200_000), ("3d", 259_200_000)])
def test_durations(text: str, ms: int) -> None:
    context = click.Context(click.Command("x"))
    assert duration(context, click.Option(["--x"]), text) == ms
    for wrong in ("", "x", "-1", "1w", "1.5h", "²"):
        with pytest.raises(click.BadParameter):
            duration(context, click.Option(["--x"]), wrong)


def test_addresses_match_as_they_are_written() -> None:
    items = [Item(1, encode(Recipient("a[1]@x.example"))), Item(2, encode(Recipient("b@[192.0.2.1]")))]
    one = entry(items=items, meta=encode(Envelope("", 0)))
    assert matches(one, Criteria(recipient="a[1]@x.example"), NOW) == {1}
    assert matches(one, Criteria(domain="[192.0.2.1]"), NOW) == {2}
    assert matches(one, Criteria(sender="<>"), NOW) == {1, 2}
    assert matches(one, Criteria(sender="?"), NOW) is None
    assert matches(one, Criteria(recipient="1@x.example"), NOW) is None
    assert matches(entry(items=[Item(1, b"\xc1")]), Criteria(recipient="a@*"), NOW) is None


def test_what_a_task_waits_for() -> None:
    def place(**changes: Any) -> Place:
        fields: dict[str, Any] = {
            "place": "active", "group": "mx", "lanes": 2, "in_flight": 0, "limit": GroupLimit(5), "next_at": 0,
        }  # fmt: skip
        return Place(**{**fields, **changes})

    due = entry(due=NOW)
    assert "5 of 5 in flight, 2 lanes share it" in waits_for(due, None, NOW, place(in_flight=5, place="parked"))
    rate = place(limit=GroupLimit(0, 0.5), next_at=NOW + 2000)
    assert "the rate of site mx: 0.5 a second" in waits_for(due, None, NOW, rate)
    assert "its turn comes" in waits_for(due, None, NOW, place(place="parked"))
    assert "not in memory" in waits_for(due, None, NOW, place(place=""))
    assert "a free worker" in waits_for(due, None, NOW, place(group="", limit=GroupLimit(0)))
    note = Note(1, [], held="maybe delivered")
    assert waits_for(entry(state=State.HELD), note, NOW, None) == "held by policy: maybe delivered"
    assert "given up" in waits_for(entry(state=State.FAILED), None, NOW, None)


def test_a_timeline_is_safe_for_a_terminal() -> None:
    note = encode(Note(5, [Reply("450 \x1b[31m\r\nforged line", "RCPT", "mx\x07", [1])]))
    text = told_timeline(timeline(entry(note=note, meta=encode(Envelope("", 0, user="\x1b]0;x"))), NOW, None))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert len(text.splitlines()) == 3
    assert timeline(entry(meta=b"\xc1", note=b"junk"), NOW, None)[0].what == "accepted"
    assert "made here" in told_timeline(timeline(entry(meta=encode(Envelope("", 0, bounce=True))), NOW, None))
    assert "has expired" in told_timeline(timeline(entry(expires=NOW), NOW, None))


def test_a_bounce_bears_the_last_reply_of_its_recipient() -> None:
    note = Note(5, [Reply("450 a", "RCPT", "mx", [1]), Reply("450 b", "DATA", "mx", [2])])
    assert failure(2, note, GIVEN_UP).text == f"{GIVEN_UP}; last: 450 b"
    assert failure(3, note, GIVEN_UP).text == failure(3, None, GIVEN_UP).text == GIVEN_UP
