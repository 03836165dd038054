"""Put, lease and settle through the real sockets of a real queue process; what it costs.

    python loadtests/queue_bench.py --messages 20000 --size 4096 --writers 4 --json

Each writer is a greenlet of one worker (``ptt.spool``): it puts a message with its lease, then settles it. So
``--writers`` is the size of the batches. ``--backlog N`` queues N messages first, in ``--lanes`` lanes, unleased.
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


def cpu_of(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    with open(f"/proc/{pid}/schedstat", encoding="ascii") as f:
        return int(f.read().split()[0]) / 1e9


def private_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as f:
        return sum(int(line.split()[1]) * 1024 for line in f if line.startswith("Private_Dirty"))


def message(lane: str, size: int, due: int) -> NewMessage:
    now = int(time.time() * 1000)
    return NewMessage(
        new_id(now), b"m" * 150, [NewTask(2, lane, [Item(1, b"r" * 40)], due or now)], size, now, now + FAR
    )


def fill(path: str, count: int, lanes: int, size: int) -> None:
    body = os.urandom(size)
    due = int(time.time() * 1000) + FAR
    with QueueClient(path, 60) as client:
        for at in range(0, count, 256):
            some = [(message(f"lane{n % lanes}.example", size, due), body) for n in range(at, min(at + 256, count))]
            client.put_all(some, lease=False)


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


def measure(options: argparse.Namespace, directory: str, process: subprocess.Popen[bytes]) -> dict[str, object]:
    path = os.path.join(directory, "run", "queue.sock")
    if options.backlog:
        fill(path, options.backlog, options.lanes, options.size)
    spool = Spool(path, Log("bench", "error"), Counters())
    run(spool, min(1000, options.messages), options.writers, options.size, options.lanes)
    with QueueClient(path) as admin:
        before = admin.stats()
        queue_cpu, own = cpu_of(process.pid), resource.getrusage(resource.RUSAGE_SELF)
        began = time.perf_counter()
        times = run(spool, options.messages, options.writers, options.size, options.lanes)
        seconds = time.perf_counter() - began
        queue_cpu = cpu_of(process.pid) - queue_cpu
        now = resource.getrusage(resource.RUSAGE_SELF)
        after = admin.stats()
    spool.close()
    own_cpu = now.ru_utime + now.ru_stime - own.ru_utime - own.ru_stime
    commits = after.commits - before.commits
    return {
        "messages": options.messages,
        "size": options.size,
        "writers": options.writers,
        "backlog": options.backlog,
        "messages_per_second": round(options.messages / seconds),
        "queue_cpu_us_per_message": round(queue_cpu / options.messages * 1e6, 1),
        "worker_cpu_us_per_message": round(own_cpu / options.messages * 1e6, 1),
        "commits_per_message": round(commits / options.messages, 3),
        "commit_ms": round((after.commit_seconds - before.commit_seconds) / commits * 1000, 3),
        "put_ms_p50": round(times[len(times) // 2] * 1000, 2),
        "put_ms_p99": round(times[len(times) * 99 // 100] * 1000, 2),
        "private_mib": round(private_bytes(process.pid) / 2**20, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--writers", type=int, default=4)
    parser.add_argument("--lanes", type=int, default=100)
    parser.add_argument("--backlog", type=int, default=0)
    parser.add_argument("--directory", default=None, help="where the queue is made; default: a temporary one")
    parser.add_argument("--profile", default="", help="file for a profile of the queue process (cProfile)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        config = os.path.join(directory, "ptt.toml")
        with open(config, "w", encoding="utf-8") as f:
            f.write(CONFIG)
        os.mkdir(os.path.join(directory, "run"))
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.path.join(directory, "run", "queue.sock"))
            listener.listen(16)
            profile = ["-m", "cProfile", "-o", options.profile] if options.profile else []
            arguments = ["--config", config, "--listen-fd", str(listener.fileno())]
            process = subprocess.Popen(
                [sys.executable, *profile, "-m", "ptt.service.queue", *arguments], pass_fds=[listener.fileno()]
            )
        try:
            result = measure(options, directory, process)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(10)
    print(json.dumps(result) if options.json else "\n".join(f"{k:28} {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
