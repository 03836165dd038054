"""The short versions of ``make crash``: crash images, losses of power, full disks, errors of the disk, clocks."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

CANNOT = 77  # exit code of a script that this machine does not let run
ROWS = {  # of the state table in queue/DESIGN.md
    "S0 nothing",
    "S1 staged",
    "S2 due later",
    "S3 ready",
    "S4 leased",
    "S5 returned",
    "S6 held",
    "S7 failed",
    "S8 done, large body left",
    "S9 orphan chunks",
    "S10 damaged",
    "S11 counted",
    "S12 suspended",
    "S13 submitter's key",
}


def run(script: str, *arguments: str) -> tuple[int, dict[str, object]]:
    """Exit code and figures of a crash test."""
    command = [sys.executable, str(pathlib.Path(__file__).parent / script), "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    print(done.stderr)  # the seed
    if done.returncode == CANNOT:
        return CANNOT, {"why": done.stderr.splitlines()[-1]}
    assert done.stdout, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    print(result)
    return done.returncode, result


def needs(condition: object, why: str) -> None:
    """Skip where the machine lacks something; with CI=true as root what can be installed must be there."""
    if condition:
        return
    if os.environ.get("CI") == "true" and os.geteuid() == 0:
        pytest.fail(f"{why} (with CI=true this is a failure; sh tests/install-peers.sh)")
    pytest.skip(f"{why}; sh tests/install-peers.sh installs it")


@pytest.mark.slow
@pytest.mark.peer
def test_every_crash_image_holds_what_was_acknowledged() -> None:
    needs(shutil.which("strace"), "strace is not installed")
    code, result = run("images.py", "--rounds", "0", "--subsets", "0", "--share", "0.2")
    assert code == 0, result["examples"]
    assert result["images"] > 300
    assert set(result["rows"]) == ROWS


@pytest.mark.slow
@pytest.mark.peer
def test_the_audit_finds_what_a_lying_disk_lost() -> None:
    needs(shutil.which("strace"), "strace is not installed")
    code, result = run(
        "images.py", "--rounds", "0", "--subsets", "0", "--share", "0", "--small", "--forget-dsync", "--seed", "1"
    )
    assert code == 1
    assert result["wrong"] > 10


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_power_is_lost(kind: str) -> None:
    needs(shutil.which(f"mkfs.{kind}", path=os.environ["PATH"] + ":/usr/sbin:/sbin"), f"mkfs.{kind} is not installed")
    if os.geteuid():
        pytest.skip("needs root to mount an image")
    code, result = run("power.py", "--cuts", "3", "--fs", kind)
    if code == CANNOT:  # the kernel's word: in a container without loop devices there is nothing to install
        exists = os.path.exists("/dev/loop-control") and kind in pathlib.Path("/proc/filesystems").read_text().split()
        assert not (exists and os.environ.get("CI") == "true"), result["why"]
        pytest.skip(str(result["why"]))
    assert code == 0, result["examples"]
    assert result[f"{kind} cut"] == 3


@pytest.mark.slow
@pytest.mark.root
def test_a_full_disk_refuses_and_recovers() -> None:
    code, result = run("faults.py", "--rounds", "1", "--only", "full")
    assert code == 0, result["examples"]
    assert result["full map: recovered"] == 1
    if "full_disk" in result["skipped"]:
        pytest.skip(result["skipped"]["full_disk"])
    assert result["full disk: recovered"] == 1


@pytest.mark.slow
@pytest.mark.peer
def test_errors_of_the_disk_lose_nothing() -> None:
    needs(shutil.which("strace"), "strace is not installed")
    code, result = run("faults.py", "--rounds", "0.5", "--only", "eio")
    assert code == 0, result["examples"]
    assert sum(n for key, n in result.items() if key.startswith("injected")) == 5


@pytest.mark.slow
@pytest.mark.peer
def test_a_clock_that_is_set_loses_and_delays_nothing() -> None:
    needs(shutil.which("faketime"), "faketime is not installed")
    code, result = run("faults.py", "--rounds", "2", "--only", "clock")
    assert code == 0, result["examples"]
    assert result["clock set"] == 12
