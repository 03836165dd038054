"""Which public keys lie on disk now: watches public/DOMAIN/ so that a new key is noticed without reading them all.

Called by the publisher every second. Reading the files is ``ptt.signer.state``'s.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import msgspec

from ptt.signer.state import PublicKey, public_keys

SETTLED_NS = 1_000_000_000  # a directory changed this recently may change again within one tick of its time stamp


class _Folder(msgspec.Struct):
    mtime: int  # ns; -1: read it again
    keys: list[PublicKey]


class KeyFiles:
    """The tree below ``directory`` (public/)."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._folders: dict[str, _Folder] = {}

    def scan(self, *, everything: bool = False) -> list[PublicKey]:
        """All keys, by domain. Reads the folders whose time stamp changed, or ``everything``: a file that was changed
        in its place changes no folder. Some 5 us for each folder, 50 us for each one read.
        """
        folders = {}
        for domain, mtime in self._listing():
            known = self._folders.get(domain)
            if everything or known is None or known.mtime != mtime:
                settled = time.time_ns() - mtime > SETTLED_NS
                known = _Folder(mtime if settled else -1, public_keys(self._directory, domain))
            folders[domain] = known
        self._folders = folders
        return [key for domain in sorted(folders) for key in folders[domain].keys]

    def _listing(self) -> Iterator[tuple[str, int]]:
        try:
            with os.scandir(self._directory) as entries:
                for entry in entries:
                    if entry.is_dir():
                        yield entry.name, entry.stat().st_mtime_ns
        except OSError:  # not there yet, or a folder that goes while we look: seen again in a second
            return
