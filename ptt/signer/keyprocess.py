"""The key process: alone opens the private DKIM keys, and signs what workers send it over a Unix socket.

    python -m ptt.signer.keyprocess --config FILE --listen-fd N ...        started by the supervisor
    python -m ptt.signer.keyprocess --config FILE --generate DOMAIN SELECTOR [--algorithm rsa2048|ed25519]

The second form makes one pair of keys, prints the public record and ends; ``ptt dkim keygen`` starts it, so that no
command ever holds a private key. Plain Python, one thread, no gevent. After the start: its own user, no network
sockets, no core dumps (``ptt.signer.isolation``). It keeps nothing: killed at any instant it loses only
requests, which the workers ask again.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import get_args

from ptt.config import Config
from ptt.metrics import Counters
from ptt.service import child as process
from ptt.service import privileges
from ptt.signer import isolation, keystore
from ptt.signer.handler import Handler
from ptt.signer.keystore import KeyRefused, Keystore
from ptt.signer.server import Server
from ptt.signer.state import KeyAlgorithm

FAILED, USAGE = 1, 2  # exit codes


def arguments() -> argparse.ArgumentParser:
    found = process.parser("signer")
    found.add_argument("--generate", nargs=2, metavar=("DOMAIN", "SELECTOR"))
    found.add_argument("--algorithm", choices=get_args(KeyAlgorithm), default="rsa2048")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Serve, or make one key. Returns the exit code."""
    options = arguments().parse_args(argv)
    child = process.from_arguments("signer", options)
    if options.generate:
        return _generate(child, options.generate, options.algorithm)
    if not child.listen:
        sys.stderr.write("ptt signer: --listen-fd is missing\n")
        return USAGE
    _serve(child)
    return 0


def _enter(child: process.Child) -> None:
    """Become what a key process is, for good. Raises UserError, OSError."""
    if os.getuid() == 0:
        _own_directories(child.config)
    child.enter()
    isolation.refuse_dumps()
    if reason := isolation.refuse_networks():
        child.log.warning("network sockets cannot be refused", reason=reason)


def _own_directories(config: Config) -> None:
    """As root: the directories of the keys belong to the key process's user, who could not make them."""
    account = privileges.account_of("signer", config)
    for path, mode in ((config.signer.keys, 0o700), (config.signer.public, 0o755)):
        keystore.make_directory(path, mode)
        os.chown(path, account.uid, account.gid, follow_symlinks=False)


def _serve(child: process.Child) -> None:
    makers = frozenset({privileges.account_of("control", child.config).uid, os.getuid(), 0})  # while we may be root
    _enter(child)
    counters = Counters()
    store = Keystore(child.config.signer.keys, os.geteuid(), child.config.signer.public)
    for path, reason in keystore.problems(child.config.signer.keys, os.geteuid()):
        child.log.warning("key refused", file=path, reason=reason)
    handler = Handler(child.config, store, child.log, counters, child.name, makers=makers)
    listeners = [socket.socket(fileno=fd) for fd in child.sockets()]
    server = Server(listeners, handler.answer, child.uids)
    server.stop_on(signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from a terminal it goes to the whole service: the supervisor decides
    child.ready()
    child.log.event("started", pid=os.getpid())
    server.run()
    child.log.event("stopped")


def _generate(child: process.Child, names: list[str], algorithm: KeyAlgorithm) -> int:
    domain, selector = names
    try:
        keystore.check_names(domain, selector)
        _enter(child)
        signer = child.config.signer
        found = keystore.generate(signer.keys, signer.public, domain, selector, algorithm, int(time.time() * 1000))
    except (KeyRefused, privileges.UserError) as e:
        sys.stderr.write(f"{e}\n")
        return FAILED
    except OSError as e:
        sys.stderr.write(f"{e.filename}: {e.strerror}\n")
        return FAILED
    sys.stdout.write(f"{found.record}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
