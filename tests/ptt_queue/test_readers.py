"""Another process reads the store, hangs, and is killed with its snapshot open: service goes on, space comes back."""

import subprocess
import sys

import msgspec
import pytest
from ptt_queue.in_process import SETTINGS, InProcess
from ptt_queue.testing import new_message
from ptt_queue.types import Settle

READER = """
import sys
from ptt_queue.store import Store
store = Store(sys.argv[1], 1 << 30, readonly=True)
txn = store.begin(write=False)
print(txn.pages(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def subject(tmp_path):
    time = [1_800_000_000.0]
    subject = InProcess(str(tmp_path / "queue"), msgspec.structs.replace(SETTINGS, limited=()), lambda: time[0])
    subject.time = time
    yield subject
    subject.close()


@pytest.fixture
def reader(subject):
    process = subprocess.Popen(
        [sys.executable, "-c", READER, subject.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert int(process.stdout.readline()) > 0  # its snapshot is open
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def _growth(subject, client):
    """Pages that the file grew by, for mail that came and went."""
    before = subject.store.env.info()["last_pgno"]
    body = b"x" * 100_000
    for _ in range(20):
        (task,) = client.put(new_message(body=body), body).leased
        assert client.settle(Settle(task.message, task.number)).stored
    return subject.store.env.info()["last_pgno"] - before


@pytest.mark.slow
def test_hung_reader_hinders_nobody_and_space_comes_back_when_it_is_killed(subject, reader):
    with subject.client() as client:
        _growth(subject, client)
        assert _growth(subject, client) > 200  # what is freed stays for its snapshot
        reader.kill()
        reader.wait()
        assert _growth(subject, client) > 200  # nobody has noticed
        subject.time[0] += 61
        client.stats()
        assert _growth(subject, client) < 50


@pytest.mark.slow
def test_killed_reader_is_noticed_when_a_client_goes(subject, reader):
    with subject.client() as client:
        _growth(subject, client)
        reader.kill()
        reader.wait()
        with subject.client() as other:
            other.stats()
        client.stats()
        assert _growth(subject, client) < 50
