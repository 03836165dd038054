"""Crash images: states in which a loss of power may leave the files of a queue, opened and audited.

    python tests/crash/images.py [--rounds N] [--subsets N] [--seed N] [--json]

A workload runs against the real queue process under strace. From the system calls the files are built again as a
crash may leave them: at each write, sync and answer; with all, none or random ones of the writes that were not synced
yet, page by page in any order, the last ones torn at a sector. Only what was synced (fsync, fdatasync, or written
through an O_DSYNC descriptor) is certain, and a file's name only when its directory was synced. What was answered
before the crash must be there (``audit.compare``).

Two lives are recorded: from the creation of the store until kill -9; and the next one, over what the first left,
in which clients claim their leases and one task has become unreadable.
"""

import argparse
import collections
import json
import pathlib
import random
import shutil
import sys
import tempfile
import time

import acts
from audit import Wrong, compare, look
from disk import CALLS, Disk, Event, events
from ledger import Gone, Workload
from process import Process
from ptt_queue import keys, protocol
from ptt_queue.store import Store
from views import Call, Views, view_of_put

KEPT = 5  # images that were wrong


class Answers:
    """Which requests were answered: (connection, number), read from what the process sent."""

    def __init__(self) -> None:
        self.seen: set[tuple[int, int]] = set()
        self._of: dict[int, tuple[int, protocol.Frames]] = {}
        self._connections = 0

    def feed(self, e: Event) -> bool:
        if e.kind == "accept":
            self._of[e.fd] = (self._connections, protocol.Frames())
            self._connections += 1
        elif e.kind == "send" and e.fd in self._of:
            connection, frames = self._of[e.fd]
            for control, _ in frames.feed(e.data):
                self.seen.add((connection, protocol.parse_answer(control).number))
            return True
        elif e.kind == "close":
            self._of.pop(e.fd, None)
        return False


class Replay:
    """Builds the images of one life and audits each."""

    def __init__(self, root: str, scratch: pathlib.Path, options: argparse.Namespace, rng: random.Random) -> None:
        self.root, self.scratch, self.options, self.rng = root, scratch, options, rng
        self.images = self.points = 0
        self._last: object = None
        self.rows: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []

    def run(
        self, trace: pathlib.Path, workload: Workload, before: dict[str, bytes], base: Views, damaged: set[bytes]
    ) -> None:
        """``base``: what was in the store before, as views."""
        disk, answers = Disk(self.root, before), Answers()
        sure, possible = dict(base), []
        self.audit(disk, sure, possible, damaged, "start")
        for number, e in enumerate(events(trace)):
            if answers.feed(e) or not number:
                views, possible = workload.state(lambda call: call.key in answers.seen)
                sure = base | views
            kind = disk.feed(e)
            if kind and (kind != "write" or self.rng.random() < self.options.share):
                self.points += 1
                self.audit(disk, sure, possible, damaged, f"event {number} ({e.kind})")
            if kind == "write dsync" and not self.options.forget_dsync:
                disk.written(e)
            elif kind == "sync":
                disk.synced(e)
            if kind in ("write dsync", "sync"):
                self.audit(disk, sure, possible, damaged, f"after event {number} ({e.kind})")
            if e.kind == "send":
                self.audit(disk, sure, possible, damaged, f"answer {number}")

    def audit(self, disk: Disk, sure: Views, possible: list[Call], damaged: set[bytes], where: str) -> None:
        for which, files in disk.images(self.rng, self.options.subsets):
            same = (sorted((n, hash(d)) for n, d in files.items()), sure, possible)
            if same != self._last:
                self._last = same
                self.one(files, sure, possible, damaged, f"{where}, {which}")

    def one(self, files: dict[str, bytes], sure: Views, possible: list[Call], damaged: set[bytes], what: str) -> None:
        self.images += 1
        home = self.write(files, "image")
        try:
            seen, rows = look(str(home), damaged)
            compare(seen, sure, possible)
            self.note(rows, sure, possible)
        except Exception as e:
            if len(self.wrong) < KEPT:
                self.write(files, f"wrong-{len(self.wrong)}")
            self.wrong.append(f"{what}: {type(e).__name__}: {e}"[:1500])

    def write(self, files: dict[str, bytes], name: str) -> pathlib.Path:
        home = self.scratch / name
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()
        for file, data in files.items():
            path = home / pathlib.Path(file).relative_to(self.root)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return home

    def note(self, rows: collections.Counter[str], sure: Views, possible: list[Call]) -> None:
        """In how many images each row of the state table was."""
        staging = {f"orphan {id.hex()}" for c in possible if c.kind == "put, large" for id in c.after}
        found = {row for row in rows if not row.startswith("orphan")}
        for orphan in set(rows) - found:
            found |= {"S1 staged" if orphan in staging else "S8 done, large body left", "S9 orphan chunks"}
        for row in found or {"S0 nothing"}:
            self.rows[row] += 1
        if any(t.maybe is None for v in sure.values() if v for t in v.tasks):
            self.rows["S5 returned"] += 1


def spoil(store: pathlib.Path, id: bytes) -> None:
    """Make a task's record unreadable, as a fault of the disk would."""
    opened = Store(str(store), 1 << 30)
    txn = opened.begin()
    txn.txn.put(keys.record_key(id, 1), b"\0\xc1", db=txn.records)
    txn.commit()
    opened.close()


def read_files(root: str) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in pathlib.Path(root).rglob("*.mdb") if p.name == "data.mdb"}


def strace(trace: pathlib.Path) -> list[str]:
    return [
        "strace",
        "-f",
        "-qq",
        "-o",
        str(trace),
        "-xx",
        "-s",
        "16777216",
        "-e",
        f"trace={CALLS}",
        "-e",
        "signal=none",
    ]


def run(directory: pathlib.Path, scratch: pathlib.Path, options: argparse.Namespace) -> dict[str, object]:
    rng = random.Random(options.seed)
    root = str(directory / "queue")
    replay = Replay(root, scratch, options, random.Random(options.seed + 1))
    lives = []
    began = time.monotonic()
    trace = directory / "life1"
    process = Process(directory, strace(trace))
    try:
        workload = Workload(process.socket, rng, large=not options.small)
        workload.run(options.rounds)
        victim, body = workload.message(300)
        view = view_of_put(victim, body, False)
        workload.do("put", [workload.client.link.put(victim, body, False)], [{victim.id: view}])
    finally:
        process.end()
    lives.append((trace, workload, {}, {}, set()))
    spoil(directory / "queue", victim.id)
    base, _ = workload.state()
    del base[victim.id]
    base[acts.VICTIM + victim.id] = acts.mark(b"")
    before = read_files(root)
    second = Workload(process.socket, rng, large=False)
    second.client, second.views, second.leased = workload.client, dict(base), workload.leased
    process = Process(directory, strace(directory / "life2"))
    try:
        second.client.stats()  # the first connection, as the ledger has it
        second.run(options.rounds, all_first=False)
        acts.repair(second, victim.id)
        second.lease(100)
    except Gone as e:
        raise Wrong(f"{e}: {process.end()}") from e
    finally:
        process.end()
    lives.append((directory / "life2", second, before, base, {victim.id}))
    recorded = time.monotonic() - began
    for life in lives:
        replay.run(*life)
    return {
        "seed": options.seed,
        "requests": workload.acknowledged() + second.acknowledged(),
        "points": replay.points,
        "images": replay.images,
        "wrong": len(replay.wrong),
        "rows": dict(sorted(replay.rows.items())),
        "examples": replay.wrong[:5],
        "seconds": [round(recorded, 1), round(time.monotonic() - began, 1)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100, help="random steps in each of the two lives")
    parser.add_argument("--subsets", type=int, default=6, help="random subsets of unsynced writes at each point")
    parser.add_argument("--share", type=float, default=1.0, help="of the points between two syncs that are looked at")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--small", action="store_true", help="no bodies that arrive in parts")
    parser.add_argument("--forget-dsync", action="store_true", help="a disk that lies: the audit must find losses")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    print(f"seed {options.seed}", file=sys.stderr, flush=True)
    directory = pathlib.Path(tempfile.mkdtemp(prefix="ptt-images-"))
    memory = pathlib.Path("/dev/shm")  # the images need no disk
    scratch = pathlib.Path(tempfile.mkdtemp(prefix="ptt-images-", dir=memory if memory.is_dir() else None))
    result = run(directory, scratch, options)
    print(json.dumps(result, indent=None if options.json else 2))
    if result["wrong"]:
        print(f"kept {directory} {scratch}", file=sys.stderr)
        sys.exit(1)
    shutil.rmtree(directory)
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
