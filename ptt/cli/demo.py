"""``ptt demo``: the whole path on loopback, counted from outside.

What was accepted comes from the client's list of 250s, what was delivered from the sink's files, and each
delivered message is verified with dkimpy against what the DNS server serves.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
import smtplib
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable

import click
import dkim

from ptt.cli.sandbox import USER, Sandbox, SandboxError

CLIENTS = 8
BODY_BYTES = 4096
SETTLE_SECONDS = 120.0  # how long without any progress before what is missing counts as lost
_TOKEN = re.compile(rb"^X-Demo: (\S+)\r?$", re.M)


def message(token: str) -> bytes:
    """A mail of about 4 KiB that bears the token."""
    head = f"From: <{USER}>\r\nTo: <someone@dest.example>\r\nSubject: demo {token}\r\nX-Demo: {token}\r\n\r\n"
    line = f"This is {token}. " + "The quick brown fox jumps over the lazy dog.\r\n"
    return (head + line * (BODY_BYTES // len(line))).encode()


class Submitter:
    """Submits tokens from several connections at once; knows which were acknowledged."""

    def __init__(self, sandbox: Sandbox, messages: int) -> None:
        self.sandbox = sandbox
        self.pending = [f"m{n}" for n in range(messages, 0, -1)]
        self.acknowledged: list[str] = []
        self.errors: list[str] = []
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(CLIENTS)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def running(self) -> bool:
        return any(t.is_alive() for t in self._threads)

    def _run(self) -> None:
        try:
            client = self.sandbox.client()
        except (OSError, smtplib.SMTPException) as e:
            self.errors.append(str(e))
            return
        while self.pending:
            try:
                token = self.pending.pop()
            except IndexError:
                break
            try:
                client.sendmail(USER, [f"{token}@dest{hash(token) % 7}.example"], message(token))
                self.acknowledged.append(token)
            except (OSError, smtplib.SMTPException) as e:
                self.errors.append(f"{token}: {e}")
                return
        with contextlib.suppress(OSError, smtplib.SMTPException):
            client.quit()


def wait_for(count: Callable[[], int], wanted: Callable[[], int], still_growing: Callable[[], bool]) -> None:
    """Return when ``count`` reaches ``wanted``, or when nothing has come for SETTLE_SECONDS."""
    last, since = -1, time.monotonic()
    while True:
        now = count()
        if now >= wanted() and not still_growing():
            return
        if now != last:
            last, since = now, time.monotonic()
        elif time.monotonic() - since > SETTLE_SECONDS:
            return
        time.sleep(0.05)


def verify(sandbox: Sandbox, files: list[pathlib.Path]) -> int:
    """How many of the messages have a signature that verifies."""
    records: dict[bytes, bytes | None] = {}

    def txt(name: bytes, timeout: float = 5) -> bytes | None:
        if name not in records:
            records[name] = sandbox.txt(name, timeout)
        return records[name]

    good = 0
    for file in files:
        raw = file.read_bytes()
        with contextlib.suppress(dkim.DKIMException):
            good += b"DKIM-Signature:" in raw and dkim.verify(raw, dnsfunc=txt)
    return good


def run(sandbox: Sandbox, messages: int, say: Callable[[str], None]) -> dict[str, float]:
    """Submit, wait, verify, count."""
    say("starting the DNS server, the sink and ptt-worker")
    sandbox.prepare()
    sandbox.start()
    say(f"submitting {messages} messages of {BODY_BYTES} bytes over TLS")
    began = time.monotonic()
    submitter = Submitter(sandbox, messages)
    submitter.start()
    wait_for(
        lambda: sum(1 for _ in sandbox.delivered()),
        lambda: len(submitter.acknowledged),
        submitter.running,
    )
    entries = list(sandbox.delivered())
    seconds = max([e["time"] for e in entries], default=time.time()) - (time.time() - (time.monotonic() - began))
    say("verifying what arrived")
    files = [sandbox.sunk / e["file"] for e in entries]
    tokens = Counter(found[1].decode() for f in files if (found := _TOKEN.search(f.read_bytes())))
    events = Counter(line.get("event") for line in sandbox.log_lines())
    for error in submitter.errors[:3]:
        say(f"client: {error}")
    return {
        "accepted": len(submitter.acknowledged),
        "signed": events["signed"],
        "delivered": len(entries),
        "verified": verify(sandbox, files),
        "duplicates": sum(n - 1 for n in tokens.values()),
        "lost": len(set(submitter.acknowledged) - set(tokens)),
        "not_accepted": messages - len(submitter.acknowledged),
        "seconds": round(seconds, 3),
        "messages_per_second": round(len(entries) / seconds, 1) if seconds > 0 else 0.0,
    }


@click.command()
@click.option("--messages", default=100, show_default=True, type=click.IntRange(1, 1_000_000))
@click.option("--pool", default=2, show_default=True, type=click.IntRange(1, 64), help="workers")
@click.option("--json", "as_json", is_flag=True, help="print the counts as one JSON object")
def demo(messages: int, pool: int, as_json: bool) -> None:
    """The whole path on loopback: submit, sign, publish, deliver, verify. Exit 0 only if nothing was lost."""
    with tempfile.TemporaryDirectory(prefix="ptt-demo-") as name:
        try:
            with Sandbox(pathlib.Path(name) / "ptt", pool) as sandbox:
                counts = run(sandbox, messages, lambda text: click.echo(text, err=True))
        except SandboxError as e:
            click.echo(f"ptt demo: {e}", err=True)
            sys.exit(1)
    if as_json:
        click.echo(json.dumps(counts))
    else:
        for key, value in counts.items():
            click.echo(f"{key:20} {value}")
    good = not counts["lost"] and not counts["not_accepted"] and counts["verified"] == counts["delivered"]
    sys.exit(0 if good else 1)
