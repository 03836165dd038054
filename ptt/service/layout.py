"""The directories of a service, and the sockets it listens on: made by the supervisor before any process starts.

Who owns what when each kind of process has its own user:

====================  ========  ======  =====================================================================
path                  owner     mode    why
====================  ========  ======  =====================================================================
run                   root      1771    control's group may add files, nobody replaces another's
run/dkim.json         control   0640    made here: workers are members of control's group
run/KIND.sock         root      0660    group of that process: its callers are members of it
data                  root      0711    only a way through
data/queue            queue     0700
data/snapshot         control   0750    workers are members of control's group
data/control          control   0700
keys                  signer    0700    private keys
public                signer    0755    public keys, read by control and workers
directory.git         control   0700    holds password verifiers
====================  ========  ======  =====================================================================
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import socket
import stat
from typing import NamedTuple

import msgspec

from ptt.config import Config, split_address
from ptt.service.privileges import KINDS, Account, Kind, account_of
from ptt.signer.state import state_path

TCP_BACKLOG = 4096  # connections that wait for a worker, for as long as it takes to replace it
UNIX_BACKLOG = 1024  # above any number of workers and commands


class LayoutError(Exception):
    """A directory or a socket cannot be made; the text says which and what to do."""


class Directory(NamedTuple):
    """A directory as it is made. ``owner``: a kind of process, or None for the operator."""

    path: str
    owner: Kind | None
    mode: int
    group: Kind | None = None


def directories(config: Config) -> list[Directory]:
    """Every directory of the service."""
    return [
        Directory(config.run, None, 0o1771, group="control"),
        Directory(config.data, None, 0o711),
        Directory(config.queue.path, "queue", 0o700),
        Directory(config.directory.snapshots, "control", 0o750),
        Directory(os.path.join(config.data, "control"), "control", 0o700),
        Directory(config.signer.keys, "signer", 0o700),
        Directory(config.signer.public, "signer", 0o755),
    ]


def owner_of(directory: Directory, config: Config) -> Account:
    """The account that owns this directory."""
    own = Account(os.getuid(), os.getgid())
    uid = account_of(directory.owner, config).uid if directory.owner else own.uid
    group = directory.group or directory.owner
    return Account(uid, account_of(group, config).gid if group else own.gid)


def make_directories(config: Config) -> None:
    """Make what is missing; what is there stays as it is. Raises LayoutError."""
    for directory in directories(config):
        try:
            os.makedirs(os.path.dirname(directory.path), exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.mkdir(directory.path, 0o700)
                os.chown(directory.path, *owner_of(directory, config))
                os.chmod(directory.path, directory.mode)
        except OSError as e:
            raise LayoutError(f"{directory.path}: {e.strerror}") from e


def reserve_key_state(config: Config) -> None:
    """Let run/dkim.json, by which workers sign, belong to control before any process runs. Raises LayoutError."""
    path = state_path(config)
    own = account_of("control", config)
    try:
        for left in glob.glob(f"{glob.escape(path)}.*.new"):  # of a control process that was killed
            os.unlink(left)
        with contextlib.suppress(FileNotFoundError):
            found = os.lstat(path)
            if stat.S_ISREG(found.st_mode) and found.st_uid == own.uid:
                return
            os.unlink(path)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.fchown(fd, *own)
            os.fchmod(fd, 0o640)
        finally:
            os.close(fd)
    except OSError as e:
        raise LayoutError(f"{path}: {e.strerror}") from e


class Sockets(msgspec.Struct):
    """Everything the service listens on. ``workers[w][i]``: of worker w, for ``config.listen[i]``."""

    workers: list[list[socket.socket]]
    admin: socket.socket
    unix: dict[Kind, socket.socket]

    def close(self) -> None:
        """Stop listening; what waits to be accepted is refused."""
        for sock in [s for row in self.workers for s in row] + [self.admin, *self.unix.values()]:
            sock.close()


class Given(msgspec.Struct):
    """Sockets that are bound already: by the address of the configuration, and by the kind of process."""

    tcp: dict[str, list[socket.socket]] = {}
    unix: dict[Kind, socket.socket] = {}

    def take(self, address: str) -> socket.socket | None:
        """The next socket of that address. One without SO_REUSEPORT is for all who ask."""
        row = self.tcp.get(address)
        if not row:
            return None
        return row.pop(0) if row[0].getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) else row[0]


def bind_all(config: Config, given: Given | None = None) -> Sockets:
    """Bind every socket of the service that is not given. Raises LayoutError.

    Each worker has its own TCP socket for each address (SO_REUSEPORT), so that the kernel spreads connections
    evenly; the supervisor keeps them open, so connections to a worker that died wait for its replacement.
    """
    bound: list[socket.socket] = []
    given = given or Given()
    try:
        for listen in config.listen:
            if not given.tcp.get(listen.address):
                try_address(listen.address)  # SO_REUSEPORT would share the port with another service of ours
        rows = []
        for _ in range(config.workers):
            row = [given.take(listen.address) or _tcp(listen.address, alone=False) for listen in config.listen]
            bound += row
            rows.append(row)
        admin = given.take(config.admin.listen) or _tcp(config.admin.listen, alone=True)
        bound.append(admin)
        kinds: tuple[Kind, ...] = ("queue", "signer", "control") if config.signs else ("queue", "control")
        return Sockets(rows, admin, {kind: given.unix.get(kind) or _unix(config, kind) for kind in kinds})
    except LayoutError:
        for sock in bound:
            sock.close()
        raise


def remove_sockets(config: Config) -> None:
    """Remove the Unix sockets at the end, while the lock is still ours."""
    for kind in KINDS:
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(config.run, f"{kind}.sock"))


def try_address(address: str) -> None:
    """Could we listen there? Raises LayoutError."""
    _tcp(address, alone=True).close()


def _tcp(address: str, *, alone: bool) -> socket.socket:
    host, port = split_address(address)
    try:
        family, _, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if not alone:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(target)
            sock.listen(TCP_BACKLOG)
        except BaseException:
            sock.close()
            raise
    except OSError as e:
        advice = {
            errno.EADDRINUSE: "another program listens there; stop it or choose another port",
            errno.EACCES: "ports below 1024 need root or CAP_NET_BIND_SERVICE",
            errno.EADDRNOTAVAIL: "this machine does not have that address",
        }.get(e.errno or 0, e.strerror or str(e))
        raise LayoutError(f"cannot listen on {address}: {advice}") from e
    return sock


def _unix(config: Config, kind: Kind) -> socket.socket:
    """Bind run/KIND.sock, in place of one that a former run left (we hold its lock)."""
    name = f"{kind}.sock"
    path = os.path.join(config.run, name)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        directory = os.open(config.run, os.O_PATH | os.O_DIRECTORY)
        try:
            sock.bind(f"/proc/self/fd/{directory}/{name}")  # a long path does not fit into a socket's address
        finally:
            os.close(directory)
        os.chown(path, os.getuid(), account_of(kind, config).gid)
        os.chmod(path, 0o660)
        sock.listen(UNIX_BACKLOG)
    except OSError as e:
        sock.close()
        raise LayoutError(f"{path}: {e.strerror}") from e
    return sock
