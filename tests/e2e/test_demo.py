"""``ptt demo`` as a user types it."""

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_demo_loses_nothing_and_everything_verifies() -> None:
    command = [sys.executable, "-m", "ptt", "demo", "--messages", "200", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr + done.stdout
    counts = json.loads(done.stdout)
    assert counts["accepted"] == counts["delivered"] == counts["verified"] == counts["signed"] == 200
    assert counts["lost"] == counts["duplicates"] == counts["not_accepted"] == 0
