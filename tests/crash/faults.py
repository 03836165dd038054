"""Faults of the machine under load: no space, errors of the disk, a clock that is set. And an audit after each.

    python tests/crash/faults.py [--rounds N] [--seed N] [--json] [--only full eio clock]

``full``: a tmpfs or a map that is too small; work goes on until puts are refused, then messages are settled and puts
are taken again. ``eio``: strace makes the n-th write, or the n-th and all later syncs, of the queue process fail.
``clock``: libfaketime sets the clock of the queue process back and forward by hours while it works. A process that
ends because of its fault is started again. Nothing acknowledged may be lost, and a refusal changes nothing.
What needs root or a program that is not here is said to be skipped.
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

from audit import compare, look
from ledger import Gone, Workload
from process import Process
from ptt_queue.errors import QueueError, RequestFailed

FAKETIME = (
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
)
SMALL = 4 << 20  # bytes of the tmpfs
MAP = 64 << 20  # of the map: a tenth of it is more than arrives between two looks at the space
CALLS = ("pwrite64", "writev", "fdatasync")


class Skipped(Exception):
    """This machine does not have what it takes."""


class Faults:
    """Counts what was done and what came of it."""

    def __init__(self, scratch: pathlib.Path, seed: int) -> None:
        self.scratch, self.rng = scratch, random.Random(seed)
        self.counts: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        self.number = 0

    def directory(self) -> pathlib.Path:
        self.number += 1
        path = self.scratch / str(self.number)
        path.mkdir()
        return path

    def audit(self, what: str, process: Process, workload: Workload) -> None:
        """The process is ended; its store is opened again and compared."""
        workload.stopped = True
        said = process.end()
        self.counts["requests answered"] += workload.acknowledged()
        for refusal, times in workload.refused.items():
            self.counts[f"refused: {refusal}"] += times
        try:
            seen, _ = look(str(process.store))
            compare(seen, *workload.state())
        except Exception as e:
            self.wrong.append(f"{what}: {type(e).__name__}: {e}; the process said: {said[-300:]}"[:1200])

    # -- no space ------------------------------------------------------------------------------------------------

    def full_map(self) -> None:
        """The mark below the size of the map refuses puts, while settles still have pages; then they free them."""
        process = Process(self.directory(), map_bytes=MAP)
        workload = Workload(process.socket, random.Random(self.rng.random()), large=False)
        self.fill("full map", process, workload, lambda: None)

    def full_disk(self) -> None:
        """Nothing can be written; then there is room again, as when an operator made some."""
        directory = self.directory()
        with mounted(directory):
            process = Process(directory)
            workload = Workload(process.socket, random.Random(self.rng.random()), large=False)
            self.fill("full disk", process, workload, lambda: mount(directory, f"remount,size={16 * SMALL}"))

    def fill(self, what: str, process: Process, workload: Workload, make_room: Callable[[], object]) -> None:
        """Put until it is refused, go on for a while, make room, settle, put again."""
        with self.restarted(process):
            try:
                workload.run(0)
                while not workload.refused:
                    workload.put(2, self.rng.random() < 0.1, 30_000)
                self.counts[what] += 1
                for _ in range(30):
                    with contextlib.suppress(RequestFailed):
                        self.rng.choice(workload.steps())()
                make_room()
                self.recover(workload, what)
            except Gone as e:
                self.wrong.append(f"{what}: {e}: {process.end()[-300:]}")
                return
        self.audit(what, process, workload)

    def recover(self, workload: Workload, what: str) -> None:
        """Settles free space, and puts are taken again."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            workload.lease(50)
            for _ in range(50):
                workload.settle("done")
            before = workload.done["put"]
            workload.put(1, False, 900)
            if workload.done["put"] > before:
                self.counts[f"{what}: recovered"] += 1
                return
        self.wrong.append(f"{what}: puts were refused for good: {workload.refused}")

    # -- errors of the disk --------------------------------------------------------------------------------------

    def eio(self) -> None:
        """The n-th call fails, once or for good; a process that ends is started again without the fault."""
        if not shutil.which("strace"):
            raise Skipped("strace is not installed")
        directory = self.directory()
        call = self.rng.choice(CALLS)
        first = self.rng.randint(1, 90)
        error = self.rng.choice(("EIO", "EIO", "ENOSPC"))
        when = f"{first}+" if self.rng.random() < 0.4 else str(first)
        inject = f"inject={call}:error={error}:when={when}"
        Process(directory).end_when_served()  # the store is there: faults hit its work
        process = Process(directory, ["strace", "-f", "-qq", "-o", os.devnull, "-e", f"trace={call}", "-e", inject])
        workload = Workload(process.socket, random.Random(self.rng.random()), timeout=20.0)
        with self.restarted(process):
            try:
                workload.run(15)
                self.counts[f"injected: {call} {error}" + (" for good" if "+" in when else "")] += 1
            except Gone:
                self.counts[f"injected: {call} {error}, no answer any more"] += 1
            except Exception as e:
                self.wrong.append(f"{inject}: {type(e).__name__}: {e}")
        self.audit(inject, process, workload)

    @contextlib.contextmanager
    def restarted(self, process: Process) -> Iterator[None]:
        """Do what the supervisor does: a process that ended is started again, without its fault."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(0.01):
                if process.process.poll() is not None:
                    process.before = []
                    process.start()
                    self.counts["process ended by its fault, started again"] += 1

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()

    # -- the clock -----------------------------------------------------------------------------------------------

    def clock(self) -> None:
        library = next((f for f in FAKETIME if os.path.exists(f)), None)
        if library is None:
            raise Skipped("libfaketime is not installed (Debian: faketime)")
        directory = self.directory()
        offset = directory / "offset"
        offset.write_text("+0\n")
        process = Process(
            directory,
            environment={
                "LD_PRELOAD": library,
                "FAKETIME_TIMESTAMP_FILE": str(offset),
                "FAKETIME_NO_CACHE": "1",
                "DONT_FAKE_MONOTONIC": "1",
            },
        )
        workload = Workload(process.socket, random.Random(self.rng.random()), large=False)
        try:
            workload.run(5)
            for _ in range(6):
                step = self.rng.choice((-86_400, -7_200, -5, 5, 7_200, 86_400))
                new = directory / "offset.new"
                new.write_text(f"{step:+d}\n")
                new.rename(offset)
                self.counts["clock set"] += 1
                workload.run(10, all_first=False)
            offset.write_text("+0\n")
            before = set(workload.views)
            workload.put(1, False, 500)
            (last,) = set(workload.views) - before
            deadline = time.monotonic() + 10
            while last not in workload.leased:
                workload.lease(1000)
                assert time.monotonic() < deadline, "what is due was not leased"
        except (Gone, AssertionError, QueueError) as e:
            self.wrong.append(f"clock: {type(e).__name__}: {e}; {process.end()[-300:]}")
            return
        self.audit("clock", process, workload)


@contextlib.contextmanager
def mounted(directory: pathlib.Path) -> Iterator[None]:
    """A tmpfs of SMALL bytes. Raises Skipped."""
    done = mount(directory, f"size={SMALL}")
    if done.returncode:
        raise Skipped(f"mount -t tmpfs: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


def mount(directory: pathlib.Path, options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)], capture_output=True, text=True
    )


KINDS: dict[str, tuple[Callable[[Faults], None], ...]] = {
    "full": (Faults.full_map, Faults.full_disk),
    "eio": (Faults.eio,),
    "clock": (Faults.clock,),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=float, default=20, help="of each kind; ten times as many for eio")
    parser.add_argument("--only", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    print(f"seed {options.seed}", file=sys.stderr, flush=True)
    scratch = pathlib.Path(tempfile.mkdtemp(prefix="ptt-faults-"))
    faults = Faults(scratch, options.seed)
    skipped: dict[str, str] = {}
    for kind in options.only:
        for one in KINDS[kind]:
            for _ in range(round(options.rounds * (10 if kind == "eio" else 1))):
                try:
                    one(faults)
                except Skipped as e:
                    skipped[one.__name__] = str(e)
                    break
    result = {
        "seed": options.seed,
        **dict(sorted(faults.counts.items())),
        "skipped": skipped,
        "wrong": len(faults.wrong),
        "examples": faults.wrong[:5],
    }
    print(json.dumps(result, indent=None if options.json else 2))
    if faults.wrong:
        print(f"kept {scratch}", file=sys.stderr)
        sys.exit(1)
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
