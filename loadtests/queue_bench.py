"""Put, lease and settle through the real sockets of a real queue process; what it costs.

    python loadtests/queue_bench.py --messages 20000 --size 4096 --writers 4 --json

Each writer is a greenlet of one worker (``ptt.spool``): it puts a message with its lease, then settles it. So
``--writers`` is the size of the batches. ``--backlog N`` queues N messages first, in ``--lanes`` lanes, unleased, by
the queue's own code, 2,000 in a transaction, before its process starts. All but one in the last lane are far off, so
``first_lease_seconds`` (from the start of the process) is the worst case. ``--large BYTES``: measures a second time
while messages of that size arrive. What a store costs when it has been in use: ``queue_age.py``.
"""

import argparse
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time

import gevent
from ptt_queue.client import QueueClient
from ptt_queue.protocol import Hello, Put
from ptt_queue.queue import Queue, Settings
from ptt_queue.store import Store
from ptt_queue.types import Item, NewMessage, NewTask, Settle

from ptt.log import Log
from ptt.message import new_id
from ptt.metrics import Counters
from ptt.spool import Spool

CONFIG = """hostname = "bench.example"
[dns]
[queue]
min_free_bytes = 1
"""
FAR = 86_400_000
FILL_BATCH = 2000  # messages in a transaction


def cpu_of(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    with open(f"/proc/{pid}/schedstat", encoding="ascii") as f:
        return int(f.read().split()[0]) / 1e9


def kernel_cpu_of(pid: int) -> float:
    """Seconds of CPU that a process has used within the kernel."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as f:
        return int(f.read().rpartition(")")[2].split()[12]) / os.sysconf("SC_CLK_TCK")


def private_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as f:
        return sum(int(line.split()[1]) * 1024 for line in f if line.startswith("Private_Dirty"))


def message(lane: str, size: int, due: int) -> NewMessage:
    now = int(time.time() * 1000)
    return NewMessage(
        new_id(now), b"m" * 150, [NewTask(2, lane, [Item(1, b"r" * 40)], due or now)], size, now, now + FAR
    )


def fill(path: str, count: int, lanes: int, size: int) -> dict[str, float]:
    """Queue ``count`` messages in a store whose process is not there yet."""
    body = os.urandom(size)
    due = int(time.time() * 1000) + FAR
    os.makedirs(path, mode=0o700)
    store = Store(path, 1 << 40)
    queue = Queue(store, Settings(max_lanes=1000), due - FAR)
    session = queue.connect()
    queue.execute([(session, Hello(1, os.urandom(16), False, []), b"")], due - FAR)
    began = time.perf_counter()
    for at in range(0, count, FILL_BATCH):
        some = [message(f"lane{n % lanes}.example", size, due) for n in range(at, min(at + FILL_BATCH, count))]
        queue.execute([(session, Put(at + n + 2, at, m, False), body) for n, m in enumerate(some)], due - FAR)
    queue.execute([(session, Put(count + 2, count, message("z.example", size, 0), False), body)], due - FAR)
    seconds = time.perf_counter() - began
    if store.message_count() != count + 1:
        raise SystemExit("a message was refused")
    store.close()
    on_disk = os.stat(os.path.join(path, "data.mdb")).st_blocks * 512
    return {
        "fill_messages_per_second": round(count / seconds),
        "disk_bytes_per_byte": round(on_disk / (count * size), 3),
    }


def percentiles(prefix: str, times: list[float]) -> dict[str, float]:
    return {
        f"{prefix}_ms_{name}": round(times[int(len(times) * share)] * 1000, 2)
        for name, share in (("p50", 0.5), ("p99", 0.99), ("p99_9", 0.999))
    }


def run(spool: Spool, messages: int, writers: int, size: int, lanes: int) -> list[float]:
    body = os.urandom(size)
    left = list(range(messages))
    times: list[float] = []

    def write() -> None:
        while left:
            n = left.pop()
            began = time.perf_counter()
            result = spool.put(message(f"lane{n % lanes}.example", size, 0), body)
            times.append(time.perf_counter() - began)
            task = result.leased[0]
            if not spool.settle(Settle(task.message, task.number)).stored:
                raise SystemExit("a lease was lost")

    gevent.joinall([gevent.spawn(write) for _ in range(writers)], raise_error=True)
    return sorted(times)


def first_lease(path: str, started: float) -> float:
    """Seconds from the start of the process to its first lease, of the only task that is ready."""
    while not os.path.exists(path):
        time.sleep(0.001)
    with QueueClient(path, 60, leases=True) as client:
        (task,) = client.lease(1, [2], wait=30)
        seconds = time.perf_counter() - started
        client.settle(Settle(task.message, task.number))
    return round(seconds, 3)


def under_large(spool: Spool, options: argparse.Namespace) -> dict[str, float]:
    """The same once more while large messages arrive, one behind the other."""
    body = os.urandom(options.large)
    stop = [False]
    count = [0]

    def send() -> None:
        while not stop[0]:
            result = spool.put(message("large.example", len(body), 0), body)
            spool.settle(Settle(result.leased[0].message, result.leased[0].number))
            count[0] += 1

    sender = gevent.spawn(send)
    times = run(spool, options.messages, options.writers, options.size, options.lanes)
    stop[0] = True
    sender.get()
    return {"large_messages": count[0], **percentiles("put_beside_large", times)}


def measure(options: argparse.Namespace, path: str, process: subprocess.Popen[bytes]) -> dict[str, object]:
    spool = Spool(path, Log("bench", "error"), Counters())
    run(spool, min(1000, options.messages), options.writers, options.size, options.lanes)
    with QueueClient(path) as admin:
        before = admin.stats()
        kernel = kernel_cpu_of(process.pid)
        queue_cpu, own = cpu_of(process.pid), resource.getrusage(resource.RUSAGE_SELF)
        began = time.perf_counter()
        times = run(spool, options.messages, options.writers, options.size, options.lanes)
        seconds = time.perf_counter() - began
        queue_cpu = cpu_of(process.pid) - queue_cpu
        kernel = kernel_cpu_of(process.pid) - kernel
        now = resource.getrusage(resource.RUSAGE_SELF)
        after = admin.stats()
    large = under_large(spool, options) if options.large else {}
    spool.close()
    own_cpu = now.ru_utime + now.ru_stime - own.ru_utime - own.ru_stime
    commits = after.commits - before.commits
    return {
        "messages_per_second": round(options.messages / seconds),
        "queue_cpu_us_per_message": round(queue_cpu / options.messages * 1e6, 1),
        "of_which_kernel_us": round(kernel / options.messages * 1e6, 1),
        "worker_cpu_us_per_message": round(own_cpu / options.messages * 1e6, 1),
        "commits_per_message": round(commits / options.messages, 3),
        "commit_ms": round((after.commit_seconds - before.commit_seconds) / commits * 1000, 3),
        **percentiles("put", times),
        **large,
        "lanes_in_memory": after.lanes,
        "private_mib": round(private_bytes(process.pid) / 2**20, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--writers", type=int, default=4)
    parser.add_argument("--lanes", type=int, default=100)
    parser.add_argument("--backlog", type=int, default=0)
    parser.add_argument("--large", type=int, default=0, help="bytes of messages that arrive beside, e.g. 33554432")
    parser.add_argument("--directory", default=None, help="where the queue is made; default: a temporary one")
    parser.add_argument("--profile", default="", help="file for a profile of the queue process (cProfile)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        result = bench(options, directory)
    print(json.dumps(result) if options.json else "\n".join(f"{k:28} {v}" for k, v in result.items()))


def bench(options: argparse.Namespace, directory: str) -> dict[str, object]:
    result: dict[str, object] = {k: getattr(options, k) for k in ("messages", "size", "writers", "backlog", "lanes")}
    if options.backlog:
        result |= fill(os.path.join(directory, "data", "queue"), options.backlog, options.lanes, options.size)
    config = os.path.join(directory, "ptt.toml")
    with open(config, "w", encoding="utf-8") as f:
        f.write(CONFIG)
    os.mkdir(os.path.join(directory, "run"))
    path = os.path.join(directory, "run", "queue.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(16)
        profile = ["-m", "cProfile", "-o", options.profile] if options.profile else []
        arguments = ["--config", config, "--listen-fd", str(listener.fileno())]
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *profile, "-m", "ptt.service.queue", *arguments], pass_fds=[listener.fileno()]
        )
    try:
        if options.backlog:
            result["first_lease_seconds"] = first_lease(path, started)
        result |= measure(options, path, process)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)
    return result


if __name__ == "__main__":
    main()
