"""The table: a peer that misbehaves in each way at each step, and what becomes of the recipient."""

from __future__ import annotations

from typing import Any

import pytest

from ptt.relay.outcome import Deferred, Delivered, Failed

STEPS = ("greeting", "EHLO", "MAIL", "RCPT", "DATA", "dot")
PHASES = {"dot": "end of DATA"}
EHLO_ALONE = b"250 peer\r\n"


def plan(step: str, what: Any) -> dict[str, Any]:
    return {step: what, "HELO": what} if step == "EHLO" else {step: what}


@pytest.fixture(params=["pipelined", "one by one"])
def extra(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {} if request.param == "pipelined" else {"EHLO": EHLO_ALONE}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("what", ["HANG", "CUT", "RESET"])
def test_silence(step: str, what: str, extra: Any, peer: Any, sender: Any, action: Any) -> None:
    there = peer({**extra, **plan(step, action[what])})
    waits = 0.1 if what == "HANG" else 5.0
    relay = sender(there.port, waits=waits)
    (outcome,) = relay.send()
    assert isinstance(outcome, Deferred)
    reset_at_once = step == "greeting" and what == "RESET"
    assert outcome.phase in (PHASES.get(step, step), "HELO", "connect" if reset_at_once else "")
    assert outcome.maybe == (step == "dot")
    assert not outcome.reply
    assert outcome.enhanced == ("4.4.1" if what == "HANG" or outcome.phase == "connect" else "4.4.2")
    assert outcome.peer == f"mx.example.org[127.0.0.1]:{there.port}"
    assert relay.marks == (1 if step == "dot" else 0)
    assert len(relay.relay.idle) == 0


@pytest.mark.parametrize("step", STEPS)
def test_temporary_refusal(step: str, extra: Any, peer: Any, sender: Any) -> None:
    there = peer({**extra, **plan(step, b"450 4.2.0 not now\r\n")})
    relay = sender(there.port)
    (outcome,) = relay.send()
    assert isinstance(outcome, Deferred)
    assert outcome.text == "450 4.2.0 not now"
    assert outcome.phase == PHASES.get(step, step)
    assert outcome.reply
    assert not outcome.maybe


@pytest.mark.parametrize("step", STEPS)
def test_permanent_refusal(step: str, extra: Any, peer: Any, sender: Any) -> None:
    there = peer({**extra, **plan(step, b"550-5.1.1 no\r\n550 5.1.1 never\r\n")})
    (outcome,) = sender(there.port).send()
    if step in ("greeting", "EHLO"):
        assert isinstance(outcome, Deferred)
        assert outcome.enhanced == "4.3.0"
    else:
        assert isinstance(outcome, Failed)
        assert outcome.enhanced == "5.1.1"
        assert outcome.phase == PHASES.get(step, step)
    assert outcome.text == "550 5.1.1 no never"
    assert outcome.reply


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\xff\xfe what\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"250 bare\nline\r\n",
        b"999 no such code\r\n",
        b"250 " + b"x" * 100_000,
        b"250-x\r\n" * 20_000,
        b"250-one\r\n354 other\r\n",
        b"\r\n",
    ],
)
def test_garbage(step: str, garbage: bytes, extra: Any, peer: Any, sender: Any) -> None:
    there = peer({**extra, **plan(step, garbage)})
    relay = sender(there.port)
    (outcome,) = relay.send()
    assert isinstance(outcome, Deferred)
    assert outcome.maybe == (step == "dot")
    assert not outcome.reply
    assert len(relay.relay.idle) == 0


@pytest.mark.parametrize("step", STEPS)
def test_closing_down(step: str, extra: Any, peer: Any, sender: Any) -> None:
    there = peer({**extra, **plan(step, b"421 4.3.2 closing\r\n")})
    relay = sender(there.port)
    (outcome,) = relay.send()
    assert isinstance(outcome, Deferred)
    assert outcome.text == "421 4.3.2 closing"
    assert not outcome.maybe
    assert len(relay.relay.idle) == 0
    assert there.connections == 1


def test_replies_that_nobody_asked_for(peer: Any, sender: Any) -> None:
    for step in STEPS[:-1]:
        there = peer({step: b"250 2.0.0 ok\r\n" * 10})
        (outcome,) = sender(there.port).send()
        assert not isinstance(outcome, Delivered), step


def test_success(extra: Any, peer: Any, sender: Any) -> None:
    there = peer(extra)
    relay = sender(there.port)
    (outcome,) = relay.send()
    assert outcome == Delivered(
        "250 2.0.0 queued as 42", "end of DATA", f"mx.example.org[127.0.0.1]:{there.port}", "2.0.0"
    )
    assert there.contents == [b"X: y\r\nSubject: test\r\n\r\nhello\r\n..dot\r\n"]
    assert there.commands[0] == "EHLO us.example.net"
    assert relay.marks == 1


def test_helo_for_those_who_know_no_ehlo(peer: Any, sender: Any) -> None:
    there = peer({"EHLO": b"502 what?\r\n"})
    (outcome,) = sender(there.port).send()
    assert isinstance(outcome, Delivered)
    assert there.commands[1] == "HELO us.example.net"


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_dripping_does_not_prolong_the_wait(step: str, peer: Any, sender: Any, action: Any) -> None:
    """A line each time before the time-out, for ever: the whole is bounded."""
    there = peer({step: action.DRIP, "HELO": action.DRIP})
    relay = sender(there.port, waits=0.1)
    (outcome,) = relay.send()
    assert isinstance(outcome, Deferred)
    assert relay.log()[-1]["seconds"] < 2


@pytest.mark.slow
def test_large_content_and_a_refusal_before_its_end(peer: Any, sender: Any, action: Any) -> None:
    content = b"0123456789" * 7 + b"\r\n"
    there = peer({"DATA": b"354 go on\r\n", "X: Y": b"552 5.3.4 too big\r\n"})
    relay = sender(there.port)
    (outcome,) = relay.send(content=content * 100_000)
    assert isinstance(outcome, Failed)
    assert outcome.text == "552 5.3.4 too big"
    assert relay.marks == 0


@pytest.mark.slow
def test_large_content_arrives(peer: Any, sender: Any) -> None:
    content = b"0123456789" * 7 + b"\r\n"
    there = peer({"EHLO": b"250 peer\r\n"})
    relay = sender(there.port)
    (outcome,) = relay.send(content=content * 100_000)
    assert isinstance(outcome, Delivered)
    assert there.contents == [b"X: y\r\n" + content * 100_000]
    assert relay.marks == 1
