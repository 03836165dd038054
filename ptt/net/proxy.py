"""The PROXY protocol, versions 1 and 2 (haproxy, doc/proxy-protocol.txt, 2.1 and 2.2): a header in octets. Pure.

A proxy writes it before anything else on a connection that it forwards, and says in it whom it forwards.
"""

from __future__ import annotations

import ipaddress
import struct
from typing import Final, NamedTuple

SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"  # of version 2
PREFIX: Final = b"PROXY "  # of version 1
MAX_V1: Final = 107  # octets with CRLF: the specification's own bound
MAX_V2: Final = 4096  # octets: addresses, and more TLVs than any proxy sends; the format would allow 64 KiB

_FIXED: Final = 16  # octets of a version 2 header before the addresses
_LOCAL, _PROXY = 0x20, 0x21
_UNSPEC = 0x00
_ADDRESSES: Final = {0x11: 12, 0x12: 12, 0x21: 36, 0x22: 36, 0x31: 216, 0x32: 216}  # octets, by family and transport
_TCP4, _TCP6 = 0x11, 0x21
_CRC32C = 0x03  # the TLV that holds a checksum of the whole header


class ProxyError(Exception):
    """This is no header, or none that we take. The text is for the log."""


class Source(NamedTuple):
    """Whom a proxy forwards. ``address`` "": it does not say (version 1: UNKNOWN, version 2: UNSPEC or AF_UNIX)."""

    address: str = ""
    port: int = 0
    local: bool = False  # the proxy speaks for itself, as in a health check (version 2: LOCAL)


class HeaderReader:
    """Takes octets until the header is complete; ``source`` is None until then."""

    __slots__ = ("_buffer", "source")

    def __init__(self) -> None:
        self._buffer = b""
        self.source: Source | None = None

    def feed(self, data: bytes) -> int:
        """Take ``data``. Returns how many octets of it belong to the header, the rest is the client's.

        Raises ProxyError as soon as the octets cannot become a header. Not to be called when ``source`` is there.
        """
        before = len(self._buffer)
        whole = self._buffer + data[:MAX_V2]
        end = _end(whole)
        if end is None:
            self._buffer = whole
            return len(data)
        self._buffer = b""
        self.source = _version_2(whole[:end]) if whole.startswith(SIGNATURE) else _version_1(whole[:end])
        return end - before


def _end(whole: bytes) -> int | None:
    """Where the header ends; None: further on. Raises ProxyError."""
    if whole.startswith(SIGNATURE):
        if len(whole) < _FIXED:
            return None
        end: int = _FIXED + struct.unpack_from("!H", whole, 14)[0]
        if end > MAX_V2:
            raise ProxyError("the header is too long")
        return end if len(whole) >= end else None
    if whole.startswith(PREFIX):
        line = whole.find(b"\r\n", 0, MAX_V1)
        if line < 0 and len(whole) >= MAX_V1:
            raise ProxyError("the header is too long")
        return line + 2 if line >= 0 else None
    if SIGNATURE.startswith(whole) or PREFIX.startswith(whole):
        return None
    raise ProxyError("the connection does not begin with a PROXY header")


def _version_1(line: bytes) -> Source:
    words = line[:-2].split(b" ")
    if words[1] == b"UNKNOWN":
        return Source()  # what follows is to be ignored
    if words[1] not in (b"TCP4", b"TCP6") or len(words) != 6:
        raise ProxyError("the header is malformed")
    try:
        kind = ipaddress.IPv4Address if words[1] == b"TCP4" else ipaddress.IPv6Address
        source, _ = (kind(word.decode("ascii")) for word in words[2:4])
        port, _ = (_port(word) for word in words[4:])
    except ValueError as e:
        raise ProxyError("the header is malformed") from e
    return Source(_show(source), port)


def _port(word: bytes) -> int:
    """Decimal, without a sign and without leading zeros. Raises ValueError."""
    if not word.isdigit() or str(int(word)).encode() != word or int(word) > 65535:
        raise ValueError
    return int(word)


def _version_2(header: bytes) -> Source:
    command, family = header[12], header[13]
    if command == _LOCAL:
        return Source(local=True)  # everything else is to be ignored
    if command != _PROXY:
        raise ProxyError("the header has an unknown version or command")
    if family != _UNSPEC and family not in _ADDRESSES:
        raise ProxyError("the header has an unknown address family")
    size = _ADDRESSES.get(family, 0)
    if len(header) < _FIXED + size:
        raise ProxyError("the header is too short for its addresses")
    _check_tlvs(header, _FIXED + size)
    if family == _TCP4:
        return Source(str(ipaddress.IPv4Address(header[16:20])), struct.unpack_from("!H", header, 24)[0])
    if family == _TCP6:
        return Source(_show(ipaddress.IPv6Address(header[16:32])), struct.unpack_from("!H", header, 48)[0])
    if family & 0x0F == 2:
        raise ProxyError("the header speaks of datagrams")
    return Source()


def _check_tlvs(header: bytes, start: int) -> None:
    """Go over the TLVs. Only the checksum means anything to us. Raises ProxyError."""
    at = start
    while at < len(header):
        if at + 3 > len(header):
            raise ProxyError("the header ends within a TLV")
        kind, size = struct.unpack_from("!BH", header, at)
        value, at = at + 3, at + 3 + size
        if at > len(header):
            raise ProxyError("the header ends within a TLV")
        if kind == _CRC32C:
            if size != 4:
                raise ProxyError("the header has a malformed checksum")
            blank = header[:value] + b"\0\0\0\0" + header[at:]
            if crc32c(blank) != struct.unpack_from("!I", header, value)[0]:
                raise ProxyError("the header's checksum is wrong")


def _show(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """As we write addresses; an IPv4 address mapped into IPv6 is an IPv4 address."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            raise ProxyError("the header is malformed")
        return str(address.ipv4_mapped or address)
    return str(address)


def _crc_of(crc: int) -> int:
    for _ in range(8):
        crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc


_CRC_TABLE: Final = tuple(map(_crc_of, range(256)))


def crc32c(data: bytes) -> int:
    """The Castagnoli checksum (RFC 3720, appendix B.4)."""
    crc = 0xFFFFFFFF
    for octet in data:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ octet) & 0xFF]
    return crc ^ 0xFFFFFFFF
