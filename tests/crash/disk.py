"""What a process did to its files, from a trace of its system calls; and what a crash may leave of it.

Only what was synced (fsync, fdatasync, or written through an O_DSYNC descriptor) is certain, and a file's name only
when its directory was synced. Of the rest any part may be there, page by page in any order, one page torn at a sector.
"""

import pathlib
import random
import re
from collections.abc import Iterator
from typing import NamedTuple

PAGE = 4096
SECTOR = 512  # what a disk writes whole
CALLS = ",".join(
    (
        "openat,close,dup,dup2,dup3,fcntl,lseek,write,writev,pwrite64,pwritev,pwritev2",
        "fsync,fdatasync,msync,sync_file_range,ftruncate,fallocate",
        "rename,renameat,renameat2,link,linkat,unlink,unlinkat,mkdir,sendto,sendmsg,accept4",
    )
)
LINE = re.compile(r"^\d+ +(\w+)\((.*)\) += (-?\d+)")
STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')


class Event(NamedTuple):
    """One system call that matters. ``kind``: open, close, write, sync, size, rename, unlink, accept, send."""

    kind: str
    fd: int
    data: bytes = b""
    offset: int = 0
    path: str = ""
    to: str = ""
    flags: str = ""


def strings(text: str) -> list[bytes]:
    found = []
    for match in STRING.finditer(text):
        if match[2]:
            raise ValueError("strace cut a string")
        found.append(bytes.fromhex(match[1].replace("\\x", "")))
    return found


def events(trace: pathlib.Path) -> Iterator[Event]:
    """The calls of a trace that succeeded. Raises ValueError for what it does not know."""
    at: dict[int, int] = {}  # position of each descriptor
    with trace.open() as lines:
        for line in lines:
            match = LINE.match(line)
            if match is None:
                if "unfinished" in line or "resumed" in line:
                    raise ValueError("the process has several threads")
                continue
            call, arguments, result = match[1], match[2], int(match[3])
            if result < 0:
                continue
            yield from event(call, arguments, result, at)


def event(call: str, arguments: str, result: int, at: dict[int, int]) -> Iterator[Event]:  # noqa: PLR0912  (a table)
    first, _, rest = arguments.partition(",")
    fd = int(first) if first.isdigit() else -1
    match call:
        case "openat":
            at[result] = 0
            yield Event("open", result, path=strings(rest)[0].decode(), flags=rest.rsplit('"', 1)[1])
        case "close":
            yield Event("close", fd)
        case "lseek":
            at[fd] = result
        case "write" | "writev":
            data = b"".join(strings(rest))[:result]
            yield Event("write", fd, data, at.get(fd, 0))
            at[fd] = at.get(fd, 0) + result
        case "pwrite64" | "pwritev":
            yield Event("write", fd, b"".join(strings(rest))[:result], int(rest.rsplit(",", 1)[1]))
        case "fsync" | "fdatasync":
            yield Event("sync", fd)
        case "ftruncate":
            yield Event("size", fd, offset=int(rest))
        case "rename" | "renameat" | "renameat2":
            old, new = strings(arguments)
            yield Event("rename", -1, path=old.decode(), to=new.decode())
        case "unlink" | "unlinkat" | "mkdir":
            yield Event(call.removesuffix("at"), -1, path=strings(arguments)[0].decode())
        case "accept4":
            yield Event("accept", result)
        case "sendto" | "sendmsg":
            yield Event("send", fd, b"".join(strings(rest))[:result])
        case "fcntl":
            if "F_DUPFD" in rest:
                yield Event("dup", fd, offset=result)
        case _:
            raise ValueError(f"{call} is not modelled")


class File:
    """A file: what is on the disk for sure, and the writes since, by page in their order."""

    def __init__(self, data: bytes = b"") -> None:
        self.synced = bytearray(data)
        self.pending: dict[int, list[tuple[int, bytes]]] = {}  # page -> [(offset in it, bytes)]

    def write(self, offset: int, data: bytes) -> None:
        at = 0
        while at < len(data):
            page, inside = divmod(offset + at, PAGE)
            part = data[at : at + PAGE - inside]
            self.pending.setdefault(page, []).append((inside, part))
            at += len(part)

    def sync(self, pages: list[int] | None = None) -> None:
        for page in list(self.pending) if pages is None else pages:
            for inside, part in self.pending.pop(page, []):
                _apply(self.synced, page * PAGE + inside, part)

    def image(self, keep: dict[int, int], torn: dict[int, int]) -> bytes:
        """With the first ``keep[page]`` of a page's writes; ``torn``: how many sectors of the next one too."""
        data = bytearray(self.synced)
        for page, writes in self.pending.items():
            for inside, part in writes[: keep.get(page, 0)]:
                _apply(data, page * PAGE + inside, part)
            if page in torn and keep.get(page, 0) < len(writes):
                inside, part = writes[keep.get(page, 0)]
                until = (inside // SECTOR + torn[page]) * SECTOR - inside
                if until > 0:
                    _apply(data, page * PAGE + inside, part[:until])
        return bytes(data)


def _apply(data: bytearray, at: int, part: bytes) -> None:
    if len(data) < at + len(part):
        data.extend(bytes(at + len(part) - len(data)))
    data[at : at + len(part)] = part


Kept = dict[tuple[str, int], int]  # (name, page) -> how many writes, or sectors


class Disk:
    """The files below ``root``: names in memory, and as they are on the disk for sure."""

    def __init__(self, root: str, files: dict[str, bytes]) -> None:
        self.root = root
        self.names = {name: File(data) for name, data in files.items()}
        self.durable = dict(self.names)
        self.fds: dict[int, tuple[str, File | None, bool]] = {}  # path, file, O_DSYNC

    def feed(self, e: Event) -> str:
        """What the event is for the disk: "write", "sync", or "" when it does not change it."""
        match e.kind:
            case "open":
                self._open(e)
            case "close":
                self.fds.pop(e.fd, None)
            case "dup" if e.fd in self.fds and self.fds[e.fd][1] is not None:
                raise ValueError("the descriptor of a file was duplicated")
            case "write" | "sync" if e.fd in self.fds:
                return self._write(e) if e.kind == "write" else self._sync(e)
            case "rename" if e.path in self.names:
                self.names[e.to] = self.names.pop(e.path)
                return "write"
            case "unlink" if e.path in self.names:
                del self.names[e.path]
                return "write"
            case "size" if e.fd in self.fds:
                raise ValueError("ftruncate is not modelled")
        return ""

    def _open(self, e: Event) -> None:
        self.fds.pop(e.fd, None)
        if not e.path.startswith(self.root) or e.path.endswith(".lock") or "lock.mdb" in e.path:
            if self.root.startswith(e.path):
                self.fds[e.fd] = (e.path, None, False)
            return
        if "O_CREAT" in e.flags and e.path not in self.names:
            self.names[e.path] = File()
        self.fds[e.fd] = (e.path, self.names.get(e.path), "SYNC" in e.flags)

    def _write(self, e: Event) -> str:
        _, file, synchronous = self.fds[e.fd]
        assert file is not None
        file.write(e.offset, e.data)
        return "write dsync" if synchronous else "write"

    def written(self, e: Event) -> None:
        """A write through an O_DSYNC descriptor has returned: its own pages are on the disk."""
        _, file, _ = self.fds[e.fd]
        assert file is not None
        file.sync(list(range(e.offset // PAGE, (e.offset + len(e.data) - 1) // PAGE + 1)))

    def _sync(self, e: Event) -> str:
        path, file, _ = self.fds[e.fd]
        return "sync" if file is not None or path else ""

    def synced(self, e: Event) -> None:
        path, file, _ = self.fds[e.fd]
        if file is not None:
            file.sync()
            return
        inside = path.rstrip("/") + "/"
        for name in {*self.names, *self.durable}:
            if name.rpartition("/")[0] + "/" == inside:
                self.durable.pop(name, None)
                if name in self.names:
                    self.durable[name] = self.names[name]

    def images(self, rng: random.Random, subsets: int) -> Iterator[tuple[str, dict[str, bytes]]]:
        """(what was done, files) for each way in which a crash now may leave the disk."""
        for which, names in self._names():
            pages = [(n, p, len(w)) for n, f in names.items() for p, w in f.pending.items()]
            yield f"{which}, nothing unsynced", self._build(names, {}, {})
            if not pages:
                continue
            everything = {(n, p): count for n, p, count in pages}
            yield f"{which}, all", self._build(names, everything, {})
            last = pages[-1]
            torn = {**everything, last[:2]: last[2] - 1}
            yield f"{which}, last write torn", self._build(names, torn, {last[:2]: rng.randrange(1, PAGE // SECTOR)})
            for _ in range(subsets):
                share = rng.random()
                keep = {(n, p): rng.randint(0, c) if c > 1 else int(rng.random() < share) for n, p, c in pages}
                tear = {(n, p): rng.randrange(1, PAGE // SECTOR) for n, p, _ in pages if rng.random() < 0.3}
                yield f"{which}, random", self._build(names, keep, tear)

    def _names(self) -> Iterator[tuple[str, dict[str, File]]]:
        yield "names", self.names
        if self.durable != self.names:
            yield "durable names", self.durable

    def _build(self, names: dict[str, File], keep: Kept, torn: Kept) -> dict[str, bytes]:
        found = {}
        for name, file in names.items():
            mine = {p: c for (n, p), c in keep.items() if n == name}
            tear = {p: c for (n, p), c in torn.items() if n == name}
            found[name] = file.image(mine, tear)
        return found
