"""The metrics as Prometheus reads them: one custom Collector over the ledger, and the file that keeps it.

What a scrape shows was written to the file before, so that no scrape after a death of the control process shows less.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ptt.metrics import LATENCY_BUCKETS, METRICS, Histogram, Key
from ptt.service.ledger import Kept, Ledger, Totals

MAX_FILE = 64 * 1024 * 1024  # MAX_SERIES label sets of each metric for some hundred processes

_decode = msgspec.msgpack.Decoder(Kept).decode
_encode = msgspec.msgpack.Encoder().encode
_BOUNDS = [*(str(bound) for bound in LATENCY_BUCKETS), "+Inf"]

V = TypeVar("V")


class ServiceCollector(Collector):
    """``ledger`` takes the reports; ``text`` is a scrape. ``refresh`` is called before each for what is not pushed."""

    def __init__(
        self, file: str, refresh: Callable[[], None] = lambda: None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.ledger = Ledger()
        self._file = file
        self._refresh = refresh
        self._clock = clock
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def load(self) -> str:
        """Go on from the file. Returns what is wrong with it ("" if nothing); it is moved aside then."""
        try:
            with open(self._file, "rb") as file:
                self.ledger.load(_decode(file.read(MAX_FILE)))
        except FileNotFoundError:
            return ""
        except (OSError, msgspec.MsgspecError) as e:
            with contextlib.suppress(OSError):
                os.replace(self._file, f"{self._file}.bad")
            return str(e)
        return ""

    def save(self) -> None:
        """Replace the file in one step. Not synced: a loss of power takes some seconds of counts. Raises OSError."""
        temporary = f"{self._file}.new"
        with open(temporary, "wb") as file:
            file.write(_encode(self.ledger.dump()))
        os.replace(temporary, self._file)

    def text(self) -> bytes:
        """The metrics in the text format. They are shown even when they cannot be kept (disk full)."""
        self._refresh()
        with contextlib.suppress(OSError):
            self.save()
        return generate_latest(self._registry)

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        yield from render(self.ledger.totals(self._clock()))


def render(totals: Totals) -> Iterator[Metric]:
    """One family for each metric of the table; those without labels start at 0."""
    counters, gauges, histograms = _by_name(totals.counters), _by_name(totals.gauges), _by_name(totals.histograms)
    for metric in METRICS:
        if metric.kind == "counter":
            counter = CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
            for labels, value in _or_zero(counters.get(metric.name, {}), metric.labels):
                counter.add_metric(labels, value)
            yield counter
        elif metric.kind == "gauge":
            gauge = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
            for labels, value in gauges.get(metric.name, {}).items():
                gauge.add_metric(labels, value)
            yield gauge
        else:
            family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
            for labels, histogram in histograms.get(metric.name, {}).items():
                family.add_metric(labels, _cumulative(histogram), sum_value=histogram.sum)
            yield family


def _or_zero(series: dict[tuple[str, ...], float], labels: tuple[str, ...]) -> list[tuple[tuple[str, ...], float]]:
    return [((), 0.0)] if not series and not labels else list(series.items())


def _by_name(series: dict[Key, V]) -> dict[str, dict[tuple[str, ...], V]]:
    found: dict[str, dict[tuple[str, ...], V]] = {}
    for (name, labels), value in series.items():
        found.setdefault(name, {})[labels] = value
    return found


def _cumulative(histogram: Histogram) -> list[tuple[str, float]]:
    total, found = 0, []
    for bound, count in zip(_BOUNDS, histogram.counts, strict=True):
        total += count
        found.append((bound, float(total)))
    return found
