# ruff: noqa: S101  (a test suite, though it is shipped)
"""The conformance suite, continued: meters and suspensions."""

from __future__ import annotations

import msgspec

from ptt_queue.testing import HOUR, Subject, new_message, now_ms
from ptt_queue.types import Meter, NewMessage, Over, Refusal, State


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
