"""What TLS a connection gets: every policy against every kind of peer, with real handshakes over loopback."""

from __future__ import annotations

import datetime
import hashlib
import pathlib
import re
import ssl
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ptt.dns.resolver import Answer, TemporaryFailure
from ptt.net import https
from ptt.net.tls import opportunistic_context, server_context, verifying_context
from ptt.relay.outcome import Deferred, Delivered
from ptt.service.certificates import Pair, issue, make_ca

HOST = "mx.example.org"
STARTTLS = b"250-peer\r\n250-STARTTLS\r\n250 8BITMIME\r\n"
PEERS = ("plain", "refuses", "good", "wrong name", "self-signed", "expired", "old", "cut", "injects")
WITH_TLS = ("good", "wrong name", "self-signed", "expired")


class World(NamedTuple):
    """Certificates by kind of peer, and the authority of the good one."""

    files: dict[str, pathlib.Path]
    certificates: dict[str, x509.Certificate]
    ca: pathlib.Path
    authority: x509.Certificate


def self_signed(now: datetime.datetime) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, HOST)])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST)]), critical=False)
    return Pair(builder.sign(key, hashes.SHA256()), key)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    directory = tmp_path_factory.mktemp("tls")
    now = datetime.datetime.now(datetime.UTC)
    ca = make_ca("Public CA", now - datetime.timedelta(days=90))
    pairs = {
        "good": issue(ca, [HOST], [], now, 30),
        "wrong name": issue(ca, ["mx.example.net"], [], now, 30),
        "self-signed": self_signed(now),
        "expired": issue(ca, [HOST], [], now - datetime.timedelta(days=60), 30),
    }
    files = {}
    for kind, pair in pairs.items():
        files[kind] = directory / f"{kind}.pem"
        whole = [pair.key_pem(), pair.certificate_pem(), ca.certificate_pem() if kind != "self-signed" else b""]
        files[kind].write_bytes(b"".join(whole))
    (directory / "ca").write_bytes(ca.certificate_pem())
    return World(files, {k: p.certificate for k, p in pairs.items()}, directory / "ca", ca.certificate)


@pytest.fixture
def make_peer(world: World, peer: Any, action: Any) -> Callable[..., Any]:
    """A function (kind, ip="127.0.0.1", port=0): a peer of a kind of PEERS."""

    def make(kind: str, **where: Any) -> Any:
        file = str(world.files.get(kind, world.files["good"]))
        context = server_context(file, file)
        if kind == "old":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                context.minimum_version = ssl.TLSVersion.TLSv1
                context.maximum_version = ssl.TLSVersion.TLSv1
            context.set_ciphers("ALL:@SECLEVEL=0")
        special: dict[str, dict[str, Any]] = {
            "plain": {"EHLO": b"250-peer\r\n250 8BITMIME\r\n"},
            "refuses": {"STARTTLS": b"454 4.7.0 not now\r\n"},
            "cut": {"tls": action.CUT},
            "injects": {"STARTTLS": b"220 go\r\n250 injected\r\n"},
        }
        return peer({"EHLO": STARTTLS, **special.get(kind, {})}, tls=context, **where)

    return make


def spki(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def publish(dns: Any, port: int, *records: tuple[int, int, int, bytes]) -> None:
    """A signed zone with TLSA records for HOST."""
    dns.answers["example.org", "MX"] = Answer([(10, HOST)], True)
    dns.answers[HOST, "A"] = Answer(["127.0.0.1"], True)
    dns.answers[f"_{port}._tcp.{HOST}", "TLSA"] = Answer(list(records), True)


def announce(dns: Any, monkeypatch: pytest.MonkeyPatch, mode: str, mx: str = HOST) -> None:
    """A policy of MTA-STS for example.org."""
    dns.texts["_mta-sts.example.org"] = [b"v=STSv1; id=1;"]
    dns.hosts["mta-sts.example.org"] = ["127.0.0.1"]
    text = f"version: STSv1\nmode: {mode}\nmx: {mx}\nmax_age: 86400\n"
    monkeypatch.setattr(https, "get", lambda *_: https.Answer("text/plain", text.encode()))


# What each policy gives with each peer: the mode of the connection that the mail went over; absent: deferred.
TABLE: dict[str, dict[str, str]] = {
    "none": dict.fromkeys(PEERS, "none"),
    "opportunistic": {**dict.fromkeys(PEERS, "clear"), **dict.fromkeys(WITH_TLS, "opportunistic")},
    "encrypt": dict.fromkeys(WITH_TLS, "encrypt"),
    "verify": {"good": "verify"},
    "mta-sts": {"good": "mta-sts"},
    "mta-sts-testing": {
        **dict.fromkeys(PEERS, "clear"),
        **dict.fromkeys(WITH_TLS, "opportunistic"),
        "good": "mta-sts-testing",
    },
    "dane-ee": dict.fromkeys(WITH_TLS, "dane-ee"),
    "dane-ta": {"good": "dane-ta"},
    "dane-other": {},
    "dane-unusable": dict.fromkeys(WITH_TLS, "dane-unusable"),
    "had-tls": dict.fromkeys(WITH_TLS, "opportunistic"),
}


@pytest.mark.parametrize("kind", PEERS)
@pytest.mark.parametrize("policy", TABLE)
def test_table(
    policy: str,
    kind: str,
    world: World,
    dns: Any,
    make_peer: Callable[..., Any],
    sender: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(world.ca))  # in place of the system's authorities
    there = make_peer(kind)
    certificate = world.certificates.get(kind, world.certificates["good"])
    if policy.startswith("mta-sts"):
        announce(dns, monkeypatch, "testing" if policy.endswith("testing") else "enforce")
    key = hashlib.sha256(spki(certificate)).digest()
    records = {
        "dane-ee": (3, 1, 1, key),
        "dane-ta": (2, 0, 1, hashlib.sha256(world.authority.public_bytes(Encoding.DER)).digest()),
        "dane-other": (3, 1, 1, bytes(32)),
        "dane-unusable": (1, 1, 1, key),
    }
    if policy in records:
        publish(dns, there.port, records[policy])
    relay = sender(there.port, tls=policy if policy in ("none", "encrypt", "verify") else "opportunistic")
    if policy == "had-tls":
        relay.relay.encryption._had_tls.put(HOST, True, 60)
    (outcome,) = relay.send()
    wanted = TABLE[policy].get(kind)
    counted = relay.relay.counters.counters
    if wanted is None:
        assert isinstance(outcome, Deferred)
        assert outcome.enhanced == ("4.5.0" if kind == "injects" else "4.7.5")
        assert not there.contents
        assert counted["ptt_tls_total", ("failed",)] == 1
        return
    assert isinstance(outcome, Delivered)
    line = relay.log()[-1]
    assert line["tls_mode"] == wanted
    assert counted["ptt_tls_total", (wanted,)] == 1
    assert bool(line["tls"]) == (wanted not in ("none", "clear"))
    assert bool(line["tls_why"]) == (wanted == "clear")


def test_flags_do_not_depend_on_python(world: World) -> None:
    """3.13 sets VERIFY_X509_STRICT and VERIFY_X509_PARTIAL_CHAIN where nobody says otherwise."""
    context = verifying_context(str(world.ca))
    assert context.verify_flags == ssl.VERIFY_X509_TRUSTED_FIRST
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    for one in (context, opportunistic_context()):
        assert one.minimum_version == ssl.TLSVersion.TLSv1_2


# --- hosts in turn, connections kept ----------------------------------------------------------------------------


@pytest.fixture
def two(dns: Any) -> None:
    """example.org has a second MX, mx.example.net, at 127.0.0.2."""
    dns.records["example.org"] = [(10, HOST), (20, "mx.example.net")]
    dns.hosts["mx.example.net"] = ["127.0.0.2"]


@pytest.mark.usefixtures("two")
def test_the_next_host_may_have_what_is_demanded(make_peer: Any, sender: Any, world: World, monkeypatch: Any) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(world.ca))
    bad = make_peer("self-signed")
    make_peer("wrong name", ip="127.0.0.2", port=bad.port)
    (outcome,) = sender(bad.port, tls="verify").send()
    assert isinstance(outcome, Delivered)
    assert outcome.peer.startswith("mx.example.net")


@pytest.mark.usefixtures("two")
def test_a_host_outside_the_policy_of_mta_sts_is_not_used(
    dns: Any, make_peer: Any, sender: Any, world: World, monkeypatch: Any
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(world.ca))
    announce(dns, monkeypatch, "enforce", "*.example.net")
    first = make_peer("good")
    second = make_peer("wrong name", ip="127.0.0.2", port=first.port)  # the right one for this host
    relay = sender(first.port)
    assert isinstance(relay.send()[0], Delivered)
    assert (first.connections, second.connections) == (0, 1)
    assert "is not in the MTA-STS policy of example.org" in relay.log()[0]["reply"]


@pytest.mark.usefixtures("two")
def test_tlsa_that_cannot_be_looked_up_defers_that_host_only(dns: Any, make_peer: Any, sender: Any) -> None:
    first = make_peer("good")
    second = make_peer("good", ip="127.0.0.2", port=first.port)
    publish(dns, first.port)
    dns.answers[f"_{first.port}._tcp.{HOST}", "TLSA"] = TemporaryFailure
    (outcome,) = sender(first.port).send()
    assert isinstance(outcome, Delivered)
    assert (first.connections, second.connections) == (0, 1)
    dns.records["example.org"] = [(10, HOST)]
    (outcome,) = sender(first.port).send()
    assert isinstance(outcome, Deferred)
    assert (outcome.phase, outcome.enhanced) == ("TLSA", "4.4.3")


def test_a_host_that_had_tls_gets_nothing_in_clear(make_peer: Any, sender: Any) -> None:
    there = make_peer("good")
    relay = sender(there.port)
    assert isinstance(relay.send()[0], Delivered)
    relay.relay.close()  # the connections
    there.plans = [{"EHLO": b"250 peer\r\n"}]  # as if somebody took STARTTLS out of it
    (outcome,) = relay.send()
    assert isinstance(outcome, Deferred)
    assert outcome.text.endswith("does not offer STARTTLS, and TLS is required (it had TLS within the last day)")
    assert isinstance(sender(there.port).send()[0], Delivered)  # another process has no memory of it


def test_a_connection_serves_only_who_asks_for_as_little(dns: Any, make_peer: Any, sender: Any) -> None:
    """Two domains of one site: one in a signed zone. The open connection of the other is not verified."""
    there = make_peer("good")
    dns.records["two.example"] = [(10, HOST)]
    relay = sender(there.port)
    assert isinstance(relay.send(lane="two.example")[0], Delivered)
    publish(dns, there.port, (3, 1, 1, bytes(32)))
    (outcome,) = relay.send()
    assert isinstance(outcome, Deferred)
    assert isinstance(relay.send(lane="two.example")[0], Delivered)
    assert there.connections == 2


class Override(NamedTuple):
    via: str
    host: str = ""
    tls: str = ""
    credentials: str = ""
    fallback: str = ""
    source: str = ""


@pytest.mark.parametrize(("word", "mode"), [("none", "none"), ("", "encrypt"), ("opportunistic", "opportunistic")])
def test_the_word_of_a_route_to_the_mx(word: str, mode: str, make_peer: Any, sender: Any) -> None:
    there = make_peer("self-signed")
    relay = sender(there.port, tls="encrypt", overrides={"example.org": Override("mx", tls=word)}.get)
    assert isinstance(relay.send()[0], Delivered)
    assert relay.log()[-1]["tls_mode"] == mode


def test_a_smarthost_has_tlsa_records_too(dns: Any, make_peer: Any, sender: Any) -> None:
    there = make_peer("good")
    publish(dns, there.port, (3, 1, 1, bytes(32)))
    (outcome,) = sender(smarthost=f"{HOST}:{there.port}").send()
    assert isinstance(outcome, Deferred)
    assert "matches no TLSA record" in outcome.text


def test_the_name_in_sni_is_that_of_the_records(dns: Any, peer: Any, sender: Any, world: World) -> None:
    """The MX is an alias in a signed zone: its records are at the name that it stands for (RFC 7672 2.2.2)."""
    asked: list[str | None] = []
    context = server_context(str(world.files["good"]), str(world.files["good"]))
    context.sni_callback = lambda _connection, name, _context: asked.append(name)  # type: ignore[assignment]
    there = peer({"EHLO": STARTTLS}, tls=context)
    key = hashlib.sha256(spki(world.certificates["good"])).digest()
    publish(dns, there.port)
    dns.answers[HOST, "CNAME"] = Answer(["real.example.net"], True)
    dns.answers[f"_{there.port}._tcp.real.example.net", "TLSA"] = Answer([(3, 1, 1, key)], True)
    assert isinstance(sender(there.port).send()[0], Delivered)
    assert asked == ["real.example.net"]


@pytest.mark.parametrize(("record", "good"), [((2, 0, 0), True), ((2, 0, 1), False)])
def test_dane_ta_where_python_does_not_tell_the_chain(
    record: tuple[int, int, int], good: bool, dns: Any, make_peer: Any, sender: Any, world: World, monkeypatch: Any
) -> None:
    monkeypatch.setattr("ptt.net.stream._chain", lambda _: ())
    there = make_peer("good")
    whole = world.authority.public_bytes(Encoding.DER)
    publish(dns, there.port, (*record, whole if record[2] == 0 else hashlib.sha256(whole).digest()))
    (outcome,) = sender(there.port).send()
    assert isinstance(outcome, Delivered) == good
    if not good:
        assert "this version of Python does not tell the rest of the chain" in outcome.text


def test_policies_are_reloaded(make_peer: Any, sender: Any, world: World, monkeypatch: Any) -> None:
    """Authorities are read again, and a connection that was verified by the former ones is not used again."""
    there = make_peer("good")
    relay = sender(there.port, tls="verify")
    monkeypatch.setenv("SSL_CERT_FILE", str(world.ca))
    assert isinstance(relay.send()[0], Delivered)
    monkeypatch.setenv("SSL_CERT_FILE", str(world.files["self-signed"]))
    relay.relay.reload()
    there.contents.clear()
    assert isinstance(relay.send()[0], Deferred)
    assert not there.contents


@pytest.mark.parametrize(
    ("settings", "lane", "asked"),
    [
        ({}, "example.org", ["_mta-sts.example.org"]),
        ({"mta_sts": False}, "example.org", []),
        ({"tls": "none"}, "example.org", []),
        ({}, "[127.0.0.1]", []),
    ],
)
def test_mta_sts_costs_no_wait(
    settings: Any, lane: str, asked: list[str], dns: Any, make_peer: Any, sender: Any
) -> None:
    """Its record is asked for together with those of the MX; nothing is, where it cannot count."""
    there = make_peer("plain")
    assert isinstance(sender(there.port, **settings).send(lane=lane)[0], Delivered)
    assert dns.ahead == asked
    assert not [name for name in dns.asked if name.startswith("mta-sts.")]


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        ("good", r"TLSv1\.3 \S+ \(opportunistic\)"),
        ("plain", "in clear: the peer does not offer STARTTLS"),
        ("refuses", "in clear: the peer refuses STARTTLS"),
        ("cut", "in clear: TLS with 127.* failed: .+"),
    ],
)
def test_the_operator_is_told(kind: str, shown: str, make_peer: Any, sender: Any) -> None:
    """What is kept with a message that waits, for ``ptt queue why``."""
    there = make_peer(kind)
    there.plans[0]["RCPT"] = b"450 4.2.1 later\r\n"
    (outcome,) = sender(there.port).send()
    assert isinstance(outcome, Deferred)
    assert re.fullmatch(shown, outcome.tls)
