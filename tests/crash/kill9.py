"""``kill -9`` at random instants under load: nothing acknowledged is lost, a duplicate only where it is announced.

    python tests/crash/kill9.py --messages 20000 --kills 200 [--seed N] [--json]

Clients submit over TLS to the real service while random processes of it (workers, key process, control, queue
process, supervisor) are killed. What was acknowledged is the clients' list of 250s, what arrived are the sink's
files. A duplicate counts as explained only if the service announced it for that message ("maybe delivered").
"""

import argparse
import contextlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import smtplib
import sys
import tempfile
import threading
import time
from collections import Counter

from ptt.cli.sandbox import USER, Sandbox, SandboxError

TOKEN = re.compile(rb"^X-Token: (\S+)\r?$", re.M)
QUEUE_ID = re.compile(rb"\(PTT\) with \S+ id (\S+?)[;\s]", re.M)
CLIENTS = 6
MESSAGES_PER_CONNECTION = 25
QUIET_SECONDS = 90.0
PORT_SECONDS = 60.0
PORT_TAKEN = re.compile("another program listens there")
KINDS = ("worker", "queue", "signer", "control", "supervisor")


class Load:
    """Clients that go on whatever happens to the service; only a 250 counts."""

    def __init__(self, sandbox: Sandbox, size: int) -> None:
        self.sandbox, self.size = sandbox, size
        self.acknowledged: dict[str, str] = {}  # token -> queue id
        self.sent = 0
        self.interrupted = 0
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self.run, args=(n,), daemon=True) for n in range(CLIENTS)]

    def run(self, number: int) -> None:
        serial = 0
        while not self.stop.is_set():
            try:
                client = self.sandbox.client()
                for _ in range(MESSAGES_PER_CONNECTION):
                    if self.stop.is_set():
                        break
                    serial += 1
                    self.submit(client, f"c{number}-{serial}")
                client.quit()
            except (OSError, smtplib.SMTPException):
                self.interrupted += 1
                time.sleep(0.05)

    def submit(self, client: smtplib.SMTP, token: str) -> None:
        head = f"From: <{USER}>\r\nTo: <x@dest.example>\r\nSubject: {token}\r\nX-Token: {token}\r\n\r\n"
        with self.lock:
            self.sent += 1
        client.mail(USER)
        client.rcpt(f"{token}@dest{self.sent % 5}.example")
        code, text = client.data((head + "x" * 70 + "\r\n" * 2 + "y\r\n" * (self.size // 3)).encode())
        if code == 250:
            self.acknowledged[token] = text.decode().rsplit(" ", 1)[-1]
        else:
            raise smtplib.SMTPDataError(code, text)


def pids(sandbox: Sandbox) -> dict[str, list[int]]:
    """Process ids by kind, as the supervisor writes them."""
    found: dict[str, list[int]] = {"supervisor": [sandbox.pid_of("service")]}
    with contextlib.suppress(OSError, ValueError):
        state = json.loads((pathlib.Path(sandbox.config.run) / "supervisor.json").read_text())
        for process in state["processes"]:
            if process["pid"]:
                found.setdefault(process["kind"], []).append(process["pid"])
    return found


def kill_one(sandbox: Sandbox, rng: random.Random, killed: Counter[str]) -> None:
    kind = rng.choice(KINDS)
    candidates = pids(sandbox).get(kind, [])
    if not candidates:
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(rng.choice(candidates), signal.SIGKILL)
        killed[kind] += 1
    if kind == "supervisor":
        restart(sandbox)


def restart(sandbox: Sandbox) -> None:
    """Start the service again. While it was gone one of its ports may have become some client's own for a moment."""
    deadline = time.monotonic() + PORT_SECONDS
    while True:
        try:
            return sandbox.restart_service()
        except SandboxError:
            if not PORT_TAKEN.search(sandbox.log.read_text()[-300:]) or time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def announced(sandbox: Sandbox) -> set[str]:
    return {str(line.get("id")) for line in sandbox.log_lines() if line.get("maybe") is True}


def wait_until_quiet(sandbox: Sandbox, load: Load) -> None:
    """Wait until all that was acknowledged has arrived, or nothing has moved for a while."""
    last, since = -1, time.monotonic()
    while time.monotonic() - since < QUIET_SECONDS:
        arrived = {e["token"] for e in arrivals(sandbox)}
        if set(load.acknowledged) <= arrived:
            return
        if len(arrived) != last:
            last, since = len(arrived), time.monotonic()
        time.sleep(0.5)


_seen: dict[str, dict[str, str]] = {}


def arrivals(sandbox: Sandbox) -> list[dict[str, str]]:
    found = []
    for entry in sandbox.delivered():
        if entry["file"] not in _seen:
            raw = (sandbox.sunk / entry["file"]).read_bytes()
            token, queue_id = TOKEN.search(raw), QUEUE_ID.search(raw)
            _seen[entry["file"]] = {
                "token": token[1].decode() if token else "?",
                "id": queue_id[1].decode() if queue_id else "?",
            }
        found.append(_seen[entry["file"]])
    return found


def run(sandbox: Sandbox, options: argparse.Namespace) -> dict[str, object]:
    rng = random.Random(options.seed)
    sandbox.prepare()
    sandbox.start()
    load = Load(sandbox, options.size)
    killed: Counter[str] = Counter()
    for thread in load.threads:
        thread.start()
    began = time.monotonic()
    while time.monotonic() - began < options.limit:
        if sum(killed.values()) >= options.kills and len(load.acknowledged) >= options.messages:
            break
        time.sleep(rng.uniform(options.pause / 4, options.pause * 1.75))
        if sum(killed.values()) < options.kills:
            kill_one(sandbox, rng, killed)
    load.stop.set()
    for thread in load.threads:
        thread.join(120)
    wait_until_quiet(sandbox, load)
    arrived = arrivals(sandbox)
    counts = Counter(a["token"] for a in arrived)
    ids = {a["token"]: a["id"] for a in arrived}
    doubled = {t: n for t, n in counts.items() if n > 1}
    marked = announced(sandbox)
    unexplained = [t for t in doubled if ids[t] not in marked]
    lost = sorted(set(load.acknowledged) - set(counts))
    return {
        "seed": options.seed,
        "kills": sum(killed.values()),
        "killed": dict(killed),
        "sent": load.sent,
        "acknowledged": len(load.acknowledged),
        "arrived": len(arrived),
        "lost": len(lost),
        "duplicates": sum(n - 1 for n in doubled.values()),
        "duplicates_unexplained": len(unexplained),
        "interrupted_sessions": load.interrupted,
        "seconds": round(time.monotonic() - began, 1),
        "examples": {"lost": [(t, load.acknowledged[t]) for t in lost[:5]], "unexplained": unexplained[:5]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--size", type=int, default=2000, help="bytes of a body")
    parser.add_argument("--pause", type=float, default=1.0, help="mean seconds between two kills")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds after which the load stops")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keep", action="store_true", help="keep the directory")
    options = parser.parse_args()
    print(f"seed {options.seed}", file=sys.stderr, flush=True)
    directory = pathlib.Path(tempfile.mkdtemp(prefix="ptt-kill9-"))
    with Sandbox(directory / "ptt", pool=2, retry_seconds=0.5) as sandbox:
        result = run(sandbox, options)
    print(json.dumps(result, indent=None if options.json else 2))
    good = not result["lost"] and not result["duplicates_unexplained"]
    if good and not options.keep:
        shutil.rmtree(directory)
    else:
        print(f"kept {directory}", file=sys.stderr)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
