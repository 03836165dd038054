# ruff: noqa: S101  (a test suite, though it is shipped)
"""The conformance suite, continued: meters and suspensions."""

from __future__ import annotations

import msgspec

from ptt_queue.testing import HOUR, Subject, new_message, now_ms
from ptt_queue.types import GroupLimit, Meter, NewMessage, Over, Refusal, Settle, State, Suspension, Task


def metered(key: str, limit: int, over: Over = Over.REFUSE, amount: int = 1, window: int = 1000 * HOUR) -> NewMessage:
    """A message with one meter, in a window that does not end meanwhile."""
    return msgspec.structs.replace(new_message(), meters=[Meter(key, amount, limit, window, b"quota")], over=over)


def check_meters_are_exact(subject: Subject) -> None:
    """All have room and count, or none does; for all clients together, and beyond a death."""
    with subject.client() as client, subject.client() as other:
        both = [Meter("user", 2, 5, 1000 * HOUR), Meter("all", 1, 2, 1000 * HOUR)]
        messages = [msgspec.structs.replace(new_message(), meters=both) for _ in range(3)]
        results = client.put_all([(m, b"body") for m in messages])
        assert [r.refused for r in results] == [None, None, Refusal.METER]
        assert (results[2].meter in ("user", "all"), results[2].until > now_ms()) == (True, True)
        assert other.put(metered("user", 5, amount=2), b"body").refused is Refusal.METER
        subject.restart()
        assert other.put(metered("user", 5), b"body").refused is None
        assert client.put(metered("user", 5), b"body").meter == "user"
        assert client.put(metered("other", 5, amount=6), b"body").refused is Refusal.METER
        assert client.stats().messages == 3


def check_meters_count_what_is_stored(subject: Subject) -> None:
    """Neither what is refused, nor a second with a submitter's key, nor what is held counts."""
    with subject.client() as client:
        replace = msgspec.structs.replace
        first = replace(metered("m", 2), once=b"key", once_until=now_ms() + HOUR)
        assert client.put(first, b"body").refused is None
        assert client.put(replace(metered("m", 2), id=first.id), b"body").refused is Refusal.DUPLICATE
        again = replace(metered("m", 2), once=b"key", once_until=now_ms() + HOUR)
        assert client.put(again, b"body").first == first.id
        held = metered("m", 2, Over.HOLD, amount=2)
        result = client.put(held, b"body")
        assert (result.refused, result.leased, result.meter) == (None, [], "m")
        assert [(e.state, e.note) for e in client.show(held.id)] == [(State.HELD, b"quota")]
        assert client.put(metered("m", 2), b"body").refused is None
        assert client.put(metered("m", 2), b"body").refused is Refusal.METER
        bad = [Meter("", 1, 1, HOUR), Meter("x" * 401, 1, 1, HOUR), Meter("x", -1, 1, HOUR), Meter("x", 1, 1, 0)]
        for meters in [[meter] for meter in bad] + [[Meter("x", 1, 1, HOUR)] * 33]:
            assert client.put(replace(new_message(), meters=meters), b"body").refused is Refusal.INVALID
        assert client.release([held.id]).changed == 1


def check_repeated_put_is_metered_once(subject: Subject) -> None:
    """The answer was lost: asked again, the same is answered, and nothing is counted."""
    with subject.client() as client:
        client.stats()
        wanted = [metered("m", 2), metered("m", 2, Over.HOLD, amount=2), metered("m", 2, amount=2), metered("m", 2)]
        calls = [client.link.put(message, b"body", True) for message in wanted]
        connection = client._connection
        assert connection is not None
        for call in calls:
            connection.sendall(b"".join(client.link.send(call)))
        with subject.client() as other:
            while other.stats().messages < 3:
                pass
        subject.restart()
        client.stats()
        results = [call.result for call in calls]
        assert [r.refused for r in results] == [None, None, Refusal.METER, None]
        assert [r.meter for r in results] == ["", "m", "m", ""]
        assert client.put(metered("m", 2), b"body").refused is Refusal.METER


def suspension(name: str, site: bool = False, until: int = 0) -> Suspension:
    return Suspension(name, site, now_ms(), until, "they are moving")


def check_suspended_lane_waits(subject: Subject) -> None:
    """What is there and what comes, whatever its group; beyond a death; not what is in flight, nor other stages."""
    with subject.client() as client:
        (task,) = client.put(new_message("gone"), b"body").leased
        client.put(new_message("gone"), b"body", lease=False)
        client.put(new_message("gone", stage=1), b"body", lease=False)
        assert client.suspend(suspension("gone"))
        assert client.put(new_message("gone"), b"body").leased == []
        assert [t.lane for t in client.put(new_message("here"), b"body").leased] == ["here"]
        client.assign("gone", "site", GroupLimit(5))
        assert [t.stage for t in client.lease(10, [1, 2])] == [1]
        assert client.settle(Settle(task.message, task.number)).stored
        subject.restart()
        assert client.lease(10, [2]) == []
        assert client.put(new_message("gone"), b"body").leased == []
        assert client.resume("gone")
        assert not client.resume("gone")
        assert len(client.lease(10, [2], wait=5)) == 3


def check_suspended_group_waits(subject: Subject) -> None:
    """With all of its lanes, and those that come to it; a message for one of them that moves on waits before it."""
    with subject.client() as client:
        assert client.suspend(suspension("site", site=True))
        for lane in ("a", "b"):
            client.assign(lane, "site", GroupLimit(5))
        assert [client.put(new_message(lane), b"body").leased for lane in ("a", "b")] == [[], []]
        (signing,) = client.put(new_message("s", stage=1, then="a"), b"body").leased
        assert not signing.then
        assert client.lease(10, [2]) == []
        assert client.put(new_message("c"), b"body", lease=False).refused is None
        client.assign("c", "site", GroupLimit(5))
        assert client.lease(10, [2]) == []
        assert client.resume("site", site=True)
        assert sorted(t.lane for t in client.lease(10, [2], wait=5)) == ["a", "b", "c"]


def check_suspension_lapses(subject: Subject) -> None:
    with subject.client() as client:
        client.put_all([(new_message(lane), b"body") for lane in ("a", "b")], lease=False)
        client.assign("b", "site", GroupLimit(5))
        until = now_ms() + 300
        assert client.suspend(suspension("a", until=until))
        assert client.suspend(suspension("site", site=True, until=until))
        found: list[Task] = []
        while len(found) < 2:
            found += client.lease(10, [2], wait=5)
            assert now_ms() >= until
        assert not client.resume("a")
        assert not client.suspend(suspension("a", until=until))
        assert not client.suspend(suspension(""))
        assert not client.suspend(suspension("x" * 401))
