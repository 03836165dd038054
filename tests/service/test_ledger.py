"""Counters never go down, whatever dies; nothing that is reported makes the metrics grow without bound."""

from __future__ import annotations

import math
import pathlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from ptt.metrics import (
    LATENCY_BUCKETS,
    MAX_POPULAR,
    MAX_SERIES,
    MAX_WATCHED,
    METRICS,
    OFTEN,
    OTHER,
    Counters,
    Histogram,
    Popular,
    Snapshot,
)
from ptt.service.collector import ServiceCollector
from ptt.service.lag import KEPT, Lag
from ptt.service.ledger import LIVE_SECONDS, Identity, Ledger

SIGNED, OPEN = "ptt_signed_total", "ptt_sessions_open"


def signed(value: float, domain: str = "a.example") -> Snapshot:
    return Snapshot([(SIGNED, (domain,), value)], [], [])


def total(ledger: Ledger, now: float = 0.0) -> float:
    return ledger.totals(now).counters.get((SIGNED, ("a.example",)), 0.0)


def test_a_replaced_process_keeps_what_it_counted() -> None:
    ledger = Ledger()
    ledger.report(Identity("worker.0", 10, 1), signed(5), 0)
    ledger.report(Identity("worker.0", 10, 1), signed(7), 1)
    assert total(ledger) == 7
    ledger.report(Identity("worker.0", 11, 2), signed(1), 2)
    assert total(ledger) == 8
    ledger.report(Identity("worker.0", 10, 1), signed(9), 3)  # a late word of the dead one
    assert total(ledger) == 8


def test_a_process_that_counts_less_started_anew() -> None:
    ledger = Ledger()
    same = Identity("queue", 1, 0)
    ledger.report(same, signed(5), 0)
    ledger.report(same, signed(2), 1)
    assert total(ledger) == 7
    ledger.report(same, Snapshot([], [], []), 2)
    ledger.report(same, signed(1), 3)
    assert total(ledger) == 8


def test_processes_add_up() -> None:
    ledger = Ledger()
    for n in range(3):
        ledger.report(Identity(f"worker.{n}", n, 1), signed(n + 1), 0)
    assert total(ledger) == 6


def test_gauges_are_of_the_living_and_infos_do_not_add_up() -> None:
    ledger = Ledger()
    info = ("ptt_directory_commit_info", ("abc",), 1.0)
    for n in range(2):
        ledger.report(
            Identity(f"worker.{n}", n, 1), Snapshot([], [(OPEN, ("relay",), 2.0), info], []), n * LIVE_SECONDS
        )
    found = ledger.totals(LIVE_SECONDS).gauges
    assert found == {(OPEN, ("relay",)): 4.0, ("ptt_directory_commit_info", ("abc",)): 1.0}
    assert ledger.totals(LIVE_SECONDS + 1).gauges[OPEN, ("relay",)] == 2.0


def test_histograms_add_up_over_a_replacement() -> None:
    ledger = Ledger()
    for pid in (1, 2):
        counts = [0] * (len(LATENCY_BUCKETS) + 1)
        counts[pid] = 3
        ledger.report(
            Identity("worker.0", pid, pid), Snapshot([], [], [("ptt_accept_seconds", (), Histogram(counts, 1.5))]), 0
        )
    found = ledger.totals(0).histograms["ptt_accept_seconds", ()]
    assert (sum(found.counts), found.sum) == (6, 3.0)


@pytest.mark.parametrize(
    "snapshot",
    [
        Snapshot([("ptt_unknown_total", (), 1.0)], [], []),
        Snapshot([(SIGNED, (), 1.0)], [], []),  # a label is missing
        Snapshot([(SIGNED, ("a.example",), -1.0)], [], []),
        Snapshot([(SIGNED, ("a.example",), math.nan)], [], []),
        Snapshot([(OPEN, ("relay",), 1.0)], [], []),  # a gauge
        Snapshot([], [(SIGNED, ("a.example",), 1.0)], []),  # a counter
        Snapshot([], [], [("ptt_accept_seconds", (), Histogram([1], 1.0))]),
        Snapshot([], [], [("ptt_accept_seconds", (), Histogram([-1] * (len(LATENCY_BUCKETS) + 1), 1.0))]),
    ],
)
def test_what_is_no_report_is_left_out(snapshot: Snapshot) -> None:
    ledger = Ledger()
    ledger.report(Identity("worker.0", 1, 1), snapshot, 0)
    found = ledger.totals(0)
    assert (found.counters, found.gauges, found.histograms) == ({}, {}, {})


def test_labels_are_bounded_and_nothing_is_lost() -> None:
    ledger = Ledger()
    many = Snapshot([(SIGNED, (f"d{n}.example",), 1.0) for n in range(MAX_SERIES + 50)], [], [])
    for _ in range(2):
        ledger.report(Identity("worker.0", 1, 1), many, 0)
    found = ledger.totals(0).counters
    assert len(found) == MAX_SERIES + 1
    assert found[SIGNED, ("other",)] == 50
    assert sum(found.values()) == MAX_SERIES + 50


Step = tuple[str, int, int]


@given(
    st.lists(st.tuples(st.sampled_from(["count", "die", "control"]), st.integers(0, 2), st.integers(0, 5)), max_size=40)
)
def test_no_history_makes_a_counter_go_down(tmp_path_factory: pytest.TempPathFactory, steps: list[Step]) -> None:
    """Workers count, report and die; the control process dies after a scrape. What a scrape shows never shrinks."""
    file = tmp_path_factory.mktemp("ledger") / "metrics.dat"
    collector = ServiceCollector(str(file), clock=lambda: 0.0)
    counts, starts = [0, 0, 0], [1, 1, 1]
    seen = 0.0
    for what, worker, by in steps:
        if what == "count":
            counts[worker] += by
            collector.ledger.report(Identity(f"worker.{worker}", 1, starts[worker]), signed(counts[worker]), 0)
        elif what == "die":
            counts[worker], starts[worker] = 0, starts[worker] + 1
        else:
            collector.text()
            collector = ServiceCollector(str(file), clock=lambda: 0.0)
            assert collector.load() == ""
        now = samples(collector.text()).get((SIGNED, (("domain", "a.example"),)), 0.0)
        assert now >= seen
        seen = now


def samples(text: bytes) -> dict[tuple[str, Any], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_the_text_is_what_prometheus_reads(tmp_path: pathlib.Path) -> None:
    counters = Counters()
    counters.count(SIGNED, 'we"ird\n.example')
    counters.gauge(OPEN, "relay", value=3)
    for seconds in (0.0005, 0.3, 9999.0):
        counters.observe("ptt_accept_seconds", seconds)
    collector = ServiceCollector(str(tmp_path / "metrics.dat"), clock=lambda: 0.0)
    collector.ledger.report(Identity("worker.0", 1, 1), counters.snapshot(), 0)
    found = samples(collector.text())
    assert found[SIGNED, (("domain", 'we"ird\n.example'),)] == 1
    assert found[OPEN, (("service", "relay"),)] == 3
    assert found["ptt_accept_seconds_bucket", (("le", "0.001"),)] == 1
    assert found["ptt_accept_seconds_bucket", (("le", "0.5"),)] == 2
    assert found["ptt_accept_seconds_bucket", (("le", "+Inf"),)] == found["ptt_accept_seconds_count", ()] == 3
    assert found["ptt_maybe_delivered_total", ()] == 0  # no labels: there from the start


def test_a_damaged_file_is_moved_aside(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "metrics.dat"
    file.write_bytes(b"\xc1 not msgpack")
    collector = ServiceCollector(str(file))
    assert collector.load()
    assert (tmp_path / "metrics.dat.bad").exists()
    assert collector.text()


def test_metrics_are_served_when_they_cannot_be_kept(tmp_path: pathlib.Path) -> None:
    collector = ServiceCollector(str(tmp_path / "gone" / "metrics.dat"))
    assert b"ptt_maybe_delivered_total 0.0" in collector.text()
    with pytest.raises(FileNotFoundError):
        collector.save()


def test_names_of_the_table() -> None:
    for metric in METRICS:
        assert metric.name.startswith("ptt_")
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.help[0].isupper() or metric.help[0].isdigit()
        assert not metric.help.endswith(".")
    assert len({metric.name for metric in METRICS}) == len(METRICS)


def test_a_process_bounds_its_own_labels() -> None:
    counters = Counters()
    for _ in range(2):
        for n in range(MAX_SERIES + 50):
            counters.count(SIGNED, f"d{n}.example")
    assert len(counters.counters) == MAX_SERIES + 1
    assert counters.counters[SIGNED, ("other",)] == 100
    assert sum(counters.counters.values()) == 2 * (MAX_SERIES + 50)


def test_popular_names_keep_their_label() -> None:
    popular = Popular()
    assert [popular.label("a") for _ in range(OFTEN + 1)] == [OTHER] * (OFTEN - 1) + ["a", "a"]
    for n in range(MAX_WATCHED * 2):  # names that come once get none, and are forgotten
        assert popular.label(f"once{n}") == OTHER
    found = {popular.label(f"n{n}") for n in range(MAX_POPULAR * 2) for _ in range(OFTEN)}
    assert len(found) == MAX_POPULAR  # 99 of them, and OTHER
    assert popular.label("a") == "a"


def test_lag_is_the_worst_of_the_last_ticks() -> None:
    counters, times = Counters(), iter([0.0, 0.5, 1.0, 1.1] + [2.0, 2.1] * KEPT)
    lag = Lag(counters, "worker.0", sleep=lambda _: None, clock=lambda: next(times))
    for expected in (0.4, 0.4):
        lag.tick()
        assert counters.gauges["ptt_loop_lag_seconds", ("worker.0",)] == pytest.approx(expected)
    for _ in range(KEPT - 1):
        lag.tick()
    assert counters.gauges["ptt_loop_lag_seconds", ("worker.0",)] == pytest.approx(0, abs=1e-6)
