"""PTT beside its peers on the same work, interleaved, with medians and ratios, as a table and a plot.

    python loadtests/bench.py [--harness DIR] [--repeats 3] [--messages 2000] [--work NAME,NAME] [--plot FILE]

DIR is the side-by-side harness (it has ``run.sh`` and ``peers/``); by default ``../shared/peers`` beside the checkout.
Root, Postfix and OpenDKIM are needed. Each line of a run is printed as it comes; the table is at the end, and the plot,
an SVG file, if one is named. Ratios are those of the medians to Postfix (with OpenDKIM where mail is signed).
"""

import argparse
import html
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent


class Work(NamedTuple):
    """One row of the table. ``part``: of --messages, for work that takes longer."""

    scenario: str
    size: int
    mode: str
    title: str
    part: float = 1.0


WORK = {
    "dkim": Work("relay-dkim", 4096, "conn", "relay with DKIM, 4 KiB, a connection per message"),
    "dkim-keep": Work("relay-dkim", 4096, "keep", "relay with DKIM, 4 KiB, kept open"),
    "dkim-64k": Work("relay-dkim", 65536, "conn", "relay with DKIM, 64 KiB, a connection per message", 0.5),
    "plain": Work("relay", 4096, "conn", "relay without DKIM, 4 KiB, a connection per message"),
    "plain-keep": Work("relay", 4096, "keep", "relay without DKIM, 4 KiB, kept open"),
    "accept": Work("accept", 4096, "conn", "accept only, 4 KiB, a connection per message"),
}

Runs = dict[tuple[str, str], list[dict[str, str]]]  # (work, peer) -> the lines of its runs


def harness_copy(harness: pathlib.Path, into: pathlib.Path) -> pathlib.Path:
    """The harness with PTT among its peers (the original may be read-only)."""
    shutil.copytree(harness, into / "peers")
    copied = into / "peers"
    for path in [copied, *copied.rglob("*")]:
        path.chmod(path.stat().st_mode | 0o700)
    shutil.copy(ROOT / "loadtests" / "peers" / "ptt.sh", copied / "peers" / "ptt.sh")
    return copied


def one(harness: pathlib.Path, peer: str, work: Work, messages: int) -> dict[str, str]:
    env = dict(os.environ, PTT_ROOT=str(ROOT), PTT_PYTHON=sys.executable)
    count = str(max(10, int(messages * work.part)))
    command = [str(harness / "run.sh"), peer, work.scenario, str(work.size), count, work.mode]
    done = subprocess.run(["bash", *command], env=env, capture_output=True, text=True)
    print(done.stdout.strip() or done.stderr.strip(), flush=True)
    return dict(pair.split("=", 1) for pair in done.stdout.split() if "=" in pair)


def median(runs: list[dict[str, str]], what: str) -> float:
    values = [float(r[what]) for r in runs if r.get("ok") == "1"]
    return statistics.median(values) if values else 0.0


def table(results: Runs, repeats: int) -> str:
    """The figures as Markdown."""
    lines = [
        "| work | peer | runs ok | messages/s (min to max) | x Postfix | CPU ms/message | private MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for (name, peer), runs in results.items():
        rates = [float(r["rate"]) for r in runs if r.get("ok") == "1"] or [0.0]
        base = median(results.get((name, "postfix"), []), "rate")
        ratio = f"{median(runs, 'rate') / base:.2f}" if base else ""
        good = f"{sum(r.get('ok') == '1' for r in runs)}/{repeats}"
        lines.append(
            f"| {WORK[name].title} | {peer} | {good} | {median(runs, 'rate'):.0f} ({min(rates):.0f}-{max(rates):.0f})"
            f" | {ratio} | {median(runs, 'cpu_per_1k'):.2f} | {median(runs, 'anon_peak_mb'):.0f} |"
        )
    return "\n".join(lines)


_COLOURS = ("#8a8f98", "#1f6feb", "#d29922", "#2da44e", "#bc4c00", "#8250df")
_LEFT, _WIDTH, _BAR, _GAP = 330, 420, 16, 14


def plot(results: Runs) -> str:
    """The medians as horizontal bars, one group for each work: an SVG document."""
    works = list(dict.fromkeys(name for name, _ in results))
    peers = list(dict.fromkeys(peer for _, peer in results))
    most = max([median(runs, "rate") for runs in results.values()] + [1.0])
    parts, y = [], 34
    for n, peer in enumerate(peers):
        x = _LEFT + 110 * n
        parts.append(f'<rect x="{x}" y="8" width="12" height="12" fill="{_COLOURS[n % len(_COLOURS)]}"/>')
        parts.append(f'<text x="{x + 17}" y="18">{html.escape(peer)}</text>')
    for name in works:
        middle = y + _BAR * len(peers) / 2 + 4
        parts.append(
            f'<text x="{_LEFT - 10}" y="{middle:.0f}" text-anchor="end">{html.escape(WORK[name].title)}</text>'
        )
        for n, peer in enumerate(peers):
            rate = median(results.get((name, peer), []), "rate")
            width = rate / most * _WIDTH
            box = f'x="{_LEFT}" y="{y}" width="{width:.0f}" height="{_BAR - 2}"'
            parts.append(f'<rect {box} fill="{_COLOURS[n % len(_COLOURS)]}"/>')
            parts.append(f'<text x="{_LEFT + width + 5:.0f}" y="{y + 11}">{rate:.0f}</text>')
            y += _BAR
        y += _GAP
    size = f'width="{_LEFT + _WIDTH + 60}" height="{y}"'
    style = 'font-family="sans-serif" font-size="12" fill="#57606a"'
    title = "<title>Messages a second, medians</title>"
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{title}{"".join(parts)}</svg>\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--harness", type=pathlib.Path, default=ROOT.parent / "shared" / "peers")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--messages", type=int, default=2000)
    parser.add_argument("--work", default=",".join(WORK), help="default: all of %(default)s")
    parser.add_argument("--peers", default="postfix,ptt", help="of the harness: postfix, ptt, slimta, ...")
    parser.add_argument("--plot", type=pathlib.Path, help="write an SVG file")
    o = parser.parse_args()
    if not (o.harness / "run.sh").exists():
        sys.exit(f"no harness in {o.harness}: name it with --harness")
    if unknown := set(o.work.split(",")) - set(WORK):
        sys.exit(f"--work: no {', '.join(sorted(unknown))}; known: {', '.join(WORK)}")
    results: Runs = {}
    with tempfile.TemporaryDirectory(prefix="ptt-bench-") as directory:
        harness = harness_copy(o.harness, pathlib.Path(directory))
        for _ in range(o.repeats):
            for name in o.work.split(","):
                for peer in o.peers.split(","):
                    results.setdefault((name, peer), []).append(one(harness, peer, WORK[name], o.messages))
    print(table(results, o.repeats))
    if o.plot:
        o.plot.parent.mkdir(parents=True, exist_ok=True)
        o.plot.write_text(plot(results), encoding="utf-8")


if __name__ == "__main__":
    main()
