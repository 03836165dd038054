"""Every metric of the service, in one table; and the plain counters that a process keeps.

A process counts in a ``Counters`` and pushes ``snapshot()`` to the control process, which alone serves them.
"""

from __future__ import annotations

import bisect
from typing import Literal, NamedTuple

import msgspec

Kind = Literal["counter", "gauge", "histogram"]

LATENCY_BUCKETS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    60.0,
    600.0,
    3600.0,
)


class Metric(NamedTuple):
    """One row of the table. Names end in ``_total`` for counters, ``_seconds`` for times."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


METRICS: tuple[Metric, ...] = (
    Metric("ptt_sessions_total", "counter", "SMTP sessions opened, by service", ("service",)),
    Metric("ptt_sessions_open", "gauge", "SMTP sessions open now, by service", ("service",)),
    Metric("ptt_auth_total", "counter", "Authentications, by mechanism and result", ("mechanism", "result")),
    Metric(
        "ptt_auth_throttled_total",
        "counter",
        "Logins after too many failures: delayed (the answer waited) or refused (the password was not looked at)",
        ("how",),
    ),
    Metric("ptt_accepted_total", "counter", "Messages acknowledged with 250, by service", ("service",)),
    Metric("ptt_accepted_bytes_total", "counter", "Bytes of the messages acknowledged", ("service",)),
    Metric(
        "ptt_refused_total",
        "counter",
        "Commands and messages refused, by code and reason",
        ("code", "reason"),
    ),
    Metric("ptt_over_quota_total", "counter", "Messages of users over quota, by what became of them", ("result",)),
    Metric("ptt_repeated_total", "counter", "Messages that came again under their submission key and were not stored"),
    Metric("ptt_accept_seconds", "histogram", "From the end of data to the 250"),
    Metric("ptt_signed_total", "counter", "Signatures made, by domain", ("domain",)),
    Metric("ptt_sign_wait_total", "counter", "Messages that had to wait for a signature, by reason", ("reason",)),
    Metric("ptt_sign_seconds", "histogram", "From the request of a signature to its arrival"),
    Metric("ptt_attempts_total", "counter", "Delivery attempts of recipients, by outcome", ("outcome",)),
    Metric(
        "ptt_maybe_delivered_total",
        "counter",
        "Recipients whose last attempt may have succeeded unknown to us",
    ),
    Metric("ptt_bounces_total", "counter", "Bounces made, by kind", ("kind",)),
    Metric("ptt_connections_total", "counter", "Outgoing connections, by TLS", ("tls",)),
    Metric("ptt_delivery_seconds", "histogram", "From acceptance to delivery"),
    Metric("ptt_dns_queries_total", "counter", "DNS questions, by answer", ("answer",)),
    Metric("ptt_errors_total", "counter", "Unexpected exceptions of our own, by place", ("place",)),
    Metric("ptt_queue_tasks", "gauge", "Tasks in the queue, by stage and state", ("stage", "state")),
    Metric("ptt_queue_messages", "gauge", "Messages in the queue"),
    Metric("ptt_queue_used_bytes", "gauge", "Bytes in use in the store"),
    Metric("ptt_queue_leased", "gauge", "Tasks leased now"),
    Metric("ptt_queue_body_bytes", "gauge", "Bytes of the bodies of all messages in the queue"),
    Metric("ptt_queue_refusing", "gauge", "1 while the queue takes no messages, above this mark", ("mark",)),
    Metric("ptt_queue_commits_total", "counter", "Commits of the store"),
    Metric("ptt_queue_requests_total", "counter", "Requests that the queue process executed", ("request",)),
    Metric("ptt_queue_commit_seconds", "histogram", "Time of a commit, with its sync"),
    Metric("ptt_key_requests_total", "counter", "Signing requests at the key processes, by result", ("result",)),
    Metric(
        "ptt_dkim_key_served",
        "gauge",
        "1 when the key is served by DNS as it is here",
        ("domain", "selector"),
    ),
    Metric(
        "ptt_dkim_drift_total",
        "counter",
        "Records of keys in use that a server was seen to have changed or lost, by domain",
        ("domain", "what"),
    ),
    Metric("ptt_dkim_rotations", "gauge", "Rotations of DKIM keys under way, by step", ("step",)),
    Metric("ptt_directory_commit_info", "gauge", "The commit of the git database in force", ("commit",)),
    Metric("ptt_directory_bad_commits_total", "counter", "Commits of the git database that were refused"),
    Metric("ptt_git_hooks_total", "counter", "Calls of the web hook of the git database", ("result",)),
    Metric("ptt_directory_fetch_errors_total", "counter", "Fetches from the git remote that failed"),
    Metric("ptt_directory_alarm", "gauge", "1 while the newest commit is refused"),
    Metric("ptt_password_checks_total", "counter", "Password verifications, by result", ("result",)),
    Metric("ptt_process_up", "gauge", "1 for each process that reported lately", ("process",)),
    Metric("ptt_process_restarts_total", "counter", "Restarts by the supervisor", ("process",)),
    Metric("ptt_process_cpu_seconds_total", "counter", "CPU time, by kind of process", ("process",)),
    Metric("ptt_process_resident_bytes", "gauge", "Resident memory", ("process",)),
)

BY_NAME = {m.name: m for m in METRICS}

Key = tuple[str, tuple[str, ...]]


class Histogram(msgspec.Struct, array_like=True):
    """Counts per bucket of LATENCY_BUCKETS (the last one: above all), and the sum of what was observed."""

    counts: list[int]
    sum: float


class Snapshot(msgspec.Struct, array_like=True):
    """What one process counted since it started: (name, label values, value)."""

    counters: list[tuple[str, tuple[str, ...], float]]
    gauges: list[tuple[str, tuple[str, ...], float]]
    histograms: list[tuple[str, tuple[str, ...], Histogram]]


class Counters:
    """The numbers of one process. Plain dictionaries: a count costs well under a microsecond."""

    def __init__(self) -> None:
        self.counters: dict[Key, float] = {}
        self.gauges: dict[Key, float] = {}
        self.histograms: dict[Key, Histogram] = {}

    def count(self, name: str, *labels: str, by: float = 1) -> None:
        key = (name, labels)
        self.counters[key] = self.counters.get(key, 0) + by

    def gauge(self, name: str, *labels: str, value: float) -> None:
        self.gauges[name, labels] = value

    def observe(self, name: str, seconds: float, *labels: str) -> None:
        histogram = self.histograms.get((name, labels))
        if histogram is None:
            histogram = self.histograms[name, labels] = Histogram([0] * (len(LATENCY_BUCKETS) + 1), 0.0)
        histogram.counts[bisect.bisect_left(LATENCY_BUCKETS, seconds)] += 1
        histogram.sum += seconds

    def snapshot(self) -> Snapshot:
        return Snapshot(
            [(n, ls, v) for (n, ls), v in self.counters.items()],
            [(n, ls, v) for (n, ls), v in self.gauges.items()],
            [(n, ls, h) for (n, ls), h in self.histograms.items()],
        )
