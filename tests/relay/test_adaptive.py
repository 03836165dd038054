"""What an attempt says of its site, when a message is tried again, and the places of a worker."""

import random

import pytest

from ptt.config import Retry
from ptt.places import SLOW_SECONDS, SLOW_SHARE, Places
from ptt.relay.adaptive import PROBE_SECONDS, RATE_PAUSE_SECONDS, verdict
from ptt.relay.adaptive import SLOW_SECONDS as LONG
from ptt.relay.outcome import Deferred, Delivered, Failed, Outcome
from ptt.relay.retry import JITTER, delay_for, next_attempt

GOOD = Delivered("250 ok")
GONE = Failed("550 5.1.1 no such user", "RCPT", "", "5.1.1", reply=True)


def said(text: str, phase: str = "RCPT") -> Deferred:
    return Deferred(text, phase, "mx", reply=True)


DEAD = Deferred("192.0.2.1:25 did not answer in 30 s", "connect", "mx", "4.4.1")


@pytest.mark.parametrize(
    ("outcomes", "trouble", "pause"),
    [
        ([GOOD], "", 0),
        ([GOOD, GONE], "", 0),
        ([GONE], "", 0),
        ([GOOD, said("452 4.2.2 mailbox full")], "none", 0),
        ([said("450 4.7.1 greylisted")], "none", 0),
        ([Deferred("no answer", "DNS", "", "4.4.3")], "none", 0),
        ([said("421 4.7.0 too many connections")], "some", RATE_PAUSE_SECONDS),
        ([said("421 4.3.2 service not available", "greeting")], "some", 0),
        ([said("451 4.3.0 temporary failure")], "some", 0),
        ([Deferred("sent nothing for 300 s", "end of DATA", "mx", "4.4.1", maybe=True)], "some", 0),
        ([GOOD, said("451 4.3.0 temporary failure")], "some", 0),
        ([DEAD, DEAD], "dead", PROBE_SECONDS),
    ],
)
def test_verdicts(outcomes: list[Outcome], trouble: str, pause: float) -> None:
    assert verdict(outcomes, 1.0) == (trouble, pause)


def test_slow_success_and_the_last_attempt() -> None:
    assert verdict([GOOD], LONG + 1).trouble == "none"
    assert verdict([DEAD], 30.0, last=True) == ("dead", 0)


def test_back_off_by_class() -> None:
    retry = Retry(first_seconds=300, factor=2, ceiling_seconds=14_400)
    assert [delay_for(retry, n, "") for n in range(8)] == [300, 600, 1200, 2400, 4800, 9600, 14_400, 14_400]
    assert [delay_for(retry, n, "reputation") for n in range(3)] == [300, 600, 1200]
    assert [delay_for(retry, n, "greylisting") for n in range(4)] == [300, 600, 600, 600]
    assert [delay_for(retry, n, "rate") for n in range(4)] == [300, 600, 600, 600]
    assert [delay_for(retry, n, "quota") for n in range(5)] == [1200, 2400, 4800, 9600, 14_400]
    due = next_attempt(retry, 0, 1_000_000, 0, random.Random(1), "quota")
    assert 1200 * (1 - JITTER) <= (due - 1_000_000) / 1000 <= 1200 * (1 + JITTER)


def test_slow_tasks_leave_their_places_up_to_a_bound() -> None:
    places = Places(10)
    for n in range(10):
        places.take(n, 100.0)
    assert places.free(100.0 + SLOW_SECONDS) == 0
    assert places.free(100.1 + SLOW_SECONDS) == 10
    for n in range(10, 10 * (1 + SLOW_SHARE) + 5):
        places.take(n, 200.0)
    assert places.free(201.0) == -25
    assert places.free(300.0) == -5
    for n in range(45):
        places.leave(n)
    assert places.free(300.0) == 10
