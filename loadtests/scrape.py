"""The time of a scrape of /metrics: the collector alone, fed by many processes with many series.

    python loadtests/scrape.py [--processes 64] [--series 2000] [--repeats 9] [--json]

Half of the series of each process have labels that the others have too, as sites and domains do; three quarters of them
grow between two scrapes. Nothing is listened on. Prints the median and the slowest of a report and of a scrape.
"""

import argparse
import json
import pathlib
import statistics
import tempfile
import time

from ptt.metrics import LATENCY_BUCKETS, Histogram, Snapshot
from ptt.service.collector import ServiceCollector
from ptt.service.ledger import Identity


def snapshot(process: int, series: int, turn: int) -> Snapshot:
    """What a process has counted at its ``turn``-th report."""
    histograms = [
        ("ptt_accept_seconds", (), Histogram([turn] * (len(LATENCY_BUCKETS) + 1), float(turn))),
        ("ptt_delivery_seconds", (), Histogram([turn] * (len(LATENCY_BUCKETS) + 1), float(turn))),
    ]
    left = series - 2 * (len(LATENCY_BUCKETS) + 3)
    shared, own = left // 2, left - left // 2
    counters = [("ptt_signed_total", (f"d{n}.example",), float(turn + n)) for n in range(shared)]
    counters += [("ptt_refused_total", ("550", f"r{process}-{n}"), float(n if n % 2 else n + turn)) for n in range(own)]
    return Snapshot(counters, [("ptt_sessions_open", ("relay",), 3.0)], histograms)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=64)
    parser.add_argument("--series", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    o = parser.parse_args()
    reports, scrapes, size = [], [], 0
    with tempfile.TemporaryDirectory(prefix="ptt-scrape-") as name:
        collector = ServiceCollector(str(pathlib.Path(name) / "metrics.dat"))
        for turn in range(1, o.repeats + 2):
            made = [snapshot(process, o.series, turn) for process in range(o.processes)]
            began = time.perf_counter()
            for process, one in enumerate(made):
                collector.ledger.report(Identity(f"worker.{process}", process + 1, 1), one, time.monotonic())
            reported = time.perf_counter()
            size = len(collector.text())
            if turn > 1:  # the first one makes everything
                reports.append((reported - began) / o.processes * 1000)
                scrapes.append((time.perf_counter() - reported) * 1000)
    result = {
        "processes": o.processes,
        "series_of_each": o.series,
        "report_ms": {"median": round(statistics.median(reports), 2), "slowest": round(max(reports), 2)},
        "scrape_ms": {"median": round(statistics.median(scrapes), 1), "slowest": round(max(scrapes), 1)},
        "bytes": size,
    }
    print(json.dumps(result, indent=None if o.json else 2))


if __name__ == "__main__":
    main()
