"""A database of 20,000 users: how long its first commit and one changed file take (printed, not asserted)."""

import time
from typing import Any

import pytest

from ptt.directory.records import User
from ptt.directory.schema import dump

USERS = 20_000


@pytest.mark.slow
def test_twenty_thousand_users(base: Any, fast_hash: str, capsys: pytest.CaptureFixture[str]) -> None:
    blob = dump(User(password=fast_hash))
    base.commit({f"users/a.example/u{n}.toml": blob for n in range(USERS)})
    began = time.monotonic()
    control = base.control()
    whole = time.monotonic() - began
    snapshot = base.snapshot()
    assert snapshot.user("u19999@a.example") is not None
    commit = base.commit({"users/a.example/u7.toml": "disabled = true"})
    began = time.monotonic()
    assert control.refresh()
    one = time.monotonic() - began
    began = time.monotonic()
    assert snapshot.refresh()
    switch = time.monotonic() - began
    assert snapshot.commit == commit
    assert snapshot.user("u7@a.example").disabled
    assert not snapshot.user("u8@a.example").disabled
    with capsys.disabled():
        print(f"\n{USERS} users: whole {whole:.2f} s, one file {one * 1000:.0f} ms, switch {switch * 1000:.2f} ms")
