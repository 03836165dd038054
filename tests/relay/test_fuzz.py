"""A peer whose replies are random: the relay ends in time, never crashes, and claims no delivery that did not happen.

The network and the clock are made up, so hours pass in no time. ``PTT_FUZZ_SECONDS=60 pytest tests/relay/test_fuzz.py``
goes on for longer.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from ptt.net.stream import ConnectFailed, PeerClosed, ReadTimeout, WriteTimeout
from ptt.relay.attempt import TALK_SECONDS
from ptt.relay.outcome import Deferred, Delivered, Failed, Outcome

SECONDS = float(os.environ.get("PTT_FUZZ_SECONDS", "1.5"))
COMMAND, FINAL, CONNECT = 300.0, 600.0, 30.0
LONGEST = TALK_SECONDS + CONNECT + 2 * FINAL + 10  # all hosts together; a final dot that is deferred, and one more
NOISE = (
    b"250 ok\r\n",
    b"354 go\r\n",
    b"421 away\r\n",
    b"450 4.2.1 later\r\n",
    b"550 5.1.1 no\r\n",
    b"25",
    b"\r\n",
    b"\n",
)
MORE_NOISE = (
    b"250-",
    b"250-a\r\n550 b\r\n",
    b"999 x\r\n",
    b"\x00\xff",
    b"x" * 3000,
    b"250 2.0.0 ok\r\n" * 5,
    b"334 \r\n",
)
OFFERS = (
    b"PIPELINING",
    b"SIZE 1000",
    b"SIZE 9",
    b"8BITMIME",
    b"LIMITS RCPTMAX=1",
    b"LIMITS MAILMAX=1",
    b"DSN",
    b"SMTPUTF8",
)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    monotonic = __call__


class Wire:
    """One connection to the random peer. Notes when the end of a content was written, and what was said behind it."""

    peer = "192.0.2.1:25"

    def __init__(self, rng: random.Random, clock: Clock, sanity: float, lmtp: bool) -> None:
        self.rng, self.clock, self.sanity, self.lmtp = rng, clock, sanity, lmtp
        self.lines = b""
        self.said: list[bytes] = [b"220 hello\r\n"]
        self.in_data = False
        self.accepted = 0
        self.dots = 0
        self.good_after_dot = 0
        self.closed = False
        self.pace = 0.0  # how much of each time-out a reply takes; 0: at random

    def write(self, data: bytes, timeout: float) -> None:
        assert not self.closed
        if self.rng.random() > self.sanity**0.2:
            self.clock.now += max(timeout, 0)
            raise self.rng.choice((WriteTimeout, PeerClosed))("write")
        self.lines += data
        while self.lines:
            if self.in_data:
                _, end, rest = (b"\r\n" + self.lines).partition(b"\r\n.\r\n")
                if not end:
                    return
                self.lines, self.in_data = rest, False
                self.dots += 1
                self.said += [b"250 2.0.0 saved\r\n"] * (self.accepted if self.lmtp else 1)
            else:
                command, end, rest = self.lines.partition(b"\r\n")
                if not end:
                    return
                self.lines = rest
                self._command(command[:4].upper())

    def _command(self, verb: bytes) -> None:
        if verb in (b"EHLO", b"LHLO"):
            offers = self.rng.sample(OFFERS, self.rng.randint(0, 5))
            self.said.append(b"".join(b"250-%s\r\n" % o for o in offers) + b"250 ENHANCEDSTATUSCODES\r\n")
        elif verb == b"DATA":
            refused = self.rng.random() > self.sanity
            self.in_data = not refused and self.accepted > 0
            self.said.append(b"554 no\r\n" if not self.in_data else b"354 go\r\n")
        elif verb == b"RCPT":
            good = self.rng.random() < self.sanity
            self.accepted += good
            self.said.append(
                b"250 2.1.5 ok\r\n" if good else self.rng.choice((b"450 4.2.1 no\r\n", b"550 5.1.1 no\r\n"))
            )
        else:
            self.accepted = 0 if verb in (b"MAIL", b"RSET") else self.accepted
            self.said.append(b"221 bye\r\n" if verb == b"QUIT" else b"250 2.0.0 ok\r\n")

    def read(self, most: int, timeout: float) -> bytes:
        assert not self.closed
        wait = self.rng.random() * timeout * (0.01 if self.rng.random() < self.sanity else 1.1)
        wait = self.pace * timeout or wait
        self.clock.now += min(max(wait, 0.0), max(timeout, 0.0))
        if wait > timeout or (not self.said and self.rng.random() < 0.5):
            self.clock.now += max(timeout - wait, 0.0)
            raise ReadTimeout("read")
        said = self.said.pop(0) if self.said else self.rng.choice(NOISE)
        if self.rng.random() > self.sanity:
            said = self.rng.choice((b"", self.rng.choice(NOISE), self.rng.choice(MORE_NOISE), said[: len(said) // 2]))
        while self.said and self.rng.random() < 0.3:
            said += self.said.pop(0)
        if self.dots:
            self.good_after_dot += len(re.findall(rb"(?:^|\n|\d|-| )2\d\d", b"\n" + said))
        return said[:most]

    def tls(self) -> None:
        return None

    def start_tls(self, *_: Any, **__: Any) -> Any:
        raise PeerClosed("TLS")

    def close(self) -> None:
        self.closed = True


class Case(NamedTuple):
    outcomes: list[Outcome]
    wires: list[Wire]
    seconds: float
    marks: int


@pytest.fixture
def play(sender: Any, dns: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Case]:
    clock, state = Clock(), {}
    dns.records["example.org"] = [(10, "a.example.org"), (20, "b.example.org")]
    dns.hosts |= {"a.example.org": ["127.0.0.1"], "b.example.org": ["127.0.0.2"]}

    def connect(ip: str, port: int, timeout: float, source: str | None = None) -> Any:
        rng = state["rng"]
        if rng.random() < 0.1:
            clock.now += timeout
            raise ConnectFailed("no")
        state["wires"].append(Wire(rng, clock, rng.choice((0.2, 0.7, 0.95, 0.99)), state["lmtp"]))
        state["wires"][-1].pace = state["pace"]
        return state["wires"][-1]

    for module in ("eyeballs", "session", "delivery"):
        monkeypatch.setattr(f"ptt.relay.{module}.connect", connect)
    for module in ("session", "lmtp", "attempt"):
        monkeypatch.setattr(f"ptt.relay.{module}.time", clock)
    waits = {"command_seconds": COMMAND, "final_dot_seconds": FINAL, "connect_seconds": CONNECT, "data_seconds": 180.0}
    lanes = {"lmtp.example": Lmtp()}
    relay = sender(tls="none", overrides=lanes.get, **waits)
    relay.relay.clock = clock

    def once(seed: int, pace: float = 0.0) -> Case:
        rng = random.Random(seed)
        state.update(rng=rng, pace=pace, wires=[], lmtp=rng.random() < 0.3)
        lane = "lmtp.example" if state["lmtp"] else "example.org"
        relay.relay.close()  # each case stands alone
        began, marks = clock.now, relay.marks
        to = [f"{n}@{lane}" for n in range(rng.randint(1, 4))]
        content = b"Subject: x\r\n\r\n" + b"line\r\n" * rng.choice((1, 20_000))
        outcomes = relay.send(*to, lane=lane, content=content)
        return Case(outcomes, state["wires"], clock.now - began, relay.marks - marks)

    return once


class Lmtp(NamedTuple):
    via: str = "lmtp"
    host: str = "127.0.0.1:24"
    tls: str = "opportunistic"
    credentials: str = ""
    fallback: str = ""
    source: str = ""


def judge(case: Case) -> None:
    assert all(isinstance(o, Delivered | Deferred | Failed) for o in case.outcomes)
    assert case.seconds <= LONGEST, f"{case.seconds} s"
    delivered = sum(isinstance(o, Delivered) for o in case.outcomes)
    complete = [w for w in case.wires if w.dots]
    assert not delivered or any(w.good_after_dot for w in complete), "a delivery that did not happen"
    if case.wires and case.wires[0].lmtp:
        assert delivered <= sum(w.good_after_dot for w in complete)
    unknown = any(isinstance(o, Deferred) and o.maybe for o in case.outcomes)
    assert not (delivered or unknown) or case.marks, "a final dot left without its mark"


@pytest.mark.slow
def test_random_replies(play: Callable[..., Case], rng: random.Random) -> None:
    end, seen = time.monotonic() + SECONDS, {Delivered: 0, Deferred: 0, Failed: 0}
    while time.monotonic() < end or min(seen.values()) < 5:
        seed = rng.randrange(2**32)
        try:
            case = play(seed)
            judge(case)
        except BaseException:
            print(f"seed {seed}")
            raise
        for outcome in case.outcomes:
            seen[type(outcome)] += 1


def test_replies_that_come_just_in_time(play: Callable[..., Case]) -> None:
    """Each takes nearly its 5 minutes, and the last one its 10: the place is free again in half an hour."""
    cases = [play(seed, 0.99) for seed in range(60)]
    for case in cases:
        judge(case)
    assert max(case.seconds for case in cases) > COMMAND
    assert all(case.seconds < 1800 for case in cases if sum(w.dots for w in case.wires) < 2)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_cases_repeat(seed: int, play: Callable[..., Case]) -> None:
    first, second = play(seed), play(seed)
    assert [type(o) for o in first.outcomes] == [type(o) for o in second.outcomes]
