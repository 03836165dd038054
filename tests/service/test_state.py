"""run/supervisor.json: in a directory to which another user may add names."""

from __future__ import annotations

import os
import pathlib

import msgspec
import pytest

from ptt.config import Config
from ptt.service import locks, state


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
