"""What an operator does to a queue, live and stopped: select, bounce, ask why, count, move, mend.

The queue process is real. Commands run in this process through click's runner where the service is live; a stopped
store is opened once a process, so there they run one after the other, too.
"""

from __future__ import annotations

import email
import email.policy
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from ptt_queue.client import QueueClient
from ptt_queue.types import GroupLimit, Meter, NewTask, Over, Settle, Task

from ptt.cli.main import main
from ptt.config import load
from ptt.message import Envelope, Note, Recipient, Schedule, Stage, encode, new_id, show_id
from ptt.plan import new_message, note_of
from ptt.relay.outcome import Deferred

pytestmark = pytest.mark.slow
CONTENT = b"Subject: hello\r\n\r\nHi\r\n"


def now() -> int:
    return time.time_ns() // 1_000_000


class Case:
    """A queue process with messages in it."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self.file = directory / "ptt.toml"
        self.file.write_text('hostname = "mail.example.org"\n')
        self.config = load(self.file)
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "ptt.service.queue", "--config", str(self.file)]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stderr=log)
        with self.client() as client:
            client.stats()

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        assert self.process.wait(timeout=10) == 0

    def client(self, leases: bool = False) -> QueueClient:
        return QueueClient(os.path.join(self.config.run, "queue.sock"), timeout=10, leases=leases)

    def put(self, sender: str, *recipients: str, age: int = 0, schedule: Schedule | None = None, **about: Any) -> str:
        """``age``: ms."""
        accepted = now() - age
        id = new_id(accepted)
        envelope = Envelope(sender, accepted, **about)
        wanted = [Recipient(r) for r in recipients]
        message = new_message(id, envelope, wanted, len(CONTENT), self.config, accepted, schedule or Schedule())
        with self.client() as client:
            assert client.put(message, CONTENT, lease=False).refused is None
        return show_id(id)

    def defer(
        self, text: str, phase: str = "RCPT", lane: str = "x.example", tls: str = "", later: int = 60_000
    ) -> None:
        """An attempt at what is first in the queue, which must be of ``lane``."""
        with self.client(leases=True) as client:
            tasks: list[Task] = []
            while not any(t.lane == lane for t in tasks):
                tasks = client.lease(100, [Stage.DELIVER], 5)
            for task in tasks:
                if task.lane != lane:
                    continue
                outcomes: Any = {i.id: Deferred(text, phase, "mx.x.example[192.0.2.1]:25", tls=tls) for i in task.items}
                note = note_of(outcomes, now(), before=task.note)
                again = NewTask(task.stage, lane, task.items, now() + later, attempts=task.attempts + 1, note=note)
                assert client.settle(Settle(task.message, task.number, [again])).stored

    def ptt(self, *words: str, code: int = 0, input: bytes | None = None) -> str:
        done = CliRunner().invoke(main, ["queue", *words, "--config", str(self.file)], input=input)
        assert done.exit_code == code, (done.output, done.exception)
        return done.output

    def json(self, *words: str, code: int = 0) -> Any:
        return json.loads(self.ptt(*words, "--json", code=code))

    def rows(self, *words: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.ptt("list", "--json", *words).splitlines()]

    def ids(self, *words: str) -> list[str]:
        return list(dict.fromkeys(row["id"] for row in self.rows(*words)))


@pytest.fixture
def case(tmp_path: pathlib.Path) -> Iterator[Case]:
    one = Case(tmp_path)
    try:
        yield one
    finally:
        assert one.process is not None
        one.process.kill()
        one.process.wait()


def test_tasks_are_selected_by_all_that_is_known_of_them(case: Case) -> None:
    old = case.put("anna@a.example", "x@x.example", "z@z.example", age=7_200_000)
    case.defer("450 4.2.0 Greylisted, come again")
    bulk = case.put("news@b.example", "y@y.example", schedule=Schedule(not_before=now() + 60_000, priority=2))
    held = case.put("", "w@sub.y.example", schedule=Schedule(hold=True))
    for words, wanted in [
        (["--sender", "*@A.example"], [old]),
        (["--sender", ""], [held]),
        (["--recipient", "Y@y.example"], [bulk]),
        (["--recipient", "*@*y.example"], [bulk, held]),
        (["--domain", "*.y.example"], [held]),
        (["--lane", "z.example"], [old]),
        (["--state", "delayed"], [old, bulk]),
        (["--state", "ready"], [old]),
        (["--state", "held"], [held]),
        (["--state", "waiting"], [old, bulk]),
        (["--older", "1h"], [old]),
        (["--newer", "1h"], [bulk, held]),
        (["--reason", "rcpt"], [old]),
        (["--reply", "greyLISTED"], [old]),
        (["--reply", "greylisted", "--domain", "z.example"], []),
        (["--reason", "connect"], []),
        (["--maybe"], []),
    ]:
        assert sorted(case.ids(*words)) == sorted(wanted), words
    [row] = case.rows("--sender", "news@*")
    assert (row["priority"], row["state"]) == ("bulk", "delayed")
    case.ptt("list", "--older", "soon", code=2)
    case.ptt("list", "--lane", "x" * 500, code=2)
    assert "nothing matches" in case.ptt("list", "--sender", "nobody@x")


@pytest.mark.parametrize("live", [True, False])
def test_acts_reach_what_matches_and_nothing_else(case: Case, live: bool) -> None:
    both = case.put("anna@a.example", "x@x.example", "y@x.example", "z@z.example")
    other = case.put("bob@a.example", "v@z.example")
    if not live:
        case.stop()
    assert case.json("hold", "--domain", "z.example")["changed"] == 2
    assert sorted((r["id"], r["lane"], r["state"]) for r in case.rows()) == sorted(
        [(both, "x.example", "ready"), (both, "z.example", "held"), (other, "z.example", "held")]
    )
    assert case.json("delete", "--recipient", "x@x.example", "--yes")["changed"] == 1
    assert [r["recipients"] for r in case.rows("--lane", "x.example")] == [["y@x.example"]]
    assert case.json("release", other)["changed"] == 1
    assert case.json("retry", "--all")["changed"] == 1
    assert {r["state"] for r in case.rows()} == {"ready"}
    assert case.json("delete", both)["changed"] == 2
    assert case.ids() == [other]


def body_of(case: Case, id: bytes) -> bytes:
    with case.client(leases=True) as client:
        [task] = [t for t in client.lease(10, [Stage.SIGN, Stage.DELIVER], 5) if t.message == id]
        return client.body(task)


@pytest.mark.parametrize("live", [True, False])
def test_a_bounce_tells_the_sender_with_the_last_reply(case: Case, live: bool) -> None:
    id = case.put("anna@a.example", "x@x.example", "y@x.example", user="anna")
    case.defer("450 4.2.0 not now")
    if not live:
        case.stop()
    done = case.json("bounce", "--recipient", "x@x.example", "--yes", "--text", "no more")
    assert (done["changed"], done["bounces"]) == (1, 1)
    rows = case.rows()
    assert [r["recipients"] for r in rows if r["id"] == id] == [["y@x.example"]]
    [made] = [r for r in rows if r["id"] != id]
    assert (made["sender"], made["recipients"], made["state"]) == ("", ["anna@a.example"], "ready")
    if not live:
        case.start()
    with case.client(leases=True) as client:
        [task] = client.lease(10, [Stage.DELIVER], 5)
        text = client.body(task)
    message = email.message_from_bytes(text, policy=email.policy.default)
    assert message.get_content_type() == "multipart/report"
    status = next(p for p in message.walk() if p.get_content_type() == "message/delivery-status").as_string()
    assert "Final-Recipient: rfc822;x@x.example" in status
    assert "y@x.example" not in status
    assert "no more; last: 450 4.2.0 not now" in text.decode()
    assert CONTENT in text


def test_a_bounce_is_not_bounced(case: Case) -> None:
    case.put("anna@a.example", "x@x.example")
    case.put("", "anna@a.example", bounce=True)
    done = case.json("bounce", "--all", "--yes")
    assert (done["changed"], done["bounces"], done["untold"]) == (2, 1, 1)
    assert [r["recipients"] for r in case.rows()] == [["anna@a.example"]]  # the new one alone


def test_what_a_worker_is_at_is_not_bounced(case: Case) -> None:
    id = case.put("anna@a.example", "x@x.example")
    with case.client(leases=True) as worker:
        assert worker.lease(1, [Stage.DELIVER], 5)
        assert [r["state"] for r in case.rows()] == ["working"]
        assert case.json("bounce", id, code=1)["working"] == 1
        assert case.json("bounce", show_id(new_id(1)), code=1)["missing"]
        assert case.ids() == [id]


def test_why_tells_all_attempts_and_what_comes_next(case: Case) -> None:
    id = case.put("anna@a.example", "x@x.example", user="anna", client="192.0.2.7", commit="c" * 40)
    case.defer("451 4.7.1 greylisted", tls="TLSv1.3 AES", later=-1)
    case.defer("451 4.7.1 greylisted", tls="TLSv1.3 AES", later=-1)
    case.defer("no route to host", phase="connect", later=60_000)
    found = case.json("why", id)
    events = found["timeline"]
    assert [e["what"] for e in events] == ["accepted", "attempt", "attempt", "now", "next", "expires"]
    assert events[0]["text"] == f"from user anna at 192.0.2.7, {len(CONTENT)} bytes, under commit cccccccccccc"
    assert len(events[1]["times"]) == 2
    assert (events[1]["phase"], events[1]["tls"], events[1]["text"]) == ("RCPT", "TLSv1.3 AES", "451 4.7.1 greylisted")
    assert (events[2]["phase"], events[2]["peer"]) == ("connect", "mx.x.example[192.0.2.1]:25")
    assert events[3]["text"].startswith("waits for its next attempt at 2")
    assert found["task"]["attempts"] == 3
    text = case.ptt("why", id)
    assert "connect, mx.x.example[192.0.2.1]:25: no route to host" in text
    case.ptt("hold", id)
    assert "held: release it" in case.ptt("why", id)
    case.stop()
    assert "held: release it" in case.ptt("why", id)
    case.ptt("retry", id)
    assert "due; the service is stopped" in case.ptt("why", id)
    assert "not in the queue" in case.ptt("why", show_id(new_id(1)), code=1)


def test_why_names_the_limit_that_a_task_waits_for(case: Case) -> None:
    case.put("anna@a.example", "x@x.example")
    second = case.put("anna@a.example", "y@x.example")
    with case.client(leases=True) as worker:
        worker.assign("x.example", "mx.x.example", GroupLimit(1))
        assert len(worker.lease(10, [Stage.DELIVER], 5)) == 1
        assert "waits for the limit of site mx.x.example: 1 of 1 in flight" in case.ptt("why", second)
    scheduled = case.put("anna@a.example", "y@q.example", schedule=Schedule(not_before=now() + 3_600_000))
    assert "scheduled: not before" in case.ptt("why", scheduled)


def test_why_says_that_mail_may_have_been_delivered(case: Case) -> None:
    id = case.put("anna@a.example", "x@x.example")
    worker = case.client(leases=True)
    [task] = worker.lease(1, [Stage.DELIVER], 5)
    worker.mark(task)
    worker.extend([task])
    worker.close()
    deadline = time.monotonic() + 10
    while case.ids("--maybe") != [id]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert "it may have been delivered" in case.ptt("why", id)
    assert case.rows()[0]["maybe_delivered"] is True


@pytest.mark.parametrize("live", [True, False])
def test_numbers_by_stage_lane_and_age(case: Case, live: bool) -> None:
    for n in range(3):
        case.put("a@a.example", "x@x.example", age=n * 15 * 60_000)
    case.put("a@a.example", "y@y.example", signing_domain="a.example", schedule=Schedule(hold=True))
    if not live:
        case.stop()
    found = case.json("stats", "--lanes", "1")
    assert (found["all"]["total"], found["all"]["ready"], found["all"]["held"]) == (4, 3, 1)
    assert {s["stage"]: s["total"] for s in found["stages"]} == {"sign": 1, "deliver": 3}
    assert [(lane["lane"], lane["total"], lane["ages"][:4]) for lane in found["lanes"]] == [
        ("x.example", 3, [1, 0, 1, 1]),
        ("other lanes", 1, [1, 0, 0, 0]),
    ]
    assert found["disk"]["messages"] == 4
    assert (found["process"] is not None) is live
    by_sender = case.json("stats", "--senders")["lanes"]
    assert sorted((x["lane"], x["stage"], x["total"]) for x in by_sender) == [
        ("a.example", "deliver", 3),
        ("a.example", "sign", 1),
    ]
    text = case.ptt("stats")
    assert "age in minutes" in text
    assert ("the service is stopped" in text) is not live


@pytest.mark.parametrize("live", [True, False])
def test_mail_moves_from_one_queue_to_another(case: Case, tmp_path: pathlib.Path, live: bool) -> None:
    first = case.put("anna@a.example", "x@x.example", "z@z.example", schedule=Schedule(priority=0))
    case.defer("450 not now")
    other = case.put("bob@a.example", "z@z.example", schedule=Schedule(hold=True))
    before = case.rows()
    if not live:
        case.stop()
    file = str(tmp_path / "mail.export")
    assert case.json("export", file, "--sender", "anna@*", "--move")["changed"] == 2
    assert os.stat(file).st_mode & 0o777 == 0o600
    assert case.ids() == [other]
    case.ptt("export", file, "--all", code=1)  # not over another
    assert json.loads(case.ptt("import", file, "--json")) == {"stored": 1, "duplicate": 0, "refused": 0}
    assert json.loads(case.ptt("import", file, "--json")) == {"stored": 0, "duplicate": 1, "refused": 0}
    after = case.rows()
    for row in [*before, *after]:
        del row["task"]
    assert sorted(after, key=str) == sorted(before, key=str)
    assert first in case.ids()
    if not live:
        case.start()
    case.ptt("retry", "--all")
    with case.client(leases=True) as client:
        assert {client.body(t) for t in client.lease(10, [Stage.DELIVER], 5)} == {CONTENT}


@pytest.mark.parametrize("live", [True, False])
def test_mail_is_rerouted(case: Case, live: bool) -> None:
    first = case.put("anna@a.example", "x@x.example", "y@x.example")
    case.defer("450 not now")
    case.put("anna@a.example", "z@z.example", signing_domain="a.example")  # not signed yet: not delivered anywhere
    if not live:
        case.stop()
    assert case.json("requeue", "--all")["changed"] == 0  # all is where it belongs
    assert case.json("requeue", "--recipient", "y@*", "--to", "Spare.example")["changed"] == 1
    rows = {row["lane"]: row for row in case.rows("--stage", "deliver")}
    assert {lane: row["recipients"] for lane, row in rows.items()} == {
        "x.example": ["x@x.example"],
        "spare.example": ["y@x.example"],
    }
    assert {(row["attempts"], row["state"], row["replies"][0]["text"]) for row in rows.values()} == {
        (1, "delayed", "450 not now")
    }
    with case.file.open("a") as file:
        file.write('[relay]\nnext_hop = "relay.example:25"\n')
    assert case.json("requeue", first)["changed"] == 2
    assert {row["lane"] for row in case.rows("--stage", "deliver")} == {"hop:relay.example:25"}
    assert case.ids("--stage", "sign") != []
    case.ptt("requeue", first, "--to", "x" * 500, code=2)


def test_a_file_that_is_cut_off_is_noticed(case: Case, tmp_path: pathlib.Path) -> None:
    case.put("anna@a.example", "x@x.example")
    file = tmp_path / "mail.export"
    case.ptt("export", str(file), "--all")
    whole = file.read_bytes()
    for cut, stored in [(whole[:-4], 1), (whole[:-10], 0), (whole[:12], 0), (b"nonsense", 0), (b"", 0)]:
        file.write_bytes(cut)
        case.ptt("delete", "--all", "--yes")
        assert "Error: queue: " in case.ptt("import", str(file), code=1)
        assert len(case.rows()) == stored
    case.ptt("import", str(tmp_path / "nothing"), code=1)
    case.ptt("export", "-", "--all", "--move", code=2)


def test_import_can_hold(case: Case, tmp_path: pathlib.Path) -> None:
    case.put("anna@a.example", "x@x.example")
    file = str(tmp_path / "mail.export")
    case.ptt("export", file, "--all", "--move")
    case.ptt("import", file, "--hold")
    assert [r["state"] for r in case.rows()] == ["held"]


def test_compacting_wants_the_service_stopped(case: Case) -> None:
    ids = [case.put("anna@a.example", f"x{n}@x.example") for n in range(20)]
    case.ptt("delete", *ids[1:])
    assert "stop it first" in case.ptt("compact", code=1)
    case.stop()
    found = case.json("compact")
    assert found["after"] < found["before"]
    assert case.ids() == ids[:1]
    case.start()
    assert len(body_of(case, _bytes(ids[0]))) == len(CONTENT)


def _bytes(id: str) -> bytes:
    from ptt.message import parse_id

    return parse_id(id)


@pytest.mark.parametrize("live", [True, False])
def test_damaged_records_are_listed_and_deleted(case: Case, live: bool) -> None:
    id = case.put("anna@a.example", "x@x.example")
    assert "nothing was set aside" in case.ptt("quarantine")
    case.stop()
    code = (
        "import sys; from ptt_queue.store import Store; from ptt_queue import keys\n"
        "s = Store(sys.argv[1], 1 << 40); t = s.begin()\n"
        "t.txn.put(keys.record_key(bytes.fromhex(sys.argv[2]), 1), b'\\0bad', db=t.records); t.commit(); s.close()"
    )
    subprocess.run([sys.executable, "-c", code, case.config.queue.path, _bytes(id).hex()], check=True)
    case.start()
    with case.client(leases=True) as client:
        assert client.lease(1, [Stage.DELIVER]) == []
    if not live:
        case.stop()
    found = case.json("quarantine")
    assert (found["id"], found["lane"], found["readable"], found["raw"]) == (id, "x.example", False, b"bad".hex())
    assert case.ids() == []
    assert case.json("quarantine", id, "--restore", code=1) == {"changed": 0, "left": 1}
    assert case.json("quarantine", id, "--delete", "--yes") == {"changed": 1, "left": 0}
    assert "nothing was set aside" in case.ptt("quarantine")
    case.ptt("quarantine", "--restore", "--delete", code=2)


def test_what_operators_do_is_logged(case: Case) -> None:
    first, second = case.put("anna@a.example", "x@x.example"), case.put("bob@a.example", "z@z.example")
    case.ptt("hold", first, second)
    case.ptt("hold", first)  # changes nothing
    case.ptt("bounce", second)
    case.stop()
    lines = [json.loads(line) for line in (case.directory / "log").read_text().splitlines()]
    told = [(x["act"], x["tasks"], x["ids"]) for x in lines if x["event"] == "operator"]
    assert told == [("hold", 2, [first, second]), ("amend", 1, [second])]


def test_a_reader_takes_nothing_from_the_service(case: Case) -> None:
    """Commands that read send the queue process no request but for the place of a lane and its numbers."""
    id = case.put("anna@a.example", "x@x.example")
    case.ptt("list")
    case.ptt("show", id)
    with case.client() as client:
        requests = client.stats().requests
    assert not {"list", "show", "body"} & set(requests)


@pytest.mark.parametrize("live", [True, False])
def test_what_is_used_of_quotas(case: Case, live: bool) -> None:
    assert "nothing is counted" in case.ptt("meters")
    wanted = [Meter("user:anna:messages", 1, 4, 1000 * 3_600_000), Meter("user:anna:bytes", 10, 10, 1000 * 3_600_000)]
    over = Note(now(), [], held="quota user:anna:bytes")
    wanted[1] = msgspec.structs.replace(wanted[1], held=encode(over))
    message = new_message(
        new_id(now()), Envelope("a@a.example", now()), [Recipient("x@x.example")], len(CONTENT), case.config, now()
    )
    with case.client() as client:
        assert client.put(msgspec.structs.replace(message, meters=wanted), CONTENT, lease=False).refused is None
        held = msgspec.structs.replace(message, id=new_id(now()), meters=wanted, over=Over.HOLD)
        assert client.put(held, CONTENT, lease=False).meter == "user:anna:bytes"
    if not live:
        case.stop()
    found = [json.loads(line) for line in case.ptt("meters", "user:anna:", "--json").splitlines()]
    assert [(m["key"], m["used"], m["limit"]) for m in found] == [
        ("user:anna:bytes", 10, 10),
        ("user:anna:messages", 1, 4),
    ]
    assert case.json("stats")["meters"][0] == found[0]
    assert "user:anna:messages" not in case.ptt("meters", "user:anna:b")
    [row] = case.rows("--state", "held")
    assert row["held_by"] == "quota user:anna:bytes"
    assert "quota user:anna:bytes" in case.ptt("why", row["id"])
    assert case.json("release", row["id"])["changed"] == 1
    assert len(case.rows("--state", "ready")) == 2


@pytest.mark.parametrize("live", [True, False])
def test_a_suspended_destination_waits(case: Case, live: bool) -> None:
    id = case.put("a@a.example", "x@x.example")
    other = case.put("a@a.example", "z@z.example")
    if not live:
        case.stop()
    assert "nothing is suspended" in case.ptt("suspended")
    case.ptt("suspend", "X.example.", "--for", "2h", "--reason", "they are moving")
    case.ptt("suspend", "mx.site.example", "--site")
    case.ptt("suspend", "x.example", "--for", "0", code=2)
    case.ptt("suspend", "x" * 500, code=1)
    if live:
        assert case.process is not None
        case.process.kill()  # no goodbye: it is on disk
        case.process.wait()
        case.start()
    found = [json.loads(line) for line in case.ptt("suspended", "--json").splitlines()]
    assert [(s["destination"], s["site"], bool(s["until"]), s["reason"]) for s in found] == [
        ("x.example", False, True, "they are moving"),
        ("mx.site.example", True, False, ""),
    ]
    assert case.json("stats")["suspended"] == found
    assert "suspended: x.example" in case.ptt("stats")
    assert "its destination is suspended: x.example" in case.ptt("why", id)
    assert "suspended" not in case.ptt("why", other)
    if not live:
        case.start()
    with case.client(leases=True) as client:
        assert [t.lane for t in client.lease(10, [Stage.DELIVER], 5)] == ["z.example"]
        assert client.lease(10, [Stage.DELIVER]) == []
        case.ptt("resume", "x.example")
        case.ptt("resume", "x.example", code=1)
        assert [t.lane for t in client.lease(10, [Stage.DELIVER], 5)] == ["x.example"]
        assert "its destination is suspended" not in case.ptt("why", id)
    case.ptt("resume", "mx.site.example", "--site")
    case.stop()
    lines = [json.loads(line) for line in (case.directory / "log").read_text().splitlines()]
    told = [(x["act"], x["destination"], x["site"]) for x in lines if x["event"] == "suspension"]
    resumed = [("resumed", "x.example", False), ("resumed", "mx.site.example", True)]
    suspended = [("suspended", "x.example", False), ("suspended", "mx.site.example", True)]
    assert told == (suspended if live else []) + resumed
