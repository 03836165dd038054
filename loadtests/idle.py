"""Idle connections held by one worker: memory of each, and how long a new session beside them takes.

    python loadtests/idle.py [--plain 10000] [--tls 2000] [--json]

The whole service, with pool 1. The clients are other processes: each connection gets its greeting and the answer to
EHLO, then says nothing. Memory is what is private to the worker (/proc/PID/smaps_rollup), after them less before them,
divided by their number. A new session is timed twice: from connect to the 250 of a whole message (no TLS, a trusted
network), and from connect to the answer of EHLO under TLS.
"""

import argparse
import contextlib
import json
import os
import pathlib
import resource
import smtplib
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from ptt.cli.sandbox import Sandbox

SPARE = 500  # descriptors of the worker and the holders that are no idle connection
HOLDERS = 2  # processes that hold connections
TRIES = 20  # new sessions beside them
SETTLE_SECONDS = 2.0
MESSAGE = "From: a@sender.example\r\nTo: b@sink.example\r\nSubject: idle\r\n\r\nx\r\n"


class Held(Sandbox):
    """A sandbox with one worker, which takes any number of connections."""

    most = 0

    def adapt(self, document: Any) -> None:
        super().adapt(document)
        document["smtp"] = {"max_connections": self.most + SPARE}
        for listen in document["listen"]:
            if listen["service"] == "relay":
                listen["tls"] = "none"
                listen["trusted"] = ["127.0.0.0/8"]
        document["relay"]["tls"] = "none"

    def worker(self) -> int:
        state = json.loads((pathlib.Path(self.config.run) / "supervisor.json").read_text())
        return next(int(process["pid"]) for process in state["processes"] if process["kind"] == "worker")


def private_bytes(pid: int) -> int:
    lines = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) * 1024


def raise_limit(needed: int) -> str:
    """Let this process and its children open ``needed`` descriptors. Returns what stops it, or ""."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        return f"RLIMIT_NOFILE: {needed} descriptors are needed, the hard limit is {hard} (ulimit -Hn)"
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    return ""


def hold(host: str, port: int, number: int, tls: bool) -> None:
    """Open the connections, say so, and keep them until standard input ends."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    held = []
    for n in range(number):
        sock = socket.create_connection((host, port), timeout=60)
        one = context.wrap_socket(sock) if tls else sock
        held.append(one)
        for say in (b"", b"EHLO idle.example\r\n"):
            if say:
                one.sendall(say)
            if not (got := one.recv(4096)).startswith(b"2"):
                sys.exit(f"connection {n}: {got!r}")
    print("held", flush=True)
    sys.stdin.read()


def holders(address: tuple[str, int], number: int, tls: bool) -> list[subprocess.Popen[str]]:
    """Processes that hold ``number`` connections together. Ends the script when one fails."""
    started = []
    for n in range(HOLDERS):
        share = number // HOLDERS + (n < number % HOLDERS)
        command = [
            sys.executable,
            __file__,
            "--hold",
            address[0],
            str(address[1]),
            str(share),
            "tls" if tls else "plain",
        ]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    for one in started:
        assert one.stdout is not None
        if one.stdout.readline().strip() != "held":
            sys.exit("the connections could not be held")
    return started


def whole_message(address: tuple[str, int]) -> None:
    with smtplib.SMTP(*address, local_hostname="new.example", timeout=30) as client:
        client.sendmail("a@sender.example", ["b@sink.example"], MESSAGE)


def tls_hello(address: tuple[str, int], context: ssl.SSLContext) -> None:
    with smtplib.SMTP_SSL(*address, local_hostname="new.example", timeout=30, context=context) as client:
        client.ehlo()


def timed(action: Callable[[], None]) -> dict[str, float]:
    """Milliseconds of ``TRIES`` new sessions."""
    times = []
    for _ in range(TRIES):
        began = time.monotonic()
        action()
        times.append((time.monotonic() - began) * 1000)
    return {"median": round(statistics.median(times), 1), "max": round(max(times), 1)}


def run(number: int, tls: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="ptt-idle-") as name, contextlib.ExitStack() as stack:
        held = Held(pathlib.Path(name) / "sandbox", pool=1)
        stack.callback(held.stop)
        held.most = number
        held.prepare()
        held.start()
        context = ssl.create_default_context(cafile=held.config.tls.internal_ca)
        relay, implicit = held.address("relay", "none"), held.address("submission", "implicit")
        new = {"message_ms": lambda: whole_message(relay), "tls_ehlo_ms": lambda: tls_hello(implicit, context)}
        alone = {key: timed(action) for key, action in new.items()}  # and what is made once is made
        time.sleep(SETTLE_SECONDS)
        before = private_bytes(held.worker())
        began = time.monotonic()
        processes = holders(held.address("submission", "implicit" if tls else "starttls"), number, tls)
        opened = time.monotonic() - began
        time.sleep(SETTLE_SECONDS)
        after = private_bytes(held.worker())
        beside = {key: timed(action) for key, action in new.items()}
        for process in processes:
            process.communicate()
        return {
            "connections": number,
            "tls": tls,
            "private_kib_each": round((after - before) / number / 1024, 2),
            "worker_private_mib": round(after / 2**20, 1),
            "opened_per_second": round(number / opened),
            "alone": alone,
            "beside": beside,
            "load": round(os.getloadavg()[0], 2),
        }


def main() -> None:
    if sys.argv[1:2] == ["--hold"]:
        host, port, number, kind = sys.argv[2:]
        hold(host, int(port), int(number), kind == "tls")
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plain", type=int, default=10_000)
    parser.add_argument("--tls", type=int, default=2_000)
    parser.add_argument("--json", action="store_true")
    o = parser.parse_args()
    if stopped := raise_limit(max(o.plain, o.tls) + SPARE):
        sys.exit(stopped)
    found = [run(number, tls) for number, tls in ((o.plain, False), (o.tls, True)) if number]
    if o.json:
        print(json.dumps(found))
        return
    for one in found:
        print(f"{one['connections']} idle connections {'with' if one['tls'] else 'without'} TLS, load {one['load']}")
        print(f"  private memory: {one['private_kib_each']} KiB each ({one['worker_private_mib']} MiB in all)")
        for key, words in (("message_ms", "a whole message"), ("tls_ehlo_ms", "TLS and EHLO")):
            alone, beside = one["alone"][key], one["beside"][key]
            print(
                f"  {words}: {beside['median']} ms, at most {beside['max']} (alone {alone['median']}, {alone['max']})"
            )


if __name__ == "__main__":
    main()
