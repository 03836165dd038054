"""What is kept of a task's attempts, what is done about one of unknown outcome, and what a schedule asks for."""

from typing import Any

import pytest
from ptt_queue.types import Settle, SettleResult, State, Task

from ptt import plan
from ptt.config import Config, Relay
from ptt.log import Log
from ptt.message import (
    HISTORY_ATTEMPTS,
    HISTORY_TIMES,
    Envelope,
    Note,
    Recipient,
    Reply,
    Schedule,
    Stage,
    attempts_of,
    decode_note,
    encode,
    history_of,
)
from ptt.metrics import Counters
from ptt.pipeline import Pipeline
from ptt.relay.outcome import Deferred, Delivered, Outcome

RETRY = Config(hostname="mail.example")
HOLD = Config(hostname="mail.example", relay=Relay(on_maybe="hold"))
ITEMS = plan.items_of([Recipient("a@x.test"), Recipient("b@x.test")])


def task(note: bytes = b"", maybe: bool = False, stage: int = Stage.DELIVER) -> Task:
    meta = encode(Envelope("s@b.test", 1))
    return Task(b"i" * 12, 3, stage, "x.test", ITEMS, 7, 2, note, maybe, False, meta, b"", 10, 0, 0, 1)


def deferred(text: str, phase: str = "RCPT", tls: str = "TLSv1.3 X") -> dict[int, Outcome]:
    return {
        1: Deferred(text, phase, "mx[192.0.2.1]:25", tls=tls),
        2: Deferred(text, phase, "mx[192.0.2.1]:25", tls=tls),
    }


def test_each_attempt_is_kept_and_those_that_ended_alike_are_one() -> None:
    note = b""
    for when, text in ((1, "451 greylisted"), (2, "451 greylisted"), (3, "452 full")):
        note = plan.note_of(deferred(text), when, before=note)
    last = decode_note(note)
    assert last is not None
    assert [(r.text, r.items, r.tls) for r in last.replies] == [("452 full", [1, 2], "TLSv1.3 X")]
    found = attempts_of(last)
    assert [(a.times, a.text, a.phase, a.peer, a.tls, a.recipients) for a in found] == [
        ([1, 2], "451 greylisted", "RCPT", "mx[192.0.2.1]:25", "TLSv1.3 X", 2),
        ([3], "452 full", "RCPT", "mx[192.0.2.1]:25", "TLSv1.3 X", 2),
    ]


@pytest.mark.parametrize("same", [True, False])
def test_the_history_is_bounded_and_keeps_its_ends(same: bool) -> None:
    note = b""
    for when in range(1, 300):
        note = plan.note_of(
            deferred("451 " + "x" * 400 + ("" if same else str(when)), phase="" if same else str(when)),
            when,
            before=note,
        )
    found = attempts_of(decode_note(note))
    times = [t for a in found for t in a.times]
    assert (times[0], times[-1]) == (1, 299)
    assert len(times) <= HISTORY_TIMES + 1
    assert len(found) <= HISTORY_ATTEMPTS + 1
    assert len(note) < 8_000


def test_notes_of_former_versions_are_read() -> None:
    import msgspec

    old = msgspec.msgpack.encode([5, [["450 no", "RCPT", "mx", [1]]], True])
    assert decode_note(old) == Note(5, [Reply("450 no", "RCPT", "mx", [1])], True)
    assert [a.times for a in history_of(decode_note(old))] == [[5]]
    assert attempts_of(None) == []


def test_what_was_tried_before_the_signature_is_remembered_after_it() -> None:
    waited = plan.note_of(deferred("not signed: no key", "sign", ""), 5, maybe=True)
    [following] = plan.deliver_tasks(ITEMS, RETRY, 9, maybe=True, note=waited)
    note = decode_note(following.note)
    assert note is not None
    assert (note.replies, note.maybe, [a.phase for a in attempts_of(note)]) == ([], True, ["sign"])
    assert plan.deliver_tasks(ITEMS, RETRY, 9)[0].note == b""


def test_a_schedule_says_when_how_urgent_and_how_long() -> None:
    envelope = Envelope("a@b.test", 5)
    plain = plan.new_message(b"i" * 12, envelope, [Recipient("x@c.test")], 3, RETRY, 1000)
    assert (plain.tasks[0].due, plain.priority, plain.tasks[0].state) == (1000, 1, State.WAITING)
    later = plan.new_message(
        b"i" * 12, envelope, [Recipient("x@c.test")], 3, RETRY, 1000, Schedule(not_before=5000, priority=2, hold=True)
    )
    assert (later.tasks[0].due, later.priority, later.tasks[0].state) == (5000, 2, State.HELD)
    assert later.expires - plain.expires == 4000
    short = plan.new_message(b"i" * 12, envelope, [Recipient("x@c.test")], 3, RETRY, 1000, Schedule(expires=7000))
    assert short.expires == 7000
    passed = plan.new_message(b"i" * 12, envelope, [Recipient("x@c.test")], 3, RETRY, 1000, Schedule(not_before=1))
    assert passed.tasks[0].due == 1000


class Stub:
    """A spool and a relay that note what is asked of them."""

    def __init__(self) -> None:
        self.settled: list[Settle] = []
        self.delivered: list[Any] = []

    def settle(self, settle: Settle, bodies: Any = ()) -> SettleResult:
        self.settled.append(settle)
        return SettleResult(True, [])

    def body(self, task: Task) -> bytes:
        return b"content"

    def deliver(self, lane: str, envelope: Envelope, shown: str, recipients: Any, content: Any, dot: Any) -> Any:
        self.delivered.append(recipients)
        return {item: Delivered("250 ok") for item, _ in recipients}

    def site_of(self, lane: str) -> None:
        return None


def journey(config: Config, one: Task) -> tuple[Stub, Counters]:
    stub, counters = Stub(), Counters()
    log = Log("test", "error")
    pipeline = Pipeline(config, stub, None, stub, log, counters)  # type: ignore[arg-type]
    pipeline._journey(one, None)
    return stub, counters


def test_maybe_delivered_mail_is_tried_again_by_default() -> None:
    stub, counters = journey(RETRY, task(maybe=True))
    assert len(stub.delivered) == 1
    assert stub.settled[0].tasks == []
    assert counters.counters["ptt_maybe_delivered_total", ()] == 2


def test_maybe_delivered_mail_is_held_if_so_configured_and_tried_when_it_is_released() -> None:
    noted = plan.note_of(deferred("451 later"), 5)
    stub, counters = journey(HOLD, task(noted, maybe=True))
    assert stub.delivered == []
    [kept] = stub.settled[0].tasks
    assert (kept.state, kept.items, kept.due, kept.attempts) == (State.HELD, ITEMS, 7, 2)
    note = decode_note(kept.note)
    assert note is not None
    assert (note.held, note.maybe, note.replies[0].text) == (plan.MAYBE_DELIVERED, True, "451 later")
    assert counters.counters["ptt_maybe_delivered_total", ()] == 2
    released, _ = journey(HOLD, task(kept.note, maybe=kept.maybe))
    assert len(released.delivered) == 1
    again, _ = journey(HOLD, task(kept.note, maybe=True))  # a new attempt of unknown outcome is a new question
    assert again.delivered == []


def test_other_mail_is_not_held() -> None:
    assert len(journey(HOLD, task())[0].delivered) == 1
