"""The PROXY protocol: what is taken, what is refused; whole, octet by octet and with the client's octets behind it."""

from __future__ import annotations

import contextlib
import ipaddress
import pathlib
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptt.net.proxy import MAX_V2, SIGNATURE, HeaderReader, ProxyError, Source, crc32c

CORPUS = sorted((pathlib.Path(__file__).parent / "proxy_corpus").iterdir())


def v2(command: int = 0x21, family: int = 0x11, rest: bytes | None = None) -> bytes:
    if rest is None:
        rest = bytes([192, 0, 2, 1, 198, 51, 100, 1]) + struct.pack("!HH", 4242, 25)
    return SIGNATURE + struct.pack("!BBH", command, family, len(rest)) + rest


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


IPV4 = v2()[16:]
IPV6 = ipaddress.ip_address("2001:db8::1").packed + ipaddress.ip_address("2001:db8::2").packed + b"\x10\x92\0\x19"
MAPPED = ipaddress.ip_address("::ffff:192.0.2.1").packed + IPV6[16:]


def summed(crc: int | None = None) -> bytes:
    blank = v2(rest=IPV4 + tlv(3, bytes(4)) + tlv(4, b"noop"))
    return blank.replace(tlv(3, bytes(4)), tlv(3, struct.pack("!I", crc32c(blank) if crc is None else crc)))


GOOD = {
    b"PROXY TCP4 192.0.2.1 198.51.100.1 4242 25\r\n": Source("192.0.2.1", 4242),
    b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n": Source("255.255.255.255", 65535),
    b"PROXY TCP6 2001:db8::1 2001:db8::2 0 25\r\n": Source("2001:db8::1", 0),
    b"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:198.51.100.1 4242 25\r\n": Source("192.0.2.1", 4242),
    b"PROXY UNKNOWN\r\n": Source(),
    b"PROXY UNKNOWN " + b"ffff:" * 15 + b" 65535\r\n": Source(),
    v2(): Source("192.0.2.1", 4242),
    v2(family=0x21, rest=IPV6): Source("2001:db8::1", 4242),
    v2(family=0x21, rest=MAPPED): Source("192.0.2.1", 4242),
    v2(rest=IPV4 + tlv(1, b"smtp") + tlv(4, b"")): Source("192.0.2.1", 4242),
    v2(command=0x20, family=0, rest=b""): Source(local=True),
    v2(command=0x20, family=0x77, rest=b"anything"): Source(local=True),
    v2(family=0, rest=b""): Source(),
    v2(family=0, rest=tlv(4, b"x")): Source(),
    v2(family=0x31, rest=bytes(216)): Source(),
    summed(): Source("192.0.2.1", 4242),
}
BAD = [
    b"EHLO client\r\n",
    b"\x16\x03\x01\x02\x00\x01",
    b"proxy TCP4 192.0.2.1 198.51.100.1 4242 25\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.1 4242\r\n",
    b"PROXY TCP4  192.0.2.1 198.51.100.1 4242 25\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.1 4242 25 \r\n",
    b"PROXY TCP4 192.0.2.01 198.51.100.1 4242 25\r\n",
    b"PROXY TCP4 2001:db8::1 2001:db8::2 4242 25\r\n",
    b"PROXY TCP6 192.0.2.1 198.51.100.1 4242 25\r\n",
    b"PROXY TCP6 fe80::1%eth0 fe80::2 4242 25\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.1 04242 25\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.1 -1 25\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.1 65536 25\r\n",
    b"PROXY UDP4 192.0.2.1 198.51.100.1 4242 25\r\n",
    b"PROXY \r\n",
    b"PROXY UNKNOWN " + b"x" * 100 + b"\r\n",
    v2(command=0x11),
    v2(command=0x31),
    v2(command=0x22),
    v2(family=0x41, rest=bytes(300)),
    v2(family=0x12),
    v2(family=0x32, rest=bytes(216)),
    v2(family=0x10),
    v2(rest=IPV4[:-1]),
    v2(family=0x21, rest=IPV4),
    v2(rest=IPV4 + b"\x04"),
    v2(rest=IPV4 + b"\x04\0\x09x"),
    v2(rest=IPV4 + tlv(3, b"abc")),
    v2(rest=IPV4 + bytes(MAX_V2)),
    SIGNATURE + b"\x20\0\xff\xff",
    summed(1),
]


def fed(data: bytes, size: int) -> tuple[Source | None, int]:
    """The source, and how many octets of ``data`` were taken, when it comes in pieces of ``size``."""
    reader, taken = HeaderReader(), 0
    for start in range(0, len(data), size):
        taken += reader.feed(data[start : start + size])
        if reader.source is not None:
            break
    return reader.source, taken


@pytest.mark.parametrize("header", GOOD, ids=range(len(GOOD)))
def test_taken(header: bytes) -> None:
    for size in (1, 7, 10_000):
        for tail in (b"", b"EHLO client\r\n", header):
            assert fed(header + tail, size) == (GOOD[header], len(header))
    for size in (1, 10_000):
        assert fed(header[:-1], size) == (None, len(header) - 1)


@pytest.mark.parametrize("header", BAD, ids=range(len(BAD)))
def test_refused(header: bytes) -> None:
    for size in (1, 7, 10_000):
        with pytest.raises(ProxyError):
            fed(header + b"EHLO client\r\n", size)


def test_what_cannot_become_a_header_is_refused_at_once() -> None:
    for data in (b"E", b"\x16", b"PROXX", SIGNATURE[:11] + b"\r", b"PROXY " + b"x" * 101):
        with pytest.raises(ProxyError):
            HeaderReader().feed(data)


def test_checksum() -> None:
    assert crc32c(b"123456789") == 0xE3069283


FIELDS = st.sampled_from([*GOOD, *BAD, SIGNATURE, b"PROXY ", b"TCP4 ", b"\r\n", b"1 ", b"\x21\x11\0\x0c", IPV4, IPV6])


def check_any(data: bytes, size: int) -> None:
    """The cuts make no difference, an address is an address, and nothing but ProxyError is raised."""
    found: list[tuple[Source | None, int] | str] = []
    for pieces in (len(data) or 1, size, 1):
        try:
            found.append(fed(data, pieces))
        except ProxyError:
            found.append("refused")
    assert found == [found[0]] * 3
    if isinstance(found[0], tuple) and found[0][0] is not None and found[0][0].address:
        assert str(ipaddress.ip_address(found[0][0].address)) == found[0][0].address


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(st.lists(st.one_of(FIELDS, st.binary(max_size=40)), max_size=4).map(b"".join), st.integers(1, 40), st.data())
def test_any_octets(data: bytes, size: int, more: st.DataObject) -> None:
    if data and more.draw(st.booleans()):
        at = more.draw(st.integers(0, min(len(data) - 1, 250)))
        data = data[:at] + more.draw(st.binary(min_size=1, max_size=1)) + data[at + 1 :]
    check_any(data, size)


@pytest.mark.parametrize("path", CORPUS, ids=lambda p: p.name)
def test_corpus(path: pathlib.Path) -> None:
    check_any(path.read_bytes(), 5)
    reader = HeaderReader()
    with contextlib.suppress(ProxyError):
        reader.feed(path.read_bytes())
    assert (reader.source is not None) == path.name.startswith("good")
