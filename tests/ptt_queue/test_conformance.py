"""The interface's suite on both queues that we have: in this process, and through the sockets of a real one."""

import contextlib

import pytest
from ptt_queue import conformance, testing


@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda c: c.__name__)
def test_in_process(check, in_process):
    check(in_process)
    assert not [f for f in in_process.failures if "client ended" not in f]


@pytest.mark.slow
@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda c: c.__name__)
def test_through_sockets(check, process):
    check(process)
    assert process.stop() == 0


def test_the_suite_can_fail(in_process, monkeypatch):
    monkeypatch.setattr(conformance, "CHECKS", [testing.check_put_lease_settle])
    monkeypatch.setattr(in_process.queue.requests, "full", lambda: "bytes")
    with pytest.raises(AssertionError):
        conformance.check_queue(lambda: contextlib.nullcontext(in_process))
