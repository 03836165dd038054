"""A soak: steady mixed load, and a look at what leaks: memory, descriptors, leases, connections.

    python loadtests/soak.py [--time 1800] [--users 10] [--pool 2] [--json]

Each SAMPLE_SECONDS the memory and the descriptors of every process are read. At the end the load stops, and nothing
may be leased, no session open, and no process may have more descriptors than after the warm-up (and SPARE). Memory may
not grow: the mean of the last third of the samples is compared with the middle third. Prints the figures; exit code 1
for a leak, a restart, an error of ours, or a refused step.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from locust_run import HERE, SINKS, LoadService

SAMPLE_SECONDS = 2.0
WARM_UP = 0.2  # of the time: caches fill
GROWTH = 1.10  # of the mean memory, from the middle third to the last
SPARE = 16  # descriptors: idle connections that are kept
QUIET_SECONDS = 20.0  # after the load: idle connections are closed by then (relay.idle_seconds)

Sample = dict[str, dict[str, float]]  # process -> "memory", "fds"


def sample(service: LoadService) -> Sample:
    """Private memory where it can be read, else resident; descriptors."""
    found: Sample = {}
    state = json.loads((pathlib.Path(service.config.run) / "supervisor.json").read_text())
    processes = {p["name"]: p["pid"] for p in state["processes"] if p["pid"]}
    for name, pid in {**processes, "supervisor": service.pid_of("service")}.items():
        try:
            rollup = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
            private = sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_"))
            fds = len(os.listdir(f"/proc/{pid}/fd"))
        except OSError:
            continue
        found[name] = {"memory": private / 1024, "fds": float(fds)}
    return found


def leaks(samples: list[Sample], quiet: Sample) -> list[str]:
    """What grew. ``quiet``: some time after the load."""
    warm = samples[int(len(samples) * WARM_UP) :]
    third = max(1, len(warm) // 3)
    found = []
    for name in warm[-1]:
        rows = [one[name] for one in warm if name in one]
        middle = statistics.mean(row["memory"] for row in rows[third : 2 * third] or rows)
        last = statistics.mean(row["memory"] for row in rows[-third:])
        if last > middle * GROWTH + 2:
            found.append(f"{name}: private memory grew from {middle:.1f} to {last:.1f} MiB")
        if name in quiet and quiet[name]["fds"] > rows[0]["fds"] + SPARE:
            found.append(
                f"{name}: {quiet[name]['fds']:.0f} descriptors are left, {rows[0]['fds']:.0f} after the warm-up"
            )
    return found


def soak(service: LoadService, seconds: float, users: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "locust", "-f", str(HERE / "mixed.py"), "--headless", "--json", "--only-summary"]
    command += ["--users", str(users), "--spawn-rate", str(users), "--run-time", f"{int(seconds)}s"]
    command += ["--stop-timeout", "30", "--exit-code-on-error", "0", "--loglevel", "ERROR"]
    env = dict(os.environ, PTT_LOAD=json.dumps(service.world()), PYTHONPATH=str(HERE))
    samples: list[Sample] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env) as locust:
        while locust.poll() is None:
            samples.append(sample(service))
            time.sleep(SAMPLE_SECONDS)
        assert locust.stdout is not None
        steps = json.loads(locust.stdout.read())
    service.settle()
    time.sleep(QUIET_SECONDS)
    quiet = sample(service)
    found = leaks(samples, quiet)
    for name in ("ptt_queue_leased", "ptt_sessions_open"):
        if left := service.total(name):
            found.append(f"{name} is {left:g} long after the load")
    return {
        "seconds": seconds,
        "accepted": service.total("ptt_accepted_total"),
        "recipients": {o: service.total("ptt_attempts_total", outcome=o) for o in ("delivered", "deferred", "failed")},
        "failed_steps": sum(step["num_failures"] for step in steps),
        "errors": service.total("ptt_errors_total"),
        "restarts": service.total("ptt_process_restarts_total"),
        "private_mib": {
            n: [round(samples[len(samples) // 2][n]["memory"], 1), round(v["memory"], 1)] for n, v in quiet.items()
        },
        "descriptors": {n: [samples[len(samples) // 2][n]["fds"], v["fds"]] for n, v in quiet.items()},
        "leaks": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time", type=float, default=1800)
    parser.add_argument("--users", type=int, default=10)
    parser.add_argument("--pool", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    o = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ptt-soak-") as name:
        pathlib.Path(name).chmod(0o755)
        with LoadService(pathlib.Path(name) / "ptt", pool=o.pool, retry_seconds=20) as service:
            service.sink_options = SINKS["mixed"]
            service.prepare()
            service.spawn_stand_ins(store=False)
            service.start_service()
            service.wait_for_keys()
            found = soak(service, o.time, o.users)
    print(json.dumps(found, indent=None if o.json else 2))
    sys.exit(1 if found["leaks"] or found["errors"] or found["restarts"] or found["failed_steps"] else 0)


if __name__ == "__main__":
    main()
