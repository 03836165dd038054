"""The short version of ``make crash``: every kind of process killed a few times under load."""

import json
import pathlib
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_nothing_is_lost_when_processes_are_killed() -> None:
    script = pathlib.Path(__file__).parent / "kill9.py"
    command = [sys.executable, str(script), "--json", "--messages", "600", "--kills", "15", "--pause", "0.5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    print(done.stderr)  # the seed
    assert done.stdout, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    print(result)
    assert result["kills"] == 15
    assert result["acknowledged"] >= 600
    assert result["lost"] == 0
    assert result["duplicates_unexplained"] == 0
