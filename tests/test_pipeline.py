"""The journey of one message through a worker, with the queue, the signer and the relay played by fakes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
from ptt_queue.types import NewMessage, PutResult, Settle, SettleResult, Task

from ptt import plan
from ptt.config import Config
from ptt.log import Log
from ptt.message import ENVELOPE, Attempt, Envelope, Note, Recipient, Stage, decode_note, encode
from ptt.metrics import Counters
from ptt.pipeline import Pipeline
from ptt.relay.outcome import Deferred, Delivered, Failed, Outcome
from ptt.signer.stage import Signed, Wait
from ptt.spool import SpoolUnavailable

ID = b"twelve-bytes"


def leased(message: NewMessage, number: int, then: bool) -> Task:
    task = message.tasks[number]
    return Task(
        message.id,
        number + 1,
        task.stage,
        task.lane,
        task.items,
        task.due,
        task.attempts,
        task.note,
        task.maybe,
        then,
        message.meta,
        b"",
        message.size,
        message.created,
        message.expires,
        1,
    )


class FakeSpool:
    """Leases what is put at once; keeps what is settled."""

    def __init__(self, tokens: bool = True) -> None:
        self.tokens = tokens
        self.message: NewMessage | None = None
        self.settled: list[tuple[Settle, list[bytes]]] = []
        self.marked: list[int] = []
        self.given_back: list[int] = []
        self.reports: list[tuple[str, float]] = []

    def put(self, message: NewMessage, body: bytes, lease: bool = True) -> PutResult:
        self.message = message
        tasks = [leased(message, n, self.tokens and bool(t.then)) for n, t in enumerate(message.tasks)]
        return PutResult(None, tasks if lease else [])

    def settle(self, settle: Settle, bodies: Sequence[bytes] = ()) -> SettleResult:
        self.settled.append((settle, list(bodies)))
        if not settle.lease or self.message is None:
            return SettleResult(True, [])
        new = NewMessage(ID, self.message.meta, settle.tasks, self.message.size, 0)
        return SettleResult(True, [leased(new, n, False) for n in range(len(settle.tasks))])

    def mark(self, task: Task) -> None:
        self.marked.append(task.number)

    def give_back(self, tasks: Sequence[Task]) -> None:
        self.given_back += [t.number for t in tasks]

    def body(self, task: Task) -> bytes:
        raise SpoolUnavailable("away")

    def report(self, _task: Task, trouble: str, pause: float) -> None:
        self.reports.append((trouble, pause))


class FakeSigning:
    def __init__(self, answer: Signed | Wait) -> None:
        self.answer = answer

    def sign(self, envelope: Envelope, shown_id: str, body: bytes) -> Signed | Wait:
        return self.answer

    def is_revoked(self, prefix: bytes) -> bool:
        return b"s=revoked;" in prefix


class FakeRelay:
    """``answer``: from the address to the outcome, or an exception after the final dot."""

    def __init__(self, answer: Callable[[str], Outcome] | Exception) -> None:
        self.answer = answer
        self.content: list[bytes] = []

    def deliver(
        self,
        lane: str,
        envelope: Envelope,
        shown_id: str,
        recipients: Sequence[tuple[int, Recipient]],
        content: Sequence[bytes],
        before_final_dot: Callable[[], None],
    ) -> dict[int, Outcome]:
        self.content.append(b"".join(content))
        before_final_dot()
        if isinstance(self.answer, Exception):
            raise self.answer
        return {item: self.answer(r.address) for item, r in recipients}

    def site_of(self, lane: str) -> str | None:
        return f"site of {lane}"


SIGNED = Signed(b"DKIM-Signature: x\r\n", "b.test", ["s"])


def run(
    relay: FakeRelay,
    *,
    spool: FakeSpool | None = None,
    signing: Signed | Wait = SIGNED,
    recipients: Sequence[str] = ("x@c.test",),
    sender: str = "a@b.test",
) -> FakeSpool:
    queue = spool or FakeSpool()
    anything: Any = queue
    counters = Counters()
    made = Pipeline(
        Config(hostname="mail.b.test"),
        anything,
        FakeSigning(signing),  # type: ignore[arg-type]
        relay,  # type: ignore[arg-type]
        Log("t", "error", fd=-1),
        counters,
        clock=lambda: 1000.0,
    )
    made.accept(ID, Envelope(sender, 0, "b.test"), [Recipient(r) for r in recipients], b"A: b\r\n\r\nbody\r\n")
    made.stop(5)
    return queue


def test_accepted_signed_and_delivered_needs_one_settlement() -> None:
    relay = FakeRelay(lambda _: Delivered("250 ok"))
    queue = run(relay)
    assert [(s.tasks, s.puts, s.prefix) for s, _ in queue.settled] == [([], [], None)]
    assert relay.content == [SIGNED.prefix + b"A: b\r\n\r\nbody\r\n"]
    assert queue.marked == [1]
    assert queue.reports == []


def test_several_lanes_are_settled_each_on_its_own() -> None:
    relay = FakeRelay(lambda _: Delivered("250 ok"))
    queue = run(relay, recipients=["x@c.test", "y@d.test"])
    first, *others = queue.settled
    assert [t.lane for t in first[0].tasks] == ["c.test", "d.test"]
    assert first[0].prefix == SIGNED.prefix
    assert first[0].lease
    assert len(others) == 2


def test_without_a_token_the_signed_message_waits_in_stage_deliver() -> None:
    relay = FakeRelay(lambda _: Delivered("250 ok"))
    queue = run(relay, spool=FakeSpool(tokens=False))
    assert [t.stage for t in queue.settled[0][0].tasks] == [Stage.DELIVER]


def test_mail_that_cannot_be_signed_waits_in_its_stage_and_is_not_sent() -> None:
    relay = FakeRelay(lambda _: Delivered("250 ok"))
    queue = run(relay, signing=Wait("key not in DNS", ""))
    [again] = queue.settled[0][0].tasks
    assert (again.stage, again.lane, again.due, again.then) == (Stage.SIGN, "b.test", 1_001_000, "c.test")
    assert relay.content == []


def test_failed_recipients_bounce_in_the_transaction_that_settles_them() -> None:
    def answer(address: str) -> Outcome:
        return Failed("550 5.1.1 no", "RCPT", "mx") if address == "x@c.test" else Deferred("451 later", "RCPT", "mx")

    queue = run(FakeRelay(answer), recipients=["x@c.test", "y@c.test"])
    [(settle, bodies)] = queue.settled
    [bounce] = settle.puts
    assert b"x@c.test" in bodies[0]
    envelope = ENVELOPE.decode(bounce.meta)
    assert (envelope.sender, envelope.bounce) == ("", True)
    [left] = settle.tasks
    assert (left.stage, left.lane, len(left.items)) == (Stage.DELIVER, "c.test", 1)
    assert settle.prefix == SIGNED.prefix


def test_no_bounce_of_a_bounce() -> None:
    queue = run(FakeRelay(lambda _: Failed("550 no", "RCPT")), sender="")
    assert [(s.tasks, s.puts) for s, _ in queue.settled] == [([], [])]


@pytest.mark.parametrize("recipients", [["x@c.test"], ["x@c.test", "y@d.test"]])
def test_a_fault_of_our_own_after_the_final_dot_is_retried_and_announced(recipients: list[str]) -> None:
    queue = run(FakeRelay(ZeroDivisionError()), recipients=recipients)
    [again] = queue.settled[-1][0].tasks
    assert again.maybe
    assert again.due == 1_060_000


def test_a_lease_whose_body_cannot_be_read_is_given_back() -> None:
    queue = FakeSpool()
    anything: Any = queue
    made = Pipeline(
        Config(hostname="mail.b.test"),
        anything,
        FakeSigning(SIGNED),  # type: ignore[arg-type]
        FakeRelay(lambda _: Delivered("250")),  # type: ignore[arg-type]
        Log("t", "error", fd=-1),
        Counters(),
    )
    made.stopping = True  # so that the put leases nothing
    made.accept(ID, Envelope("a@b.test", 0, "b.test"), [Recipient("x@c.test")], b"A: b\r\n\r\n")
    assert queue.message is not None
    made.stopping = False
    made._start(leased(queue.message, 0, True), None)
    made.stop(5)
    assert queue.given_back == [1]
    assert queue.settled == []
    assert made.held_bytes == 0


@pytest.mark.parametrize("selector", ["revoked", "good"])
def test_mail_that_a_compromised_key_signed_is_signed_again_before_it_goes(selector: str) -> None:
    queue, relay = FakeSpool(), FakeRelay(lambda _: Delivered("250"))
    anything: Any = queue
    made = Pipeline(
        Config(hostname="mail.b.test"),
        anything,
        FakeSigning(SIGNED),  # type: ignore[arg-type]
        relay,  # type: ignore[arg-type]
        Log("t", "error", fd=-1),
        Counters(),
        clock=lambda: 1000.0,
    )
    envelope = Envelope("a@b.test", 0, "b.test")
    message = plan.new_message(ID, envelope, [Recipient("x@c.test")], 10, Config(hostname="mail.b.test"), 1)
    prefix = f"DKIM-Signature: d=b.test; s={selector};\r\n".encode()
    task = leased(message, 0, False)
    task = msgspec.structs.replace(task, stage=Stage.DELIVER, lane="c.test", maybe=True, prefix=prefix)
    made._start(task, b"A: b\r\n\r\nbody\r\n")
    made.stop(5)
    if selector == "good":
        assert relay.content == [task.prefix + b"A: b\r\n\r\nbody\r\n"]
        return
    assert relay.content == []
    ((settle, _),) = queue.settled
    (again,) = settle.tasks
    assert (again.stage, again.lane, again.then, again.maybe) == (Stage.SIGN, "b.test", "c.test", True)
    assert (again.items, settle.prefix) == (task.items, None)  # other tasks of the message share the prefix


ASKED = "SUCCESS,FAILURE,DELAY"


def reported(relay: FakeRelay, notify: str, note: bytes = b"", signing: Signed | Wait = SIGNED) -> list[str]:
    """The reports that go out with the settlement of one attempt, and whether the note remembers a warning."""
    queue = FakeSpool()
    anything: Any = queue
    made = Pipeline(
        Config(hostname="mail.b.test"),
        anything,
        FakeSigning(signing),  # type: ignore[arg-type]
        relay,  # type: ignore[arg-type]
        Log("t", "error", fd=-1),
        Counters(),
        clock=lambda: 100_000.0,
    )
    made.stopping = True
    made.accept(ID, Envelope("a@b.test", 0, "b.test"), [Recipient("x@c.test", notify)], b"A: b\r\n\r\n")
    made.stopping = False
    assert queue.message is not None
    made._start(msgspec.structs.replace(leased(queue.message, 0, True), note=note), b"A: b\r\n\r\n")
    made.stop(5)
    [(settle, bodies)] = queue.settled
    assert len(settle.puts) == len(bodies)
    actions = [re.findall(rb"\r\nAction: (\w+)", body)[0].decode() for body in bodies]
    warned = [kept.warned for t in settle.tasks if (kept := decode_note(t.note))]
    return [*actions, *("warned" for known in warned if known)]


def waited(seconds: int, warned: bool = False) -> bytes:
    attempt = Attempt([(100_000 - seconds) * 1000], "451 later", "MAIL", "mx", "", 1)
    return encode(Note((100_000 - 60) * 1000, [], history=[attempt], warned=warned))


def test_success_is_reported_where_the_peer_does_not() -> None:
    assert reported(FakeRelay(lambda _: Delivered("250 ok")), ASKED) == ["relayed"]
    assert reported(FakeRelay(lambda _: Delivered("250 ok", dsn=True)), ASKED) == []
    assert reported(FakeRelay(lambda _: Delivered("250 ok")), "") == []


@pytest.mark.parametrize("where", ["deliver", "sign"])
def test_delay_is_reported_once(where: str) -> None:
    relay = FakeRelay(lambda _: Deferred("451 later", "MAIL"))
    waiting: Signed | Wait = SIGNED if where == "deliver" else Wait("no key for domain", "b.test")
    assert reported(relay, "", waited(60), waiting) == []
    assert reported(relay, "", waited(4 * 3600), waiting) == ["delayed", "warned"]
    assert reported(relay, "DELAY", waited(4 * 3600), waiting) == ["delayed", "warned"]
    assert reported(relay, "", waited(8 * 3600, warned=True), waiting) == ["warned"]
    assert reported(relay, "FAILURE", waited(4 * 3600), waiting) == ["warned"]


EIGHT = "A: b\r\n\r\nmany gr\u00fc\u00dfe to all of you\r\n".encode()


def narrow(address: str) -> Outcome:
    """A peer of x that takes 7 bits only; all others are delivered to."""
    return Deferred("7 bits", "MAIL", "mx", seven_bit=True) if address == "x@c.test" else Delivered("250 ok")


def converting(body: bytes) -> tuple[Settle, list[bytes]]:
    queue = FakeSpool()
    anything: Any = queue
    made = Pipeline(
        Config(hostname="mail.b.test"),
        anything,
        FakeSigning(SIGNED),  # type: ignore[arg-type]
        FakeRelay(narrow),  # type: ignore[arg-type]
        Log("t", "error", fd=-1),
        Counters(),
    )
    made.accept(ID, Envelope("a@b.test", 0, "b.test"), [Recipient("x@c.test"), Recipient("y@c.test")], body)
    made.stop(5)
    [(settle, bodies)] = queue.settled
    return settle, bodies


def test_for_a_peer_of_7_bits_the_message_is_converted_and_signed_again() -> None:
    settle, bodies = converting(EIGHT)
    assert settle.tasks == []  # nothing waits in its old form
    [put] = settle.puts
    assert bodies[0].isascii()
    assert b"gr=C3=BC=C3=9Fe" in bodies[0]
    assert put.size == len(bodies[0])
    assert [(t.stage, t.lane) for t in put.tasks] == [(Stage.SIGN, "b.test")]
    assert [r.address for _, r in plan.recipients_of(put.tasks[0].items)] == ["x@c.test"]


def test_what_cannot_be_converted_fails() -> None:
    _, [report] = converting(EIGHT.replace(b"A: b", b"Content-Type: message/partial"))
    assert b"Status: 5.6.3" in report
    assert b"7 bits only, and message/partial must not be encoded" in b" ".join(report.split())
