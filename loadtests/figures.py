"""The figures of the README: messages per second, CPU per message by process, fdatasync calls.

    python loadtests/figures.py [--messages 3000] [--size 4096] [--repeats 3] [--json]

The whole service with its defaults (pool 2, sync on, RSA-2048 DKIM) relays from a generator to a sink, all on this
machine: a message per connection and kept open, in turns, no TLS on either side (as the peers are measured). CPU is
read from /proc; fdatasync calls are counted by strace in a run of their own, which is not timed.
"""

import argparse
import contextlib
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from ptt.cli.sandbox import Sandbox

HERE = pathlib.Path(__file__).parent
DOMAIN = "sender.example"
TICK = os.sysconf("SC_CLK_TCK")


class Bench(Sandbox):
    """A sandbox whose relay port takes what loopback sends, and that delivers without TLS."""

    def adapt(self, document: Any) -> None:
        super().adapt(document)
        for listen in document["listen"]:
            if listen["service"] == "relay":
                listen["tls"] = "none"
                listen["trusted"] = ["127.0.0.0/8"]
        document["relay"]["tls"] = "none"

    def start(self) -> None:
        self.spawn_stand_ins(store=False)
        self.start_service()

    @property
    def relay_address(self) -> str:
        host, port = self.address("relay", "none")
        return f"{host}:{port}"

    def processes(self) -> dict[str, list[int]]:
        state = json.loads((pathlib.Path(self.config.run) / "supervisor.json").read_text())
        found: dict[str, list[int]] = {}
        for process in state["processes"]:
            found.setdefault(process["kind"], []).append(process["pid"])
        return found


def cpu_seconds(pid: int) -> float:
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def attempts(bench: Bench) -> int:
    return sum(1 for line in bench.log_lines() if line.get("event") == "attempt")


def load(bench: Bench, o: argparse.Namespace, keep: bool) -> dict[str, Any]:
    """One run: from the first connection of the generator until the sink has everything."""
    before = attempts(bench)
    used = {kind: sum(map(cpu_seconds, pids)) for kind, pids in bench.processes().items()}
    command = [sys.executable, str(HERE / "generate.py"), "--to", bench.relay_address]
    command += ["--messages", str(o.messages), "--size", str(o.size), *(["--keep"] if keep else [])]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    generated = json.loads(done.stdout)
    while attempts(bench) - before < generated["accepted"] and time.monotonic() - began < 300:
        time.sleep(0.02)
    seconds = time.monotonic() - began
    time.sleep(0.3)
    cpu = {
        kind: round((sum(map(cpu_seconds, pids)) - used[kind]) / o.messages * 1e6)
        for kind, pids in bench.processes().items()
    }
    return {
        "mode": "kept open" if keep else "one per connection",
        "messages_per_second": round(generated["accepted"] / seconds, 1),
        "cpu_us_per_message": cpu,
        "cpu_us_per_message_all": sum(cpu.values()),
        "accept_p50_ms": generated["latency_p50_ms"],
        "accept_p99_ms": generated["latency_p99_ms"],
    }


@contextlib.contextmanager
def strace(pid: int, output: str) -> Iterator[None]:
    command = ["strace", "-f", "-c", "-e", "trace=fdatasync,fsync,msync", "-o", output, "-p", str(pid)]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert tracer.stderr is not None
    tracer.stderr.readline()  # "attached"
    yield
    tracer.send_signal(signal.SIGINT)
    tracer.wait(20)


def syncs(bench: Bench, o: argparse.Namespace) -> float:
    """fdatasync, fsync and msync calls of the queue process for each message."""
    output = str(bench.directory / "strace.txt")
    with strace(bench.processes()["queue"][0], output):
        load(bench, o, keep=False)
    calls = 0
    for line in pathlib.Path(output).read_text().splitlines():
        words = line.split()
        if words and words[-1] in ("fdatasync", "fsync", "msync"):
            calls += int(words[3])
    return round(calls / o.messages, 3)


def bare_signature_us() -> float:
    """CPU of one RSA-2048 signature through cryptography."""
    key = rsa.generate_private_key(65537, 2048)
    began = time.process_time()
    for _ in range(300):
        key.sign(b"x" * 900, padding.PKCS1v15(), hashes.SHA256())
    return (time.process_time() - began) / 300 * 1e6


def median(rows: list[dict[str, Any]]) -> dict[str, Any]:
    first = rows[0]
    out: dict[str, Any] = {"mode": first["mode"], "runs": len(rows)}
    for key in ("messages_per_second", "cpu_us_per_message_all", "accept_p50_ms", "accept_p99_ms"):
        out[key] = statistics.median(r[key] for r in rows)
    kinds = first["cpu_us_per_message"]
    out["cpu_us_per_message"] = {k: statistics.median(r["cpu_us_per_message"][k] for r in rows) for k in kinds}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=3000)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--pool", type=int, default=2)
    parser.add_argument("--no-strace", action="store_true")
    parser.add_argument("--json", action="store_true")
    o = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="ptt-figures-") as name,
        Bench(pathlib.Path(name) / "ptt", pool=o.pool, domain=DOMAIN) as bench,
    ):
        bench.prepare()
        bench.start()
        result = measure(bench, o)
    print(json.dumps(result, indent=None if o.json else 2))


def measure(bench: Bench, o: argparse.Namespace) -> dict[str, Any]:
    load(bench, argparse.Namespace(messages=200, size=o.size), keep=False)  # keys, caches
    rows: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for _ in range(o.repeats):
        for keep, done in rows.items():
            done.append(load(bench, o, keep))
    result: dict[str, Any] = {"size": o.size, "pool": o.pool, "bare_signature_us": round(bare_signature_us())}
    result["runs"] = [median(r) for r in rows.values()]
    if not o.no_strace:
        result["syncs_per_message"] = syncs(bench, argparse.Namespace(messages=500, size=o.size))
    return result


if __name__ == "__main__":
    main()
