"""The service: commits come into force, bad ones do not, and passwords follow."""

import os
import pathlib
import shutil
import subprocess
import time
from collections.abc import Callable
from typing import Any

import gevent
import pytest

from ptt.directory import control as module
from ptt.directory.authenticator import SALTS_FILE
from ptt.directory.control import DirectoryControl
from ptt.directory.reader import POINTER
from ptt.directory.repository import Author, Repository, disk_bytes
from ptt.directory.snapshot import DAMAGED
from ptt.net.rpc import RpcError

Until = Callable[[Callable[[], object]], float]


def files(base: Any) -> list[set[str]]:
    public, private = pathlib.Path(base.config.directory.snapshots), pathlib.Path(base.config.data) / "control"
    return [
        {p.name for p in folder.iterdir()} - {POINTER, "directory.json", SALTS_FILE} for folder in (public, private)
    ]


def test_an_empty_repository_is_no_alarm(make_base: Callable[..., Any]) -> None:
    base = make_base()
    shutil.rmtree(base.root / "directory.git")
    os.mkdir(base.root / "directory.git")
    control = base.control()
    assert control.commit == ""
    assert base.alarm() == 0
    assert control.logins.verify("a@b", "x") == "bad"
    base.repository = Repository(base.config.directory.repository, "main")
    commit = base.commit({"domains/a.example.toml": ""})
    assert control.refresh()
    assert control.commit == base.snapshot().commit == commit


@pytest.mark.slow
def test_a_commit_is_in_force_within_a_second(base: Any, until: Until) -> None:
    control = base.control()
    snapshot = base.snapshot()
    running = gevent.spawn(control.run)
    for n in range(3):
        commit = base.commit({f"users/a.example/u{n}.toml": ""})
        assert until(lambda commit=commit: snapshot.refresh() or snapshot.commit == commit) < 1
        assert snapshot.user(f"u{n}@a.example") is not None
    control.stop()
    running.join(5)
    assert running.ready()


BAD: list[tuple[dict[str, Any], str, int]] = [
    ({"users/a.example/x.toml": "a = "}, "users/a.example/x.toml", 1),
    ({"domains/a.example.toml": "\nsign = 1"}, "domains/a.example.toml", 2),
    ({"domains/a.example.toml": None}, "users/a.example/anna.toml", 1),
    ({"aliases/a.example/all.toml": '\ntargets = ["all@a.example"]'}, "aliases/a.example/all.toml", 2),
    ({"aliases/a.example/anna.toml": 'targets = ["x@y.example"]'}, "aliases/a.example/anna.toml", 1),
    ({"users/a.example/x.toml": b"#\n\xff"}, "users/a.example/x.toml", 2),
    ({"users/a.example/x.toml": b"#" * 10_000_000}, "users/a.example/x.toml", 1),
    ({"nonsense": "x"}, "nonsense", 1),
]


@pytest.mark.parametrize(("changes", "file", "line"), BAD)
def test_a_bad_commit_leaves_the_last_good_one_in_force(
    base: Any, changes: dict[str, Any], file: str, line: int
) -> None:
    control = base.control()
    snapshot = base.snapshot()
    good, before = control.commit, files(base)
    bad = base.commit(changes)
    assert not control.refresh()
    logged = len(base.events("directory commit refused"))
    assert not control.refresh()
    assert len(base.events("directory commit refused")) == logged  # once, not at each look
    assert not snapshot.refresh()
    assert control.commit == snapshot.commit == good
    assert snapshot.user("anna@a.example") is not None
    assert control.logins.verify("anna@a.example", "secret") == "ok"
    assert base.alarm() == 1
    assert base.counters.counters["ptt_directory_bad_commits_total", ()] == 1
    event = base.events("directory commit refused")[0]
    assert (event["file"], event["line"], event["commit"], event["in_force"]) == (file, line, bad, good)
    assert files(base) == before
    assert control.status()["refused"] == bad


def test_a_bad_commit_is_refused_after_a_restart_too(base: Any) -> None:
    good = base.control().commit
    bad = base.commit({"nonsense": "x"})
    again = base.control()
    assert again.commit == good
    assert base.alarm() == 1
    assert again.status()["refused"] == bad


def test_revert_ends_the_alarm(base: Any) -> None:
    control = base.control()
    base.commit({"nonsense": "x"})
    assert not control.refresh()
    reverted = base.commit({"nonsense": None})
    assert control.refresh()
    assert control.commit == reverted
    assert base.alarm() == 0
    infos = [labels for name, labels in base.counters.gauges if name == "ptt_directory_commit_info"]
    assert infos == [(reverted,)]


def test_moving_back_to_the_commit_in_force_ends_the_alarm(base: Any) -> None:
    control = base.control()
    bad = base.commit({"nonsense": "x"})
    assert not control.refresh()
    base.repository.move(base.repository.ref, control.commit, bad)
    assert control.refresh()
    assert base.alarm() == 0


def test_rewritten_history_is_refused(base: Any) -> None:
    control = base.control()
    good = control.commit
    other = base.repository.commit({"domains/evil.example.toml": b""}, "x", Author("x", "x@x.example"), "")
    base.repository.move(base.repository.ref, other, good)
    assert not control.refresh()
    assert control.commit == base.snapshot().commit == good
    assert base.alarm() == 1
    (event,) = base.events("directory commit refused")
    assert "history was rewritten" in event["reason"]


def test_a_deleted_branch_is_an_alarm(base: Any) -> None:
    control = base.control()
    good = control.commit
    base.repository.git.references.delete(base.repository.ref)
    assert not control.refresh()
    assert not control.refresh()
    assert len(base.events("directory branch is gone")) == 1
    assert (control.commit, base.alarm()) == (good, 1)
    base.repository.move(base.repository.ref, good, "")
    assert control.refresh()
    assert base.alarm() == 0


def test_start_uses_what_is_there(base: Any) -> None:
    first = base.control()
    before = files(base)
    second = base.control()
    assert second.commit == first.commit
    assert files(base) == before
    assert second.logins.verify("anna@a.example", "secret") == "ok"


@pytest.mark.parametrize("folder", [0, 1])
def test_damaged_files_are_moved_aside_and_made_anew(base: Any, folder: int) -> None:
    control = base.control()
    control.close()
    place = [pathlib.Path(base.config.directory.snapshots), pathlib.Path(base.config.data) / "control"][folder]
    (name,) = files(base)[folder]
    (place / name).write_bytes(b"damage" * 4000)
    again = base.control()
    assert again.commit == control.commit
    assert again.logins.verify("anna@a.example", "secret") == "ok"
    assert base.snapshot().user("anna@a.example") is not None
    assert (place / (name + DAMAGED)).read_bytes().startswith(b"damage")


def test_old_files_are_removed(base: Any) -> None:
    control = base.control()
    (pathlib.Path(base.config.data) / "control" / ".metrics.dat").write_text("of somebody else")
    for n in range(5):
        base.commit({f"users/a.example/u{n}.toml": ""})
        assert control.refresh()
        (pathlib.Path(base.config.directory.snapshots) / f".crashed-{n}.mdb").write_text("x")
    public, private = files(base)
    assert public - {".crashed-4.mdb"} == private - {".metrics.dat"}
    assert len(private) == 3


def test_a_disk_that_cannot_be_written_changes_nothing(base: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    control = DirectoryControl(base.config, base.log, base.counters, lambda: now)
    control.start()
    snapshot = base.snapshot()
    good = control.commit
    commit = base.commit({"users/a.example/bob.toml": ""})

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    for function in ("os.replace", "shutil.copyfile"):
        with monkeypatch.context() as patch:
            patch.setattr(function, full)
            assert not control.refresh()
            assert not control.refresh()  # waits before it tries again
        assert control.commit == good
        assert control.logins.verify("anna@a.example", "secret") == "ok"
        assert not snapshot.refresh()
        now += 10
    assert len(base.events("directory cannot be compiled")) == 2
    assert control.refresh()
    assert snapshot.refresh()
    assert snapshot.commit == control.commit == commit
    control.close()


def test_passwords_and_versions(base: Any, fast_hash: str) -> None:
    control = base.control()
    snapshot = base.snapshot()
    assert control.logins.rpc_verify(["ANNA@a.example", "secret", "192.0.2.1"]) == [
        "ok",
        snapshot.user("anna@a.example").version,
    ]
    assert control.logins.rpc_verify(["anna@a.example", "wrong", "192.0.2.1"]) == ["bad", 0.0]
    assert control.logins.rpc_verify(["nobody@a.example", "secret", "192.0.2.1"]) == ["bad", 0.0]
    base.commit({"users/a.example/anna.toml": f'password = "{fast_hash}"\ndisabled = true\n'})
    assert control.refresh()
    before = snapshot.user("anna@a.example").version
    snapshot.refresh()
    assert snapshot.user("anna@a.example").version != before
    assert control.logins.rpc_verify(["anna@a.example", "secret", "192.0.2.1"]) == ["bad", 0.0]
    base.commit({"users/a.example/anna.toml": ""})
    assert control.refresh()
    assert control.logins.rpc_verify(["anna@a.example", "secret", "192.0.2.1"]) == ["bad", 0.0]
    assert base.counters.counters["ptt_password_checks_total", ("ok",)] == 1
    assert base.counters.counters["ptt_password_checks_total", ("bad",)] == 4


def test_addresses_do_not_change_the_version(base: Any, fast_hash: str) -> None:
    control, snapshot = base.control(), base.snapshot()
    before = snapshot.user("anna@a.example").version
    base.commit({"users/a.example/anna.toml": f'password = "{fast_hash}"\n'})
    assert control.refresh()
    assert snapshot.refresh()
    assert snapshot.user("anna@a.example").version == before


@pytest.mark.parametrize("argument", [None, [], ["a"], ["a", b"b", "c"], "abc", ["a", "b", "c", "d"], ["a", "b"]])
def test_wrong_arguments(base: Any, argument: Any) -> None:
    with pytest.raises(RpcError):
        base.control().logins.rpc_verify(argument)


def test_the_loop_runs_on_while_a_commit_is_compiled(base: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    control = base.control()
    running: list[bool] = []
    real = module.compile_commit

    def slow(*arguments: Any) -> Any:
        began = time.monotonic()
        while len(running) <= 5:  # only a loop that is not blocked makes that true
            assert time.monotonic() - began < 10
            time.sleep(0.001)
        return real(*arguments)

    monkeypatch.setattr(module, "compile_commit", slow)
    base.commit({"users/a.example/bob.toml": ""})
    refreshing = gevent.spawn(control.refresh)
    while not refreshing.ready():
        running.append(True)
        gevent.sleep(0.001)
    assert refreshing.get()
    assert len(running) > 5


def test_an_unexpected_exception_does_not_end_the_service(
    base: Any, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = base.control()

    def broken() -> bool:
        raise ZeroDivisionError

    monkeypatch.setattr(control, "refresh", broken)
    running = gevent.spawn(control.run)
    until(lambda: base.counters.counters.get(("ptt_errors_total", ("directory",))))
    control.stop()
    running.get(timeout=5)


def test_the_size_of_the_repository_is_told(base: Any, until: Until, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SIZE_SECONDS", 0.02)
    monkeypatch.setattr(module, "LARGE_BYTES", 1_000_000)
    service = base.control()
    running = gevent.spawn(service.run)
    until(lambda: ("ptt_directory_repository_bytes", ()) in base.counters.gauges)
    assert 10_000 < base.counters.gauges["ptt_directory_repository_bytes", ()] < 1_000_000
    base.repository.git.create_blob(os.urandom(1_100_000))
    until(lambda: base.events("directory repository is large"))
    service.stop()
    running.join(5)
    assert len(base.events("directory repository is large")) == 1


@pytest.mark.slow
def test_git_gc_under_the_service(base: Any) -> None:
    """Its open repository finds the commits that were packed, and takes new ones."""
    service = base.control()
    waste = base.repository.git.create_blob(os.urandom(1_000_000))
    before = disk_bytes(base.repository.path)
    command = ["git", "-c", "safe.directory=*", "-C", base.repository.path, "gc", "-q", "--prune=now"]
    subprocess.run(command, check=True, timeout=60)
    assert disk_bytes(base.repository.path) < before - 900_000
    assert waste not in Repository(base.repository.path, "main").git
    base.commit({"users/a.example/new.toml": ""})
    assert service.refresh()
    assert base.snapshot().user("new@a.example") is not None
