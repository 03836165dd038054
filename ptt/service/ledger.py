"""What all processes of the service have counted, over their deaths: a counter never goes down. Pure, no I/O.

Each process reports everything it counted since it started, under its identity. What is more than in its last report is
added to the *totals*; all of it is, when another process has taken its name, or it counts less than before. Totals and
last reports are kept on disk (``dump``, ``load``), so a restart of the control process loses nothing either.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from ptt.metrics import BY_NAME, LATENCY_BUCKETS, MAX_SERIES, OTHER, Histogram, Key, Kind, Snapshot

MAX_PROCESSES = 1024  # names that may report; the configuration allows some hundred
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
    """The last word of one process. ``at``: monotonic seconds."""

    identity: Identity
    counted: Totals
    at: float


class KeptReport(msgspec.Struct):
    """A report as it lies on disk."""

    identity: Identity
    snapshot: Snapshot


class Kept(msgspec.Struct):
    """The ledger as it lies on disk."""

    totals: Snapshot
    last: list[KeptReport]


class Ledger:
    """Reports in, totals out."""

    def __init__(self) -> None:
        self._totals = Totals()
        self._last: dict[str, Report] = {}
        self._known: dict[Kind, set[Key]] = {"counter": set(), "histogram": set()}  # admitted: at most MAX_SERIES each
        self._sizes: dict[str, int] = {}  # how many of a metric are admitted

    def report(self, identity: Identity, snapshot: Snapshot, now: float) -> None:
        """Take what a process has counted since it started; unknown metrics and bad values in it are left out."""
        former = self._last.get(identity.name)
        if former is None and len(self._last) >= MAX_PROCESSES:
            return
        if former is not None and identity.start < former.identity.start:  # the late word of one that was replaced
            return
        counted = Totals(self._counters(snapshot), gauges=_gauges(snapshot), histograms=self._histograms(snapshot))
        same = former is not None and former.identity == identity and not _shrank(former.counted, counted)
        _grow(self._totals, counted, former.counted if former is not None and same else Totals())
        self._last[identity.name] = Report(identity, counted, now)

    def totals(self, now: float) -> Totals:
        """Counters and histograms of all processes that ever were, gauges of those that live. Not to be changed."""
        found = Totals(self._totals.counters, histograms=self._totals.histograms)
        sizes: dict[str, int] = {}
        for report in self._last.values():
            if now - report.at <= LIVE_SECONDS:
                _put(found.gauges, sizes, report.counted.gauges)
        return found

    def dump(self) -> Kept:
        last = [KeptReport(report.identity, _snapshot(report.counted)) for report in self._last.values()]
        return Kept(_snapshot(self._totals), last)

    def load(self, kept: Kept) -> None:
        """Go on from what was kept; only at the start."""
        self._totals = self._totals_of(kept.totals)
        for report in kept.last:
            self._last[report.identity.name] = Report(report.identity, self._totals_of(report.snapshot), -math.inf)

    def _totals_of(self, snapshot: Snapshot) -> Totals:
        return Totals(self._counters(snapshot), histograms=self._histograms(snapshot))

    def _counters(self, snapshot: Snapshot) -> dict[Key, float]:
        """The good ones; sets of labels that count under OTHER become one."""
        found: dict[Key, float] = {}
        known = self._known["counter"]
        for name, labels, value in snapshot.counters:
            key = (name, labels)
            if not 0 <= value < math.inf:
                continue
            if key not in known:
                if not _fits(name, "counter", labels):
                    continue
                key = self._admit(key, known)
            found[key] = found.get(key, 0.0) + value
        return found

    def _histograms(self, snapshot: Snapshot) -> dict[Key, Histogram]:
        found: dict[Key, Histogram] = {}
        known = self._known["histogram"]
        for name, labels, histogram in snapshot.histograms:
            key = (name, labels)
            if not _is_valid(histogram):
                continue
            if key not in known:
                if not _fits(name, "histogram", labels):
                    continue
                key = self._admit(key, known)
            former = found.get(key)
            found[key] = histogram if former is None else _combine(former, histogram, 1)
        return found

    def _admit(self, key: Key, known: set[Key]) -> Key:
        """The labels under which this counts: as they are, or OTHER when the metric has too many sets."""
        name, labels = key
        if self._sizes.get(name, 0) >= MAX_SERIES:
            return name, (OTHER,) * len(labels)
        self._sizes[name] = self._sizes.get(name, 0) + 1
        known.add(key)
        return key


def _grow(totals: Totals, counted: Totals, former: Totals) -> None:
    """Add to the totals what is counted beyond ``former``."""
    sums, before = totals.counters, former.counters
    for key, value in counted.counters.items():
        if more := value - before.get(key, 0.0):
            sums[key] = sums.get(key, 0.0) + more
        elif key not in sums:
            sums[key] = 0.0
    for key, histogram in counted.histograms.items():
        last = former.histograms.get(key)
        more_of_it = histogram if last is None else _combine(histogram, last, -1)
        sum_of_it = totals.histograms.get(key)
        totals.histograms[key] = more_of_it if sum_of_it is None else _combine(sum_of_it, more_of_it, 1)


def _combine(one: Histogram, other: Histogram, sign: int) -> Histogram:
    counts = [a + sign * b for a, b in zip(one.counts, other.counts, strict=True)]
    return Histogram(counts, max(0.0, one.sum + sign * other.sum))


def _snapshot(totals: Totals) -> Snapshot:
    """Without the gauges, which are not kept."""
    return Snapshot(
        [(n, ls, v) for (n, ls), v in totals.counters.items()],
        [],
        [(n, ls, h) for (n, ls), h in totals.histograms.items()],
    )


def _shrank(former: Totals, counted: Totals) -> bool:
    """Does it count less than before? Then it started anew, whatever its identity says."""
    get: Callable[[Key, float], float] = counted.counters.get
    if any(get(key, -1.0) < value for key, value in former.counters.items()):
        return True
    for key, histogram in former.histograms.items():
        now = counted.histograms.get(key)
        if now is None or any(a < b for a, b in zip(now.counts, histogram.counts, strict=True)):
            return True
    return False


def _fits(name: str, kind: Kind, labels: tuple[str, ...]) -> bool:
    """Is this a metric of the table, of that kind, with as many labels?"""
    metric = BY_NAME.get(name)
    return metric is not None and metric.kind == kind and len(metric.labels) == len(labels)


def _is_valid(histogram: Histogram) -> bool:
    return len(histogram.counts) == _BUCKETS and min(histogram.counts) >= 0 and math.isfinite(histogram.sum)


def _gauges(snapshot: Snapshot) -> dict[Key, float]:
    return {(n, ls): v for n, ls, v in snapshot.gauges if math.isfinite(v) and _fits(n, "gauge", ls)}


def _put(gauges: dict[Key, float], sizes: dict[str, int], reported: dict[Key, float]) -> None:
    """Gauges of several processes add up; those that only say that something is so (``_info``) do not.

    ``sizes``: label sets of each metric in ``gauges``.
    """
    for (name, labels), value in reported.items():
        key = (name, labels)
        if key not in gauges:
            if sizes.get(name, 0) >= MAX_SERIES:
                key = (name, (OTHER,) * len(labels))
            sizes[name] = sizes.get(name, 0) + 1
        gauges[key] = max(gauges.get(key, 0.0), value) if name.endswith("_info") else gauges.get(key, 0.0) + value
