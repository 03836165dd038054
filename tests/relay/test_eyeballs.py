"""Which address of a host is connected to, and when: happy eyeballs, addresses that do not answer, our own."""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent import socket

from ptt.config import Config, Listen, Relay
from ptt.dns.resolver import TemporaryFailure
from ptt.net.stream import ConnectFailed, GeventStream
from ptt.relay import eyeballs
from ptt.relay.eyeballs import DeadAddresses, interleaved, race
from ptt.relay.outcome import Deferred, Delivered, Failed
from ptt.relay.routing import OwnSockets, Router
from ptt.relay.session import Target

LAST = 1e9


class Network:
    """Addresses: how long a connection takes, and the error that it ends with (None: it is there)."""

    def __init__(self) -> None:
        self.hosts: dict[str, tuple[float, ConnectFailed | None]] = {}
        self.began: list[tuple[str, float]] = []
        self.open: list[socket.socket] = []
        self.streams: list[GeventStream] = []
        self.start = time.monotonic()

    def dial(self, ip: str, port: int, timeout: float, source: str | None) -> GeventStream:
        self.began.append((ip, time.monotonic() - self.start))
        seconds, error = self.hosts[ip]
        gevent.sleep(min(seconds, timeout))
        if error is not None:
            raise error
        ours, theirs = socket.socketpair()
        self.open.append(theirs)
        self.streams.append(GeventStream(ours, ip))
        return self.streams[-1]

    def lost(self) -> int:
        """Connections that were closed at our end."""
        return sum(self._ended(sock) for sock in self.open)

    @staticmethod
    def _ended(sock: socket.socket) -> bool:
        sock.settimeout(0.05)
        try:
            return bool(sock.recv(1) == b"")
        except OSError:
            return False


@pytest.fixture
def network() -> Iterator[Network]:
    made = Network()
    yield made
    for each in (*made.open, *made.streams):
        each.close()


def timed_out() -> ConnectFailed:
    error = ConnectFailed("did not answer")
    error.__cause__ = TimeoutError()
    return error


def refused() -> ConnectFailed:
    error = ConnectFailed("refused")
    error.__cause__ = ConnectionRefusedError(errno.ECONNREFUSED, "refused")
    return error


def test_families_in_turn() -> None:
    assert interleaved(["1.1.1.1", "2.2.2.2", "3.3.3.3", "::1", "::2"]) == [
        *("::1", "1.1.1.1", "::2", "2.2.2.2", "3.3.3.3"),
    ]
    assert interleaved(["1.1.1.1", "2.2.2.2", "1.1.1.1"]) == ["1.1.1.1", "2.2.2.2"]


def test_the_next_is_tried_after_a_quarter_of_a_second(network: Network) -> None:
    network.hosts = {"::1": (LAST, None), "1.1.1.1": (0.0, None), "::2": (0.0, None)}
    with gevent.Timeout(5):
        won = race(["::1", "1.1.1.1", "::2"], 25, 30, dial=network.dial)
    assert (won.ip, won.failures) == ("1.1.1.1", [])
    (_, first), (_, second) = network.began
    assert 0.2 < second - first < 1


def test_after_a_failure_the_next_is_tried_at_once(network: Network) -> None:
    network.hosts = {"::1": (0.0, refused()), "1.1.1.1": (0.0, None)}
    won = race(["::1", "1.1.1.1"], 25, 30, dial=network.dial)
    assert won.ip == "1.1.1.1"
    assert [ip for ip, _ in won.failures] == ["::1"]
    assert network.began[1][1] < 0.2


def test_losers_are_closed(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that are there at the same moment."""
    monkeypatch.setattr(eyeballs, "STAGGER_SECONDS", 0.001)
    network.hosts = {f"::{n}": (0.05, None) for n in range(8)}
    won = race(list(network.hosts), 25, 30, dial=network.dial)
    gevent.sleep(0.06)
    assert won.stream is not None
    assert network.lost() == len(network.open) - 1


def test_nobody_answers(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eyeballs, "STAGGER_SECONDS", 0.001)
    network.hosts = {f"::{n}": (LAST, timed_out()) for n in range(4)}
    lost = race(list(network.hosts), 25, 0.02, dial=network.dial)
    assert lost.stream is None
    assert sorted(ip for ip, _ in lost.failures) == sorted(network.hosts)
    assert len(network.began) == 4


def test_a_fault_of_ours_is_not_taken_for_the_network(network: Network) -> None:
    network.hosts = {"::1": (0.0, None)}
    with pytest.raises(KeyError):
        race(["::2", "::1"], 25, 1, dial=network.dial)


def test_a_delivery_that_is_killed_leaves_no_connection(network: Network) -> None:
    network.hosts = {"::1": (LAST, None), "::2": (LAST, None)}
    racing = gevent.spawn(race, ["::1", "::2"], 25, 30, dial=network.dial)
    with gevent.Timeout(5):
        while len(network.began) < 2:
            gevent.sleep(0.01)
        racing.kill()
    gevent.sleep(0)
    assert not network.open


def test_who_did_not_answer_is_dead_for_a_while() -> None:
    dead = DeadAddresses(seconds=300, most=2)
    dead.failed("192.0.2.1", timed_out(), 0)
    dead.failed("192.0.2.2", refused(), 0)  # a refusal costs nothing
    assert dead.is_dead("192.0.2.1", 299)
    assert not dead.is_dead("192.0.2.1", 300)
    assert not dead.is_dead("192.0.2.2", 0)
    dead.answered("192.0.2.1")
    assert not dead.is_dead("192.0.2.1", 0)
    for n in range(5):
        dead.failed(f"192.0.2.{n}", timed_out(), 0)
    assert len(dead) == 2
    assert dead.is_dead("192.0.2.4", 0)
    no_route = ConnectFailed("unreachable")
    no_route.__cause__ = OSError(errno.ENETUNREACH, "Network is unreachable")
    dead.failed("2001:db8::1", no_route, 0)
    assert dead.is_dead("2001:db8::2", 0)
    assert not dead.is_dead("192.0.2.77", 0)


# --- through the relay ------------------------------------------------------------------------------------------


def test_dead_addresses_come_last_behind_other_hosts(dns: Any) -> None:
    dns.records["example.org"] = [(10, "mx.example.org"), (20, "mx2.example.org")]
    dns.hosts["mx.example.org"] = ["127.0.0.1", "127.0.0.2"]
    dns.hosts["mx2.example.org"] = ["127.0.0.3"]
    config = Config(hostname="us.example.net", relay=Relay(allow_private=True))
    router = Router(config, dns, random.Random(0), dead=lambda ip: ip == "127.0.0.1")
    found = router.route("example.org")
    assert not isinstance(found, Deferred | Failed)
    targets = list(router.targets(found))
    assert [t.ip for t in targets if isinstance(t, Target)] == ["127.0.0.2", "127.0.0.3", "127.0.0.1"]


def test_a_dead_family_does_not_delay(dns: Any, peer: Any, sender: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The IPv6 address of the host swallows all packets: the message leaves by IPv4, and the next one starts there."""
    there = peer()
    dns.hosts["mx.example.org"] = ["127.0.0.1", "::1"]
    real = eyeballs.connect

    def dial(ip: str, port: int, timeout: float, source: str | None = None) -> GeventStream:
        if ip == "::1":
            gevent.sleep(timeout)
            raise timed_out()
        return real(ip, port, timeout, source)

    monkeypatch.setattr(eyeballs, "connect", dial)
    relay = sender(there.port, idle_seconds=0.01)
    began = time.monotonic()
    assert isinstance(relay.send()[0], Delivered)
    assert time.monotonic() - began < 2


def test_addresses_that_dns_was_slow_with_are_tried_in_the_end(dns: Any, peer: Any, sender: Any) -> None:
    there = peer(ip="127.0.0.2")
    dns.hosts["mx.example.org"] = ["127.0.0.1", "127.0.0.2"]
    dns.addresses_early = lambda _: ["127.0.0.1"]
    relay = sender(there.port)
    assert isinstance(relay.send()[0], Delivered)
    assert [line["outcome"] for line in relay.log()] == ["deferred", "delivered"]


def listening(*addresses: str, service: Any = "relay") -> Config:
    return Config(hostname="us.example.net", listen=tuple(Listen(address=a, service=service) for a in addresses))


@pytest.mark.parametrize(
    ("listen", "ip", "ours"),
    [
        ("127.0.0.1:25", "127.0.0.1", True),
        ("127.0.0.1:25", "127.0.0.2", False),
        ("0.0.0.0:25", "127.0.0.2", True),  # Linux: all of 127.0.0.0/8
        ("0.0.0.0:25", "::1", False),
        ("0.0.0.0:25", "192.0.2.1", False),
        ("[::]:25", "127.0.0.1", True),
        ("127.0.0.1:2525", "127.0.0.1", False),
    ],
)
def test_own_addresses(listen: str, ip: str, ours: bool) -> None:
    assert OwnSockets(listening(listen)).listen(ip, 25) is ours


def test_submission_is_no_mx() -> None:
    assert not OwnSockets(listening("127.0.0.1:25", service="submission")).on(25)


MXS = [(10, "a.example"), (20, "other.example"), (20, "us-too.example"), (30, "worse.example")]


def test_an_mx_that_is_ourselves_by_address(dns: Any) -> None:
    """It and those of equal or worse preference are cut, whatever their order (RFC 5321 5.1)."""
    dns.records["example.org"] = MXS
    dns.hosts |= {"a.example": ["127.0.0.5"], "other.example": ["127.0.0.6"], "us-too.example": ["127.0.0.1"]}
    config = Config(
        hostname="us.example.net",
        listen=(Listen(address="127.0.0.1:25", service="relay"),),
        relay=Relay(allow_private=True),
    )
    for seed in range(8):
        router = Router(config, dns, random.Random(seed))
        found = router.route("example.org")
        assert not isinstance(found, Deferred | Failed)
        first, loop = router.targets(found)
        assert isinstance(first, Target)
        assert first.ip == "127.0.0.5"
        assert isinstance(loop, Failed)
        assert loop.enhanced == "5.4.6"


def test_only_ourselves(dns: Any, sender: Any, free_port: Callable[[], int], monkeypatch: Any) -> None:
    port = free_port()
    relay = sender(port)
    own = OwnSockets(listening(f"127.0.0.1:{port}"))
    monkeypatch.setattr(relay.relay.router, "own_sockets", own)
    (outcome,) = relay.send()
    assert isinstance(outcome, Failed)
    assert outcome.enhanced == "5.4.6"
    dns.hosts["mx.example.org"] = TemporaryFailure
    assert isinstance(relay.send()[0], Deferred)
