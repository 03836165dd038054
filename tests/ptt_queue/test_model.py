"""A long random life of a queue against a model: nothing lost or doubled, ``maybe`` exact, tokens never exceeded."""

import random
from collections import Counter

import pytest
from ptt_queue.in_process import LIMIT, InProcess
from ptt_queue.testing import new_message
from ptt_queue.types import Act, Filter, NewTask, Settle, State


class Life:
    """Three clients. ``tasks``: what must be in the queue, (message, number) -> [lane, maybe, state]."""

    def __init__(self, path: str, seed: int) -> None:
        self.rng = random.Random(seed)
        self.time = 1_800_000_000.0
        self.subject = InProcess(path, clock=lambda: self.time)
        self.clients = [self.subject.client() for _ in range(3)]
        self.held: list[dict] = [{}, {}, {}]  # of each client: (message, number) -> Task
        self.marked: set = set()
        self.tasks: dict[tuple[bytes, int], list] = {}

    def now(self) -> int:
        return int(self.time * 1000)

    def took(self, who, tasks):
        for task in tasks:
            ref = (task.message, task.number)
            assert self.tasks[ref][:2] == [task.lane, task.maybe], "leased with the wrong lane or maybe"
            assert self.tasks[ref][2] is State.WAITING
            assert not any(ref in held for held in self.held), "leased twice"
            self.held[who][ref] = task
        in_flight = Counter(t.lane for held in self.held for t in held.values() if t.stage == 2)
        assert not [lane for lane, n in in_flight.items() if n > LIMIT], "tokens exceeded"

    def put(self, who):
        lane = f"lane{self.rng.randrange(4)}"
        due = self.now() + self.rng.choice([0, 0, 0, 5000])
        message = new_message(lane, b"x" * self.rng.choice([0, 10, 5000]), self.rng.choice([1, 2]), due)
        result = self.clients[who].put(message, b"x" * message.size, lease=self.rng.random() < 0.6)
        assert result.refused is None
        self.tasks[message.id, 1] = [lane, False, State.WAITING]
        self.took(who, result.leased)

    def lease(self, who):
        self.took(who, self.clients[who].lease(self.rng.randrange(1, 6), [1, 2]))

    def settle(self, who):
        if not self.held[who]:
            return
        ref = self.rng.choice(list(self.held[who]))
        task = self.held[who].pop(ref)
        self.marked.discard(ref)
        assert self.clients[who].body(task) == b"x" * task.size
        lanes = [f"lane{self.rng.randrange(4)}" for _ in range(self.rng.choice([0, 0, 1, 2]))]
        maybe = task.maybe or self.rng.random() < 0.2
        state = self.rng.choice([State.WAITING, State.WAITING, State.HELD])
        due = self.now() + self.rng.choice([0, 3000])
        new = [NewTask(2, lane, task.items[n:], due, state=state, maybe=maybe) for n, lane in enumerate(lanes)]
        result = self.clients[who].settle(Settle(task.message, task.number, new, lease=self.rng.random() < 0.5))
        assert result.stored
        del self.tasks[ref]
        for entry in self.clients[who].show(task.message):
            known = (entry.message, entry.number)
            self.tasks.setdefault(known, [entry.lane, entry.maybe, entry.state])
        assert len([r for r in self.tasks if r[0] == task.message]) == len(self.clients[who].show(task.message))
        self.took(who, result.leased)

    def mark(self, who):
        if self.held[who]:
            ref = self.rng.choice(list(self.held[who]))
            self.clients[who].mark(self.held[who][ref])
            self.marked.add(ref)

    def give_back(self, who):
        if self.held[who]:
            ref = self.rng.choice(list(self.held[who]))
            self.clients[who].give_back([self.held[who].pop(ref)])
            self.tasks[ref][1] |= ref in self.marked
            self.marked.discard(ref)

    def die(self, who):
        self.clients[who].close()
        for ref in self.held[who]:
            self.tasks[ref][1] |= ref in self.marked
            self.marked.discard(ref)
        self.held[who] = {}
        self.clients[who] = self.subject.client()
        self.time += 0.2

    def restart(self, who):
        """The queue process dies; sometimes a client dies with it, the others come back."""
        self.subject.queue.execute([], self.subject.now())  # what ended before has been written
        self.subject.restart()
        for n, client in enumerate(self.clients):
            if n == who and self.rng.random() < 0.5:
                for ref in self.held[n]:
                    self.tasks[ref][1] = True
                    self.marked.discard(ref)
                self.held[n] = {}
                client.close()
                self.clients[n] = self.subject.client()
            else:
                assert client.extend(list(self.held[n].values())) == [True] * len(self.held[n])

    def act(self, who):
        if not self.tasks:
            return
        id = self.rng.choice(list(self.tasks))[0]
        verb = self.rng.choice([Act.HOLD, Act.RELEASE, Act.RETRY, Act.DELETE])
        act = {
            Act.HOLD: self.clients[who].hold,
            Act.RELEASE: self.clients[who].release,
            Act.RETRY: self.clients[who].retry,
            Act.DELETE: self.clients[who].delete,
        }
        act[verb]([id])
        for ref in [r for r in self.tasks if r[0] == id and not any(r in held for held in self.held)]:
            state = self.tasks[ref][2]
            if verb is Act.DELETE:
                del self.tasks[ref]
            elif verb is Act.HOLD and state is State.WAITING:
                self.tasks[ref][2] = State.HELD
            elif verb is Act.RETRY or (verb is Act.RELEASE and state is State.HELD):
                self.tasks[ref][2] = State.WAITING

    def check(self):
        entries, after = [], b""
        while True:
            page = self.clients[0].list(Filter(after=after))
            entries += page.entries
            after = page.after
            if not after:
                break
        assert {(e.message, e.number): [e.lane, e.state] for e in entries} == {
            ref: [lane, state] for ref, (lane, _, state) in self.tasks.items()
        }
        assert {(e.message, e.number) for e in entries if e.leased} == {r for held in self.held for r in held}
        stats = self.clients[0].stats()
        assert stats.messages == len({m for m, _ in self.tasks})
        assert {s: n for _, s, n in stats.tasks} or not self.tasks
        assert sum(n for _, _, n in stats.tasks) == len(self.tasks)

    def end(self):
        """Everything that waits can be had, and then the store is empty."""
        for who in range(3):
            self.die(who)
        for message in {m for m, _ in self.tasks}:
            self.clients[0].retry([message])
        for ref in self.tasks:
            self.tasks[ref][2] = State.WAITING
        while self.tasks:
            self.time += 1
            before = len(self.tasks)
            self.lease(0)
            for ref, task in list(self.held[0].items()):
                assert self.clients[0].settle(Settle(task.message, task.number)).stored
                del self.tasks[ref], self.held[0][ref]
            assert len(self.tasks) < before, "what is left is never leased"
        with self.subject.store.env.begin() as txn:
            for name in ("records", "bodies", "index", "damaged"):
                assert txn.stat(self.subject.store.dbs[name])["entries"] == 0, name


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_random_life(tmp_path, seed):
    life = Life(str(tmp_path / "queue"), seed)
    verbs = [life.put] * 8 + [life.lease] * 5 + [life.settle] * 8 + [life.mark] * 3 + [life.give_back] * 2
    verbs += [life.act] * 2 + [life.die, life.restart]
    for _ in range(250):
        life.rng.choice(verbs)(life.rng.randrange(3))
        life.time += life.rng.random() * 0.3
        if life.rng.random() < 0.1:
            life.check()
    life.end()
    assert not life.subject.failures
    for client in life.clients:
        client.close()
    life.subject.close()
