"""Power lost for real: a queue process on a loop-mounted file system whose power is cut under load, and an audit.

    python tests/crash/power.py [--cuts N] [--fs ext4 xfs] [--seed N] [--json]

Each life of the queue works on what the one before left. It ends at a random instant in one of three ways:
``shutdown``: FS_IOC_SHUTDOWN without a flush of the log drops what was not synced and fails all later writes; then the
process is killed, the image unmounted and mounted again, which replays its journal. ``snapshot``: the image is copied
while it is mounted and written to; the copy is mounted and audited, the first goes on. Mounting needs root and loop
devices: without them the script says so and ends with code 77.
"""

import argparse
import collections
import fcntl
import json
import os
import pathlib
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time

from audit import compare, look
from ledger import Gone, Workload
from process import Process
from views import Call, Views

SHUTDOWN = 0x8004587D  # FS_IOC_SHUTDOWN
NO_LOG_FLUSH = struct.pack("I", 2)
MAKE = {"ext4": (["mkfs.ext4", "-q", "-F"], 96), "xfs": (["mkfs.xfs", "-q", "-f"], 320)}  # and MiB
CANNOT = 77


class CannotMount(Exception):
    """This machine does not let us mount an image."""


class Image:
    """A file system in a file."""

    def __init__(self, file: pathlib.Path, kind: str, fresh: bool = True) -> None:
        self.file, self.kind = file, kind
        self.home = file.with_suffix(".mnt")
        self.home.mkdir()
        if fresh:
            command, size = MAKE[kind]
            with file.open("wb") as f:
                f.truncate(size << 20)
            subprocess.run([*command, str(file)], check=True, capture_output=True)
        self.mount()

    def mount(self) -> None:
        options = "loop,nouuid" if self.kind == "xfs" else "loop"  # a copy has the id of the first
        done = subprocess.run(
            ["mount", "-t", self.kind, "-o", options, self.file, self.home], capture_output=True, text=True
        )
        if done.returncode:
            raise CannotMount(f"mount -o loop ({self.kind}): {done.stderr.strip()}")

    def unmount(self) -> None:
        deadline = time.monotonic() + 20
        while subprocess.run(["umount", self.home], capture_output=True).returncode:
            if time.monotonic() > deadline:
                raise CannotMount(f"{self.home} cannot be unmounted")
            time.sleep(0.05)

    def cut(self) -> None:
        """Power is lost."""
        fd = os.open(self.home, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, SHUTDOWN, NO_LOG_FLUSH)
        finally:
            os.close(fd)

    def copy(self, to: pathlib.Path) -> bool:
        """Copy the image as it is; False when it was written to in every attempt."""
        device = subprocess.run(["losetup", "-n", "-O", "NAME", "-j", self.file], capture_output=True, text=True)
        stat = pathlib.Path("/sys/block", device.stdout.split()[0].rpartition("/")[2], "stat")
        for _ in range(20):
            before = stat.read_text().split()
            subprocess.run(["cp", "--sparse=always", self.file, to], check=True)
            after = stat.read_text().split()
            if before[4:7] == after[4:7] and before[8] == after[8] == "0":  # writes, and requests on their way
                return True
        to.unlink()
        return False

    def remove(self) -> None:
        self.unmount()
        self.home.rmdir()
        self.file.unlink()


def load(workload: Workload, rng: random.Random, failed: list[BaseException]) -> None:
    """Work until the queue is gone."""
    try:
        workload.run(0)
        while True:
            workload.run(20, all_first=False)
    except Gone:
        pass
    except BaseException as e:
        failed.append(e)


class Lives:
    """Life after life on one file system."""

    def __init__(self, scratch: pathlib.Path, kind: str, rng: random.Random) -> None:
        self.scratch, self.kind, self.rng = scratch, kind, rng
        self.image = Image(scratch / f"{kind}.img", kind)
        self.counts: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []

    def one(self) -> None:
        """One life, on an empty store or on what the last one left."""
        home = self.image.home
        process = Process(home, map_bytes=1 << 26)
        workload = Workload(str(home) + ".sock", random.Random(self.rng.random()), timeout=8.0)
        failed: list[BaseException] = []
        thread = threading.Thread(target=load, args=(workload, self.rng, failed))
        thread.start()
        time.sleep(self.rng.uniform(0.05, 1.0))
        if self.rng.random() < 0.3:
            self.snapshot(process, workload)
        self.image.cut()
        self.counts[f"{self.kind} cut"] += 1
        time.sleep(self.rng.choice((0, 0.05)))  # it may notice, and say so to its clients
        workload.stopped = True
        process.end()
        thread.join(30)
        if failed:
            self.wrong.append(f"{self.kind}: {type(failed[0]).__name__}: {failed[0]}")
        self.image.unmount()
        self.image.mount()
        self.counts["requests answered"] += workload.acknowledged()
        self.audit(home, *workload.state(), "cut")
        # what it left was emptied by the audit; the next life begins in a used file

    def snapshot(self, process: Process, workload: Workload) -> None:
        """Copy the file system as it is, mounted, without a sync; audit the copy. The first goes on.

        The process stands still meanwhile, and the copy counts only if the kernel wrote nothing to the image.
        """
        before = len(workload.ledger)
        known = [list(batch) for batch in workload.ledger[:before]]
        file = self.scratch / f"{self.kind}-copy.img"
        os.kill(process.pid(), signal.SIGSTOP)
        try:
            if not self.image.copy(file):
                return
        finally:
            os.kill(process.pid(), signal.SIGCONT)
        later = [c for batch in workload.ledger[before:] for c in batch] + workload.open + workload.doubtful
        copy = Image(file, self.kind, fresh=False)
        try:
            self.counts[f"{self.kind} copy"] += 1
            views: Views = {}
            for batch in known:
                for call in batch:
                    views.update(call.after)
            touched = {id for c in later for id in {**c.after, **c.unknown}}
            self.audit(copy.home, {i: v for i, v in views.items() if i not in touched}, later, "copy", touched)
        finally:
            copy.remove()

    def audit(
        self, home: pathlib.Path, sure: Views, possible: list[Call], what: str, loose: set[bytes] | None = None
    ) -> None:
        """``loose``: messages that changed while the copy was taken: not compared."""
        try:
            if not (home / "queue").exists():
                compare({}, sure, possible)
                self.counts["before the first file"] += 1
                return
            seen, _ = look(str(home / "queue"))
            if loose is None:
                compare(seen, sure, possible)
            else:
                compare({i: v for i, v in seen.items() if i not in loose}, sure, [])
        except Exception as e:
            self.wrong.append(f"{self.kind} {what}: {type(e).__name__}: {e}"[:1000])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuts", type=int, default=100, help="losses of power on each file system")
    parser.add_argument("--fs", nargs="*", default=list(MAKE), choices=list(MAKE))
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    print(f"seed {options.seed}", file=sys.stderr, flush=True)
    rng = random.Random(options.seed)
    scratch = pathlib.Path(tempfile.mkdtemp(prefix="ptt-power-"))
    counts: collections.Counter[str] = collections.Counter()
    wrong: list[str] = []
    try:
        for kind in options.fs:
            lives = Lives(scratch, kind, rng)
            try:
                for _ in range(options.cuts):
                    lives.one()
            finally:
                lives.image.remove()
            counts += lives.counts
            wrong += lives.wrong
    except (CannotMount, FileNotFoundError, PermissionError) as e:
        print(f"cannot run here: {e}", file=sys.stderr)
        sys.exit(CANNOT)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    result = {"seed": options.seed, **counts, "wrong": len(wrong), "examples": wrong[:5]}
    print(json.dumps(result, indent=None if options.json else 2))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
