"""One question to one DNS server: UDP with fall-back to TCP when truncated (RFC 7766), or TCP at once.

Called by the resolver and by the publisher. dnspython builds and parses the messages; the sockets are gevent's and are
driven here, because dnspython's own transport blocks the whole process unless it is monkey-patched.
Everything that arrives is hostile: what does not answer the question is ignored until the time is up.
"""

from __future__ import annotations

import contextlib
import ipaddress
import secrets
import struct
import time
from typing import Any, NamedTuple

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.query
import dns.rdatatype
import dns.tsig
from gevent import socket

from ptt.config import split_address

DNS_PORT = 53
EDNS_PAYLOAD = 1232  # the largest answer that no path fragments (DNS flag day 2020)
MAX_DATAGRAM = 65_535
MAX_IGNORED = 32  # datagrams that do not fit the question; above that somebody is guessing: go over to TCP


class NoAnswer(Exception):
    """The server could not be reached, did not answer in time, or closed. The text says which."""


class BadAnswer(Exception):
    """What came is no answer to the question. The text says why; ``rcode``: of the TSIG, when that was refused."""

    def __init__(self, text: str, rcode: str = "") -> None:
        self.rcode = rcode
        super().__init__(text)


class Server(NamedTuple):
    """Where a DNS server listens."""

    text: str  # as configured, for people
    family: int
    address: tuple[Any, ...]  # of the family

    @property
    def is_here(self) -> bool:
        """Is it on this host, so that nobody on the way changes what it says?"""
        return ipaddress.ip_address(self.address[0].partition("%")[0]).is_loopback

    @classmethod
    def at(cls, text: str) -> Server:
        """``"HOST"`` or ``"HOST:PORT"`` (IPv6 with a port in brackets). Raises ValueError.

        A host name is looked up by the operating system, which may wait for it.
        """
        host, port = split_address(text, DNS_PORT)
        for family, rest in ((socket.AF_INET, ()), (socket.AF_INET6, (0, 0))):
            with contextlib.suppress(OSError):  # an address needs no look-up, which costs a thread
                socket.inet_pton(family, host)
                return cls(text, family, (host, port, *rest))
        try:
            found = socket.getaddrinfo(host, port, 0, socket.SOCK_DGRAM)
        except OSError as e:
            raise ValueError(f"{text!r}: {e.strerror or e}") from e
        family, _, _, _, address = found[0]
        return cls(text, family, address)


def question(name: dns.name.Name, rdtype: dns.rdatatype.RdataType, *, recursive: bool = True) -> dns.message.Message:
    """A query with a random id and EDNS; ``recursive`` asks a resolver, else an authoritative server.

    A resolver is asked to say whether DNSSEC vouches for the answer (AD, RFC 6840 5.7).
    """
    flags = dns.flags.RD | dns.flags.AD if recursive else dns.flags.Flag(0)
    return dns.message.make_query(
        name, rdtype, use_edns=0, payload=EDNS_PAYLOAD, flags=int(flags), id=secrets.randbits(16)
    )


def ask(query: dns.message.Message, server: Server, timeout: float) -> dns.message.Message:
    """The answer, over UDP or, when that was truncated, over TCP. Raises NoAnswer, BadAnswer."""
    deadline = time.monotonic() + timeout
    answer = _ask_udp(query, server, deadline)
    return answer or ask_tcp(query, server, max(deadline - time.monotonic(), 0.001))


def ask_tcp(query: dns.message.Message, server: Server, timeout: float) -> dns.message.Message:
    """The answer over TCP; if the query is signed with TSIG, so must the answer be. Raises NoAnswer, BadAnswer."""
    deadline = time.monotonic() + timeout
    wire = query.to_wire()
    with socket.socket(server.family, socket.SOCK_STREAM) as sock:
        try:
            sock.settimeout(timeout)
            sock.connect(server.address)
            sock.sendall(struct.pack("!H", len(wire)) + wire)
            (length,) = struct.unpack("!H", _read_exactly(sock, 2, deadline))
            data = _read_exactly(sock, length, deadline)
        except TimeoutError as e:
            raise NoAnswer(f"{server.text}: no answer in time") from e
        except OSError as e:
            raise NoAnswer(f"{server.text}: {e.strerror or e}") from e
    return _checked(query, data, server)


def _read_exactly(sock: socket.socket, size: int, deadline: float) -> bytes:
    data = bytearray()
    while len(data) < size:
        sock.settimeout(max(deadline - time.monotonic(), 0.001))
        part = sock.recv(size - len(data))
        if not part:
            raise OSError("closed the connection")
        data += part
    return bytes(data)


def _ask_udp(query: dns.message.Message, server: Server, deadline: float) -> dns.message.Message | None:
    """The answer over UDP, or None: it was truncated, or too many datagrams did not fit, so ask over TCP."""
    with socket.socket(server.family, socket.SOCK_DGRAM) as sock:
        try:
            # The kernel chooses a random source port, lets only this server's datagrams in, and reports a closed port.
            sock.connect(server.address)
            sock.send(query.to_wire())
            for _ in range(MAX_IGNORED):
                sock.settimeout(max(deadline - time.monotonic(), 0.001))
                data = sock.recv(MAX_DATAGRAM)
                try:
                    answer = _checked(query, data, server)
                except BadAnswer:
                    continue
                return None if answer.flags & dns.flags.TC else answer
        except TimeoutError as e:
            raise NoAnswer(f"{server.text}: no answer in time") from e
        except OSError as e:
            raise NoAnswer(f"{server.text}: {e.strerror or e}") from e
    return None


def _checked(query: dns.message.Message, data: bytes, server: Server) -> dns.message.Message:
    """The message in ``data``, if it answers ``query``: same id and question, TSIG right. Raises BadAnswer."""
    signed = query.keyring is not None
    try:
        answer = dns.message.from_wire(
            data, keyring=query.keyring if signed else False, request_mac=query.mac if signed else b""
        )
    except dns.tsig.PeerError as e:
        rcode, reason = _TSIG_REASONS.get(type(e), ("BADTSIG", "it does not say why"))
        raise BadAnswer(f"{server.text} refuses our TSIG key: {reason}", rcode) from e
    except (dns.tsig.BadSignature, dns.tsig.BadKey, dns.tsig.BadAlgorithm, dns.tsig.BadTime) as e:
        raise BadAnswer(f"{server.text}: the TSIG of its answer is wrong ({type(e).__name__})") from e
    except dns.exception.FormError as e:
        raise BadAnswer(f"{server.text}: answer is malformed{' or not signed with TSIG' if signed else ''}") from e
    except Exception as e:  # the parser's ways of failing on hostile bytes are not enumerable
        raise BadAnswer(f"{server.text}: answer is not DNS ({type(e).__name__})") from e
    if not query.is_response(answer):
        raise BadAnswer(f"{server.text}: answer does not fit the question")
    if signed and not answer.had_tsig:
        raise BadAnswer(f"{server.text}: answer is not signed with TSIG")
    return answer


_TSIG_REASONS: dict[type[Exception], tuple[str, str]] = {
    dns.tsig.PeerBadKey: ("BADKEY", "the key is not known there"),
    dns.tsig.PeerBadSignature: ("BADSIG", "the secret differs"),
    dns.tsig.PeerBadTime: ("BADTIME", "the clocks differ"),
    dns.tsig.PeerBadTruncation: ("BADTRUNC", "the signature is too short there"),
}
