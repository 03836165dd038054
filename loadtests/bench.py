"""PTT beside Postfix + OpenDKIM on the same work, interleaved, with medians and the ratio.

    python loadtests/bench.py --harness DIR [--repeats 3] [--messages 2000] [--scenarios relay-dkim,relay]

DIR is the side-by-side harness (it has ``run.sh`` and ``peers/``); by default ``../shared/peers`` beside the checkout.
Root, Postfix and OpenDKIM are needed. Each line of a run is printed as it comes; the table is at the end.
"""

import argparse
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent


def harness_copy(harness: pathlib.Path, into: pathlib.Path) -> pathlib.Path:
    """The harness with PTT among its peers (the original may be read-only)."""
    shutil.copytree(harness, into / "peers")
    copied = into / "peers"
    for path in [copied, *copied.rglob("*")]:
        path.chmod(path.stat().st_mode | 0o700)
    shutil.copy(ROOT / "loadtests" / "peers" / "ptt.sh", copied / "peers" / "ptt.sh")
    return copied


def one(harness: pathlib.Path, peer: str, scenario: str, o: argparse.Namespace, mode: str) -> dict[str, str]:
    env = dict(os.environ, PTT_ROOT=str(ROOT), PTT_PYTHON=sys.executable)
    command = [str(harness / "run.sh"), peer, scenario, str(o.size), str(o.messages), mode]
    done = subprocess.run(["bash", *command], env=env, capture_output=True, text=True)
    print(done.stdout.strip() or done.stderr.strip(), flush=True)
    return dict(pair.split("=", 1) for pair in done.stdout.split() if "=" in pair)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--harness", type=pathlib.Path, default=ROOT.parent / "shared" / "peers")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--messages", type=int, default=2000)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--scenarios", default="relay-dkim")
    parser.add_argument("--modes", default="conn")
    parser.add_argument("--peers", default="postfix,ptt")
    o = parser.parse_args()
    if not (o.harness / "run.sh").exists():
        sys.exit(f"no harness in {o.harness}: name it with --harness")
    results: dict[tuple[str, str, str], list[dict[str, str]]] = {}
    with tempfile.TemporaryDirectory(prefix="ptt-bench-") as name:
        harness = harness_copy(o.harness, pathlib.Path(name))
        for _ in range(o.repeats):
            for scenario in o.scenarios.split(","):
                for mode in o.modes.split(","):
                    for peer in o.peers.split(","):
                        key = (scenario, mode, peer)
                        results.setdefault(key, []).append(one(harness, peer, scenario, o, mode))
    report(results, o)


def report(results: dict[tuple[str, str, str], list[dict[str, str]]], o: argparse.Namespace) -> None:
    def median(key: tuple[str, str, str], what: str) -> float:
        values = [float(r[what]) for r in results.get(key, []) if r.get("ok") == "1"]
        return statistics.median(values) if values else 0.0

    print("| scenario | mode | peer | runs ok | messages/s | x postfix | CPU ms/message | private MB |")
    print("|---|---|---|---|---|---|---|---|")
    for scenario, mode, peer in results:
        key, base = (scenario, mode, peer), median((scenario, mode, "postfix"), "rate")
        good = sum(r.get("ok") == "1" for r in results[key])
        ratio = f"{median(key, 'rate') / base:.2f}" if base else ""
        print(
            f"| {scenario} | {mode} | {peer} | {good}/{o.repeats} | {median(key, 'rate'):.0f} | {ratio} "
            f"| {median(key, 'cpu_per_1k'):.2f} | {median(key, 'anon_peak_mb'):.0f} |"
        )


if __name__ == "__main__":
    main()
