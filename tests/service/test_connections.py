"""Limits of connections over the whole pool, as the service that an operator starts keeps them."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import resource
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from ptt.cli.sandbox import Sandbox

pytestmark = pytest.mark.slow
MOST = 8


class Limited(Sandbox):
    def adapt(self, document: Any) -> None:
        super().adapt(document)
        document["connections"] = {"per_address": MOST, "address_per_minute": 0, "exempt": []}

    def workers(self) -> dict[str, int]:
        state = json.loads((pathlib.Path(self.config.run) / "supervisor.json").read_text())
        return {p["name"]: p["pid"] for p in state["processes"] if p["kind"] == "worker" and p["ready"] and p["pid"]}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Limited]:
    one = Limited(tmp_path_factory.mktemp("limits") / "sandbox")
    one.prepare()
    try:
        one.start_service()
        yield one
    finally:
        one.stop()


def greeting(service: Limited, stack: contextlib.ExitStack, source: str = "127.0.0.1") -> bytes:
    """Connect, and stay so."""
    address = service.address("submission", "starttls")
    sock = stack.enter_context(socket.create_connection(address, timeout=10, source_address=(source, 0)))
    with contextlib.suppress(ConnectionResetError):
        return sock.recv(1000)
    return b""


def let_in(service: Limited, stack: contextlib.ExitStack, number: int) -> list[bytes]:
    """``number`` greetings, once there is room for all of them: what was closed is noticed a moment later."""
    deadline = time.monotonic() + 20
    while True:
        with contextlib.ExitStack() as tried:
            got = [greeting(service, tried) for _ in range(number)]
            if all(one.startswith(b"220 ") for one in got) or time.monotonic() > deadline:
                stack.push(tried.pop_all())
                return got
        time.sleep(0.05)


def cpu_seconds(pid: int) -> float:
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_workers_without_descriptors_wait_and_go_on(service: Limited) -> None:
    """Connections stay in the backlog meanwhile; waiting costs next to no CPU."""
    workers = list(service.workers().values())
    limits = {pid: resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in workers}
    with contextlib.ExitStack() as stack:
        assert all(one.startswith(b"220 ") for one in let_in(service, stack, MOST // 2))  # what opens late is open
        for pid in workers:
            used = max(int(fd) for fd in os.listdir(f"/proc/{pid}/fd")) + 1
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (used, limits[pid][1]))
        try:
            address = service.address("submission", "starttls")
            waiting = []
            deadline = time.monotonic() + 20
            while '"event":"cannot accept"' not in service.log.read_text():
                assert time.monotonic() < deadline
                waiting.append(stack.enter_context(socket.create_connection(address, timeout=10)))
                time.sleep(0.02)
            before = sum(map(cpu_seconds, workers))
            time.sleep(1.0)
            assert sum(map(cpu_seconds, workers)) - before < 0.3
        finally:
            for pid in workers:
                resource.prlimit(pid, resource.RLIMIT_NOFILE, limits[pid])
        assert waiting[-1].recv(1000)[:3] in (b"220", b"421")  # it was not forgotten
    assert list(service.workers().values()) == workers


def test_a_limit_is_one_for_all_workers_and_survives_their_death(service: Limited) -> None:
    with contextlib.ExitStack() as stack:
        assert all(one.startswith(b"220 ") for one in let_in(service, stack, MOST))  # by the kernel, to either worker
        for _ in range(4):
            assert greeting(service, stack).startswith(b"421 4.7.0 too many connections from your address")
        assert greeting(service, stack, "127.0.0.2").startswith(b"220 ")
    with contextlib.ExitStack() as stack:
        assert all(one.startswith(b"220 ") for one in let_in(service, stack, MOST))
        before = service.workers()
        assert len(before) == 2
        for pid in before.values():  # nobody of those takes back what it counted
            os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while len(service.workers()) < 2 or set(service.workers().values()) & set(before.values()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with contextlib.ExitStack() as again:
            got = [greeting(service, again) for _ in range(MOST)]
            assert [one[:3] for one in got] == [b"220"] * MOST
            assert greeting(service, again).startswith(b"421 4.7.0 ")
