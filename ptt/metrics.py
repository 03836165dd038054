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


MAX_SERIES = 1000  # label sets of one metric; what comes later counts under "other"
OTHER = "other"
MAX_POPULAR = 100  # names of a worker that have a label of their own: three outcomes each stay below MAX_SERIES
OFTEN = 10  # times that a name has come by then
MAX_WATCHED = 5000  # names whose times are remembered


class Metric(NamedTuple):
    """One row of the table. Names end in ``_total`` for counters, ``_seconds`` for times."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


METRICS: tuple[Metric, ...] = (
    Metric("ptt_sessions_total", "counter", "SMTP sessions opened, by service", ("service",)),
    Metric("ptt_sessions_open", "gauge", "SMTP sessions open now, by service", ("service",)),
    Metric("ptt_commands_total", "counter", "Commands of clients that reached a decision, by verb", ("command",)),
    Metric("ptt_handshakes_total", "counter", "TLS handshakes of clients, by service and version", ("service", "tls")),
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
    Metric("ptt_replies_total", "counter", "Recipients deferred or refused, by what it was about", ("class",)),
    Metric(
        "ptt_maybe_delivered_total",
        "counter",
        "Recipients whose last attempt may have succeeded unknown to us",
    ),
    Metric(
        "ptt_site_attempts_total",
        "counter",
        "Delivery attempts of recipients, by site (those often used; the rest is other) and outcome",
        ("site", "outcome"),
    ),
    Metric("ptt_bounces_total", "counter", "Bounces made, by kind", ("kind",)),
    Metric("ptt_connections_total", "counter", "Outgoing connections, by TLS", ("tls",)),
    Metric("ptt_tls_total", "counter", "Outgoing connections, by what their TLS had to be and was", ("mode",)),
    Metric("ptt_mta_sts_fetches_total", "counter", "Policies of MTA-STS fetched: their mode, or failed", ("result",)),
    Metric("ptt_delivery_seconds", "histogram", "From acceptance to delivery"),
    Metric("ptt_dns_queries_total", "counter", "DNS questions, by answer", ("answer",)),
    Metric("ptt_dns_seconds", "histogram", "From a DNS question to its answer, cached ones left out"),
    Metric("ptt_errors_total", "counter", "Unexpected exceptions of our own, by place", ("place",)),
    Metric("ptt_queue_tasks", "gauge", "Tasks in the queue, by stage and state", ("stage", "state")),
    Metric("ptt_queue_messages", "gauge", "Messages in the queue"),
    Metric("ptt_queue_oldest_seconds", "gauge", "Age of the oldest message in the queue"),
    Metric("ptt_queue_lanes", "gauge", "Destinations that the queue process has in memory"),
    Metric("ptt_queue_damaged", "gauge", "Records that could not be read and were put aside"),
    Metric("ptt_queue_used_bytes", "gauge", "Bytes in use in the store"),
    Metric("ptt_queue_free_bytes", "gauge", "Bytes free on the file system of the store"),
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
    Metric("ptt_directory_repository_bytes", "gauge", "What the git repository takes on disk"),
    Metric("ptt_password_checks_total", "counter", "Password verifications, by result", ("result",)),
    Metric("ptt_process_up", "gauge", "1 for each process that reported lately", ("process",)),
    Metric("ptt_process_restarts_total", "counter", "Restarts by the supervisor", ("process",)),
    Metric("ptt_process_cpu_seconds_total", "counter", "CPU time, by kind of process", ("process",)),
    Metric("ptt_process_resident_bytes", "gauge", "Resident memory", ("process",)),
    Metric("ptt_process_open_fds", "gauge", "Open descriptors", ("process",)),
    Metric("ptt_loop_lag_seconds", "gauge", "The longest that a process let its others wait lately", ("process",)),
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


class Popular:
    """Which names get a label of their own: the first ``MAX_POPULAR`` that came often. The others are OTHER.

    A name that has one keeps it, so no counter is taken away. Memory is bounded whatever names come.
    """

    def __init__(self) -> None:
        self._named: set[str] = set()
        self._seen: dict[str, int] = {}

    def label(self, name: str) -> str:
        """Called once for each time that the name is counted."""
        if name in self._named:
            return name
        if len(self._named) >= MAX_POPULAR:
            return OTHER
        seen = self._seen.pop(name, 0) + 1
        if seen >= OFTEN:
            self._named.add(name)
            return name
        if len(self._seen) >= MAX_WATCHED:
            self._seen.pop(next(iter(self._seen)))
        self._seen[name] = seen
        return OTHER


class Counters:
    """The numbers of one process. Plain dictionaries: a count costs well under a microsecond."""

    def __init__(self) -> None:
        self.counters: dict[Key, float] = {}
        self.gauges: dict[Key, float] = {}
        self.histograms: dict[Key, Histogram] = {}
        self._sets: dict[str, int] = {}  # of labels, that a counter has

    def count(self, name: str, *labels: str, by: float = 1) -> None:
        key = (name, labels)
        value = self.counters.get(key)
        if value is None:
            key = self._admit(name, labels)
            value = self.counters.get(key, 0)
        self.counters[key] = value + by

    def _admit(self, name: str, labels: tuple[str, ...]) -> Key:
        """The labels as they are, or OTHER when the metric has too many sets."""
        sets = self._sets.get(name, 0)
        if sets >= MAX_SERIES:
            return name, (OTHER,) * len(labels)
        self._sets[name] = sets + 1
        return name, labels

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
