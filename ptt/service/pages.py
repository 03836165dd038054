"""docs/metrics.md, made from the table of metrics: ``python -m ptt.service.pages > docs/metrics.md``. Pure."""

from __future__ import annotations

import sys

from ptt.metrics import LATENCY_BUCKETS, METRICS

_HEAD = """\
# Metrics

*Made from `ptt/metrics.py` by `python -m ptt.service.pages`; a test keeps it true.*

Served at `/metrics` on the admin port (`admin.listen`) in Prometheus' text format, for the whole service at once.

* Counters never go down: what a process had counted is kept when it dies, and when the control process dies.
* Gauges are sums over the processes that reported within 10 s.
* A metric has at most 1,000 sets of labels; what comes later counts under `other`.
* Histograms have the buckets {buckets} seconds.

| metric | kind | labels | |
|---|---|---|---|
"""


def metrics_page() -> str:
    """The page."""
    buckets = ", ".join(f"{bound:g}" for bound in LATENCY_BUCKETS)
    rows = [
        f"| `{m.name}` | {m.kind} | {', '.join(f'`{label}`' for label in m.labels)} | {m.help} |\n" for m in METRICS
    ]
    return _HEAD.format(buckets=buckets) + "".join(rows)


if __name__ == "__main__":
    sys.stdout.write(metrics_page())
