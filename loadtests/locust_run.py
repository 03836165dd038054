"""Runs a Locust file against the whole service on loopback: starts the service, the sink and the DNS server itself.

    python loadtests/locust_run.py submission|signing|relay|mixed [--users 20] [--time 30s] [--pool 2] [--out DIR]

DIR (default: run/load) gets NAME.html, Locust's report, and NAME.json: requests and failures by name, percentiles, and
what the service says: accepted, delivered, deferred, failed, memory, errors. Exit code 1: a step failed or the service
erred.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.request
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from ptt.cli.sandbox import Sandbox

HERE = pathlib.Path(__file__).resolve().parent
SINKS = {  # how the recipients' servers behave
    "mixed": ["--defer", "5", "--reject", "3", "--cut", "0.5", "--slow", "3", "--slow-seconds", "2"],
}
SETTLE_SECONDS = 60.0
REPORT_SECONDS = 2.5  # by then every process has told control what it counted


class LoadService(Sandbox):
    """A sandbox whose relay port takes what loopback sends."""

    def adapt(self, document: Any) -> None:
        super().adapt(document)
        for listen in document["listen"]:
            if listen["service"] == "relay":
                listen["tls"] = "none"
                listen["trusted"] = ["127.0.0.0/8"]

    def world(self) -> dict[str, Any]:
        """What the Locust files need to know."""
        return {
            "submission": self.address("submission", "implicit"),
            "relay": self.address("relay", "none"),
            "ca": self.config.tls.internal_ca,
            "user": self.user,
            "password": self.password,
            "domain": self.domain,
        }

    def metrics(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        with urllib.request.urlopen(f"http://{self.config.admin.listen}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        return {
            (s.name, frozenset(s.labels.items())): s.value
            for family in text_string_to_metric_families(text)
            for s in family.samples
        }

    def total(self, name: str, **labels: str) -> float:
        """Sum of the series of a metric that have these labels."""
        return sum(v for (n, ls), v in self.metrics().items() if n == name and set(labels.items()) <= ls)

    def wait_for_keys(self) -> None:
        deadline = time.monotonic() + 60
        while self.total("ptt_dkim_key_served") < 1:
            if time.monotonic() > deadline:
                raise SystemExit("the DKIM key is not served")
            time.sleep(0.1)

    def settle(self) -> float:
        """Wait until everything was tried. Returns the seconds that it took."""
        began = time.monotonic()
        time.sleep(REPORT_SECONDS)
        while time.monotonic() - began < SETTLE_SECONDS:
            if not self.total("ptt_queue_messages") or self.idle():
                break
        return time.monotonic() - began

    def idle(self) -> bool:
        """Is nothing leased, and nothing new tried for longer than the service takes to report?"""
        before = self.total("ptt_attempts_total")
        time.sleep(REPORT_SECONDS)
        if self.total("ptt_queue_leased"):
            return False
        return self.total("ptt_attempts_total") == before


def run(service: LoadService, name: str, users: int, seconds: str, out: pathlib.Path) -> dict[str, Any]:
    """One Locust run. Returns the summary, which is also in out/NAME.json."""
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "locust", "-f", str(HERE / f"{name}.py"), "--headless", "--only-summary"]
    command += ["--users", str(users), "--spawn-rate", str(users), "--run-time", seconds, "--stop-timeout", "30"]
    command += ["--html", str(out / f"{name}.html"), "--json", "--exit-code-on-error", "0"]
    env = dict(os.environ, PTT_LOAD=json.dumps(service.world()), PYTHONPATH=str(HERE))
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=env, cwd=out)
    if done.returncode:
        raise SystemExit(f"locust ended with {done.returncode}")
    steps = [summary_of(step) for step in json.loads(done.stdout)]
    settled = service.settle()
    found = {
        "load": name,
        "users": users,
        "time": seconds,
        "steps": steps,
        "settled_seconds": round(settled, 1),
        "accepted": service.total("ptt_accepted_total"),
        "recipients": {o: service.total("ptt_attempts_total", outcome=o) for o in ("delivered", "deferred", "failed")},
        "errors": service.total("ptt_errors_total"),
        "restarts": service.total("ptt_process_restarts_total"),
        "resident_mib": round(service.total("ptt_process_resident_bytes") / (1 << 20)),
        "failures": sum(step["failures"] for step in steps),
    }
    (out / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")
    return found


def summary_of(step: dict[str, Any]) -> dict[str, Any]:
    """A row of Locust's statistics: counts and percentiles in milliseconds."""
    times = sorted((float(ms), int(n)) for ms, n in step["response_times"].items())
    total = sum(n for _, n in times)

    def percentile(share: float) -> float:
        seen = 0
        for ms, n in times:
            seen += n
            if seen >= share * total:
                return ms
        return 0.0

    return {
        "name": step["name"],
        "requests": step["num_requests"],
        "failures": step["num_failures"],
        "per_second": round(step["num_requests"] / max(0.001, step["last_request_timestamp"] - step["start_time"]), 1),
        "p50_ms": percentile(0.5),
        "p99_ms": percentile(0.99),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("load", choices=["submission", "signing", "relay", "mixed"])
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--time", default="30s")
    parser.add_argument("--pool", type=int, default=2)
    parser.add_argument("--out", type=pathlib.Path, default=HERE.parent / "run" / "load")
    o = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ptt-load-") as name:
        pathlib.Path(name).chmod(0o755)
        with LoadService(pathlib.Path(name) / "ptt", pool=o.pool) as service:
            service.sink_options = SINKS.get(o.load, [])
            service.prepare()
            service.spawn_stand_ins(store=False)
            service.start_service()
            service.wait_for_keys()
            found = run(service, o.load, o.users, o.time, o.out.resolve())
    print(json.dumps(found, indent=2))
    sys.exit(1 if found["failures"] or found["errors"] or found["restarts"] else 0)


if __name__ == "__main__":
    main()
