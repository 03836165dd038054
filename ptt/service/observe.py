"""What the control process finds out by itself: the state of each process, the queue's and the signers' numbers.

Workers push their counts; the queue process and the key processes, which know nobody, are asked once a second.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, Protocol

import msgspec
from ptt_queue.errors import QueueError
from ptt_queue.pressure import MARKS
from ptt_queue.types import Stats

from ptt.config import Config
from ptt.message import Stage
from ptt.metrics import LATENCY_BUCKETS, Histogram, Snapshot
from ptt.net.rpc import RpcClient, RpcError
from ptt.service import state
from ptt.service.ledger import Identity, Ledger
from ptt.service.state import ServiceState

POLL_SECONDS = 1.0
ASK_SECONDS = 2.0  # the watchdog of the supervisor acts on a queue process that is slower
UNREACHABLE_SECONDS = 3.0  # how long the queue may not answer until /healthz says so: a restart takes less

_TICKS = os.sysconf("SC_CLK_TCK")
LATELY_SECONDS = 90.0  # mail without a signature is tried again each minute
_PAGE = os.sysconf("SC_PAGE_SIZE")
_OBSERVED = "ptt_process_"  # metrics measured here for every process; what a process says of itself is left out


Series = list[tuple[str, tuple[str, ...], float]]


class QueueStats(Protocol):
    """What is needed of the queue's client: raises QueueError when the queue process does not answer."""

    def stats(self) -> Stats: ...
    def close(self) -> None: ...


class Observer:
    """Fills the ledger. ``connect`` makes a client of the queue process; ``clock`` in seconds, monotonic."""

    def __init__(
        self,
        config: Config,
        ledger: Ledger,
        connect: Callable[[], QueueStats],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._ledger = ledger
        self._connect = connect
        self._clock = clock
        self._queue: QueueStats | None = None
        self._answered = clock()
        self._waits: dict[str, tuple[float, float]] | None = None  # reason -> how many have waited, when the last did
        self.service: ServiceState | None = None

    # -- reports ---------------------------------------------------------------------------------------------------

    def push(self, argument: Any) -> None:
        """A process's own report: [name, pid, start in ms, ``Snapshot``]. Raises RpcError for anything else."""
        try:
            name, pid, start, snapshot = msgspec.convert(argument, tuple[str, int, int, Snapshot])
        except msgspec.ValidationError as e:
            raise RpcError(f"not a report: {e}") from e
        if len(name) > 64:
            raise RpcError("not a report: the name is too long")
        self.report(Identity(name, pid, start), snapshot)

    def report(self, identity: Identity, snapshot: Snapshot) -> None:
        """Enter what a process counted itself."""
        snapshot.counters = [c for c in snapshot.counters if not c[0].startswith(_OBSERVED)]
        snapshot.gauges = [g for g in snapshot.gauges if not g[0].startswith(_OBSERVED)]
        self._ledger.report(identity, snapshot, self._clock())

    def look(self) -> None:
        """Enter what the operating system and the supervisor know of the processes. Takes some 50 us for each."""
        self.service = state.read(self._config)
        if self.service is None:
            return
        now = self._clock()
        restarts: Series = []
        for process in self.service.processes:
            restarts.append(("ptt_process_restarts_total", (process.name,), process.restarts))
            usage = usage_of(process.pid) if process.pid else None
            gauges: Series = [("ptt_process_up", (process.name,), float(usage is not None and process.ready))]
            counters: Series = []
            if usage is not None:
                counters.append(("ptt_process_cpu_seconds_total", (process.kind,), usage[0]))
                gauges.append(("ptt_process_resident_bytes", (process.name,), float(usage[1])))
                if (open_fds := descriptors_of(process.pid)) is not None:
                    gauges.append(("ptt_process_open_fds", (process.name,), float(open_fds)))
            identity = Identity(f"{process.name}/system", process.pid, process.started)
            self._ledger.report(identity, Snapshot(counters, gauges, []), now)
        supervisor = Identity("supervisor", self.service.pid, self.service.started)
        self._ledger.report(supervisor, Snapshot(restarts, [], []), now)

    def ask_queue(self) -> None:
        """Enter the queue's numbers, if it answers."""
        try:
            if self._queue is None:
                self._queue = self._connect()
            stats = self._queue.stats()
        except QueueError:
            if self._queue is not None:
                self._queue.close()
                self._queue = None
            return
        self._answered = self._clock()
        # The epoch says which process counted this; the supervisor's file may still name the one before.
        self.report(Identity("queue", stats.epoch, 0), queue_snapshot(stats, time.time()))

    def ask_signers(self) -> None:
        """Enter the key processes' numbers. Which of them accepts a connection is chance: some more are tried."""
        if not self._config.signs:
            return
        seen: set[str] = set()
        for _ in range(self._config.signer.processes * 3):
            client = RpcClient(os.path.join(self._config.run, "signer.sock"), ASK_SECONDS)
            try:
                name, pid, start = msgspec.convert(client.call("who"), tuple[str, int, int])
                if name not in seen:
                    self.report(Identity(name, pid, start), msgspec.convert(client.call("stats"), Snapshot))
                    seen.add(name)
            except (RpcError, msgspec.ValidationError):
                continue
            finally:
                client.close()
            if len(seen) == self._config.signer.processes:
                return

    def notice_waits(self) -> None:
        """Notice for which reasons mail waits for its signature. What was counted before the first call is no news."""
        now = self._clock()
        before = self._waits or {}
        found = {}
        for (name, labels), count in self._ledger.totals(now).counters.items():
            if name == "ptt_sign_wait_total":
                former, when = before.get(labels[0], (0.0, -LATELY_SECONDS))
                news = self._waits is not None and count > former
                found[labels[0]] = (count, now if news else when)
        self._waits = found

    # -- health ----------------------------------------------------------------------------------------------------

    def processes(self) -> dict[str, str]:
        """Name -> up, starting or down."""
        found = self.service.processes if self.service else []
        return {p.name: ("up" if p.ready else "starting") if p.pid else "down" for p in found}

    def waits(self) -> list[str]:
        """For which reasons mail had to wait for its signature lately."""
        lately = self._clock() - LATELY_SECONDS
        return sorted(reason for reason, (_, when) in (self._waits or {}).items() if when > lately)

    def failures(self) -> list[str]:
        """Why mail does not flow, or not all of it."""
        if self.service is None:
            return ["the supervisor's state cannot be read"]
        found = [f"process {name} is {how}" for name, how in self.processes().items() if how != "up"]
        if self._clock() - self._answered > UNREACHABLE_SECONDS:
            found.append("the queue process does not answer")
        return found


def usage_of(pid: int) -> tuple[float, int] | None:
    """CPU seconds and resident bytes of a process, or None if there is none (proc(5))."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read(4096).rpartition(b")")[2].split()
    except OSError:
        return None
    if len(fields) < 22 or fields[0] == b"Z":
        return None
    return (int(fields[11]) + int(fields[12])) / _TICKS, int(fields[21]) * _PAGE


def descriptors_of(pid: int) -> int | None:
    """How many descriptors a process has open; None where that cannot be seen (proc(5)).

    Since Linux 6.2 it is the size of a directory that others may not read; before, only one's own can be counted.
    """
    path = f"/proc/{pid}/fd"
    try:
        return os.stat(path).st_size or len(os.listdir(path))
    except OSError:
        return None


def queue_snapshot(stats: Stats, now: float) -> Snapshot:
    """The queue's numbers as metrics. ``now``: seconds since the epoch."""
    gauges: Series = [("ptt_queue_tasks", (_stage(stage), st.name.lower()), float(n)) for stage, st, n in stats.tasks]
    gauges += [
        ("ptt_queue_messages", (), float(stats.messages)),
        ("ptt_queue_oldest_seconds", (), max(0.0, now - stats.oldest / 1000) if stats.oldest else 0.0),
        ("ptt_queue_lanes", (), float(stats.lanes)),
        ("ptt_queue_damaged", (), float(stats.damaged)),
        ("ptt_queue_used_bytes", (), float(stats.used_bytes)),
        ("ptt_queue_free_bytes", (), float(stats.free_bytes)),
        ("ptt_queue_leased", (), float(stats.leased)),
        ("ptt_queue_body_bytes", (), float(stats.body_bytes)),
        *(("ptt_queue_refusing", (mark,), float(mark == stats.refusing)) for mark in MARKS),
    ]
    counters: Series = [("ptt_queue_commits_total", (), float(stats.commits))]
    counters += [("ptt_queue_requests_total", (request,), float(count)) for request, count in stats.requests.items()]
    histogram = Histogram(rebin(stats.commit_bounds, stats.commit_counts), stats.commit_seconds)
    return Snapshot(counters, gauges, [("ptt_queue_commit_seconds", (), histogram)])


def _stage(number: int) -> str:
    try:
        return Stage(number).name.lower()
    except ValueError:
        return str(number)


def rebin(bounds: list[float], counts: list[int]) -> list[int]:
    """Counts per bucket of ``bounds`` (the last: above all) as counts per bucket of LATENCY_BUCKETS, rounded up."""
    found = [0] * (len(LATENCY_BUCKETS) + 1)
    for n, count in enumerate(counts):
        place = next((i for i, b in enumerate(LATENCY_BUCKETS) if n < len(bounds) and bounds[n] <= b), len(found) - 1)
        found[place] += count
    return found
