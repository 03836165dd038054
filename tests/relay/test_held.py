"""What a delivery keeps in memory while the peer thinks about the content."""

from __future__ import annotations

import tracemalloc
from typing import Any

import gevent
import pytest

SIZE = 2 * 1024 * 1024


@pytest.mark.slow
@pytest.mark.parametrize("line", [b"x" * 76 + b"\r\n", b"." * 76 + b"\r\n"])
def test_waiting_for_the_last_reply_keeps_no_second_copy(line: bytes, peer: Any, sender: Any, action: Any) -> None:
    """The content itself is the pipeline's (HELD_BYTES); its stuffed form is gone once it is written."""
    there = peer({"EHLO": b"250-peer\r\n250 8BITMIME\r\n", "dot": action.HANG})
    relay = sender(there.port)
    content = b"Subject: x\r\n\r\n" + line * (SIZE // len(line))
    tracemalloc.start()
    sending = gevent.spawn(relay.send, content=content)
    with gevent.Timeout(30):
        while not there.contents:
            gevent.sleep(0.01)
    gevent.sleep(0)
    ours = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, "*/ptt/*")])  # not the peer's copies
    tracemalloc.stop()
    held = sum(trace.size for trace in ours.traces)
    sending.kill()
    assert held < SIZE // 8, f"{held} octets for a content of {SIZE}"
