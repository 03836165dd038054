"""What puts cost in a store that has been in use: after many random settles, and after a long mixed life.

    python loadtests/queue_age.py --queued 800000 --mixed 100000 --json

The queue's own code in this process, without sockets. ``--queued N``: N messages of 4 KiB are put and half of them
settled at random; then the CPU of a put at 4, 64 and 1,024 KiB is compared with that in an empty store. ``--mixed N``:
N messages of 1.5 to 600 KB (log-uniform), one in ten stays, the others are settled in random order, about 500 at a
time; the rate and the CPU of the last twentieth are compared with those of the first (of 2,000,000: 100,000 each).
"""

import argparse
import itertools
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator

from ptt_queue.protocol import PART_BYTES, PART_CHUNKS, Hello, Put, SettleTask, Stage
from ptt_queue.queue import Arrived, Queue, Settings
from ptt_queue.store import Store
from ptt_queue.types import Item, NewMessage, NewTask, Settle

BATCH = 16  # requests in a transaction; what is measured is the same before and after
SIZES = (4096, 65536, 1048576)
FLOWING = 500  # messages of the mixed life that are not settled yet
SECTIONS = 20  # of the mixed life, each with its rate


class Direct:
    """A queue without a process. All is leased to its one client as it is stored."""

    def __init__(self, path: str) -> None:
        os.makedirs(path)
        self.path = path
        self.store = Store(path, 1 << 40)
        self.queue = Queue(self.store, Settings(), self.now())
        self.session = self.queue.connect()
        self.number = 1
        self.queue.execute([(self.session, Hello(1, os.urandom(16), False, []), b"")], self.now())

    def now(self) -> int:
        return int(time.time() * 1000)

    def execute(self, requests: list[Arrived]) -> None:
        self.queue.execute(requests, self.now())

    def put(self, body: bytes) -> tuple[bytes, list[Arrived]]:
        """The message's id, and the requests that store it."""
        now = self.now()
        id = now.to_bytes(6, "big") + os.urandom(6)
        task = NewTask(2, f"lane{self.number % 100}", [Item(1, b"r" * 40)], now)
        staged = len(body) > PART_BYTES
        self.number += 1
        message = NewMessage(id, b"m" * 150, [task], len(body), now, staged=staged)
        parts = range(0, len(body), PART_BYTES) if staged else ()
        requests: list[Arrived] = [
            (self.session, Stage(id, n * PART_CHUNKS), body[at : at + PART_BYTES]) for n, at in enumerate(parts)
        ]
        requests.append((self.session, Put(self.number, self.number - 1, message, True), b"" if staged else body))
        return id, requests

    def settle(self, id: bytes) -> Arrived:
        self.number += 1
        return self.session, SettleTask(self.number, self.number - 1, Settle(id, 1)), b""

    def close(self) -> None:
        self.store.close()
        shutil.rmtree(self.path)


def batches(items: list[bytes], most: int) -> Iterator[list[bytes]]:
    for at in range(0, len(items), most):
        yield items[at : at + most]


def fill(direct: Direct, count: int, body: bytes, batch: int) -> list[bytes]:
    ids = []
    for at in range(0, count, batch):
        puts = [direct.put(body) for _ in range(min(batch, count - at))]
        direct.execute([r for _, requests in puts for r in requests])
        ids += [id for id, _ in puts]
    return ids


def cpu_of_put(direct: Direct, size: int) -> tuple[float, float]:
    """Microseconds of CPU for a put, and how many of them in the kernel; what was put is settled again, unmeasured."""
    body = os.urandom(size)
    count = max(96, 2000 * 4096 // size)
    began = resource.getrusage(resource.RUSAGE_SELF)
    ids = fill(direct, count, body, BATCH)
    ended = resource.getrusage(resource.RUSAGE_SELF)
    kernel = ended.ru_stime - began.ru_stime
    used = ended.ru_utime - began.ru_utime + kernel
    for some in batches(ids, BATCH):
        direct.execute([direct.settle(id) for id in some])
    return round(used / count * 1e6, 1), round(kernel / count * 1e6, 1)


def aged(directory: str, count: int) -> dict[str, object]:
    direct = Direct(os.path.join(directory, "aged"))
    empty = {size: cpu_of_put(direct, size) for size in SIZES for _ in range(2)}  # the first to warm
    ids = fill(direct, count, os.urandom(4096), 2000)
    random.Random(1).shuffle(ids)
    for some in batches(ids[: count // 2], 200):
        direct.execute([direct.settle(id) for id in some])
    old = {size: cpu_of_put(direct, size) for size in SIZES for _ in range(2)}
    direct.close()
    return {
        "queued": count,
        "put_us_empty": empty,
        "put_us_after": old,
        "ratio": {size: round(old[size][0] / empty[size][0], 2) for size in SIZES},
    }


def mixed(directory: str, count: int) -> dict[str, object]:
    direct = Direct(os.path.join(directory, "mixed"))
    rng = random.Random(2)
    noise = os.urandom(600_000)
    flowing: list[bytes] = []
    marks = [(time.perf_counter(), time.process_time())]
    put = 0
    while put < count:
        requests: list[Arrived] = []
        for _ in range(BATCH):
            id, some = direct.put(noise[: int(1500 * 400 ** rng.random())])
            requests += some
            put += 1
            if rng.random() >= 0.1:
                flowing.append(id)
        direct.execute(requests)
        while len(flowing) > FLOWING:
            some_ids = [flowing.pop(rng.randrange(len(flowing))) for _ in range(BATCH)]
            direct.execute([direct.settle(id) for id in some_ids])
        if put * SECTIONS // count >= len(marks):
            marks.append((time.perf_counter(), time.process_time()))
            print(f"{put} messages", file=sys.stderr)
    each = count / SECTIONS
    rates = [round(each / (b[0] - a[0])) for a, b in itertools.pairwise(marks)]
    cpu = [round((b[1] - a[1]) / each * 1e6) for a, b in itertools.pairwise(marks)]
    on_disk = os.stat(os.path.join(direct.path, "data.mdb")).st_blocks * 512
    direct.close()
    return {
        "mixed": count,
        "rates": rates,
        "last_to_first": round(rates[-1] / rates[0], 2),
        "cpu_us_per_message": cpu,
        "disk_mib": on_disk >> 20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queued", type=int, default=0)
    parser.add_argument("--mixed", type=int, default=0)
    parser.add_argument("--directory", default=None, help="where the queue is made; default: a temporary one")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result: dict[str, object] = {}
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        if options.queued:
            result |= aged(directory, options.queued)
        if options.mixed:
            result |= mixed(directory, options.mixed)
    print(json.dumps(result) if options.json else "\n".join(f"{k:16} {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
