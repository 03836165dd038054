"""Writes the dashboards beside it: ``python grafana/make.py``. A test keeps the files as this writes them.

A panel is (title, unit, description, queries); a query is (expression, legend). Three panels fill a row.
``limited`` limits every expression to the services of the variable ``instance``.
"""

import json
import pathlib
import re
from typing import Any, NamedTuple

HERE = pathlib.Path(__file__).parent
NAME = re.compile(r"\b(ptt_[a-z_]+)(\{)?")
INSTANCE = 'instance=~"$instance"'


class Panel(NamedTuple):
    title: str
    unit: str
    description: str
    queries: list[tuple[str, str]]


def quantiles(name: str, by: str = "le") -> list[tuple[str, str]]:
    """p50 and p99 of a histogram."""
    return [
        (f"histogram_quantile({q}, sum by ({by}) (rate({name}_bucket[5m])))", f"p{round(q * 100)}") for q in (0.5, 0.99)
    ]


MESSAGES = Panel(
    "Messages",
    "ops",
    "Messages a second. Accepted above delivered for long: the queue grows.",
    [
        ("sum(rate(ptt_accepted_total[1m]))", "accepted"),
        ("sum(rate(ptt_signed_total[1m]))", "signed"),
        ('sum(rate(ptt_attempts_total{outcome="delivered"}[1m]))', "recipients delivered"),
    ],
)
ATTEMPTS = Panel(
    "Attempts by outcome",
    "ops",
    "Recipients a second.",
    [("sum by (outcome) (rate(ptt_attempts_total[1m]))", "{{outcome}}")],
)
QUEUE = Panel(
    "Queue",
    "short",
    "Tasks. Stage sign above zero for long: `ptt dkim status` says why.",
    [("sum by (stage, state) (ptt_queue_tasks)", "{{stage}} {{state}}"), ("sum(ptt_queue_leased)", "leased")],
)
ACCEPT = Panel("Accept latency", "s", "End of data to 250: the commit is in it.", quantiles("ptt_accept_seconds"))
COMMIT = Panel("Commit latency", "s", "A commit of the store, with its sync.", quantiles("ptt_queue_commit_seconds"))
DELIVERY = Panel(
    "Accept to delivered", "s", "Per recipient, with all waiting and retries.", quantiles("ptt_delivery_seconds")
)
OLDEST = Panel(
    "Oldest message", "s", "Its age. It grows without end while one destination is dead: `ptt queue list`.",
    [("max by (instance) (ptt_queue_oldest_seconds)", "{{instance}}")],
)  # fmt: skip
REFUSED = Panel(
    "Refused",
    "ops",
    "Commands and messages, by code and reason; 4xx are limits that were hit.",
    [("sum by (code, reason) (rate(ptt_refused_total[5m]))", "{{code}} {{reason}}")],
)
TROUBLE = Panel(
    "Maybe delivered, errors of our own, restarts",
    "short",
    "In five minutes. Each has its lines in the log.",
    [
        ("sum(increase(ptt_maybe_delivered_total[5m]))", "maybe delivered"),
        ("sum by (place) (increase(ptt_errors_total[5m]))", "error in {{place}}"),
        ("sum by (process) (increase(ptt_process_restarts_total[5m]))", "restart of {{process}}"),
    ],
)

OVERVIEW = [
    MESSAGES,
    ATTEMPTS,
    QUEUE,
    ACCEPT,
    COMMIT,
    DELIVERY,
    OLDEST,
    REFUSED,
    Panel(
        "Sessions open", "short", "SMTP sessions of clients, by service.",
        [("sum by (service) (ptt_sessions_open)", "{{service}}")],
    ),
    Panel(
        "Commands", "ops", "Of clients, by verb.",
        [("sum by (command) (rate(ptt_commands_total[1m]))", "{{command}}")],
    ),
    Panel(
        "Logins", "ops", "By mechanism and result.",
        [("sum by (mechanism, result) (rate(ptt_auth_total[5m]))", "{{mechanism}} {{result}}")],
    ),
    TROUBLE,
]  # fmt: skip

QUEUE_AND_SITES = [
    QUEUE,
    OLDEST,
    Panel(
        "Messages and destinations", "short", "In the queue; destinations are those in memory.",
        [("sum(ptt_queue_messages)", "messages"), ("sum(ptt_queue_lanes)", "destinations")],
    ),
    COMMIT,
    Panel(
        "Batches", "short", "Requests that one commit covered: the group commit at work.",
        [("sum(rate(ptt_queue_requests_total[1m])) / sum(rate(ptt_queue_commits_total[1m]))", "requests a commit")],
    ),
    Panel(
        "Requests", "ops", "What the queue process was asked for.",
        [("sum by (request) (rate(ptt_queue_requests_total[1m]))", "{{request}}")],
    ),
    Panel(
        "Space", "bytes", "Of the store and its file system.",
        [
            ("sum(ptt_queue_used_bytes)", "used by the store"),
            ("sum(ptt_queue_body_bytes)", "bodies"),
            ("min(ptt_queue_free_bytes)", "free on the file system"),
        ],
    ),
    Panel(
        "Takes no mail", "short", "1 while the queue is above this mark.",
        [("max by (mark) (ptt_queue_refusing)", "{{mark}}")],
    ),
    Panel(
        "Put aside", "short", "Records that could not be read; `ptt queue quarantine` names them.",
        [("sum(ptt_queue_damaged)", "records")],
    ),
    Panel(
        "Busiest sites", "ops", "Recipients delivered a second, the ten busiest.",
        [('topk(10, sum by (site) (rate(ptt_site_attempts_total{outcome="delivered"}[5m])))', "{{site}}")],
    ),
    Panel(
        "Sites that defer", "ops", "Recipients deferred a second, the ten worst.",
        [('topk(10, sum by (site) (rate(ptt_site_attempts_total{outcome="deferred"}[5m])))', "{{site}}")],
    ),
    Panel(
        "Sites that refuse", "ops", "Recipients failed a second, the ten worst.",
        [('topk(10, sum by (site) (rate(ptt_site_attempts_total{outcome="failed"}[5m])))', "{{site}}")],
    ),
]  # fmt: skip

SIGNING = [
    Panel(
        "Signatures by domain", "ops", "A second, the ten busiest domains.",
        [("topk(10, sum by (domain) (rate(ptt_signed_total[5m])))", "{{domain}}")],
    ),
    Panel(
        "Signing latency", "s", "From the request of a signature to its arrival.", quantiles("ptt_sign_seconds")
    ),
    Panel(
        "Key processes", "ops", "Requests that they served, by result.",
        [("sum by (result) (rate(ptt_key_requests_total[1m]))", "{{result}}")],
    ),
    Panel(
        "Waiting for a signature", "short", "Messages in stage sign now.",
        [('sum(ptt_queue_tasks{stage="sign"}) or vector(0)', "messages")],
    ),
    Panel(
        "Why they waited", "ops", "By reason: docs/signing.md says what helps.",
        [("sum by (reason) (rate(ptt_sign_wait_total[5m]))", "{{reason}}")],
    ),
    Panel(
        "Keys served by DNS", "short", "1: as they are here. Mail is signed with no other.",
        [("min by (selector, domain) (ptt_dkim_key_served)", "{{selector}}._domainkey.{{domain}}")],
    ),
    Panel(
        "Records changed by others", "short", "Of keys in use, in an hour.",
        [("sum by (domain, what) (increase(ptt_dkim_drift_total[1h]))", "{{domain}} {{what}}")],
    ),
    Panel(
        "Rotations under way", "short", "By step.", [("sum by (step) (ptt_dkim_rotations)", "{{step}}")]
    ),
    Panel(
        "CPU of the key processes", "percentunit", "One core each at most: near that `signer.processes` is too small.",
        [('sum(rate(ptt_process_cpu_seconds_total{process="signer"}[1m]))', "cores")],
    ),
]  # fmt: skip

DESTINATION = [
    Panel(
        "Attempts at the site", "ops", "Recipients a second, by outcome.",
        [('sum by (outcome) (rate(ptt_site_attempts_total{site="$site"}[1m]))', "{{outcome}}")],
    ),
    Panel(
        "Share delivered", "percentunit", "Of the recipients that were tried.",
        [
            (
                ('sum(rate(ptt_site_attempts_total{site="$site",outcome="delivered"}[5m]))'
                ' / sum(rate(ptt_site_attempts_total{site="$site"}[5m]))'),
                "delivered",
            )
        ],
    ),
    Panel(
        "Share of all mail", "percentunit", "Of the attempts of the whole service.",
        [
            (
                'sum(rate(ptt_site_attempts_total{site="$site"}[5m])) / sum(rate(ptt_site_attempts_total[5m]))',
                "of all attempts",
            )
        ],
    ),
    Panel(
        "In the last hour", "short", "Recipients, by outcome.",
        [('sum by (outcome) (increase(ptt_site_attempts_total{site="$site"}[1h]))', "{{outcome}}")],
    ),
    Panel(
        "Connections of the service by TLS", "ops", "To all sites.",
        [("sum by (tls) (rate(ptt_connections_total[1m]))", "{{tls}}")],
    ),
    Panel(
        "DNS", "s", "Time of the questions that were not cached.", quantiles("ptt_dns_seconds")
    ),
]  # fmt: skip

PROCESSES = [
    Panel("Up", "short", "1 for a process that is ready.", [("min by (process) (ptt_process_up)", "{{process}}")]),
    Panel(
        "CPU", "percentunit", "Cores, by kind of process.",
        [("sum by (process) (rate(ptt_process_cpu_seconds_total[1m]))", "{{process}}")],
    ),
    Panel(
        "Memory", "bytes", "Resident.", [("sum by (process) (ptt_process_resident_bytes)", "{{process}}")]
    ),
    Panel(
        "Descriptors", "short", "Open ones.", [("sum by (process) (ptt_process_open_fds)", "{{process}}")]
    ),
    Panel(
        "Loop lag", "s", "The longest that an event loop let its others wait, of the last 15 s.",
        [("max by (process) (ptt_loop_lag_seconds)", "{{process}}")],
    ),
    TROUBLE,
    Panel(
        "Sessions", "ops", "New ones of clients, by service.",
        [("sum by (service) (rate(ptt_sessions_total[1m]))", "{{service}}")],
    ),
    Panel(
        "TLS handshakes", "ops", "Of clients, by service and version.",
        [("sum by (service, tls) (rate(ptt_handshakes_total[1m]))", "{{service}} {{tls}}")],
    ),
    Panel(
        "DNS questions", "ops", "By answer.",
        [("sum by (answer) (rate(ptt_dns_queries_total[1m]))", "{{answer}}")],
    ),
    Panel(
        "Password checks", "ops", "By result; each costs some ten milliseconds of the control process.",
        [("sum by (result) (rate(ptt_password_checks_total[5m]))", "{{result}}")],
    ),
    Panel(
        "Git database", "short", "1 while the newest commit is refused; fetches that failed in five minutes.",
        [
            ("max(ptt_directory_alarm)", "commit refused"),
            ("sum(increase(ptt_directory_fetch_errors_total[5m]))", "failed fetches"),
        ],
    ),
    Panel("Commit in force", "short", "Of the git database.",
          [("max by (commit) (ptt_directory_commit_info)", "{{commit}}")]),
]  # fmt: skip

DASHBOARDS: dict[str, tuple[str, list[Panel]]] = {
    "overview": ("PTT: overview", OVERVIEW),
    "queue": ("PTT: queue and sites", QUEUE_AND_SITES),
    "signing": ("PTT: signing and keys", SIGNING),
    "destination": ("PTT: one destination", DESTINATION),
    "processes": ("PTT: the processes", PROCESSES),
}


def limited(expression: str) -> str:
    """Every metric of the expression with the matcher of the chosen instances."""
    return NAME.sub(lambda m: f"{m[1]}{{{INSTANCE}" + ("," if m[2] else "}"), expression)


def variable(name: str, label: str, query: str, *, many: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": query, "refId": "A"},
        "refresh": 2,
        "sort": 1,
    }
    return {**found, "multi": True, "includeAll": True, "allValue": ".*"} if many else found


def panel(number: int, one: Panel) -> dict[str, Any]:
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": one.title,
        "description": one.description,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "gridPos": {"x": number % 3 * 8, "y": number // 3 * 8, "w": 8, "h": 8},
        "fieldConfig": {"defaults": {"unit": one.unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + n), "expr": limited(expression), "legendFormat": legend}
            for n, (expression, legend) in enumerate(one.queries)
        ],
    }


def dashboard(uid: str, title: str, panels: list[Panel]) -> str:
    """The file's text."""
    variables: list[dict[str, Any]] = [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"},
        variable("instance", "Service", "label_values(ptt_process_up, instance)", many=True),
    ]
    if uid == "destination":
        variables.append(variable("site", "Site", "label_values(ptt_site_attempts_total, site)", many=False))
    found = {
        "title": title,
        "uid": f"ptt-{uid}",
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "tags": ["ptt", "mail"],
        "links": [{"type": "dashboards", "tags": ["ptt"], "asDropdown": True, "title": "PTT", "keepTime": True}],
        "templating": {"list": variables},
        "panels": [panel(n, one) for n, one in enumerate(panels)],
    }
    return json.dumps(found, indent=1) + "\n"


def main() -> None:
    for uid, (title, panels) in DASHBOARDS.items():
        (HERE / f"{uid}.json").write_text(dashboard(uid, title, panels), encoding="utf-8")


if __name__ == "__main__":
    main()
