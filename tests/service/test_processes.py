"""Pure decisions of the supervisor and of control, and how a child reads its arguments."""

from __future__ import annotations

import os
import pathlib
import resource
import subprocess
import sys
from typing import Any

import pytest
from ptt_queue.types import State, Stats

from ptt.config import Config, load
from ptt.metrics import LATENCY_BUCKETS
from ptt.net.rpc import RpcError
from ptt.service import child, layout, privileges, state
from ptt.service.ledger import Identity, Ledger
from ptt.service.observe import LATELY_SECONDS, Observer, queue_snapshot, rebin, usage_of
from ptt.service.processes import FIRST_DELAY, GOOD_LIFE, LONGEST_DELAY, environment, next_delay, specs, stop_seconds


@pytest.fixture
def config(tmp_path: pathlib.Path) -> Config:
    file = tmp_path / "ptt.toml"
    file.write_text(
        'hostname = "mail.example"\npool = 2\n[signer]\nprocesses = 2\n[admin]\nlisten = "127.0.0.1:0"\n'
        '[[listen]]\naddress = "127.0.0.1:0"\nservice = "relay"\n'
    )
    return load(file)


def test_delays_double_and_are_forgotten_after_a_good_life() -> None:
    delays = [0.0]
    for _ in range(10):
        delays.append(next_delay(delays[-1], 0.1))
    assert delays[1] == FIRST_DELAY
    assert delays == sorted(delays)
    assert delays[-1] == LONGEST_DELAY
    assert next_delay(LONGEST_DELAY, GOOD_LIFE) == FIRST_DELAY


def test_the_environment_is_reduced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/tmp")
    given = {
        "PATH": "/bin",
        "LC_ALL": "C",
        "AWS_SECRET_ACCESS_KEY": "x",
        "PTT_CONFIG": "x",
        "PYTHONPATH": "a::/b",
        "TZ": "UTC",
    }
    assert environment(given) == {"PATH": "/bin", "LC_ALL": "C", "PYTHONPATH": "/tmp/a:/b", "TZ": "UTC"}


def test_all_processes_with_their_sockets(config: Config) -> None:
    layout.make_directories(config)
    sockets = layout.bind_all(config)
    try:
        found = specs(config, "/etc/ptt.toml", sockets, 99)
        assert [spec.name for spec in found] == ["queue", "signer.0", "signer.1", "control", "worker.0", "worker.1"]
        by_name = {spec.name: spec for spec in found}
        assert by_name["signer.0"].fds == by_name["signer.1"].fds == (sockets.unix["signer"].fileno(),)
        assert by_name["worker.0"].fds != by_name["worker.1"].fds
        assert all("--config" in spec.arguments for spec in found)
        assert os.stat(os.path.join(config.run, "queue.sock")).st_mode & 0o777 == 0o660
        for spec in found:  # what the supervisor writes, a child reads
            options = child.parser(spec.kind).parse_args(spec.arguments[3:])
            worker = spec.kind == "worker"
            assert (*(fd for _, fd in options.listen_fd), *((99,) if worker else ())) == spec.fds
            assert options.census == ((int(spec.name[-1]), 99) if worker else (-1, -1))
            assert (options.pool, options.role, options.name) == (2, "all", spec.name)
            assert os.getuid() in options.uids
    finally:
        sockets.close()


def test_a_relay_has_no_key_process(config: Config, tmp_path: pathlib.Path) -> None:
    relay = load(tmp_path / "ptt.toml", role="relay")
    layout.make_directories(relay)
    sockets = layout.bind_all(relay)
    try:
        assert [spec.kind for spec in specs(relay, "f", sockets, 99)] == ["queue", "control", "worker", "worker"]
    finally:
        sockets.close()


def test_a_socket_in_a_very_deep_directory(tmp_path: pathlib.Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    (deep / "ptt.toml").write_text('hostname = "mail.example"\n[admin]\nlisten = "127.0.0.1:0"\n')
    config = load(deep / "ptt.toml")
    layout.make_directories(config)
    layout.bind_all(config).close()
    assert (deep / "run/control.sock").is_socket()


def test_workers_have_time_to_drain(config: Config) -> None:
    assert stop_seconds("worker", config) > config.drain_seconds > stop_seconds("queue", config)


def test_accounts() -> None:
    assert privileges.account("") == (os.getuid(), os.getgid())
    assert privileges.account("root") == privileges.account(0) == (0, 0)
    assert privileges.account(61234) == (61234, 61234)
    with pytest.raises(privileges.UserError, match="there is no user 'no-such-user-here'"):
        privileges.account("no-such-user-here")


def test_a_child_by_hand(config: Config, tmp_path: pathlib.Path) -> None:
    reader, writer = os.pipe()
    found = child.start(
        "worker", ["--config", str(tmp_path / "ptt.toml"), "--listen-fd", "3:7", "--ready-fd", str(writer)]
    )
    assert (found.listen, found.sockets(), found.name, found.parent) == ([(3, 7)], [7], "worker", 0)
    found.ready()
    found.ready()  # once is enough
    assert os.read(reader, 10) == b"1"
    os.close(reader)


def test_enter_sets_limits_and_ends_with_a_dead_parent(tmp_path: pathlib.Path) -> None:
    (tmp_path / "ptt.toml").write_text('hostname = "mail.example"\n')
    script = (
        "import os, resource, sys; from ptt.service import child; me = child.start('queue'); me.enter();"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE), resource.getrlimit(resource.RLIMIT_CORE), oct(os.umask(0)))"
    )
    command = [sys.executable, "-c", script, "--config", str(tmp_path / "ptt.toml")]
    done = subprocess.run([*command, "--parent", str(os.getpid())], capture_output=True, text=True)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert done.stdout.strip() == f"({hard}, {hard}) (0, 0) 0o77"
    orphan = subprocess.run([*command, "--parent", "1"], capture_output=True, text=True)
    assert (orphan.returncode, orphan.stdout) == (1, "")
    assert "the supervisor is gone" in orphan.stderr


def test_state_survives_a_bad_file(config: Config) -> None:
    layout.make_directories(config)
    assert state.read(config) is None
    pathlib.Path(state.path(config)).write_text("{")
    assert state.read(config) is None
    written = state.ServiceState(1, 2, "3", "all", True, False, [state.ProcessState("queue", "queue", 5, 6, 7, True)])
    state.write(config, written)
    assert state.read(config) == written


# -- control ------------------------------------------------------------------------------------------------------


def stats(**changes: Any) -> Stats:
    fields: dict[str, Any] = {
        "tasks": [(1, State.WAITING, 3), (2, State.HELD, 1), (9, State.FAILED, 2)], "messages": 4, "used_bytes": 5,
        "max_bytes": 6, "free_bytes": 7, "leased": 8, "clients": 9, "lanes": 10, "damaged": 0, "commits": 11,
        "commit_bounds": [0.002, 0.3, 99999.0], "commit_counts": [1, 2, 3, 4], "commit_seconds": 1.5,
        "requests": {"Put": 12}, "epoch": 1,
    }  # fmt: skip
    return Stats(**{**fields, **changes})


def test_the_queues_numbers() -> None:
    ledger = Ledger()
    ledger.report(Identity("queue", 1, 0), queue_snapshot(stats(oldest=90_000), 100.0), 0)
    found = ledger.totals(0)
    assert found.gauges["ptt_queue_tasks", ("sign", "waiting")] == 3
    assert found.gauges["ptt_queue_tasks", ("9", "failed")] == 2
    assert found.gauges["ptt_queue_oldest_seconds", ()] == 10
    assert found.counters["ptt_queue_requests_total", ("Put",)] == 12
    assert sum(found.histograms["ptt_queue_commit_seconds", ()].counts) == 10


def test_rebin() -> None:
    assert rebin(list(LATENCY_BUCKETS), list(range(len(LATENCY_BUCKETS) + 1))) == list(range(len(LATENCY_BUCKETS) + 1))
    found = rebin([0.002, 0.3, 99999.0], [1, 2, 3, 4])
    assert (found[1], found[8], found[-1], sum(found)) == (1, 2, 7, 10)  # up to 0.0025, up to 0.5, above all


def test_usage_of_a_process() -> None:
    found = usage_of(os.getpid())
    assert found is not None
    assert found[0] > 0
    assert found[1] > 1_000_000
    assert usage_of(2**22 + 1) is None


class NoQueue:
    def stats(self) -> Stats:
        raise AssertionError

    def close(self) -> None: ...


def test_push(config: Config) -> None:
    ledger = Ledger()
    observer = Observer(config, ledger, NoQueue, clock=lambda: 0.0)
    own = [["ptt_signed_total", ["a.example"], 2.0], ["ptt_process_cpu_seconds_total", ["worker"], 99.0]]
    observer.push(["worker.0", 1, 2, [own, [["ptt_process_up", ["x"], 1.0]], []]])
    found = ledger.totals(0)
    assert found.counters == {("ptt_signed_total", ("a.example",)): 2.0}  # the rest is measured by control itself
    assert found.gauges == {}


@pytest.mark.parametrize(
    "argument", [None, [], ["worker.0", "x", 1, [[], [], []]], ["w", 1, 1, 5], ["w" * 65, 1, 1, [[], [], []]]]
)
def test_push_refuses_what_is_no_report(config: Config, argument: Any) -> None:
    with pytest.raises(RpcError, match="not a report"):
        Observer(config, Ledger(), NoQueue, clock=lambda: 0.0).push(argument)


def test_mail_that_waits_for_its_signature_is_news_for_a_while(config: Config) -> None:
    now = [0.0]
    observer = Observer(config, Ledger(), NoQueue, clock=lambda: now[0])

    def waited(refused: float) -> list[str]:
        counts = [["ptt_sign_wait_total", ["key not in DNS"], 5.0], ["ptt_sign_wait_total", ["key refused"], refused]]
        observer.push(["worker.0", 1, 2, [counts, [], []]])
        observer.notice_waits()
        return observer.waits()

    assert waited(1.0) == []  # before control started
    assert waited(2.0) == ["key refused"]
    now[0] = LATELY_SECONDS - 1
    assert waited(2.0) == ["key refused"]
    now[0] = LATELY_SECONDS + 1
    assert waited(2.0) == []


def test_without_a_supervisor_control_says_so(config: Config) -> None:
    observer = Observer(config, Ledger(), NoQueue, clock=lambda: 0.0)
    observer.look()
    assert observer.failures() == ["the supervisor's state cannot be read"]


def test_a_process_that_is_gone_keeps_its_cpu_seconds(config: Config) -> None:
    layout.make_directories(config)
    ledger = Ledger()
    observer = Observer(config, ledger, NoQueue, clock=lambda: 0.0)
    for pid in (os.getpid(), 0):
        process = state.ProcessState("worker.0", "worker", pid, 5, 0, bool(pid))
        state.write(config, state.ServiceState(1, 2, "3", "all", True, False, [process]))
        observer.look()
        assert ledger.totals(0).counters["ptt_process_cpu_seconds_total", ("worker",)] > 0
    assert observer.failures() == ["process worker.0 is down"]
