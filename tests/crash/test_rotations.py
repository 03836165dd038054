"""The short version of ``rotations.py``: the control process killed in the middle of rotations, over BIND."""

import json
import pathlib
import subprocess
import sys

import pytest
from peer_programs import need


@pytest.mark.peer
@pytest.mark.slow
def test_a_rotation_survives_its_control_process() -> None:
    need("named")
    script = pathlib.Path(__file__).parent / "rotations.py"
    done = subprocess.run(
        [sys.executable, str(script), "--json", "--kills", "2"], capture_output=True, text=True, timeout=300
    )
    print(done.stderr)  # the seed, and what was wrong
    assert done.returncode == 0
    result = json.loads(done.stdout)
    assert result["control_kills"] == 2
    assert result["drifts"] == 0
