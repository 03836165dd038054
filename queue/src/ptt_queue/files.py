"""The directory of a store: which file systems will do, who owns it, and that its creation is durable."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Callable

from ptt_queue.errors import StoreBusy, StoreError

_REFUSED = {  # f_type of statfs(2)
    0x6969: "NFS",
    0x794C7630: "overlayfs",
    0x65735546: "FUSE",
    0xFF534D42: "CIFS",
    0xFE534D42: "SMB2",
    0x517B: "SMB",
    0x01021997: "9p",
    0x00C36400: "Ceph",
}
"""File systems on which a shared memory map, its locks or its syncs cannot be relied on."""

_LOCK = "owner.lock"
_DATA = "data.mdb"


def check_file_system(path: str) -> None:
    """Raises StoreError when the store's directory cannot be there."""
    kind = _REFUSED.get(_file_system(path))
    if kind:
        raise StoreError(f"{path}: is on {kind}; the queue needs a local file system (ext4, xfs)")


def _file_system(path: str) -> int:
    """The type of the file system that ``path`` is on, or will be created on."""
    while not os.path.exists(path):
        path = os.path.dirname(os.path.abspath(path))
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(256)  # struct statfs: f_type comes first
    if libc.statfs(os.fsencode(path), buffer) != 0:
        number = ctypes.get_errno()
        raise StoreError(f"{path}: {os.strerror(number)}")
    return ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF


def take(path: str) -> int:
    """Become the one owner of the store: create the directory if need be, take its lock.

    Returns the descriptor that holds the lock until it is closed, or the process ends however it does.
    Raises StoreBusy when another process owns it, StoreError when it cannot be created.
    """
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        fd = os.open(os.path.join(path, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise StoreError(f"{path}: {e.strerror}") from e
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        os.close(fd)
        if e.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise StoreBusy(f"{path}: another process owns this queue") from e
        raise StoreError(f"{path}: {e.strerror}") from e
    return fd


def create(path: str, make: Callable[[str], None]) -> None:
    """Create the file of a store so that a crash leaves either none or a whole one: made beside, synced, renamed.

    ``make`` is called with a directory in which it leaves data.mdb. Raises OSError.
    """
    beside = os.path.join(path, "new")
    shutil.rmtree(beside, ignore_errors=True)  # of one that did not come to its end
    os.makedirs(beside, mode=0o700)
    make(beside)
    made = os.path.join(beside, _DATA)
    sync(made)
    os.rename(made, os.path.join(path, _DATA))
    shutil.rmtree(beside)


def sync_created(path: str) -> None:
    """A new store survives a loss of power: its files, its directory and the directory's own entry."""
    full = os.path.abspath(path)
    parent = os.path.dirname(full)
    for name in (os.path.join(full, _DATA), full, parent, os.path.dirname(parent)):
        with contextlib.suppress(PermissionError):  # a directory that we may not read we did not create
            sync(name)


def sync(path: str) -> None:
    """Bring a file, or the entries of a directory, to stable storage. Raises OSError."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def free_bytes(path: str) -> int:
    """What an ordinary user may still write on the file system of ``path``."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize
