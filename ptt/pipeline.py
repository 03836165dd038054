"""A worker's journey of one message: lease, sign, deliver, settle. One greenlet for each leased task.

What is decided here is decided in ``ptt.plan``; this module calls the signer and the relay, and reports to the
queue. An unexpected exception of our own defers the task; it never ends the worker or loses the lease's recipients.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

import gevent
import gevent.event
import gevent.pool
import msgspec
from ptt_queue.types import NewMessage, NewTask, PutResult, Settle, Task

from ptt import mime, plan
from ptt.config import Config
from ptt.log import Log
from ptt.message import AT_ONCE, ENVELOPE, Envelope, Recipient, Schedule, Stage, new_id, show_id
from ptt.metrics import Counters, Popular
from ptt.places import Places
from ptt.relay.adaptive import verdict
from ptt.relay.bounce import Action, Given, notices, report
from ptt.relay.classify import classify
from ptt.relay.delivery import Relay
from ptt.relay.gate import NoSlot
from ptt.relay.outcome import Deferred, Delivered, Failed, Outcome
from ptt.relay.retry import next_attempt
from ptt.signer.stage import Signed, Signing, Wait
from ptt.spool import Spool, SpoolUnavailable

LEASE_MOST = 32  # tasks asked for at once
OUR_FAULT_RETRY_MS = 60_000  # after an unexpected exception of our own
HELD_BYTES = 256 * 1024 * 1024  # bodies that one worker keeps in memory on their way; above, they wait in the queue
SMALL_BODY = 64 * 1024  # is read whatever HELD_BYTES says, lest it waits for large ones: 100 MiB for 1,600 tasks
PAUSE_SECONDS = 0.5  # before asking again, while the queue process is away


class Pipeline:
    """The tasks of one worker. ``signing`` is None for a role that does not sign."""

    def __init__(
        self,
        config: Config,
        spool: Spool,
        signing: Signing | None,
        relay: Relay,
        log: Log,
        counters: Counters,
        signing_domain: Callable[[str], str] = lambda _domain: "",
        clock: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        self.config = config
        self.spool = spool
        self.signing = signing
        self.relay = relay
        self.log = log
        self.counters = counters
        self.signing_domain = signing_domain
        self.clock = clock
        self.rng = rng or random.Random()  # noqa: S311  (jitter, not a secret)
        self.stages = [Stage.SIGN, Stage.DELIVER] if signing else [Stage.DELIVER]
        self.pool = gevent.pool.Group()  # of no fixed size: a task that waits here for a place could wait for itself
        self.held_bytes = 0
        self._expected = 0  # tasks that the queue may be leasing to us at this moment
        self._changed = gevent.event.Event()  # a task has ended
        self.stopping = False
        self.places = Places(config.relay.in_flight)
        self._popular = Popular()  # sites with metrics of their own
        self._dots: set[tuple[bytes, int]] = set()  # tasks under way whose final dot has left

    def now_ms(self) -> int:
        return int(self.clock() * 1000)

    # -- in ------------------------------------------------------------------------------------------------

    def accept(
        self,
        id: bytes,
        envelope: Envelope,
        recipients: Sequence[Recipient],
        body: bytes,
        schedule: Schedule = AT_ONCE,
        conditions: plan.Conditions = plan.UNCONDITIONAL,
    ) -> PutResult:
        """Commit a new message and start on it at once if there is room. Returns when it is on stable storage.

        ``schedule``: not before, expiry, priority, hold. Raises SpoolUnavailable.
        """
        message = plan.new_message(id, envelope, recipients, len(body), self.config, self.now_ms(), schedule)
        if conditions is not plan.UNCONDITIONAL:
            message = msgspec.structs.replace(message, **msgspec.structs.asdict(conditions))
        wanted = len(message.tasks)
        room = not self.stopping and wanted <= self._free() and self.held_bytes + len(body) <= HELD_BYTES
        self._expected += wanted * room
        try:
            result = self.spool.put(message, body, lease=room)
        finally:
            self._expected -= wanted * room
        for task in result.leased:
            self._start(task, body)
        return result

    def run(self) -> None:
        """Lease what is due, for ever; run it in a greenlet. ``stop`` ends it."""
        while not self.stopping:
            most = min(self._free(), LEASE_MOST)
            if most <= 0:
                self._wait_for_change()
                continue
            try:
                tasks = self.spool.lease(most, self.stages)
            except SpoolUnavailable:
                gevent.sleep(PAUSE_SECONDS)
                continue
            for task in tasks:
                self._start(task, None)

    def stop(self, timeout: float) -> None:
        """Lease nothing more and wait, at most ``timeout`` seconds, for what is under way."""
        self.stopping = True
        self.pool.join(timeout)

    # -- one task --------------------------------------------------------------------------------------------

    def _free(self) -> int:
        """How many tasks may be leased now."""
        return self.places.free(time.monotonic()) - self._expected

    def _wait_for_change(self) -> None:
        self._changed.clear()
        self._changed.wait(PAUSE_SECONDS)

    def _start(self, task: Task, body: bytes | None) -> None:
        if body is not None:
            self.held_bytes += task.size
        greenlet = gevent.spawn(self._journey, task, body)
        self.places.take(greenlet, time.monotonic())
        self.pool.add(greenlet)
        greenlet.rawlink(self._ended)

    def _ended(self, greenlet: gevent.Greenlet) -> None:
        self.places.leave(greenlet)
        self._changed.set()

    def _content(self, task: Task) -> bytes:
        """The body from the queue. Raises SpoolUnavailable.

        A large one waits until there is room in memory: a backlog of them must not become as many in memory.
        """
        while task.size > SMALL_BODY and self.held_bytes and self.held_bytes + task.size > HELD_BYTES:
            if self.stopping:
                self.spool.give_back([task])
                raise SpoolUnavailable("stopping")
            self._wait_for_change()
        self.held_bytes += task.size
        try:
            return self.spool.body(task)
        except BaseException as e:
            self.held_bytes -= task.size
            if isinstance(e, SpoolUnavailable):  # nothing was done: else the lease would last as long as this worker
                self.spool.give_back([task])
            raise

    def _journey(self, task: Task, body: bytes | None) -> None:
        content = body
        try:
            envelope = ENVELOPE.decode(task.meta)
            if task.maybe and not plan.is_told(task):  # the lease before this one ended with a process
                self._tell_maybe(task, len(task.items))
            if plan.must_hold(task, self.config):
                self._hold(task)
                return
            content = self._content(task) if content is None else content
            if task.stage == Stage.SIGN:
                self._sign(task, envelope, content)
            elif task.prefix and self.signing is not None and self.signing.is_revoked(task.prefix):
                self._sign_again(task, envelope)
            else:
                self._deliver(task, envelope, content, task.lane, None)
        except NoSlot:  # it waits in the queue until there is room at its site
            self.spool.give_back([task])
        except SpoolUnavailable as e:  # the lease ends with the queue process, or is claimed again by the spool
            self.log.warning("unsettled", reason=str(e), **plan.describe(task))
        except Exception as e:
            self._our_fault(task, e)
        finally:
            self.held_bytes -= task.size if content is not None else 0
            self._dots.discard((task.message, task.number))

    def _hold(self, task: Task) -> None:
        """Leave it to the operator, who may know whether it arrived."""
        self.spool.settle(plan.held(task, self.now_ms()))
        self.log.warning("held", reason=plan.MAYBE_DELIVERED, **plan.describe(task))

    def _our_fault(self, task: Task, error: Exception) -> None:
        self.counters.count("ptt_errors_total", "pipeline")
        self.log.exception("task failed unexpectedly", error, **plan.describe(task))
        same = NewTask(
            task.stage,
            task.lane,
            task.items,
            self.now_ms() + OUR_FAULT_RETRY_MS,
            attempts=task.attempts + 1,
            note=task.note,
            maybe=task.maybe or (task.message, task.number) in self._dots,
        )
        try:
            self.spool.settle(Settle(task.message, task.number, [same]))
        except SpoolUnavailable as e:
            self.log.warning("unsettled", reason=str(e), **plan.describe(task))

    # -- sign ------------------------------------------------------------------------------------------------

    def _sign(self, task: Task, envelope: Envelope, body: bytes) -> None:
        if self.signing is None:
            raise RuntimeError("a task in stage sign at a role that does not sign")
        began = self.clock()
        result = self.signing.sign(envelope, show_id(task.message), body)
        if not isinstance(result, Signed):
            self._wait_for_signature(task, envelope, body, result)
            return
        self.counters.observe("ptt_sign_seconds", self.clock() - began)
        self.counters.count("ptt_signed_total", result.domain)
        self.log.event("signed", id=show_id(task.message), domain=result.domain, selectors=result.selectors)
        now = self.now_ms()
        tasks = plan.deliver_tasks(task.items, self.config, now, maybe=task.maybe, note=task.note)
        if task.then and len(tasks) == 1:
            self._deliver(task, envelope, body, tasks[0].lane, result.prefix)
            return
        room = len(tasks) - 1 <= self._free()  # our own place becomes free
        self._expected += len(tasks) * room
        try:
            settled = self.spool.settle(Settle(task.message, task.number, tasks, result.prefix, lease=room))
        finally:
            self._expected -= len(tasks) * room
        for following in settled.leased:
            self._start(following, body)

    def _sign_again(self, task: Task, envelope: Envelope) -> None:
        """Its signature is a compromised key's: back to stage SIGN, which replaces it. The prefix stays until then:
        the other tasks of the message share it, and come here too.
        """
        now, then = self.now_ms(), plan.then_of(task.items, self.config)
        again = NewTask(Stage.SIGN, envelope.signing_domain, task.items, now, then, note=task.note, maybe=task.maybe)
        self.log.warning("signature revoked", domain=envelope.signing_domain, **plan.describe(task))
        self.spool.settle(Settle(task.message, task.number, [again]))

    def _wait_for_signature(self, task: Task, envelope: Envelope, body: bytes, wait: Wait) -> None:
        now = self.now_ms()
        self.counters.count("ptt_sign_wait_total", wait.reason)
        outcome = Deferred(text=f"not signed: {wait.reason} ({wait.detail})", phase="sign", peer="")
        outcomes: dict[int, Outcome] = {item.id: outcome for item in task.items}
        if 0 < task.expires <= now:
            self._settle(task, envelope, [body], outcomes, Settle(task.message, task.number), expired=True)
            return
        late = 0 < plan.warning_at(task, self.config, now) <= now
        due = now + plan.sign_retry_ms(task.attempts)
        what = {"reason": wait.reason, "detail": wait.detail, "retry_ms": due - now}
        self.log.warning("waits for its signature", **what, **plan.describe(task))
        again = NewTask(
            task.stage,
            task.lane,
            task.items,
            due,
            plan.then_of(task.items, self.config),
            attempts=task.attempts + 1,
            note=plan.note_of(outcomes, now, task.maybe, task.note, late),
            maybe=task.maybe,
        )
        self._settle(task, envelope, [body], outcomes, Settle(task.message, task.number, [again]), late=late)

    def _mark(self, task: Task) -> None:
        self._dots.add((task.message, task.number))
        self.spool.mark(task)

    # -- deliver -----------------------------------------------------------------------------------------------

    def _deliver(self, task: Task, envelope: Envelope, body: bytes, lane: str, prefix: bytes | None) -> None:
        content = [prefix if prefix is not None else task.prefix, body]
        began = time.monotonic()
        outcomes = self.relay.deliver(
            lane,
            plan.crossing(envelope, task, lane),
            show_id(task.message),
            plan.recipients_of(task.items),
            content,
            lambda: self._mark(task),
        )
        now = self.now_ms()
        attempts = task.attempts if task.stage == Stage.DELIVER else 0
        about = next((classify(o) for o in outcomes.values() if isinstance(o, Deferred)), "")
        due = next_attempt(self.config.relay.retry, attempts, now, task.expires, self.rng, about)
        said = verdict(outcomes.values(), time.monotonic() - began, last=not due)
        if said.trouble:
            self.spool.report(task, said.trouble, said.pause)
        late = False
        if due and any(isinstance(o, Deferred) for o in outcomes.values()):
            warn = plan.warning_at(task, self.config, now)
            late = 0 < warn <= now
            due = min(due, warn) if warn > now else due  # an attempt then, as at the moment of expiry
        self._count(task, outcomes, now, lane)
        task, converted = self._seven_bit(task, envelope, body, outcomes)
        settle = plan.settlement(task, outcomes, lane, prefix, due, now, late)
        self._settle(task, envelope, content, outcomes, settle, not due, late, converted)

    def _seven_bit(
        self, task: Task, envelope: Envelope, body: bytes, outcomes: dict[int, Outcome]
    ) -> tuple[Task, list[tuple[NewMessage, bytes]]]:
        """Recipients whose peer takes 7 bits only leave the task, for a message of their own that is signed again."""
        items = [item for item in task.items if isinstance(o := outcomes[item.id], Deferred) and o.seven_bit]
        if not items:
            return task, []
        try:
            content = mime.to_seven_bit(body, _pause)
        except mime.Unconvertible as e:
            for item in items:
                peer = outcomes[item.id].peer
                outcomes[item.id] = Failed(f"{peer} takes 7 bits only, and {e}", "MAIL", peer, "5.6.3")
            return task, []
        now = self.now_ms()
        id = new_id(now)
        message = plan.converted(id, task, envelope, items, len(content), self.config, now)
        self.log.event("converted", id=show_id(task.message), into=show_id(id), recipients=len(items))
        return msgspec.structs.replace(task, items=[i for i in task.items if i not in items]), [(message, content)]

    def _settle(
        self,
        task: Task,
        envelope: Envelope,
        content: list[bytes],
        outcomes: dict[int, Outcome],
        settle: Settle,
        expired: bool = False,
        late: bool = False,
        converted: Sequence[tuple[NewMessage, bytes]] = (),
    ) -> None:
        """Settle, with the reports to the sender, in one transaction: so each event is reported once."""
        for line in plan.accounts(task, envelope, outcomes, expired) if self.log.deliveries else ():
            self.log.delivery(**line)
        found = notices(plan.recipients_of(task.items), outcomes, expired, late)
        for recipient, outcome in found.get("failed", ()):
            what = {"to": recipient.address, "peer": outcome.peer, "phase": outcome.phase, "reply": outcome.text}
            self.log.warning("failed", **what, **plan.describe(task))
        made = [self._report(task, envelope, content, action, given) for action, given in found.items()]
        puts = [*converted, *(report for report in made if report is not None)]
        settle = msgspec.structs.replace(settle, puts=[put for put, _ in puts]) if puts else settle
        result = self.spool.settle(settle, [body for _, body in puts])
        if not result.stored:
            self.log.warning("lease lost before it was settled", **plan.describe(task))

    def _report(
        self, task: Task, envelope: Envelope, content: list[bytes], action: Action, given: list[Given]
    ) -> tuple[NewMessage, bytes] | None:
        """The report as a new message; None for mail that has no sender (RFC 5321 6.1), or where none is wanted."""
        shown = show_id(task.message)
        now = self.now_ms()
        made = report(action, envelope, shown, given, b"".join(content), self.config.hostname, now, task.expires)
        if made is None:
            if action == "failed":
                self.counters.count("ptt_bounces_total", "discarded")
                for recipient, outcome in given:
                    self.log.warning("bounce not sent", id=shown, to=recipient.address, reason=outcome.text)
            return None
        about, recipient, body = made
        about = msgspec.structs.replace(about, signing_domain=self.signing_domain(self.config.hostname))
        id = new_id(now)
        self.counters.count("ptt_bounces_total", action)
        if action == "failed":
            self.log.event("bounced", id=shown, bounce=show_id(id), to=envelope.sender, recipients=len(given))
        else:
            self.log.event("reported", id=shown, kind=action, report=show_id(id), to=envelope.sender)
        return plan.new_message(id, about, [recipient], len(body), self.config, now, back=True), body

    def _count(self, task: Task, outcomes: dict[int, Outcome], now: int, lane: str) -> None:
        names = {Delivered: "delivered", Deferred: "deferred", Failed: "failed"}
        site = self._popular.label(self.relay.site_of(lane) or lane)
        for outcome in outcomes.values():
            self.counters.count("ptt_attempts_total", names[type(outcome)])
            self.counters.count("ptt_site_attempts_total", site, names[type(outcome)])
            if not isinstance(outcome, Delivered):
                self.counters.count("ptt_replies_total", classify(outcome))
            else:
                self.counters.observe("ptt_delivery_seconds", max(0, now - task.created) / 1000)
        if unknown := sum(isinstance(o, Deferred) and o.maybe for o in outcomes.values()):
            self._tell_maybe(task, unknown)

    def _tell_maybe(self, task: Task, recipients: int) -> None:
        """An attempt whose outcome nobody knows: the next one may be a duplicate, and the operator is told."""
        self.counters.count("ptt_maybe_delivered_total", by=recipients)
        self.log.warning("maybe delivered", maybe=True, recipients=recipients, **plan.describe(task))


def _pause() -> None:
    """Between two pieces of a conversion: others have their turn."""
    gevent.sleep(0)
