"""What a process may do: its user, its limits, its death with the supervisor. Plain Python, no gevent.

Started as root, each kind of process has its own user (``[users]`` in the configuration). The Unix socket of
a process belongs to that process's group, and a process is a member of the groups of those that it calls: that is
the whole of the access rules between processes (``CALLS``). Which peer it is, the servers check once more by
SO_PEERCRED.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import pkgutil
import pwd
import resource
import signal
from typing import Literal, NamedTuple

from ptt.config import Config

Kind = Literal["queue", "worker", "signer", "control"]
KINDS: tuple[Kind, ...] = ("queue", "worker", "signer", "control")

CALLS: dict[Kind, tuple[Kind, ...]] = {
    "queue": (),
    "signer": (),
    "worker": ("queue", "signer", "control"),
    "control": ("queue", "signer"),
}
"""Whose sockets each kind of process connects to. Workers also read the snapshots that control writes."""

_UMASKS: dict[Kind, int] = {"queue": 0o077, "worker": 0o077, "signer": 0o077, "control": 0o027}
"""Control's files are read by its group: snapshots and the state of published keys."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PR_SET_NO_NEW_PRIVS = 38

# Modules that libraries import only when they first need them. After the change of user the interpreter's
# own files may be out of reach, so they are imported before. A name that ends in ".*" is a package with all in it.
_LAZY = (
    "_strptime",
    "encodings.ascii",
    "encodings.idna",
    "encodings.latin_1",
    "encodings.punycode",
    "encodings.utf_8_sig",
    "locale",
    "stringprep",
    "tempfile",
    "traceback",
    "zoneinfo",
)
_LAZY_OF: dict[Kind, tuple[str, ...]] = {
    "queue": (),
    "signer": ("cryptography.hazmat.primitives.asymmetric.*", "cryptography.hazmat.primitives.serialization.*"),
    "worker": (
        "cryptography.x509",
        "dns.dnssec",
        "dns.rdtypes.*",
        "email.*",
        "gevent.resolver.thread",
        "gevent.threadpool",
    ),
    "control": (
        "argon2",
        "cryptography.hazmat.primitives.serialization.*",
        "cryptography.x509",
        "dns.dnssec",
        "dns.rdtypes.*",
        "email.*",
        "gevent.pywsgi",
        "gevent.resolver.thread",
        "gevent.threadpool",
        "pygit2",
    ),
}


class UserError(Exception):
    """A user named in the configuration does not exist. The text says which."""


class Account(NamedTuple):
    """A user and its group."""

    uid: int
    gid: int


def account(user: str | int) -> Account:
    """The account of a name or a number; a number without an entry has the group of the same number. Raises UserError.

    An empty name is the present account.
    """
    if user == "":
        return Account(os.getuid(), os.getgid())
    try:
        number = int(user)
    except ValueError:
        try:
            entry = pwd.getpwnam(str(user))
        except KeyError as e:
            raise UserError(f"there is no user {user!r}") from e
        return Account(entry.pw_uid, entry.pw_gid)
    try:
        return Account(number, pwd.getpwuid(number).pw_gid)
    except KeyError:
        return Account(number, number)


def account_of(kind: Kind, config: Config) -> Account:
    """Who a process of this kind runs as: its own account when we are root and one is configured."""
    return account(getattr(config.users, kind) if os.getuid() == 0 else "")


def separate(config: Config) -> bool:
    """Does each kind of process run under a user of its own?"""
    return len({account_of(kind, config).uid for kind in KINDS}) == len(KINDS)


def callers(kind: Kind, config: Config) -> frozenset[int]:
    """The user ids that may call a process of this kind: its callers', the operator's own, and root's."""
    uids = {account_of(other, config).uid for other in KINDS if kind in CALLS[other]}
    return frozenset(uids | {os.getuid(), 0})


def preload(kind: Kind) -> None:
    """Import what libraries would import later, when their files may be out of reach."""
    for name in _LAZY + _LAZY_OF[kind]:
        package = importlib.import_module(name.removesuffix(".*"))
        if name.endswith(".*"):
            for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
                with contextlib.suppress(ImportError):  # optional parts of a library that is not installed whole
                    importlib.import_module(module.name)


def become(kind: Kind, config: Config) -> None:
    """Change to the user of this kind of process for good, if we are root and one is configured."""
    own = account_of(kind, config)
    if own.uid == os.getuid():
        return
    preload(kind)
    os.setgroups(sorted({account_of(other, config).gid for other in CALLS[kind]} - {own.gid}))
    os.setresgid(own.gid, own.gid, own.gid)
    os.setresuid(own.uid, own.uid, own.uid)


def enter(kind: Kind, config: Config, parent: int = 0) -> None:
    """Called by each child after its imports and before it touches anything: change user, set limits.

    ``parent``: the supervisor's process id. Its death ends this process by SIGTERM; if it is dead already this raises
    SystemExit. 0: no supervisor.
    """
    become(kind, config)
    os.umask(_UMASKS[kind])
    with contextlib.suppress(ValueError, OSError):
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # memory holds keys, passwords and mail
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if parent:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)  # after the change of user, which clears it
        if os.getppid() != parent:
            raise SystemExit("the supervisor is gone")
