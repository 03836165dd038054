"""run/supervisor.json: in a directory to which another user may add names."""

from __future__ import annotations

import os
import pathlib
import stat

import msgspec
import pytest

from ptt.config import Config
from ptt.service import layout, locks, state
from ptt.signer.state import read_state, state_path, write_state


@pytest.fixture
def config(tmp_path: pathlib.Path) -> Config:
    (tmp_path / "run").mkdir()
    return msgspec.convert({"hostname": "mail.example.org", "run": str(tmp_path / "run")}, Config)


NOTHING = state.ServiceState(1, 2, "0", "all", False, False, [])


def test_a_link_that_waits_under_the_temporary_name_leads_nowhere(config: Config, tmp_path: pathlib.Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    victim.chmod(0o600)
    os.symlink(victim, state.path(config) + ".new")
    state.write(config, NOTHING)
    assert victim.read_text() == "precious"
    assert victim.stat().st_mode & 0o777 == 0o600
    assert state.read(config) == NOTHING


def test_a_file_that_another_made_does_not_become_the_state(config: Config) -> None:
    planted = pathlib.Path(state.path(config) + ".new")
    planted.write_text("theirs")
    before = planted.stat().st_ino
    keep = planted.open()
    state.write(config, NOTHING)
    assert pathlib.Path(state.path(config)).stat().st_ino != before
    assert pathlib.Path(state.path(config)).stat().st_mode & 0o777 == 0o644
    keep.close()


def test_a_lock_that_is_a_link_is_refused(config: Config, tmp_path: pathlib.Path) -> None:
    os.symlink(tmp_path / "made", os.path.join(config.run, locks.SUPERVISOR_LOCK))
    with pytest.raises(OSError, match="symbolic links"):
        locks.take_locks(config)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("planted", ["nothing", "link", "file of another"])
def test_the_state_of_the_keys_belongs_to_control_from_the_start(
    planted: str, config: Config, tmp_path: pathlib.Path
) -> None:
    path = pathlib.Path(state_path(config))
    (tmp_path / "victim").write_text("precious")
    if planted == "link":
        path.symlink_to(tmp_path / "victim")
    elif planted == "file of another":
        if os.getuid() != 0:
            pytest.skip("only root gives files away")
        path.write_text('{"keys": []}')
        os.chown(path, 60999, 60999)
    left = pathlib.Path(f"{path}.0123.new")
    left.touch()
    layout.reserve_key_state(config)
    found = path.lstat()
    assert (found.st_uid, found.st_mode) == (os.getuid(), stat.S_IFREG | 0o640)
    assert not left.exists()
    assert (tmp_path / "victim").read_text() == "precious"
    layout.reserve_key_state(config)
    assert path.lstat().st_ino == found.st_ino


def test_the_state_of_the_keys_follows_no_link(config: Config, tmp_path: pathlib.Path) -> None:
    (tmp_path / "victim").write_text("precious")
    os.symlink(tmp_path / "victim", f"{state_path(config)}.{os.getpid()}.new")
    write_state(state_path(config), [])
    assert (tmp_path / "victim").read_text() == "precious"
    assert read_state(state_path(config)) == []
