"""The key process: alone opens the private DKIM keys, and signs what workers send it over a Unix socket.

    python -m ptt.signer.keyprocess --config FILE --listen-fd N ...        started by the supervisor
    python -m ptt.signer.keyprocess --config FILE --generate DOMAIN SELECTOR [--algorithm rsa2048|ed25519] [--derive]

The second form makes one pair of keys, prints the public record and ends; ``ptt dkim keygen`` starts it, so that no
command ever holds a private key; with ``--derive`` from a passphrase, which it asks the terminal for, or which is the
first line of its standard input. Plain Python, one thread, no gevent. After the start: its own user, no network
sockets, no core dumps (``ptt.signer.isolation``). It keeps nothing: killed at any instant it loses only
requests, which the workers ask again.
"""

from __future__ import annotations

import argparse
import getpass
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
from ptt.signer.keystore import BITS, Key, KeyRefused, Keystore
from ptt.signer.server import Server
from ptt.signer.state import KeyAlgorithm

FAILED, USAGE = 1, 2  # exit codes


def arguments() -> argparse.ArgumentParser:
    found = process.parser("signer")
    found.add_argument("--generate", nargs=2, metavar=("DOMAIN", "SELECTOR"))
    found.add_argument("--algorithm", choices=get_args(KeyAlgorithm), default="rsa2048")
    found.add_argument("--derive", action="store_true")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Serve, or make one key. Returns the exit code."""
    options = arguments().parse_args(argv)
    child = process.from_arguments("signer", options)
    if options.generate:
        return _generate(child, options.generate, options.algorithm, options.derive)
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


def _generate(child: process.Child, names: list[str], algorithm: KeyAlgorithm, from_passphrase: bool) -> int:
    domain, selector = names
    try:
        keystore.check_names(domain, selector)
        _enter(child)
        signer = child.config.signer
        key = _derived(domain, selector, algorithm) if from_passphrase else None
        now = int(time.time() * 1000)
        found = keystore.generate(signer.keys, signer.public, domain, selector, algorithm, now, key)
    except (KeyRefused, privileges.UserError) as e:
        sys.stderr.write(f"{e}\n")
        return FAILED
    except OSError as e:
        sys.stderr.write(f"{e.filename}: {e.strerror}\n")
        return FAILED
    sys.stdout.write(f"{found.record}\n")
    return 0


def _derived(domain: str, selector: str, algorithm: KeyAlgorithm) -> Key:
    """A key from a passphrase, for which a terminal is asked twice. Raises KeyRefused."""
    from ptt.signer import derive  # a process that signs has no use for it

    if sys.stdin.isatty():
        passphrase = getpass.getpass("Passphrase: ")
        if getpass.getpass("The same again: ") != passphrase:
            raise KeyRefused("these were two passphrases")
    else:
        line = sys.stdin.buffer.readline(derive.MAX_PASSPHRASE * 4 + 2)  # UTF-8 has at most four octets a character
        try:
            passphrase = line.decode().rstrip("\r\n")
        except UnicodeDecodeError as e:
            raise KeyRefused("the passphrase is not UTF-8") from e
    try:
        return derive.private_key(passphrase, domain, selector, algorithm, BITS.get(algorithm, 0))
    except ValueError as e:
        raise KeyRefused(str(e)) from e


if __name__ == "__main__":
    sys.exit(main())
