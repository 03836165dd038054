"""The demonstration server on its own: what BIND's conformance tests do not show."""

from __future__ import annotations

import pathlib
import random
import subprocess
import sys
from collections.abc import Callable

import dns.message
import dns.rcode
import dns.update
import pytest
from gevent import socket

from ptt.dns.exchange import Server, question
from ptt.dns.resolver import NoData, NoSuchDomain, Resolver
from ptt.dns.server import DnsServer, Responder, main
from ptt.dns.update import TsigKey
from ptt.dns.zonedata import ZoneData
from ptt.metrics import Counters

KEY = TsigKey("ptt", "hmac-sha256", b"secret")


@pytest.fixture
def responder() -> Responder:
    data = ZoneData(["demo.example"], ["www.demo.example 60 A 127.0.0.1"], "mx.sink.example")
    return Responder(data, KEY)


def respond(responder: Responder, message: dns.message.Message, udp: bool = True) -> dns.message.Message:
    wire = responder.respond(message.to_wire(), udp=udp)
    assert wire is not None
    return dns.message.from_wire(wire, keyring=False)


def test_stands_in_for_the_rest_of_dns(responder: Responder, free_port) -> None:
    server = DnsServer(address := f"127.0.0.1:{free_port()}", responder)
    server.start()
    try:
        r = Resolver([address], 2, 100, Counters())
        assert r.mx("any.domain.example") == [(10, "mx.sink.example")]
        assert r.addresses("mx.sink.example") == ["127.0.0.1"]
        for ask in (r.addresses, r.txt):
            with pytest.raises(NoData):
                ask("any.domain.example")
        with pytest.raises(NoSuchDomain):
            r.mx("nothing.demo.example")
        with pytest.raises(NoData):
            r.mx("demo.example")
    finally:
        server.stop()


@pytest.mark.slow
def test_garbage_is_survived(responder: Responder, rng: random.Random, capsys: pytest.CaptureFixture[str]) -> None:
    good = bytearray(question(dns.name.from_text("www.demo.example"), dns.rdatatype.A).to_wire())
    update = dns.update.UpdateMessage("demo.example", keyring=KEY.for_dnspython(), keyalgorithm=KEY.algorithm)
    update.replace("x._domainkey", 60, "TXT", "x")
    for base in (good, bytearray(update.to_wire())):
        for _ in range(2000):
            wire = bytearray(base)
            for _ in range(rng.randrange(1, 6)):
                wire[rng.randrange(len(wire))] = rng.randrange(256)
            answer = responder.respond(bytes(wire[: rng.randrange(len(wire) + 1)]), udp=rng.random() < 0.5)
            assert answer is None or answer[:2] == wire[:2]
    assert respond(responder, dns.message.from_wire(bytes(good))).rcode() == dns.rcode.NOERROR
    assert capsys.readouterr().err == ""  # no fault of our own


def test_an_update_that_was_changed_on_the_way_is_refused(responder: Responder) -> None:
    update = dns.update.UpdateMessage("demo.example", keyring=KEY.for_dnspython(), keyalgorithm=KEY.algorithm)
    update.replace("x._domainkey", 60, "TXT", "x")
    wire = update.to_wire()
    ttl = wire.rindex(b"\x00\xfa\x00\xff") + 4
    free = {
        0,
        1,
        *range(ttl, ttl + 4),
    }  # the id and the TTL of the TSIG record are all that is not signed (RFC 8945 4.3)
    for at in set(range(len(wire))) - free:
        responder.respond(wire[:at] + bytes([wire[at] ^ 1]) + wire[at + 1 :], udp=False)
        responder.respond(wire[:at], udp=False)
    name = dns.name.from_text("x._domainkey.demo.example")
    assert respond(responder, question(name, dns.rdatatype.TXT)).rcode() == dns.rcode.NXDOMAIN
    assert responder.respond(wire, udp=False)
    assert respond(responder, question(name, dns.rdatatype.TXT)).rcode() == dns.rcode.NOERROR


def test_an_answer_is_not_answered(responder: Responder) -> None:
    answer = responder.respond(question(dns.name.from_text("www.demo.example"), dns.rdatatype.A).to_wire(), udp=True)
    assert answer is not None
    assert responder.respond(answer, udp=True) is None


def test_an_update_without_signature_is_refused(responder: Responder) -> None:
    update = dns.update.UpdateMessage("demo.example")
    update.replace("x._domainkey", 60, "TXT", "x")
    assert respond(responder, update).rcode() == dns.rcode.REFUSED
    nobody = Responder(ZoneData(["demo.example"]), None)
    assert respond(nobody, update).rcode() == dns.rcode.REFUSED


def test_an_update_is_carried_out_as_a_whole_or_not(responder: Responder) -> None:
    update = dns.update.UpdateMessage("demo.example", keyring=KEY.for_dnspython(), keyalgorithm=KEY.algorithm)
    update.add("x._domainkey", 60, "TXT", "x")
    update.add("www", 60, "A", "127.0.0.9")
    assert respond(responder, update).rcode() == dns.rcode.REFUSED
    name = dns.name.from_text("x._domainkey.demo.example")
    assert respond(responder, question(name, dns.rdatatype.TXT)).rcode() == dns.rcode.NXDOMAIN


def test_single_records_are_deleted(responder: Responder) -> None:
    name = dns.name.from_text("x._domainkey.demo.example")

    def change(kind: str, *values: str) -> list[str]:
        update = dns.update.UpdateMessage("demo.example", keyring=KEY.for_dnspython(), keyalgorithm=KEY.algorithm)
        for value in values:
            getattr(update, kind)("x._domainkey", *((60, "TXT") if kind == "add" else ("TXT",)), value)
        assert respond(responder, update).rcode() == dns.rcode.NOERROR
        answer = respond(responder, question(name, dns.rdatatype.TXT))
        return sorted(r.to_text() for rrset in answer.answer for r in rrset)

    assert change("add", "a", "b") == ['"a"', '"b"']
    assert change("delete", "a") == ['"b"']
    assert change("delete", "b") == []


@pytest.mark.parametrize(("payload", "truncated"), [(None, True), (1232, False)])
def test_truncates_what_does_not_fit(payload: int | None, truncated: bool) -> None:
    text = '"' + "x" * 250 + '"'
    server = Responder(ZoneData(["demo.example"], [f"big.demo.example 60 TXT {text} {text} {text}"]), None)
    query = dns.message.make_query("big.demo.example", "TXT", use_edns=payload is not None, payload=payload)
    answer = respond(server, query)
    assert bool(answer.flags & dns.flags.TC) is truncated
    assert not respond(server, query, udp=False).flags & dns.flags.TC


def test_what_it_does_not_do(responder: Responder) -> None:
    for rdtype in ("AXFR", "ANY"):
        assert respond(responder, dns.message.make_query("demo.example", rdtype)).rcode() == dns.rcode.REFUSED
    assert respond(responder, dns.message.make_query("demo.example", "A", "CH")).rcode() == dns.rcode.REFUSED


def test_prerequisites(responder: Responder) -> None:
    def rcode(prepare: Callable[[dns.update.UpdateMessage], object]) -> str:
        update = dns.update.UpdateMessage("demo.example", keyring=KEY.for_dnspython(), keyalgorithm=KEY.algorithm)
        prepare(update)
        return dns.rcode.to_text(respond(responder, update).rcode())

    assert rcode(lambda update: update.present("www")) == "NOERROR"
    assert rcode(lambda update: update.present("www", "A")) == "NOERROR"
    assert rcode(lambda update: update.present("www", "A", "127.0.0.1")) == "NOERROR"
    assert rcode(lambda update: update.absent("www", "TXT")) == "NOERROR"
    assert rcode(lambda update: update.absent("nobody")) == "NOERROR"
    assert rcode(lambda update: update.present("nobody")) == "NXDOMAIN"
    assert rcode(lambda update: update.present("www", "TXT")) == "NXRRSET"
    assert rcode(lambda update: update.present("www", "A", "127.0.0.2")) == "NXRRSET"
    assert rcode(lambda update: update.present("www", "A", "127.0.0.1", "127.0.0.2")) == "NXRRSET"
    assert rcode(lambda update: update.absent("www", "A")) == "YXRRSET"
    assert rcode(lambda update: update.absent("www")) == "YXDOMAIN"
    assert rcode(lambda update: update.present("other.example.", "A")) == "NOTZONE"


def test_as_a_command(free_port, tmp: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "ptt.dns.server", "--listen", address, "--zone", "demo.example"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "dns: ready\n"
        with socket.create_connection(Server.at(address).address) as sock:
            sock.sendall(b"\xff\xff" + b"x" * 100)  # a frame that never ends delays nobody
            with pytest.raises(NoData):
                Resolver([address], 2, 100, Counters()).mx("demo.example")
        assert main(["--listen", address, "--zone", "demo.example"]) == 1
        assert "in use" in capsys.readouterr().err
        child.terminate()
        assert child.wait(10) == 0


@pytest.mark.parametrize("options", [["--record", "x"], ["--zone", "a..b"], ["--key", "absent"], ["--listen", "x"]])
def test_wrong_options_are_explained(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--listen", "127.0.0.1:1", "--zone", "demo.example", *options]) == 1
    assert capsys.readouterr().err.startswith("dns: ")
