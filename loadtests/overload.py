"""Overload: the capacity is measured, then clients come with five times as many sessions, then the load goes away.

    python loadtests/overload.py [--time 60] [--factor 5] [--sessions 20] [--pool 2] [--json]

The relay port takes messages of 4 KiB, one for each connection, that are signed and delivered to a sink on the same
cores. Prints for the three phases: accepted a second, refusals (421, 452), latency of what was accepted (end of data
to 250), memory of the service; and how long after the load the queue was empty. Exit code 1 when a process died, an
accepted message was not delivered, or it did not recover.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

from locust_run import LoadService

HERE = pathlib.Path(__file__).resolve().parent
RECOVER_SECONDS = 120.0
SAMPLE_SECONDS = 0.5


def load(service: LoadService, seconds: float, sessions: int) -> dict[str, Any]:
    """One phase: so many sessions at once, for so long."""
    host, port = service.address("relay", "none")
    command = [sys.executable, str(HERE / "generate.py"), "--to", f"{host}:{port}", "--messages", "100000000"]
    command += ["--sessions", str(sessions), "--seconds", str(seconds), "--sender", f"news@{service.domain}", "--quiet"]
    refused = service.total("ptt_refused_total")
    memory, deepest = 0.0, 0.0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as generator:
        while generator.poll() is None:
            found = service.metrics()
            memory = max(memory, sum(v for (n, _), v in found.items() if n == "ptt_process_resident_bytes"))
            deepest = max(deepest, sum(v for (n, _), v in found.items() if n == "ptt_queue_messages"))
            time.sleep(SAMPLE_SECONDS)
        assert generator.stdout is not None
        result: dict[str, Any] = json.loads(generator.stdout.read())
    return {
        "sessions": sessions,
        "accepted": result["accepted"],
        "accepted_per_second": result["messages_per_second"],
        "not_accepted": result["refused"],
        "refused_by_the_service": service.total("ptt_refused_total") - refused,
        "accept_p50_ms": result["latency_p50_ms"],
        "accept_p99_ms": result["latency_p99_ms"],
        "resident_mib": round(memory / (1 << 20)),
        "messages_in_queue": deepest,
    }


def recovery(service: LoadService) -> float:
    """Seconds until the queue is empty."""
    began = time.monotonic()
    while service.total("ptt_queue_messages") and time.monotonic() - began < RECOVER_SECONDS:
        time.sleep(SAMPLE_SECONDS)
    return time.monotonic() - began


def measure(service: LoadService, o: argparse.Namespace) -> dict[str, Any]:
    load(service, 2, o.sessions)  # caches
    found: dict[str, Any] = {"at_capacity": load(service, min(20.0, o.time), o.sessions)}
    recovery(service)
    found["overload"] = load(service, o.time, o.sessions * o.factor)
    found["drained_after_seconds"] = round(recovery(service), 1)
    found["after"] = load(service, 3, 2)
    recovery(service)
    time.sleep(2.5)
    found["accepted_in_all"] = service.total("ptt_accepted_total")
    found["delivered_in_all"] = service.total("ptt_attempts_total", outcome="delivered")
    found["restarts"] = service.total("ptt_process_restarts_total")
    found["errors"] = service.total("ptt_errors_total")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time", type=float, default=60)
    parser.add_argument("--factor", type=int, default=5)
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--pool", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    o = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ptt-overload-") as name:
        pathlib.Path(name).chmod(0o755)
        with LoadService(pathlib.Path(name) / "ptt", pool=o.pool) as service:
            service.prepare()
            service.spawn_stand_ins(store=False)
            service.start_service()
            service.wait_for_keys()
            found = measure(service, o)
    print(json.dumps(found, indent=None if o.json else 2))
    lost = found["accepted_in_all"] > found["delivered_in_all"]
    sys.exit(
        1 if lost or found["restarts"] or found["errors"] or found["drained_after_seconds"] >= RECOVER_SECONDS else 0
    )


if __name__ == "__main__":
    main()
