"""A small DNS server for loopback: the zones of a demonstration, and a stand-in for the rest of the Internet's DNS.

    python -m ptt.dns.server --listen HOST:PORT --zone ZONE [--zone ZONE]... --key FILE
                             [--record "NAME TTL TYPE VALUE"]... [--wildcard-mx HOST]

Started by ``make run`` and ``ptt demo``, and measured by the tests against BIND. **For demonstrations only**: it
forgets everything when it ends and answers whoever asks. It answers over UDP and TCP, and takes updates of DKIM
records (RFC 2136) that are signed with the TSIG key in FILE. With ``--wildcard-mx`` every domain outside the zones has
that host as MX, at 127.0.0.1. Prints ``dns: ready`` when it listens. Whatever garbage arrives, it goes on.
"""

from __future__ import annotations

import argparse
import signal
import struct
import sys
import time
from typing import cast

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.tsig
import dns.update
import gevent
import gevent.event
import gevent.pool
import gevent.server
from gevent import socket

from ptt.config import split_address
from ptt.dns.exchange import EDNS_PAYLOAD
from ptt.dns.update import TsigKey, TsigKeyError
from ptt.dns.zonedata import ZoneData

HEADER = 12  # octets (RFC 1035 4.1.1); less is not answered
PLAIN_PAYLOAD = 512  # the largest answer over UDP to who says nothing (RFC 1035 2.3.4)
MAX_CONNECTIONS = 100
IDLE_SECONDS = 10.0  # of a TCP connection
TSIG_FUDGE = 300  # seconds that clocks may differ (RFC 8945 10)

_TSIG_ERRORS: dict[type[Exception], dns.rcode.Rcode] = {
    dns.message.UnknownTSIGKey: dns.rcode.BADKEY,
    dns.tsig.BadKey: dns.rcode.BADKEY,
    dns.tsig.BadAlgorithm: dns.rcode.BADKEY,
    dns.tsig.BadSignature: dns.rcode.BADSIG,
    dns.tsig.BadTime: dns.rcode.BADTIME,
}


class Responder:
    """Bytes of a request in, bytes of the answer out; no sockets. ``key``: who may update; None: nobody."""

    def __init__(self, data: ZoneData, key: TsigKey | None) -> None:
        self._data = data
        self._keyring = {} if key is None else {dns.name.from_text(key.name): key.for_dnspython()}

    def respond(self, wire: bytes, *, udp: bool) -> bytes | None:
        """The answer, or None: what came deserves none. Never raises."""
        if len(wire) < HEADER or wire[2] & 0x80:
            return None
        try:
            query = dns.message.from_wire(wire, keyring=False)
        except Exception:  # the ways in which hostile bytes make a parser fail are not enumerable
            return _error(wire, dns.rcode.FORMERR)
        try:
            if query.had_tsig:
                query = dns.message.from_wire(wire, keyring=self._keyring)
            return _fit(self._answer(query), query, udp)
        except tuple(_TSIG_ERRORS) as e:
            return _refuse_tsig(query, _TSIG_ERRORS[type(e)])
        except (dns.tsig.PeerError, dns.exception.FormError):  # a request that reports an error, or unparsable TSIG
            return _error(wire, dns.rcode.FORMERR)
        except Exception as e:  # a fault of our own
            print(f"dns: {type(e).__name__}: {e}", file=sys.stderr, flush=True)
            return _error(wire, dns.rcode.SERVFAIL)

    def _answer(self, query: dns.message.Message) -> dns.message.Message:
        response = dns.message.make_response(query, our_payload=EDNS_PAYLOAD)
        if isinstance(query, dns.update.UpdateMessage):
            trusted = query.had_tsig and bool(query.keyring)
            response.set_rcode(self._data.update(query) if trusted else dns.rcode.REFUSED)
        elif query.opcode() != dns.opcode.QUERY:
            response.set_rcode(dns.rcode.NOTIMP)
        elif len(query.question) != 1:
            response.set_rcode(dns.rcode.FORMERR)
        elif query.question[0].rdclass != dns.rdataclass.IN or dns.rdatatype.is_metatype(query.question[0].rdtype):
            response.set_rcode(dns.rcode.REFUSED)
        else:
            self._data.answer(query, response)
        return response


def _fit(response: dns.message.Message, query: dns.message.Message, udp: bool) -> bytes:
    """The wire form; over UDP an answer that is too large becomes an empty one with TC."""
    limit = 65_535
    if udp:
        limit = min(max(query.payload, PLAIN_PAYLOAD), EDNS_PAYLOAD) if query.edns >= 0 else PLAIN_PAYLOAD
    try:
        return response.to_wire(max_size=limit)
    except dns.exception.TooBig:
        response.answer, response.authority, response.additional = [], [], []
        response.flags |= dns.flags.TC
        return response.to_wire(max_size=limit)


def _refuse_tsig(query: dns.message.Message, error: dns.rcode.Rcode) -> bytes:
    """NOTAUTH with an unsigned TSIG record that says why (RFC 8945 5.2)."""
    response = dns.message.make_response(query)
    response.set_rcode(dns.rcode.NOTAUTH)
    wire = bytearray(response.to_wire())
    now = int(time.time())
    algorithm = cast(dns.name.Name, query.keyalgorithm).to_wire() or b""
    rdata = algorithm + struct.pack("!HIHHHHH", now >> 32, now & 0xFFFFFFFF, TSIG_FUDGE, 0, query.id, int(error), 0)
    wire += cast(dns.name.Name, query.keyname).to_wire() or b""
    wire += struct.pack("!HHIH", dns.rdatatype.TSIG, dns.rdataclass.ANY, 0, len(rdata)) + rdata
    struct.pack_into("!H", wire, 10, struct.unpack_from("!H", wire, 10)[0] + 1)
    return bytes(wire)


def _error(wire: bytes, rcode: dns.rcode.Rcode) -> bytes:
    """A header and nothing else: the id, opcode and RD of what came."""
    return wire[:2] + bytes((0x80 | wire[2] & 0x79, rcode)) + bytes(8)


class DnsServer:
    """Serves ``responder`` on one address over UDP and TCP; ``address``: "HOST:PORT". Raises OSError."""

    def __init__(self, address: str, responder: Responder) -> None:
        tcp, udp = _bind(address)
        self._responder = responder
        self._udp = gevent.server.DatagramServer(udp, self._datagram)
        self._tcp = gevent.server.StreamServer(tcp, self._connection, spawn=gevent.pool.Pool(MAX_CONNECTIONS))

    def start(self) -> None:
        self._udp.start()
        self._tcp.start()

    def stop(self) -> None:
        self._udp.stop()
        self._tcp.stop(timeout=1)

    def _datagram(self, data: bytes, peer: tuple[str, int]) -> None:
        answer = self._responder.respond(data, udp=True)
        if answer is not None:
            try:
                self._udp.sendto(answer, peer)
            except OSError:  # the asker is gone, or named an address that takes nothing
                return

    def _connection(self, sock: socket.socket, peer: tuple[str, int]) -> None:
        sock.settimeout(IDLE_SECONDS)
        try:
            with sock.makefile("rb") as stream:
                while len(head := stream.read(2)) == 2:
                    data = stream.read(struct.unpack("!H", head)[0])
                    answer = self._responder.respond(data, udp=False)
                    if answer is None:
                        return
                    sock.sendall(struct.pack("!H", len(answer)) + answer)
        except OSError:  # time-out or reset: the peer's affair
            return


def _bind(address: str) -> tuple[socket.socket, socket.socket]:
    """The TCP and the UDP socket. Bound here: gevent would let a second server take the same UDP port."""
    host, port = split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    tcp, udp = socket.socket(family, socket.SOCK_STREAM), socket.socket(family, socket.SOCK_DGRAM)
    try:
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tcp.bind((host, port))
        tcp.listen(MAX_CONNECTIONS)
        udp.bind((host, port))
    except OSError:
        tcp.close()
        udp.close()
        raise
    return tcp, udp


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ptt.dns.server", description="A DNS server for demonstrations on loopback.")
    parser.add_argument("--listen", required=True, metavar="HOST:PORT")
    parser.add_argument("--zone", action="append", required=True, metavar="ZONE")
    parser.add_argument("--key", metavar="FILE", help="TSIG key that may update, as tsig-keygen prints it")
    parser.add_argument("--record", action="append", default=[], metavar='"NAME TTL TYPE VALUE"')
    parser.add_argument("--wildcard-mx", default="", metavar="HOST", help="MX of every domain outside the zones")
    options = parser.parse_args(arguments)
    try:
        data = ZoneData(options.zone, options.record, options.wildcard_mx)
        key = TsigKey.load(options.key) if options.key else None
        server = DnsServer(options.listen, Responder(data, key))
        server.start()
    except (ValueError, TsigKeyError, OSError) as e:
        print(f"dns: {e}", file=sys.stderr)
        return 1
    end = gevent.event.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, end.set)
    print("dns: ready", flush=True)
    end.wait()
    server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
