"""What a signature costs beside OpenSSL's own work: CPU per message of the signer path against the bare RSA-2048.

The path is the real one: ``ptt.signer.stage`` in this process (canonicalise, hash, request over the Unix socket,
finished field), and real key processes. CPU is the time of this process and of the key processes on the
processor, from the kernel. The bare figure is ``cryptography``'s signature of 1 KiB, taken in turns with the path.

With ``--all`` the pool does nothing else: so many workers and key processes as there are cores sign messages of 4 KiB,
against what ``openssl speed rsa2048`` says of all cores just before; the same with Ed25519; and dkimpy signs the same
message. Prints one JSON object::

    python loadtests/sign_bench.py [--messages 4000] [--concurrency 16] [--processes 1] [--algorithm rsa2048]
    python loadtests/sign_bench.py --all [--seconds 10] [--workers N] [--processes N]
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import pathlib
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import dkim
import gevent
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa

from ptt.config import Config, load
from ptt.message import Envelope
from ptt.signer import stage, state

DOMAIN = "bench.example"
SIZES = (4096, 65536)
ROUNDS = 8
WARM_UP = 200  # messages before the clock starts: connections, caches, the processor's frequency
HEADER = (
    b"Received: from client.example (client.example [192.0.2.7])\r\n"
    b"\tby mail.bench.example (PTT) with ESMTPSA id 06q3v1c8pa0hkq2f1b40\r\n"
    b"\tfor <someone@recipient.example>; Mon, 6 Jul 2026 10:11:12 +0000\r\n"
    b"From: Alice Example <alice@bench.example>\r\n"
    b"To: Someone Else <someone@recipient.example>\r\n"
    b"Subject: =?utf-8?q?The_figures_of_this_month=2C_and_what_they_mean?=\r\n"
    b"Date: Mon, 06 Jul 2026 10:11:12 +0000\r\n"
    b"Message-ID: <20260706101112.4711.alice@bench.example>\r\n"
    b"MIME-Version: 1.0\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\n"
    b"Content-Transfer-Encoding: 8bit\r\n"
    b"List-Unsubscribe: <https://bench.example/u/4711>\r\n"
    b"List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n\r\n"
)
LINE = b"Lorem ipsum dolor sit amet, consetetur sadipscing elitr, sed diam\r\n"


class Figures(NamedTuple):
    """CPU microseconds per message of this process and of the key processes; messages per second."""

    worker: float
    signer: float
    rate: float


def message(size: int) -> bytes:
    body = LINE * (size // len(LINE) + 1)
    return HEADER + body[: size - len(HEADER) - 2] + b"\r\n"


def cpu_of(pid: int) -> float:
    """Time on the processor of another process with one thread, seconds: exact, where /proc/PID/stat counts ticks."""
    return int(pathlib.Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


@contextlib.contextmanager
def service(processes: int, algorithm: str) -> Iterator[tuple[Config, list[int]]]:
    """A configuration with one key that counts as served, and running key processes."""
    with tempfile.TemporaryDirectory() as name:
        base = pathlib.Path(name)
        (base / "run").mkdir()
        file = base / "ptt.toml"
        file.write_text(
            f'hostname = "mail.bench.example"\n[signer]\nprocesses = {processes}\n[log]\nlevel = "warning"\n'
        )
        config = load(file)
        command = [sys.executable, "-m", "ptt.signer.keyprocess", "--config", str(file)]
        made = [*command, "--generate", DOMAIN, "bench", "--algorithm", algorithm]
        subprocess.run(made, check=True, stdout=subprocess.DEVNULL)
        (key,) = state.public_keys(config.signer.public, DOMAIN)
        shown = state.KeyState(key.domain, key.selector, key.algorithm, key.record, served=True)
        state.write_state(state.state_path(config), [shown])
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.path.join(config.run, "signer.sock"))
            listener.listen(64)
            fd = listener.fileno()
            children = [subprocess.Popen([*command, "--listen-fd", str(fd)], pass_fds=[fd]) for _ in range(processes)]
            try:
                yield config, [child.pid for child in children]
            finally:
                for child in children:
                    child.send_signal(signal.SIGTERM)
                    child.wait(10)


def bare(algorithm: str) -> Callable[[int], float]:
    """A function: CPU microseconds of one signature through cryptography and nothing else, of so many."""
    data = HEADER[:1024]
    if algorithm == "ed25519":
        edwards = ed25519.Ed25519PrivateKey.generate()
        sign = functools.partial(edwards.sign, data[:32])
    else:
        key = rsa.generate_private_key(65537, int(algorithm.removeprefix("rsa")))
        sign = functools.partial(key.sign, data, padding.PKCS1v15(), hashes.SHA256())

    def measure(count: int) -> float:
        began = time.process_time()
        for _ in range(count):
            sign()
        return (time.process_time() - began) / count * 1e6

    return measure


def run(signing: stage.Signing, pids: list[int], body: bytes, count: int, concurrency: int) -> Figures:
    """Sign ``count`` messages, ``concurrency`` at a time."""
    envelope = Envelope(sender=f"alice@{DOMAIN}", received=0, signing_domain=DOMAIN)
    numbers = iter(range(count))

    def some() -> None:
        for number in numbers:
            found = signing.sign(envelope, f"bench{number}", body)
            if not isinstance(found, stage.Signed):
                raise RuntimeError(f"not signed: {found}")

    keys, own, began = sum(map(cpu_of, pids)), time.process_time(), time.monotonic()
    gevent.joinall([gevent.spawn(some) for _ in range(concurrency)], raise_error=True)
    seconds = time.monotonic() - began
    worker = (time.process_time() - own) / count * 1e6
    return Figures(worker, (sum(map(cpu_of, pids)) - keys) / count * 1e6, count / seconds)


def compare(signing: stage.Signing, pids: list[int], body: bytes, options: argparse.Namespace) -> dict[str, float]:
    """The path and the bare signature in turns, so that both meet the same machine; medians of the rounds."""
    plain, path = bare(options.algorithm), []
    alone = []
    run(signing, pids, body, WARM_UP, options.concurrency)
    for _ in range(ROUNDS):
        alone.append(plain(options.messages // ROUNDS // 2))
        path.append(run(signing, pids, body, options.messages // ROUNDS, options.concurrency))
        alone.append(plain(options.messages // ROUNDS // 2))
    middle = Figures(*(statistics.median(column) for column in zip(*path, strict=True)))
    signature = statistics.median(alone)
    return {
        "bytes": len(body),
        "bare_signature_us": round(signature, 1),
        "worker_us": round(middle.worker, 1),
        "signer_us": round(middle.signer, 1),
        "beside_the_signature_us": round(middle.worker + middle.signer - signature, 1),
        "ratio": round((middle.worker + middle.signer) / signature, 3),
        "messages_per_second": round(middle.rate, 1),
    }


def check(signing: stage.Signing, record: str) -> None:
    """Ends the script unless dkimpy verifies what was signed."""
    found = signing.sign(Envelope("alice", 0, DOMAIN), "check", message(4096))
    if not isinstance(found, stage.Signed) or not dkim.verify(
        found.prefix + message(4096), dnsfunc=lambda _name, timeout=5: record.encode()
    ):
        raise SystemExit("dkimpy does not verify what was signed")


def openssl_speed(algorithm: str, cores: int, seconds: int) -> float:
    """Signatures per second of so many cores together, as OpenSSL's own benchmark counts them."""
    command = ["openssl", "speed", "-seconds", str(seconds), "-multi", str(cores), algorithm]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    line = next(line for line in reversed(output.splitlines()) if re.search(r"\d+ bits", line))
    times = [float(word.removesuffix("s")) for word in line.split("bits")[1].split(")")[-1].split()]
    return times[-2]  # sign, verify, sign/s, verify/s


def pool(algorithm: str, workers: int, processes: int, seconds: float, concurrency: int) -> dict[str, float]:
    """Messages per second of workers and key processes that do nothing else, one pool for all."""
    with service(processes, algorithm) as (config, pids):
        command = [sys.executable, __file__, "--worker", str(pathlib.Path(config.run).parent / "ptt.toml")]
        command += ["--seconds", str(seconds), "--concurrency", str(concurrency)]
        before = sum(map(cpu_of, pids))
        running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(workers)]
        told = [one.communicate(timeout=seconds + 60)[0].split() for one in running]
        keys = sum(map(cpu_of, pids)) - before
    made = sum(int(count) for count, _ in told)
    cpu = keys * made / (made + workers * WARM_UP) + sum(float(used) for _, used in told)
    return {
        "workers": workers,
        "processes": processes,
        "messages_per_second": round(made / seconds, 1),
        "cpu_us_per_message": round(cpu / made * 1e6, 1),
    }


def worker(file: str, seconds: float, concurrency: int) -> tuple[int, float]:
    """One worker of the pool: how many messages of 4 KiB it had signed, and its own time on the processor, seconds."""
    signing = stage.build(load(file))
    body = message(SIZES[0])
    envelope = Envelope(sender=f"alice@{DOMAIN}", received=0, signing_domain=DOMAIN)
    run(signing, [], body, WARM_UP, concurrency)
    end, made, own = time.monotonic() + seconds, 0, time.process_time()

    def some() -> None:
        nonlocal made
        while time.monotonic() < end:
            if not isinstance(signing.sign(envelope, "bench", body), stage.Signed):
                raise RuntimeError("not signed")
            made += 1

    gevent.joinall([gevent.spawn(some) for _ in range(concurrency)], raise_error=True)
    return made, time.process_time() - own


def dkimpy_cpu(seconds: float) -> float:
    """CPU microseconds for which dkimpy signs a message of 4 KiB."""
    key = rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    body, made, began = message(SIZES[0]), 0, time.process_time()
    while time.process_time() - began < seconds:
        dkim.sign(body, b"bench", DOMAIN.encode(), pem)
        made += 1
    return (time.process_time() - began) / made * 1e6


def everything(options: argparse.Namespace) -> dict[str, object]:
    """The pool against OpenSSL and dkimpy."""
    cores = os.cpu_count() or 1
    speed = openssl_speed("rsa2048", cores, 5)
    workers, processes = options.workers or cores, options.processes if options.processes > 1 else cores
    rsa_pool = pool("rsa2048", workers, processes, options.seconds, options.concurrency)
    reference = dkimpy_cpu(options.seconds / 2)
    return {
        "cores": cores,
        "openssl_speed_rsa2048_all_cores": speed,
        "rsa2048": {**rsa_pool, "share_of_openssl": round(rsa_pool["messages_per_second"] / speed, 3)},
        "ed25519": pool("ed25519", workers, processes, options.seconds, options.concurrency),
        "dkimpy_cpu_us_per_message": round(reference, 1),
        "times_dkimpy": round(reference / rsa_pool["cpu_us_per_message"], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=4000)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--algorithm", default="rsa2048", choices=["rsa2048", "rsa3072", "rsa4096", "ed25519"])
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(*worker(options.worker, options.seconds, options.concurrency))
        return
    if options.all:
        print(json.dumps(everything(options), indent=1))
        return
    with service(options.processes, options.algorithm) as (config, pids):
        signing = stage.build(config)
        results = [compare(signing, pids, message(size), options) for size in SIZES]
        if options.algorithm != "ed25519":  # dkimpy verifies Ed25519 only with PyNaCl
            check(signing, state.public_keys(config.signer.public, DOMAIN)[0].record)
    print(json.dumps({**vars(options), "results": results}, indent=1))


if __name__ == "__main__":
    main()
