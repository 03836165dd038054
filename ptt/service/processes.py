"""Which processes a service has, and when one that died is started again: pure decisions of the supervisor."""

from __future__ import annotations

import os
from collections.abc import Mapping

import msgspec

from ptt.config import Config
from ptt.service.layout import Sockets
from ptt.service.privileges import Kind, callers

FIRST_DELAY = 0.1  # seconds before the first restart; then doubling
LONGEST_DELAY = 10.0
GOOD_LIFE = 30.0  # who lived so long starts again without delay being remembered

STOP_ORDER: tuple[Kind, ...] = ("worker", "control", "signer", "queue")
"""Workers drain into the queue; control takes their last counts."""

STOP_SECONDS = 10.0  # for what has nothing to drain: finish the transaction or the batch at hand

_MODULES: dict[Kind, str] = {
    "queue": "ptt.service.queue",
    "signer": "ptt.signer.keyprocess",
    "control": "ptt.service.control",
    "worker": "ptt.service.worker",
}

_ENVIRONMENT = frozenset(
    ("PATH", "HOME", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "LD_PRELOAD", "SSL_CERT_FILE", "SSL_CERT_DIR")
)
_ENVIRONMENT_PREFIXES = ("LC_", "PYTHON", "FAKETIME", "GIT_SSH", "SSH_AUTH_SOCK")


class Spec(msgspec.Struct, frozen=True):
    """One process: what is executed, and the descriptors it inherits."""

    name: str  # "worker.0"
    kind: Kind
    arguments: tuple[str, ...]  # of the interpreter
    fds: tuple[int, ...]


def specs(config: Config, file: str, sockets: Sockets, census: int) -> list[Spec]:
    """All processes, in the order in which they start. ``file``: the configuration's, absolute.

    ``census``: the memory in which workers count connections, a descriptor.
    """
    kinds: list[tuple[str, Kind, list[str], list[int]]] = []
    queue = sockets.unix["queue"].fileno()
    kinds.append(("queue", "queue", ["--listen-fd", str(queue), "--clients", str(config.workers)], [queue]))
    if config.signs:
        signer = sockets.unix["signer"].fileno()
        for n in range(config.signer.processes):
            kinds.append((f"signer.{n}", "signer", ["--listen-fd", str(signer)], [signer]))
    control, admin = sockets.unix["control"].fileno(), sockets.admin.fileno()
    listen = ["--listen-fd", f"0:{control}", "--listen-fd", f"1:{admin}"]
    kinds.append(("control", "control", listen, [control, admin]))
    for n, row in enumerate(sockets.workers):
        fds = [sock.fileno() for sock in row]
        listen = [word for i, fd in enumerate(fds) for word in ("--listen-fd", f"{i}:{fd}")]
        kinds.append((f"worker.{n}", "worker", [*listen, "--census", f"{n}:{census}"], [*fds, census]))
    return [_spec(config, file, *kind) for kind in kinds]


def _spec(config: Config, file: str, name: str, kind: Kind, arguments: list[str], fds: list[int]) -> Spec:
    uids = ",".join(str(uid) for uid in sorted(callers(kind, config)))
    common = ["--config", file, "--role", config.role, "--pool", str(config.pool), "--name", name, "--uids", uids]
    # -P: the working directory is no place to import from
    return Spec(name, kind, ("-P", "-m", _MODULES[kind], *common, *arguments), tuple(fds))


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """What the processes get of our environment: nothing that could carry a secret or change what they do."""
    kept = {k: v for k, v in given.items() if k in _ENVIRONMENT or k.startswith(_ENVIRONMENT_PREFIXES)}
    if "PYTHONPATH" in kept:  # the children start elsewhere
        kept["PYTHONPATH"] = os.pathsep.join(os.path.abspath(p) for p in kept["PYTHONPATH"].split(os.pathsep) if p)
    return kept


def next_delay(delay: float, lived: float) -> float:
    """Seconds until a process that lived ``lived`` seconds is started again; ``delay``: before its last start."""
    if lived >= GOOD_LIFE or not delay:
        return FIRST_DELAY
    return min(delay * 2, LONGEST_DELAY)


def stop_seconds(kind: Kind, config: Config) -> float:
    """How long a process of this kind may take to end before it is killed."""
    return config.drain_seconds + 5.0 if kind == "worker" else STOP_SECONDS
