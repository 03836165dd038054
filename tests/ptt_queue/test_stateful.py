"""The interface against a model: any order of what two clients, an operator and a crash may do (hypothesis).

It speaks to a ``Subject`` alone (see ``ptt_queue.testing``), so it is the same for every engine: a subclass says how
one is made. The model is a dictionary: which tasks there are, in which lane and state, held by whom, maybe or not.
"""

import contextlib
import tempfile

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from ptt_queue import keys
from ptt_queue.in_process import LIMIT, in_process
from ptt_queue.testing import now_ms
from ptt_queue.types import (
    Act,
    Amended,
    Filter,
    Item,
    Meter,
    NewMessage,
    NewTask,
    Over,
    Refusal,
    Settle,
    State,
    Suspension,
)

HOUR = 3_600_000
WINDOW = 366 * 24 * HOUR  # does not end meanwhile
QUOTA = 5
LANES = st.sampled_from(["a", "b"])
WHO = st.sampled_from([0, 1])
PICK = st.integers(0, 1 << 16)
SIZES = st.sampled_from([0, 4, 4080, 4081, 9000])


class Expected(msgspec.Struct):
    """What is known of one task."""

    stage: int
    lane: str
    state: State
    later: bool
    items: list[int]
    size: int
    maybe: bool = False
    holder: int | None = None
    marked: bool = False


class Interface(RuleBasedStateMachine):
    @staticmethod
    def subject():
        """A context manager that gives a fresh Subject."""
        raise NotImplementedError

    def spoil(self, ref):
        """Make a task's record unreadable. Returns what mends it."""
        raise NotImplementedError

    def __init__(self):
        super().__init__()
        self.stack = contextlib.ExitStack()
        self.queue = self.stack.enter_context(self.subject())
        self.clients = [self.queue.client() for _ in range(2)]
        self.tasks = {}  # (message, number) -> Expected
        self.keys = {}  # submitter's key -> id
        self.meters = {}  # key -> what is counted
        self.suspended = set()  # lanes
        self.serial = 0

    def teardown(self):
        for client in self.clients:
            client.close()
        self.stack.close()

    # -- helpers -----------------------------------------------------------------------------------------------------

    def _id(self):
        self.serial += 1
        return self.serial.to_bytes(12, "big")

    def _took(self, who, leased):
        for task in leased:
            known = self.tasks[task.message, task.number]
            assert known.holder is None, "leased twice"
            assert (known.state, known.later) == (State.WAITING, False)
            assert (task.stage, task.lane, task.size) == (known.stage, known.lane, known.size)
            assert [i.id for i in task.items] == known.items
            assert task.maybe == known.maybe
            assert task.stage == 1 or task.lane not in self.suspended, "a suspended lane was leased"
            known.holder = who
        for lane in ("a", "b"):
            in_flight = [t for t in self.tasks.values() if t.holder is not None and t.stage == 2 and t.lane == lane]
            assert len(in_flight) <= LIMIT, "more than the tokens"

    def _held(self, who):
        return sorted(ref for ref, task in self.tasks.items() if task.holder == who)

    def _ready(self, stage):
        return [t for t in self.tasks.values() if (t.stage, t.state, t.later, t.holder) == (stage, 0, False, None)]

    def _end(self, ref, *, maybe):
        known = self.tasks[ref]
        known.maybe = known.maybe or maybe
        known.holder, known.marked = None, False

    # -- what clients do -----------------------------------------------------------------------------------------------

    @rule(who=WHO, lane=LANES, stage=st.sampled_from([1, 2]), size=SIZES, later=st.booleans(), lease=st.booleans())
    def put(self, who, lane, stage, size, later, lease):
        now = now_ms()
        id = self._id()
        tasks = [NewTask(stage, lane, [Item(1, b"x"), Item(2, b"y")], now + HOUR if later else now)]
        message = NewMessage(id, b"meta", tasks, size, now)
        result = self.clients[who].put(message, b"b" * size, lease=lease)
        assert (result.refused, result.first) == (None, b"")
        self.tasks[id, 1] = Expected(stage, lane, State.WAITING, later, [1, 2], size)
        self._took(who, result.leased)

    @rule(who=WHO, lane=LANES)
    def put_more_than_may_go(self, who, lane):
        now = now_ms()
        for _ in range(LIMIT + 1):
            id = self._id()
            message = NewMessage(id, b"", [NewTask(2, lane, [Item(1, b"x")], now)], 4, now)
            result = self.clients[who].put(message, b"bbbb")
            self.tasks[id, 1] = Expected(2, lane, State.WAITING, False, [1], 4)
            self._took(who, result.leased)

    @rule(who=WHO, key=st.sampled_from([b"k", b"l"]))
    def put_once(self, who, key):
        now = now_ms()
        id = self._id()
        tasks = [NewTask(1, "a", [Item(1, b"x")], now)]
        message = NewMessage(id, b"", tasks, 4, now, once=key, once_until=now + HOUR)
        result = self.clients[who].put(message, b"bbbb", lease=False)
        assert (result.refused, result.leased) == (None, [])
        assert result.first == self.keys.get(key, b"")
        if not result.first:
            self.keys[key] = id
            self.tasks[id, 1] = Expected(1, "a", State.WAITING, False, [1], 4)

    @rule(who=WHO, key=st.sampled_from(["m", "n"]), amount=st.integers(0, 3), hold=st.booleans())
    def put_metered(self, who, key, amount, hold):
        now, id = now_ms(), self._id()
        meters = [Meter(key, amount, QUOTA, WINDOW, b"quota"), Meter("all", 1, 20, WINDOW, b"quota")]
        over = Over.HOLD if hold else Over.REFUSE
        tasks = [NewTask(1, "a", [Item(1, b"x")], now)]
        result = self.clients[who].put(
            NewMessage(id, b"", tasks, 4, now, meters=meters, over=over), b"bbbb", lease=False
        )
        fits = self.meters.get(key, 0) + amount <= QUOTA and self.meters.get("all", 0) < 20
        assert bool(result.meter) is not fits
        assert result.refused is (None if fits or hold else Refusal.METER)
        if fits:
            for meter in meters:
                self.meters[meter.key] = self.meters.get(meter.key, 0) + meter.amount
        if result.refused is None:
            self.tasks[id, 1] = Expected(1, "a", State.WAITING if fits else State.HELD, False, [1], 4)

    @precondition(lambda self: self.tasks)
    @rule(who=WHO, pick=PICK)
    def put_a_taken_id(self, who, pick):
        id = sorted(self.tasks)[pick % len(self.tasks)][0]
        message = NewMessage(id, b"", [NewTask(1, "a", [Item(1, b"x")], 0)], 4, 0)
        assert self.clients[who].put(message, b"body").refused is Refusal.DUPLICATE

    @rule(who=WHO, most=st.integers(1, 8), stage=st.sampled_from([1, 2]))
    def lease(self, who, most, stage):
        leased = self.clients[who].lease(most, [stage])
        self._took(who, leased)
        if stage == 1 and len(leased) < most:
            assert not self._ready(1), "what is ready was not leased"
        if stage == 2 and len(leased) < most:
            for task in self._ready(2):
                busy = sum(t.holder is not None and (t.stage, t.lane) == (2, task.lane) for t in self.tasks.values())
                assert busy == LIMIT or task.lane in self.suspended, "what is ready was not leased"

    @precondition(lambda self: self._held(0) or self._held(1))
    @rule(who=WHO, pick=PICK, later=st.booleans(), state=st.sampled_from(State), parts=st.integers(0, 2), lane=LANES)
    def settle(self, who, pick, later, state, parts, lane):
        refs = self._held(who)
        if not refs:
            return
        ref = refs[pick % len(refs)]
        old = self.tasks.pop(ref)
        now = now_ms()
        wanted = [[1], [2]][:parts]
        new = [
            NewTask(2, lane, [Item(i, b"x") for i in ids], now + HOUR if later else now, state=state, maybe=old.maybe)
            for ids in wanted
        ]
        result = self.clients[who].settle(Settle(*ref, new, lease=True))
        assert result.stored
        kept = {r for r in self.tasks if r[0] == ref[0]}
        fresh = [e for e in self.clients[who].show(ref[0]) if (e.message, e.number) not in kept]
        assert sorted([i.id for i in e.items] for e in fresh) == wanted
        for entry in fresh:
            ids = [i.id for i in entry.items]
            self.tasks[entry.message, entry.number] = Expected(2, lane, state, later, ids, old.size, old.maybe)
        self._took(who, result.leased)

    @precondition(lambda self: self.tasks)
    @rule(who=WHO, pick=PICK)
    def settle_what_is_not_mine(self, who, pick):
        ref = sorted(self.tasks)[pick % len(self.tasks)]
        if self.tasks[ref].holder != who:
            assert not self.clients[who].settle(Settle(*ref)).stored

    @rule(who=WHO, pick=PICK)
    def read_body(self, who, pick):
        entries = [e for ref in self._held(who) for e in self.clients[who].show(ref[0])]
        if entries:
            entry = entries[pick % len(entries)]
            assert self.clients[who].body(entry) == b"b" * entry.size

    @rule(who=WHO, pick=PICK, marked=st.booleans())
    def give_back(self, who, pick, marked):
        refs = self._held(who)
        if refs:
            ref = refs[pick % len(refs)]
            task = self.clients[who].link.held[ref].task
            if marked:
                self.clients[who].mark(task)
            self.clients[who].give_back([task])
            self._end(ref, maybe=marked)

    # -- what goes wrong -----------------------------------------------------------------------------------------------

    @rule(who=WHO, mark=st.booleans())
    def die(self, who, mark):
        """A worker ends with all that it held; with ``mark`` its final dots may have left."""
        refs = self._held(who)
        if mark:
            for ref in refs:
                self.clients[who].mark(self.clients[who].link.held[ref].task)
        self.clients[who].stats()
        self.clients[who].close()
        self.clients[who] = self.queue.client()
        self.clients[who].stats()
        for ref in refs:
            self._end(ref, maybe=mark)

    @rule(lost=st.sampled_from([None, 0, 1]))
    def restart(self, lost):
        """The queue dies; its clients come back and hold what they held, but for the one that died with it."""
        for client in self.clients:
            client.stats()
            client.stats()  # what ended before is written now
        self.queue.restart()
        for who in [w for w in (0, 1) if w != lost]:
            held = [self.clients[who].link.held[ref].task for ref in self._held(who)]
            assert self.clients[who].extend(held) == [True] * len(held)
        if lost is not None:
            self.clients[lost].close()
            self.clients[lost] = self.queue.client()
            self.clients[lost].stats()
            for ref in self._held(lost):
                self._end(ref, maybe=True)

    # -- the operator --------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.tasks)
    @rule(who=WHO, pick=PICK, verb=st.sampled_from([Act.HOLD, Act.RELEASE, Act.RETRY, Act.DELETE]))
    def act(self, who, pick, verb):
        id = sorted(self.tasks)[pick % len(self.tasks)][0]
        client = self.clients[who]
        done = {
            Act.HOLD: client.hold,
            Act.RELEASE: client.release,
            Act.RETRY: client.retry,
            Act.DELETE: client.delete,
        }[verb]([id])
        mine = {ref: t for ref, t in self.tasks.items() if ref[0] == id}
        assert done.leased == sum(t.holder is not None for t in mine.values())
        for ref, task in mine.items():
            if task.holder is not None:
                continue
            if verb is Act.DELETE:
                del self.tasks[ref]
            elif verb is Act.HOLD and task.state is State.WAITING:
                task.state = State.HELD
            elif verb is Act.RELEASE and task.state is State.HELD:
                task.state = State.WAITING
            elif verb is Act.RETRY:
                task.state, task.later = State.WAITING, False

    @precondition(lambda self: self.tasks)
    @rule(
        who=WHO,
        pick=PICK,
        later=st.booleans(),
        state=st.sampled_from(State),
        parts=st.integers(0, 2),
        word=st.booleans(),
    )
    def amend(self, who, pick, later, state, parts, word):
        """The operator's settle, with a message that comes of it or without."""
        ref = sorted(self.tasks)[pick % len(self.tasks)]
        old, now = self.tasks[ref], now_ms()
        new = [NewTask(2, "b", [Item(i, b"x")], now + HOUR if later else now, state=state) for i in (1, 2)[:parts]]
        puts = [NewMessage(self._id(), b"", [NewTask(1, "a", [Item(1, b"x")], now)], 4, now)] if word else []
        settle = Settle(*ref, new, puts=puts)
        outcome = self.clients[who].amend(settle, [b"bbbb"] * word)
        if old.holder is not None:
            assert outcome is Amended.LEASED
            return
        assert outcome is Amended.DONE
        del self.tasks[ref]
        kept = {r for r in self.tasks if r[0] == ref[0]}
        fresh = [e for e in self.clients[who].show(ref[0]) if (e.message, e.number) not in kept]
        assert sorted(e.items[0].id for e in fresh) == [1, 2][:parts]
        for e in fresh:
            assert e.maybe or not old.maybe
            ids = [e.items[0].id]
            self.tasks[e.message, e.number] = Expected(2, "b", state, later, ids, old.size, e.maybe)
        for put in puts:
            self.tasks[put.id, 1] = Expected(1, "a", State.WAITING, False, [1], 4)
        assert self.clients[who].amend(settle, [b"bbbb"] * word) is (Amended.DONE if word else Amended.GONE)

    @rule(who=WHO, lane=LANES, on=st.booleans())
    def suspend(self, who, lane, on):
        if on:
            assert self.clients[who].suspend(Suspension(lane, False, now_ms(), 0))
            self.suspended.add(lane)
        else:
            assert self.clients[who].resume(lane) is (lane in self.suspended)
            self.suspended.discard(lane)

    @precondition(lambda self: self._ready(1))
    @rule(who=WHO, pick=PICK, delete=st.booleans())
    def repair(self, who, pick, delete):
        """A task becomes unreadable, is set aside when its turn comes, and is put back or deleted."""
        client = self.clients[who]
        client.stats()
        client.stats()  # what ended before is written now
        refs = sorted(r for r, t in self.tasks.items() if (t.stage, t.state, t.later, t.holder) == (1, 0, False, None))
        ref = refs[pick % len(refs)]
        known = self.tasks.pop(ref)
        mend = self.spoil(ref)
        self._took(who, client.lease(1000, [1]))
        assert client.repair([ref], delete=False) == 0
        assert client.lease(1000, [1]) == []
        if delete:
            assert client.repair([ref], delete=True) == 1
        else:
            mend()
            assert client.repair([ref], delete=False) == 1
            self.tasks[ref] = known
        assert client.repair([ref], delete) == 0

    @invariant()
    def listing_is_the_model(self):
        entries, after = [], b""
        while True:
            page = self.clients[0].list(Filter(after=after, most=7))
            entries += page.entries
            after = page.after
            if not after:
                break
        found = {(e.message, e.number): (e.stage, e.lane, e.state, [i.id for i in e.items], e.leased) for e in entries}
        assert len(found) == len(entries)
        assert found == {
            ref: (t.stage, t.lane, t.state, t.items, t.holder is not None) for ref, t in self.tasks.items()
        }
        stats = self.clients[0].stats()
        assert stats.messages == len({message for message, _ in self.tasks})
        assert stats.leased == sum(t.holder is not None for t in self.tasks.values())


class OnLmdb(Interface):
    def spoil(self, ref):
        store = self.queue.store
        key = keys.record_key(*ref)

        def write(raw):
            with store.env.begin(write=True, db=store.dbs["records"]) as txn:
                before = txn.get(key)
                txn.put(key, raw)
            return before

        before = write(b"\0\xc1")
        return lambda: write(before)

    @staticmethod
    @contextlib.contextmanager
    def subject():
        with tempfile.TemporaryDirectory() as directory, in_process(f"{directory}/queue") as subject:
            yield subject
            assert not subject.failures


@pytest.mark.slow
@pytest.mark.parametrize("machine", [OnLmdb])
def test_interface(machine):
    quick = settings(
        max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    run_state_machine_as_test(machine, settings=quick)
