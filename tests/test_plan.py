"""Which tasks a message becomes, and what an attempt leaves of one."""

import random

import pytest
from ptt_queue.types import Item, Task

from ptt import plan
from ptt.config import Config, Relay
from ptt.message import (
    AT_ONCE,
    ENVELOPE,
    Envelope,
    Recipient,
    Schedule,
    Stage,
    decode_note,
    encode,
    new_id,
    parse_id,
    show_id,
)
from ptt.relay import hop
from ptt.relay.outcome import Deferred, Delivered, Failed, Outcome

ALL = Config(hostname="mail.example")
RELAY = Config(hostname="mail.example", role="relay", relay=Relay(bounce_hop="signer.example:25"))
NEVER_WARNS = Config(hostname="mail.example", relay=Relay(delay_warning_seconds=0))
SUBMISSION = Config(hostname="mail.example", role="submission", relay=Relay(next_hop="signer.example:25"))


def recipients(*addresses: str) -> list[Recipient]:
    return [Recipient(a) for a in addresses]


def task(items: list[Item], stage: int = Stage.DELIVER, attempts: int = 0, maybe: bool = False) -> Task:
    return Task(b"i" * 12, 3, stage, "x.test", items, 0, attempts, b"", maybe, False, b"", b"", 10, 0, 0, 1)


def test_signed_mail_has_one_task_and_names_the_lane_that_follows() -> None:
    one = plan.first_tasks(Envelope("a@b.test", 0, "b.test"), plan.items_of(recipients("x@c.test")), ALL, 5)
    assert [(t.stage, t.lane, t.then, t.due) for t in one] == [(Stage.SIGN, "b.test", "c.test", 5)]
    several = plan.items_of(recipients("x@c.test", "y@C.test", "z@d.test"))
    [two] = plan.first_tasks(Envelope("a@b.test", 0, "b.test"), several, ALL, 5)
    assert two.then == ""
    assert len(two.items) == 3


def test_unsigned_mail_has_a_task_for_each_domain() -> None:
    items = plan.items_of(recipients("x@c.test", "z@d.test", "y@C.test"))
    tasks = plan.first_tasks(Envelope("a@b.test", 0), items, ALL, 5)
    assert [(t.stage, t.lane, [i.id for i in t.items]) for t in tasks] == [
        (Stage.DELIVER, "c.test", [1, 3]),
        (Stage.DELIVER, "d.test", [2]),
    ]


def test_a_role_without_signer_sends_to_the_next_one() -> None:
    items = plan.items_of(recipients("x@c.test", "z@d.test"))
    [only] = plan.first_tasks(Envelope("a@b.test", 0, "b.test"), items, SUBMISSION, 5)
    assert (only.stage, only.lane) == (Stage.DELIVER, "hop:signer.example:25")
    [bounce] = plan.first_tasks(Envelope("", 0, bounce=True), items, RELAY, 5, back=True)
    assert bounce.lane == "hop:signer.example:25"
    for envelope in (Envelope("a@b.test", 0), Envelope("", 0, "b.test", bounce=True)):  # it comes from the signer
        assert len(plan.first_tasks(envelope, items, RELAY, 5)) == 2


def test_what_is_left_after_an_attempt() -> None:
    items = plan.items_of(recipients("a@x.test", "b@x.test", "c@x.test"))
    outcomes: dict[int, Outcome] = {
        1: Delivered("250 ok"),
        2: Deferred("451 later", "RCPT", "mx", maybe=False),
        3: Failed("550 no", "RCPT", "mx"),
    }
    settle = plan.settlement(task(items), outcomes, "x.test", None, due=99, now=10)
    [again] = settle.tasks
    assert [i.id for i in again.items] == [2]
    assert (again.due, again.attempts, again.lane, again.stage, again.maybe) == (99, 1, "x.test", Stage.DELIVER, False)
    note = decode_note(again.note)
    assert note is not None
    assert [(r.text, r.items) for r in note.replies] == [("451 later", [2])]


def test_an_expired_message_leaves_nothing() -> None:
    items = plan.items_of(recipients("a@x.test"))
    outcomes: dict[int, Outcome] = {1: Deferred("451 later", "MAIL")}
    assert plan.settlement(task(items), outcomes, "x.test", None, due=0, now=10).tasks == []


def test_the_signature_is_stored_only_with_what_is_left() -> None:
    items = plan.items_of(recipients("a@x.test"))
    from_sign = task(items, stage=Stage.SIGN, attempts=7)
    left = plan.settlement(from_sign, {1: Deferred("451", "MAIL")}, "x.test", b"DKIM", due=9, now=1)
    assert (left.prefix, left.tasks[0].attempts, left.tasks[0].stage) == (b"DKIM", 1, Stage.DELIVER)
    done = plan.settlement(from_sign, {1: Delivered("250")}, "x.test", b"DKIM", due=9, now=1)
    assert (done.prefix, done.tasks) == (None, [])


@pytest.mark.parametrize("maybe", [False, True])
def test_a_task_that_may_have_been_delivered_stays_so(maybe: bool) -> None:
    items = plan.items_of(recipients("a@x.test"))
    settle = plan.settlement(task(items, maybe=maybe), {1: Deferred("451", "MAIL")}, "x.test", None, due=9, now=1)
    assert settle.tasks[0].maybe is maybe


def test_notes_are_bounded() -> None:
    outcomes: dict[int, Outcome] = {n: Deferred(f"451 <r{n}> " + "x" * 2000, "RCPT") for n in range(1000)}
    assert len(plan.note_of(outcomes, 0)) < 20_000


def test_waiting_for_a_signature_never_takes_longer_than_a_minute() -> None:
    assert [plan.sign_retry_ms(n) for n in (0, 1, 5, 6, 1000)] == [1000, 2000, 32_000, 60_000, 60_000]


def test_ids_are_shown_and_read_back_and_sort_by_time(rng: random.Random) -> None:
    ids = [new_id(n) for n in sorted(rng.randrange(1 << 47) for _ in range(50))]
    shown = [show_id(i) for i in ids]
    assert [parse_id(s) for s in shown] == ids
    assert sorted(shown) == shown
    for wrong in ("", "x", "0" * 21, "ü" * 20, shown[0] + "0"):
        with pytest.raises(ValueError, match=r".*"):
            parse_id(wrong)


def test_envelopes_survive_the_queue() -> None:
    envelope = Envelope("a@b.test", 1, "b.test", "u", "127.0.0.1", "h", True, True, "HDRS", "e", "c" * 40, True)
    assert ENVELOPE.decode(encode(envelope)) == envelope


def test_expiry_and_priority_cross_to_the_next_role() -> None:
    items = plan.items_of(recipients("x@c.test"))
    asked = Schedule(not_before=2_000, expires=9_000, priority=2)
    envelope = Envelope("a@b.test", 0, "b.test", ret="HDRS", envid="e1", commit="c0ffee")
    first = plan.new_message(b"i" * 12, envelope, recipients("x@c.test"), 10, SUBMISSION, 1_000, asked)
    [task_there] = first.tasks
    assert (task_there.due, first.expires, first.priority) == (2_000, 9_000, 2)
    leased = Task(
        first.id, 1, Stage.DELIVER, task_there.lane, items, 0, 0, b"", False, False, b"", b"", 10, 0, 9_000, 2
    )
    crossed = hop.decode(hop.encode(plan.crossing(envelope, leased, task_there.lane)))
    assert (crossed.ret, crossed.envid, crossed.commit) == ("HDRS", "e1", "c0ffee")
    second = plan.new_message(b"j" * 12, crossed, recipients("x@c.test"), 10, ALL, 5_000)
    assert (second.tasks[0].due, second.expires, second.priority) == (5_000, 9_000, 2)
    assert plan.crossing(envelope, leased, "c.test").schedule == AT_ONCE


def test_the_sender_is_told_of_a_delay_once_and_from_the_first_attempt_on() -> None:
    items = plan.items_of(recipients("a@x.test"))
    late: dict[int, Outcome] = {1: Deferred("451 later", "MAIL")}
    four_hours = 4 * 3_600_000
    first = task(items)
    assert plan.warning_at(first, ALL, 1_000) == 1_000 + four_hours
    [again] = plan.settlement(first, late, "x.test", None, due=9, now=1_000).tasks
    second = Task(b"i" * 12, 4, 2, "x.test", items, 0, 1, again.note, False, False, b"", b"", 10, 0, 0, 1)
    assert plan.warning_at(second, ALL, 5_000_000) == 1_000 + four_hours
    assert plan.warning_at(second, NEVER_WARNS, 5_000_000) == 0
    [told] = plan.settlement(second, late, "x.test", None, due=9, now=2_000, warned=True).tasks
    third = Task(b"i" * 12, 5, 2, "x.test", items, 0, 2, told.note, False, False, b"", b"", 10, 0, 0, 1)
    assert plan.warning_at(third, ALL, 9 * four_hours) == 0
    [fourth] = plan.settlement(third, late, "x.test", None, due=9, now=3_000).tasks
    assert (note := decode_note(fourth.note)) is not None
    assert note.warned


def test_what_is_converted_to_7_bits_is_signed_again() -> None:
    items = plan.items_of(recipients("a@x.test", "b@x.test"))[1:]
    old = Task(b"i" * 12, 3, 2, "x.test", items, 0, 4, b"", False, False, b"", b"DKIM", 10, 0, 9_000, 2)
    envelope = Envelope("me@b.test", 7, "b.test", eightbit=True, ret="HDRS", envid="e")
    for config, stage, lane in ((ALL, Stage.SIGN, "b.test"), (RELAY, Stage.DELIVER, "hop:signer.example:25")):
        new = plan.converted(b"j" * 12, old, envelope, items, 20, config, 5_000)
        about = ENVELOPE.decode(new.meta)
        assert (about.eightbit, about.sevenbit, about.ret, about.envid, about.received) == (False, True, "HDRS", "e", 7)
        assert [(t.stage, t.lane) for t in new.tasks] == [(stage, lane)]
        assert [r.address for _, r in plan.recipients_of(new.tasks[0].items)] == ["b@x.test"]
        assert (new.expires, new.priority, new.size) == (9_000, 2, 20)
