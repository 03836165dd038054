"""``ptt queue``: the same commands while the queue process runs and after it ended."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from ptt_queue.client import QueueClient
from ptt_queue.errors import Unavailable
from ptt_queue.types import Act, Entry, State

from ptt.cli.queue.rows import clean, iso, row_of
from ptt.config import load
from ptt.message import Envelope, Note, Recipient, Reply, Stage, encode, new_id, show_id
from ptt.plan import new_message

pytestmark = pytest.mark.slow


class Case:
    """A queue process with messages in it."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.file = directory / "ptt.toml"
        self.file.write_text('hostname = "mail.example.org"\n')
        self.config = load(self.file)
        command = [sys.executable, "-m", "ptt.service.queue", "--config", str(self.file)]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        self.ids: list[str] = []

    def put(self, sender: str, *recipients: str) -> str:
        now = time.time_ns() // 1_000_000
        id = new_id(now)
        envelope = Envelope(sender, now, user=sender)
        message = new_message(id, envelope, [Recipient(r) for r in recipients], 3, self.config, now)
        with QueueClient(os.path.join(self.config.run, "queue.sock"), timeout=10) as client:
            assert client.put(message, b"abc", lease=False).refused is None
        return show_id(id)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            assert self.process.wait(timeout=10) == 0

    def ptt(self, *words: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "ptt", "queue", *words, "--config", str(self.file)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    def rows(self, *words: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.ptt("list", "--json", *words).splitlines()]


@pytest.fixture(params=["live", "stopped"])
def case(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[Case]:
    one = Case(tmp_path)
    try:
        one.ids = [one.put("anna@a.example", "x@x.example", "y@x.example"), one.put("bob@a.example", "z@z.example")]
        if request.param == "stopped":
            one.stop()
        yield one
        one.stop()
    finally:
        one.process.kill()
        one.process.wait()


def test_the_whole_life(case: Case) -> None:
    first, second = case.ids
    rows = case.rows()
    assert [row["id"] for row in rows] == [first, second]
    assert rows[0]["recipients"] == ["x@x.example", "y@x.example"]
    assert (rows[0]["sender"], rows[0]["stage"], rows[0]["state"], rows[0]["size"]) == (
        "anna@a.example",
        "deliver",
        "ready",
        3,
    )
    assert [row["id"] for row in case.rows("--lane", "z.example")] == [second]
    assert [row["id"] for row in case.rows("--sender", "ANNA@a.example")] == [first]
    assert case.rows("--stage", "sign") == case.rows("--state", "held") == []
    assert len(case.rows("--limit", "1")) == 1
    text = case.ptt("list")
    assert first in text
    assert "2 tasks" in text

    assert "sender           anna@a.example" in case.ptt("show", first)
    assert "not in the queue" in case.ptt("show", show_id(new_id(0)), code=1)
    case.ptt("show", "nonsense", code=2)

    case.ptt("hold", first)
    assert [row["id"] for row in case.rows("--state", "held")] == [first]
    case.ptt("retry", first)
    assert case.rows("--state", "held") == []
    case.ptt("hold", "--all")
    case.ptt("release", "--sender", "bob@a.example")
    assert {row["id"]: row["state"] for row in case.rows()} == {first: "held", second: "ready"}

    case.ptt("delete", code=2)
    case.ptt("delete", "--all", first, code=2)
    case.ptt("delete", "--all", code=1)  # nobody there to say yes
    assert json.loads(case.ptt("delete", first, "--json")) == {"changed": 1, "working": 0, "gone": 0, "missing": []}
    assert [row["id"] for row in case.rows()] == [second]
    case.ptt("delete", "--lane", "z.example", "--yes")
    assert "the queue is empty" in case.ptt("list")


def test_what_a_worker_is_at_is_left_alone(tmp_path: pathlib.Path) -> None:
    case = Case(tmp_path)
    try:
        id = case.put("anna@a.example", "x@x.example")
        with QueueClient(os.path.join(case.config.run, "queue.sock"), timeout=10, leases=True) as worker:
            assert len(worker.lease(1, [Stage.DELIVER], 5)) == 1
            assert [row["state"] for row in case.rows()] == ["working"]
            assert json.loads(case.ptt("delete", id, "--json", code=1))["working"] == 1
        case.stop()
    finally:
        case.process.kill()
        case.process.wait()


def test_no_queue(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "ptt.toml"
    file.write_text('hostname = "mail.example.org"\n')
    command = [sys.executable, "-m", "ptt", "queue", "list", "--config", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "there is no queue in" in done.stderr


def entry(**changes: Any) -> Entry:
    fields: dict[str, Any] = {
        "message": bytes(12), "number": 1, "stage": 2, "state": State.WAITING, "lane": "x.example", "priority": 1,
        "due": 0, "attempts": 0, "maybe": False, "leased": False, "items": [], "note": b"", "meta": b"", "size": 0,
        "created": 0, "expires": 0,
    }  # fmt: skip
    return Entry(**{**fields, **changes})


def test_what_is_not_ours_is_tolerated() -> None:
    row = row_of(entry(meta=b"\xc1", note=b"junk", stage=77, items=[]), 0)
    assert (row.sender, row.stage, row.replies) == ("", "77", [])
    assert iso(10**18) == "?"


def test_the_last_reply_is_shown_and_its_control_characters_are_not() -> None:
    from ptt_queue.types import Item

    note = Note(1000, [Reply("450 4.2.0 \x1b[31mred\r\nEVIL", "RCPT", "mx [192.0.2.1]", [1])])
    found = entry(note=encode(note), items=[Item(1, encode(Recipient("a@x.example")))])
    row = row_of(found, 0)
    assert row.replies[0]["recipients"] == ["a@x.example"]
    assert row.last_attempt == "1970-01-01T00:00:01Z"
    assert clean(row.replies[0]["text"]) == "450 4.2.0 ?[31mred EVIL"


def test_unavailable_is_said(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import click

    from ptt.cli import queue_access

    class Deaf(QueueClient):
        def act(self, act: Any, messages: Any, tasks: Any = ()) -> Any:
            raise Unavailable("act: no answer")

    case = Case(tmp_path)
    try:
        case.put("anna@a.example", "x@x.example")
        monkeypatch.setattr(queue_access, "QueueClient", Deaf)
        with (
            pytest.raises(click.ClickException, match="queue: act: no answer"),
            queue_access.opened(case.config, changing=True) as queue,
        ):
            queue.changes.act(Act.HOLD, [])
        case.stop()
    finally:
        case.process.kill()
        case.process.wait()
