"""The long crash tests, one after another: ``make crash``. Says how many crashes were survived.

    python tests/crash/long.py [--scale F] [--seed N] [--only images power faults kill9 rotations]

``--scale 0.1`` does a tenth of it. Each part prints its own seed and figures, and what it could not run here.
"""

import argparse
import json
import pathlib
import random
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
CANNOT = 77  # exit code of a part that this machine does not let run
CRASHES = ("images", " cut", " copy", "injected", "full ", "clock set", "kills")  # what counts as one


def parts(scale: float) -> dict[str, list[str]]:
    def n(of: int) -> str:
        return str(max(1, round(of * scale)))

    return {
        "images": ["--rounds", n(300), "--subsets", "4"],
        "power": ["--cuts", n(300)],
        "faults": ["--rounds", n(30)],
        "rotations": ["--kills", n(200), "--by-age"],
        "kill9": ["--messages", n(20_000), "--kills", n(1000), "--pause", "0.5"],
    }


def crashes(result: dict[str, object]) -> int:
    """How many crashes a part's figures tell of."""
    return sum(
        n
        for key, n in result.items()
        if isinstance(n, int) and "recovered" not in key and any(c in key for c in CRASHES)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--only", nargs="*", default=list(parts(1)), choices=list(parts(1)))
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    options = parser.parse_args()
    survived, bad = 0, []
    for name, arguments in parts(options.scale).items():
        if name not in options.only:
            continue
        command = [sys.executable, str(HERE / f"{name}.py"), *arguments, "--seed", str(options.seed), "--json"]
        print(" ".join([f"tests/crash/{name}.py", *command[2:]]), flush=True)
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode == CANNOT:
            print(f"{name}: not run here", flush=True)
            continue
        result = json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}
        print(json.dumps(result, indent=2), flush=True)
        survived += crashes(result)
        if done.returncode:
            bad.append(name)
    print(f"{survived} crashes survived" + (f"; wrong: {', '.join(bad)}" if bad else ""))
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
