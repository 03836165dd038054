"""Sockets that were bound by another: by systemd (socket activation), or by the program that an upgrade replaces.

An upgrade in place executes the program anew in the same process, so that the children stay its children and nobody
else needs to know. It inherits the listening sockets and the locks, and a description; connections wait in the sockets.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping

import msgspec

from ptt.config import Config, split_address
from ptt.service.layout import Given, Sockets
from ptt.service.privileges import Kind
from ptt.service.running import Adopted

TRIAL_SECONDS = 30.0
FIRST_FD = 3  # of those that systemd passes: sd_listen_fds(3)


class Packed(msgspec.Struct):
    """What the new program is told."""

    tcp: list[tuple[str, list[int]]]  # address, and the socket of each worker
    admin: tuple[str, int]
    unix: dict[Kind, int]
    locks: tuple[int, int]
    children: list[tuple[str, Kind, int]]  # name, kind, process id


class Taken(msgspec.Struct):
    """What the new program goes on with."""

    given: Given
    locks: tuple[int, int]
    former: list[Adopted]


def trial(env: Mapping[str, str]) -> str:
    """Would the program start? What it says if not; else "". Takes as long as an interpreter needs to start."""
    command = [*_command(), "--trial"]
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=TRIAL_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as e:
        return str(e)
    return (done.stderr.strip() or f"exit code {done.returncode}") if done.returncode else ""


def pack(config: Config, sockets: Sockets, locks: tuple[int, int], children: list[tuple[str, Kind, int]]) -> Packed:
    """What is handed over. The numbers of the descriptors stay what they are."""
    tcp = [
        (listen.address, list(dict.fromkeys(row[i].fileno() for row in sockets.workers)))
        for i, listen in enumerate(config.listen)
    ]
    unix = {kind: sock.fileno() for kind, sock in sockets.unix.items()}
    return Packed(tcp, (config.admin.listen, sockets.admin.fileno()), unix, locks, children)


def execute(packed: Packed) -> None:
    """Become the new program. Raises OSError; returns never."""
    fds = [fd for _, row in packed.tcp for fd in row] + [packed.admin[1], *packed.unix.values(), *packed.locks]
    about = os.memfd_create("ptt-handover", 0)  # inherited
    os.write(about, msgspec.json.encode(packed))
    for fd in fds:
        os.set_inheritable(fd, True)
    try:
        command = [*_command(), "--takeover", str(about)]
        os.execv(command[0], command)  # noqa: S606  (there is no shell, as elsewhere)
    finally:  # it failed
        os.close(about)
        for fd in fds:
            os.set_inheritable(fd, False)


def take(about: int) -> Taken:
    """What the former program handed over in the file ``about``."""
    with open(about, "rb") as file:
        file.seek(0)
        packed = msgspec.json.decode(file.read(), type=Packed)
    for fd in (*packed.locks, packed.admin[1], *packed.unix.values(), *(fd for _, row in packed.tcp for fd in row)):
        os.set_inheritable(fd, False)
    tcp = {address: [socket.socket(fileno=fd) for fd in row] for address, row in packed.tcp}
    tcp.setdefault(packed.admin[0], []).append(socket.socket(fileno=packed.admin[1]))
    unix = {kind: socket.socket(fileno=fd) for kind, fd in packed.unix.items()}
    return Taken(Given(tcp, unix), packed.locks, [Adopted(*child) for child in packed.children])


def activated(config: Config, env: Mapping[str, str] = os.environ) -> Given:
    """The sockets that systemd bound for us (sd_listen_fds(3)), by the addresses of the configuration."""
    if env.get("LISTEN_PID") != str(os.getpid()):
        return Given()
    found: dict[str, list[socket.socket]] = {}
    wanted = [*(listen.address for listen in config.listen), config.admin.listen]
    for fd in range(FIRST_FD, FIRST_FD + int(env.get("LISTEN_FDS", "0"))):
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
        name = sock.getsockname() if sock.family in (socket.AF_INET, socket.AF_INET6) else ("", 0)
        for address in wanted:
            host, port = split_address(address)
            if port == name[1] and host in (name[0], "localhost", "*"):
                found.setdefault(address, []).append(sock)
                break
        else:
            sock.close()
    return Given(found)


def _command() -> list[str]:
    """What we were started with, executed by the interpreter that is there now."""
    words = sys.argv[1:]
    if "--takeover" in words:  # and the number after it, at the end
        words = words[: words.index("--takeover")]
    return [sys.executable, "-P", "-m", "ptt.service.supervisor", *words]
