"""What all processes of the service have counted, over their deaths: a counter never goes down. Pure, no I/O.

Each process reports everything it counted since it started, under its identity. When another process takes its
name, or it counts less than before, its last report is added to the *base*. Base and last reports are kept on disk
(``dump``, ``load``), so a restart of the control process loses nothing either.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from ptt.metrics import BY_NAME, LATENCY_BUCKETS, Histogram, Key, Kind, Snapshot

MAX_SERIES = 1000  # label sets of one metric; what comes later counts under "other"
MAX_PROCESSES = 1024  # names that may report; the configuration allows some hundred
OTHER = "other"
LIVE_SECONDS = 10.0  # gauges of a process that has not reported for so long are not shown

_BUCKETS = len(LATENCY_BUCKETS) + 1


class Identity(NamedTuple):
    """One process. ``name`` is taken over by its replacement, ``pid`` and ``start`` (ms) are not."""

    name: str
    pid: int
    start: int


class Totals(msgspec.Struct):
    """Sums over processes."""

    counters: dict[Key, float] = {}
    gauges: dict[Key, float] = {}
    histograms: dict[Key, Histogram] = {}


class Report(msgspec.Struct):
    """The last word of one process. ``at``: monotonic seconds; not kept over a restart."""

    identity: Identity
    snapshot: Snapshot
    at: float = -math.inf


class Kept(msgspec.Struct):
    """The ledger as it lies on disk."""

    base: Snapshot
    last: list[Report]


class Ledger:
    """Reports in, totals out."""

    def __init__(self) -> None:
        self._base = Totals()
        self._last: dict[str, Report] = {}
        self._admitted: dict[str, set[tuple[str, ...]]] = {}

    def report(self, identity: Identity, snapshot: Snapshot, now: float) -> None:
        """Take what a process has counted since it started; unknown metrics and bad values in it are left out."""
        former = self._last.get(identity.name)
        if former is None and len(self._last) >= MAX_PROCESSES:
            return
        if former is not None and identity.start < former.identity.start:  # the late word of one that was replaced
            return
        clean = Snapshot(
            [(n, self._labels(n, ls), v) for n, ls, v in snapshot.counters if _valid(n, "counter", ls, v)],
            [(n, tuple(ls), v) for n, ls, v in snapshot.gauges if _valid(n, "gauge", ls, v)],
            [(n, self._labels(n, ls), h) for n, ls, h in snapshot.histograms if _valid_histogram(n, ls, h)],
        )
        counted = Totals()
        _add(counted, clean)  # sets that count under OTHER become one
        clean = _snapshot(counted, clean.gauges)
        if former is not None and (former.identity != identity or _shrank(former.snapshot, clean)):
            _add(self._base, former.snapshot)
        self._last[identity.name] = Report(identity, clean, now)

    def totals(self, now: float) -> Totals:
        """Counters and histograms of all processes that ever were, gauges of those that live."""
        found = Totals()
        sizes: dict[str, int] = {}
        _add(found, _snapshot(self._base, []))
        for report in self._last.values():
            _add(found, report.snapshot)
            if now - report.at <= LIVE_SECONDS:
                _put(found.gauges, sizes, report.snapshot)
        return found

    def dump(self) -> Kept:
        return Kept(_snapshot(self._base, []), list(self._last.values()))

    def load(self, kept: Kept) -> None:
        """Go on from what was kept; only at the start."""
        _add(self._base, kept.base)
        for report in kept.last:
            self._last[report.identity.name] = Report(report.identity, report.snapshot)
        for snapshot in (kept.base, *(report.snapshot for report in kept.last)):
            for name, labels in _series(snapshot):
                self._admitted.setdefault(name, set()).add(tuple(labels))

    def _labels(self, name: str, labels: Iterable[str]) -> tuple[str, ...]:
        """The labels under which this counts: as they are, or OTHER when the metric has too many sets."""
        wanted = tuple(labels)
        admitted = self._admitted.setdefault(name, set())
        if wanted in admitted:
            return wanted
        if len(admitted) >= MAX_SERIES:
            return (OTHER,) * len(wanted)
        admitted.add(wanted)
        return wanted


def _snapshot(totals: Totals, gauges: list[tuple[str, tuple[str, ...], float]]) -> Snapshot:
    return Snapshot(
        [(n, ls, v) for (n, ls), v in totals.counters.items()],
        gauges,
        [(n, ls, h) for (n, ls), h in totals.histograms.items()],
    )


def _shrank(former: Snapshot, snapshot: Snapshot) -> bool:
    """Does it count less than before? Then it started anew, whatever its identity says."""
    counters = {(name, labels): value for name, labels, value in snapshot.counters}
    if any(counters.get((name, tuple(labels)), -1.0) < value for name, labels, value in former.counters):
        return True
    counts = {(name, labels): sum(histogram.counts) for name, labels, histogram in snapshot.histograms}
    return any(counts.get((name, tuple(labels)), -1) < sum(h.counts) for name, labels, h in former.histograms)


def _series(snapshot: Snapshot) -> Iterator[tuple[str, tuple[str, ...]]]:
    for name, labels, _ in snapshot.counters:
        yield name, labels
    for name, labels, _ in snapshot.histograms:
        yield name, labels


def _valid(name: str, kind: Kind, labels: tuple[str, ...], value: float) -> bool:
    metric = BY_NAME.get(name)
    if metric is None or metric.kind != kind or len(metric.labels) != len(labels) or not math.isfinite(value):
        return False
    return kind == "gauge" or value >= 0


def _valid_histogram(name: str, labels: tuple[str, ...], histogram: Histogram) -> bool:
    good = len(histogram.counts) == _BUCKETS and min(histogram.counts) >= 0
    return good and math.isfinite(histogram.sum) and _known(name, labels)


def _known(name: str, labels: tuple[str, ...]) -> bool:
    metric = BY_NAME.get(name)
    return metric is not None and metric.kind == "histogram" and len(metric.labels) == len(labels)


def _put(gauges: dict[Key, float], sizes: dict[str, int], snapshot: Snapshot) -> None:
    """Gauges of several processes add up; those that only say that something is so (``_info``) do not.

    ``sizes``: label sets of each metric in ``gauges``.
    """
    for name, labels, value in snapshot.gauges:
        key = (name, labels)
        if key not in gauges:
            if sizes.get(name, 0) >= MAX_SERIES:
                key = (name, (OTHER,) * len(labels))
            sizes[name] = sizes.get(name, 0) + 1
        gauges[key] = max(gauges.get(key, 0.0), value) if name.endswith("_info") else gauges.get(key, 0.0) + value


def _add(totals: Totals, snapshot: Snapshot) -> None:
    for name, labels, value in snapshot.counters:
        key = (name, tuple(labels))
        totals.counters[key] = totals.counters.get(key, 0.0) + value
    for name, labels, histogram in snapshot.histograms:
        key = (name, tuple(labels))
        known = totals.histograms.get(key)
        if known is None:
            totals.histograms[key] = Histogram(list(histogram.counts), histogram.sum)
        else:
            known.counts = [a + b for a, b in zip(known.counts, histogram.counts, strict=True)]
            known.sum += histogram.sum
