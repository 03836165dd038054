"""How long a commit of a large git database takes to be in force everywhere, and what a worker notices of it.

    python loadtests/directory_bench.py [--users 100000] [--readers 2]

Builds a database, lets the control process's code compile it, and starts readers: processes that look things up as a
worker does, and measure their longest pause at a switch and the memory of their own that it takes (dirty pages; those
of the snapshot are the page cache's). Then single files are changed. The domain that loses its subdomains is the worst
case: every user needs it.
Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

READER = """
import json, sys, time
from ptt.directory.reader import Snapshot

def private():
    with open("/proc/self/smaps_rollup") as f:
        return sum(int(l.split()[1]) for l in f if l.startswith("Private_Dirty"))

directory, last = sys.argv[1], float(sys.argv[2])
before = private()
snapshot = Snapshot(directory)
seen, longest, n = [], 0.0, 0
end = time.time() + last
print("ready", flush=True)
while time.time() < end:
    began = time.perf_counter()
    switched = snapshot.refresh()
    for _ in range(20):
        n += 1
        snapshot.user(f"u{n * 7919 % 100000}@a.example")
        snapshot.limits(f"u{n * 7919 % 100000}@a.example")
    took = time.perf_counter() - began
    if switched:
        seen.append((snapshot.commit, time.time(), took))
    longest = max(longest, took)
    time.sleep(0.05)
print(json.dumps({"seen": seen, "private_kib": private() - before, "longest": longest}))
"""


def main() -> None:
    from ptt.config import Config, Directory
    from ptt.directory.control import DirectoryControl
    from ptt.directory.repository import Author, Repository
    from ptt.log import Log
    from ptt.metrics import Counters

    parser = argparse.ArgumentParser()
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--readers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        settings = Directory(repository=str(root / "directory.git"), snapshots=str(root / "data" / "snapshot"))
        config = Config(hostname="mail.example", data=str(root / "data"), directory=settings)
        repository = Repository(settings.repository, "main", create=True)
        author = Author("bench", "bench@host.example")

        def commit(changes: dict[str, bytes | None]) -> str:
            parent = repository.tip()
            made = repository.commit(changes, "bench", author, parent)
            repository.move(repository.ref, made, parent)
            return made

        blob = b'addresses = ["*@b.example"]\n'
        commit(
            {f"users/a.example/u{n}.toml": blob for n in range(options.users)}
            | {"domains/a.example.toml": b"", "domains/b.example.toml": b"subdomains = true\n"}
        )
        began = time.monotonic()
        control = DirectoryControl(config, Log("bench", fd=os.open(os.devnull, os.O_WRONLY)), Counters())
        control.start()
        result: dict[str, object] = {"users": options.users, "first_commit_seconds": time.monotonic() - began}
        command = [sys.executable, "-c", READER, settings.snapshots, "12"]
        readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(options.readers)]
        for reader in readers:
            assert reader.stdout is not None
            reader.stdout.readline()
        times = {}
        for what, changes in {
            "one user": {"users/a.example/u1.toml": b"disabled = true\n"},
            "one domain": {"domains/a.example.toml": b"sign = false\n"},
            "a domain loses its subdomains": {"domains/b.example.toml": b""},
            "one alias": {"aliases/a.example/x.toml": b'targets = ["u1@a.example"]'},
        }.items():
            made = commit(dict(changes))
            began = time.time()
            assert control.refresh()
            times[made] = (what, began, time.time() - began)
        told = [json.loads(reader.communicate(timeout=60)[0].splitlines()[-1]) for reader in readers]
        result["compiled_seconds"] = {what: took for what, _, took in times.values()}
        result["in_force_in_all_readers_seconds"] = {
            times[c][0]: max(at for one in told for s, at, _ in one["seen"] if s == c) - times[c][1]
            for c in times
            if any(s == c for one in told for s, _, _ in one["seen"])
        }
        result["longest_switch_ms"] = max(took * 1000 for one in told for _, _, took in one["seen"])
        result["private_kib_of_a_reader"] = max(one["private_kib"] for one in told)
        control.close()
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
