"""What the kernel is asked to refuse the key process: network sockets, core dumps, being looked into.

The filter (seccomp, Linux) refuses every ``socket`` that is not a Unix one, ``io_uring``, which could make
sockets without that call, and system calls of another architecture, which have other numbers. They are refused
with EPERM rather than by a signal, so a library that tries is told no and the process lives on.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct

_PR_SET_DUMPABLE = 4  # linux/prctl.h
_PR_SET_SECCOMP = 22
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_MODE_FILTER = 2
_ALLOW = 0x7FFF0000
_REFUSE = 0x00050000 | 1  # SECCOMP_RET_ERRNO | EPERM
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # BPF: ld abs word, jeq, jge, ret
_NUMBER_AT, _ARCH_AT, _ARG0_AT = 0, 4, 16  # struct seccomp_data, little endian: the low half of the argument
_AF_UNIX = 1
_X32 = 0x40000000  # x86-64's second set of numbers
_IO_URING_SETUP = 425

_CALLS = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}  # AUDIT_ARCH_*, number of socket(2)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _filter(arch: int, socket: int) -> bytes:
    def op(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("<HBBI", code, yes, no, value)

    return b"".join(
        (
            op(_LOAD, _ARCH_AT),
            op(_EQUAL, arch, 0, 6),  # another architecture: refuse
            op(_LOAD, _NUMBER_AT),
            op(_AT_LEAST, _X32, 4, 0),
            op(_EQUAL, _IO_URING_SETUP, 3, 0),
            op(_EQUAL, socket, 0, 3),  # any other call: allow
            op(_LOAD, _ARG0_AT),
            op(_EQUAL, _AF_UNIX, 1, 0),
            op(_RETURN, _REFUSE),
            op(_RETURN, _ALLOW),
        )
    )


def refuse_networks() -> str:
    """From now on this process and its children make no network sockets. Returns "", or why that cannot be had."""
    if platform.machine() not in _CALLS:
        return f"no filter for {platform.machine()}"
    code = _filter(*_CALLS[platform.machine()])
    program = _Program(len(code) // 8, code)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)  # without it the filter needs root
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) != 0:
        return os.strerror(ctypes.get_errno())
    return ""


def refuse_dumps() -> None:
    """No core file, and no other process of the same user may read this one's memory (ptrace, /proc/PID/mem)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
