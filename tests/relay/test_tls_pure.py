"""The parts of outgoing TLS that decide and read: policies, TLSA records and chains, records and files of MTA-STS."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import pathlib
import re
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from ptt.dns.resolver import Answer, NoData, NoSuchDomain, TemporaryFailure
from ptt.relay.dane import Tlsa, Tlsas, find, matches_end, usable, verify_chain
from ptt.relay.mtasts import MAX_AGE, Sts, parse, record_id
from ptt.relay.tlspolicy import Policy, demands

CORPUS = pathlib.Path(__file__).parents[3] / "shared" / "corpora" / "mtasts_refdata"
NOW = datetime.datetime(2026, 11, 1, tzinfo=datetime.UTC)
HOST = "mx.example.org"

# --- the decision -----------------------------------------------------------------------------------------------

GOOD = Tlsas(HOST, (Tlsa(3, 1, 1, bytes(32)),))
UNUSABLE = Tlsas(HOST, ())
ENFORCE = Sts("1", "enforce", (HOST,), 60)
TESTING = Sts("1", "testing", (HOST,), 60)
ELSEWHERE = Sts("1", "enforce", ("mx.example.net",), 60)


@pytest.mark.parametrize(
    ("level", "tlsa", "sts", "had_tls", "modes"),
    [
        ("none", GOOD, ENFORCE, True, "none"),
        ("opportunistic", None, None, False, "opportunistic clear"),
        ("opportunistic", None, None, True, "opportunistic"),
        ("opportunistic", GOOD, None, False, "dane"),
        ("opportunistic", GOOD, ENFORCE, False, "dane"),
        ("opportunistic", GOOD, ELSEWHERE, False, "dane"),  # MTA-STS does not override it, nor add to it
        ("opportunistic", UNUSABLE, None, False, "dane-unusable"),
        ("opportunistic", UNUSABLE, ENFORCE, False, "mta-sts"),
        ("opportunistic", None, ENFORCE, False, "mta-sts"),
        ("opportunistic", None, TESTING, False, "mta-sts-testing opportunistic clear"),
        ("opportunistic", None, TESTING, True, "mta-sts-testing opportunistic"),
        ("opportunistic", UNUSABLE, TESTING, False, "mta-sts-testing dane-unusable"),
        ("encrypt", None, None, False, "encrypt"),
        ("encrypt", None, TESTING, False, "mta-sts-testing encrypt"),
        ("encrypt", None, ENFORCE, False, "mta-sts"),
        ("encrypt", UNUSABLE, None, False, "dane-unusable"),
        ("verify", None, None, False, "verify"),
        ("verify", UNUSABLE, None, False, "verify"),
        ("verify", GOOD, None, False, "dane"),
        ("verify", None, TESTING, False, "verify"),
        ("internal", None, None, False, "internal"),
    ],
)
def test_demands(level: str, tlsa: Tlsas | None, sts: Sts | None, had_tls: bool, modes: str) -> None:
    found = demands(Policy(level, "example.org", tlsa is not None, sts), HOST, tlsa, had_tls)
    assert not isinstance(found, str)
    assert [d.mode for d in found] == modes.split()
    assert all(d.required for d in found if d.mode not in ("none", "clear", "opportunistic"))


def test_a_host_that_is_not_in_the_policy() -> None:
    assert demands(Policy("opportunistic", "example.org", sts=ELSEWHERE), HOST, None, False) == (
        "mx.example.org is not in the MTA-STS policy of example.org"
    )
    testing = ELSEWHERE._replace(mode="testing")
    found = demands(Policy("opportunistic", "example.org", sts=testing), HOST, None, False)
    assert [d.mode for d in found if not isinstance(d, str)] == ["opportunistic", "clear"]


levels = st.sampled_from(["none", "opportunistic", "encrypt", "verify"])
tlsas = st.sampled_from([None, GOOD, UNUSABLE])
policies = st.sampled_from([None, ENFORCE, TESTING, ELSEWHERE])
RANK = {"off": 0, "any": 1, "authorities": 2, "dane": 2}


@given(levels, tlsas, policies, st.booleans())
def test_what_a_destination_publishes_never_demands_less(
    level: str, tlsa: Tlsas | None, sts: Sts | None, had_tls: bool
) -> None:
    """The least of what is tried is at least what the operator's word alone gives."""
    alone = demands(Policy(level), HOST, None, False)
    both = demands(Policy(level, "example.org", True, sts), HOST, tlsa, had_tls)
    if not isinstance(both, str) and not isinstance(alone, str):
        assert min(RANK[d.trust] for d in both) >= min(RANK[d.trust] for d in alone)
        assert len(both) <= 3


def test_keys_part_what_is_not_alike() -> None:
    ones = [
        Policy("opportunistic"),
        Policy("encrypt"),
        Policy("opportunistic", "a.example", True),
        Policy("opportunistic", "b.example", True),
        Policy("opportunistic", "a.example", False, ENFORCE),
        Policy("opportunistic", "a.example", False, ELSEWHERE),
    ]
    assert len({p.key for p in ones}) == len(ones)
    assert Policy("opportunistic", "a.example").key == Policy("opportunistic", "b.example", sts=TESTING).key


# --- TLSA look-ups ----------------------------------------------------------------------------------------------


class Zone:
    """Answers by (name, type); an exception is raised; what is absent does not exist."""

    def __init__(self, **answers: Any) -> None:
        self.answers = {tuple(key.rsplit("/", 1)): value for key, value in answers.items()}
        self.asked: list[str] = []

    def answer(self, name: str, rdtype: Any) -> Answer:
        self.asked.append(f"{name}/{rdtype.name}")
        found = self.answers.get((name, rdtype.name), NoData)
        if isinstance(found, type):
            raise found(name)
        return found  # type: ignore[no-any-return]


RECORD = (3, 1, 1, bytes(32))
THERE = Answer([RECORD], True)
ADDRESS = Answer(["192.0.2.1"], True)
UNSIGNED = Answer(["192.0.2.1"], False)


@pytest.mark.parametrize(
    ("zone", "base"),
    [
        ({"mx.e/A": ADDRESS, "_25._tcp.mx.e/TLSA": THERE}, "mx.e"),
        ({"mx.e/AAAA": ADDRESS, "_25._tcp.mx.e/TLSA": THERE}, "mx.e"),
        ({"mx.e/A": UNSIGNED, "_25._tcp.mx.e/TLSA": THERE}, None),
        ({"mx.e/A": ADDRESS, "_25._tcp.mx.e/TLSA": Answer([RECORD], False)}, None),
        ({"mx.e/A": ADDRESS}, None),
        ({"mx.e/A": ADDRESS, "_25._tcp.mx.e/TLSA": NoSuchDomain}, None),
        # An alias, all of it signed: the records of what it stands for come first, then its own.
        ({"mx.e/A": ADDRESS, "mx.e/CNAME": Answer(["h.f"], True), "_25._tcp.h.f/TLSA": THERE}, "h.f"),
        ({"mx.e/A": ADDRESS, "mx.e/CNAME": Answer(["h.f"], True), "_25._tcp.mx.e/TLSA": THERE}, "mx.e"),
        # An alias that leads out of the signed zone: its own only (RFC 7672 2.2.2).
        ({"mx.e/A": UNSIGNED, "mx.e/CNAME": Answer(["h.f"], True), "_25._tcp.mx.e/TLSA": THERE}, "mx.e"),
        ({"mx.e/A": UNSIGNED, "mx.e/CNAME": Answer(["h.f"], True), "_25._tcp.h.f/TLSA": THERE}, None),
        ({"mx.e/A": UNSIGNED, "mx.e/CNAME": Answer(["h.f"], False), "_25._tcp.mx.e/TLSA": THERE}, None),
    ],
)
def test_where_records_are_looked_for(zone: dict[str, Any], base: str | None) -> None:
    found = find("mx.e", 25, Zone(**zone))
    assert (found.base if found else None) == base


@pytest.mark.parametrize("what", ["mx.e/A", "mx.e/CNAME", "_25._tcp.mx.e/TLSA"])
def test_what_cannot_be_looked_up_is_not_absent(what: str) -> None:
    zone = Zone(**{"mx.e/A": ADDRESS, "_25._tcp.mx.e/TLSA": THERE, what: TemporaryFailure})
    with pytest.raises(TemporaryFailure):
        find("mx.e", 25, zone)


def test_hosts_without_dnssec_are_not_asked_for_tlsa() -> None:
    zone = Zone(**{"mx.e/A": UNSIGNED, "_25._tcp.mx.e/TLSA": TemporaryFailure})
    assert find("mx.e", 25, zone) is None
    assert find("192.0.2.1", 25, zone) is None
    assert not [name for name in zone.asked if "TLSA" in name]


def test_aliases_in_a_circle_end() -> None:
    zone = Zone(**{"mx.e/A": ADDRESS, "mx.e/CNAME": Answer(["b.e"], True), "b.e/CNAME": Answer(["mx.e"], True)})
    assert find("mx.e", 25, zone) is None
    assert len(zone.asked) < 30


# --- records and certificates -----------------------------------------------------------------------------------


class Made:
    """A certificate and its key."""

    def __init__(self, name: str, by: Made | None = None, ca: bool = False, days: int = 30, host: str = "") -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        issuer = by.certificate.subject if by else subject
        start = NOW - datetime.timedelta(days=10)
        builder = x509.CertificateBuilder(
            issuer, subject, self.key.public_key(), 1, start, start + datetime.timedelta(days)
        )
        if ca:
            builder = builder.add_extension(x509.BasicConstraints(True, None), critical=True)
        if host:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        self.certificate = builder.sign(by.key if by else self.key, hashes.SHA256())
        self.der = self.certificate.public_bytes(Encoding.DER)
        self.spki = self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


ROOT = Made("root", ca=True)
MIDDLE = Made("middle", ROOT, ca=True)
LEAF = Made("leaf", MIDDLE, host=HOST)
CHAIN = [LEAF.der, MIDDLE.der, ROOT.der]
FORMS = {0: bytes, 1: lambda b: hashlib.sha256(b).digest(), 2: lambda b: hashlib.sha512(b).digest()}


def record(usage: int, selector: int, matching: int, of: Made) -> Tlsa:
    return Tlsa(usage, selector, matching, FORMS[matching](of.spki if selector else of.der))


@pytest.mark.parametrize("matching", [0, 1, 2])
@pytest.mark.parametrize("selector", [0, 1])
def test_matching_types(selector: int, matching: int) -> None:
    end = usable([record(3, selector, matching, LEAF)])
    assert matches_end(end, LEAF.der)
    assert not matches_end(end, MIDDLE.der)
    for authority in (MIDDLE, ROOT):
        records = usable([record(2, selector, matching, authority)])
        assert len(records) == 1
        assert verify_chain(records, CHAIN, [HOST], NOW) == ""
        assert not matches_end(records, LEAF.der)


OLD = Made("old", MIDDLE, host=HOST, days=5)
NO_CA = Made("no authority", ROOT)
UNDER_NO_CA = Made("leaf", NO_CA, host=HOST)
FORGED = Made("middle", ca=True)  # the name of MIDDLE, another key


@pytest.mark.parametrize(
    ("records", "chain", "names", "good"),
    [
        ([record(2, 0, 1, ROOT)], CHAIN, ["mx.example.net", HOST], True),  # one of the names will do
        ([record(2, 0, 1, ROOT)], CHAIN, ["mx.example.net"], False),
        ([record(2, 0, 1, ROOT)], [LEAF.der, MIDDLE.der], [HOST], False),  # the authority is not in the chain
        ([record(2, 0, 0, ROOT)], [LEAF.der, MIDDLE.der], [HOST], True),  # but in the record
        ([record(2, 0, 0, MIDDLE)], [LEAF.der], [HOST], True),
        ([record(2, 1, 0, MIDDLE)], [LEAF.der], [HOST], False),
        ([record(2, 0, 1, ROOT)], [LEAF.der, ROOT.der], [HOST], False),  # one is missing
        ([record(2, 0, 1, MIDDLE)], [OLD.der, MIDDLE.der], [HOST], False),
        ([record(2, 0, 1, ROOT)], [UNDER_NO_CA.der, NO_CA.der, ROOT.der], [HOST], False),
        ([record(2, 0, 1, FORGED)], [LEAF.der, FORGED.der], [HOST], False),  # did not sign it
        ([record(2, 0, 1, MIDDLE)], [LEAF.der, b"junk"], [HOST], False),
        ([record(2, 0, 1, MIDDLE)], [], [HOST], False),
        ([record(3, 0, 1, LEAF)], CHAIN, [HOST], False),
    ],
)
def test_chains(records: list[Tlsa], chain: list[bytes], names: list[str], good: bool) -> None:
    assert (verify_chain(records, chain, names, NOW) == "") == good


def test_which_records_are_usable() -> None:
    good = record(3, 1, 1, LEAF)
    bad = [
        good._replace(usage=0),
        good._replace(usage=1),
        good._replace(usage=4),
        good._replace(selector=2),
        good._replace(matching=3),
        good._replace(data=bytes(31)),
        Tlsa(2, 0, 0, b"no certificate"),
        Tlsa(3, 1, 0, b""),
    ]
    assert usable([*bad, good]) == (good,)
    strong, other = record(3, 1, 2, LEAF), record(2, 1, 1, ROOT)
    assert usable([good, strong, other]) == (strong, other)  # RFC 7671 9: the strongest digest of each kind


@given(st.binary(max_size=200))
def test_no_certificate_crashes(junk: bytes) -> None:
    assert not matches_end([record(3, 1, 1, LEAF)], junk)
    assert verify_chain([record(2, 1, 1, ROOT)], [junk, ROOT.der], [HOST], NOW)


# --- MTA-STS ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "id"),
    [
        ([b"v=STSv1; id=20160831085700Z;"], "20160831085700Z"),
        ([b"v=STSv1;id=1"], "1"),
        ([b"v = STSv1 ; id = 1 ; more=x"], "1"),
        ([b"v=spf1 -all", b"v=STSv1; id=1"], "1"),
        ([b"v=STSv1; id=1", b"v=STSv1; id=2"], ""),
        ([b"id=1; v=STSv1"], ""),
        ([b"v=STSv12; id=1"], ""),
        ([b"v=STSv1; id="], ""),
        ([b"v=STSv1; id=a-b"], ""),
        ([b"v=STSv1; id=" + b"1" * 33], ""),
        ([b"v=STSv1; id=1; id=2"], ""),
        ([b"v=STSv1"], ""),
        ([b"\xff\x00"], ""),
        ([], ""),
    ],
)
def test_record_id(texts: list[bytes], id: str) -> None:
    assert record_id(texts) == id


GOOD_POLICY = b"version: STSv1\nmode: enforce\nmx: mail.example.com\nmax_age: 86400\n"


@pytest.mark.parametrize(
    "content",
    [
        GOOD_POLICY,
        GOOD_POLICY.replace(b"\n", b"\r\n"),
        GOOD_POLICY.rstrip(),
        b"mode:enforce\nmax_age:86400\nmx:\tMAIL.Example.com. \nversion:STSv1\nunknown: x\n\n",
        GOOD_POLICY + b"mode: none\nmax_age: 5\nversion: STSv9\n",  # of what comes twice the first counts
    ],
)
def test_policies(content: bytes) -> None:
    assert parse(content, "7") == Sts("7", "enforce", ("mail.example.com",), 86400)


def test_a_policy_may_be_none_without_hosts() -> None:
    assert parse(b"version: STSv1\nmode: none\nmax_age: 0", "1") == Sts("1", "none", (), 0)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"version: STSv1\n", b""),
        (b"STSv1", b"STSv2"),
        (b"enforce", b"doubt"),
        (b"mode: enforce\n", b""),
        (b"mx: mail.example.com\n", b""),
        (b"mail.example.com", b"*"),
        (b"mail.example.com", b"mail.*.com"),
        (b"mail.example.com", b"a b"),
        (b"mail.example.com", b"m\xc3\xa4il.example"),
        (b"86400", b""),
        (b"86400", b"-1"),
        (b"86400", b"xxx"),
        (b"86400", b"1e3"),
        (b"86400", str(MAX_AGE + 1).encode()),
        (b"max_age: 86400\n", b""),
        (b"mode", b"\xff"),
        (b"mode: enforce", b"mode enforce"),
        (GOOD_POLICY, b"garbage"),
        (GOOD_POLICY, b""),
        (b"mx: mail.example.com\n", b"mx: mail.example.com\n" + b"".join(b"mx: m%d.example\n" % n for n in range(100))),
    ],
)
def test_bad_policies(old: bytes, new: bytes) -> None:
    with pytest.raises(ValueError):
        parse(GOOD_POLICY.replace(old, new), "1")


@given(st.binary(max_size=300))
def test_no_policy_crashes(junk: bytes) -> None:
    for content in (junk, GOOD_POLICY + junk):
        with contextlib.suppress(ValueError):
            assert parse(content, "1").mode in ("enforce", "testing", "none")
    record_id([junk, b"v=STSv1;" + junk])


@pytest.mark.parametrize(
    ("pattern", "host", "matches"),
    [
        ("mail.example.com", "mail.example.com", True),
        ("mail.example.com", "mail2.example.com", False),
        ("*.example.com", "mail.example.com", True),
        ("*.example.com", "a.mail.example.com", False),
        ("*.example.com", "example.com", False),
        ("example.com", "mail.example.com", False),
    ],
)
def test_patterns(pattern: str, host: str, matches: bool) -> None:
    assert Sts("1", "enforce", (pattern,), 1).names(host) == matches


# The files that the hosts of the corpus serve, and how; absent: there is none.
FILES = {
    "good.loc": b"version: STSv1\nmode: enforce\nmx: mail.loc\nmax_age: 86400",
    "valid-none.loc": b"version: STSv1\nmode: none\nmax_age: 86400",
    "testing.loc": b"version: STSv1\nmode: testing\nmax_age: 86400\nmx: mail.loc\n",
    "bad-record1.loc": GOOD_POLICY,
    "bad-record2.loc": GOOD_POLICY,
    "bad-record3.loc": GOOD_POLICY,
    "bad-policy1.loc": b"garbage",
    "bad-policy2.loc": b"version: STSv1\nmode: enforce\nmax_age: 86400",
    "bad-policy5.loc": b"version: STSv1\nmode: enforce\nmx: mail.loc\nmax_age: xxx",
    "bad-policy6.loc": b"version: STSv1\nmode: enforce\nmx: mail.loc\nmax_age: 31557601",
    "bad-policy7.loc": b"version: STSv1\nmx: mail.loc\nmax_age: 86400",
    "bad-policy8.loc": b"version: STSv1\nmode: doubt\nmx: mail.loc\nmax_age: 86400",
}


def in_force(domain: str, texts: dict[str, bytes]) -> Sts | None:
    id = record_id([texts[domain]] if domain in texts else [])
    if not id or domain not in FILES:  # text/html, 404 and bad certificates: test_mtasts.py
        return None
    try:
        sts = parse(FILES[domain], id)
    except ValueError:
        return None
    return sts if sts.mode == "enforce" else None


@pytest.mark.parametrize("file", ["refdata.tsv", "refdata_nosni.tsv"])
def test_corpus(file: str) -> None:
    """What another implementation answers Postfix for the same records and files."""
    if not CORPUS.exists():
        pytest.skip("../shared/corpora is not here")
    records = re.findall(r'^txt-record=_mta-sts\.([^,]+),"(.*)"$', (CORPUS / "dnsmasq.conf.appendix").read_text(), re.M)
    texts = {domain: text.encode() for domain, text in records}
    assert len(texts) >= 13
    cases = [line.split("\t") for line in (CORPUS / file).read_text().splitlines()]
    assert len(cases) == 21
    for request, answer in cases:
        next_hop = request.split(" ", 1)[1]  # as Postfix writes it: [HOST]:PORT
        domain = re.sub(r"\.$|^\[|\]?(:\d+)?$", "", next_hop.removesuffix("."))
        found = in_force(domain.removeprefix("["), texts)
        assert (found is not None) == answer.startswith("OK secure match=mail.loc"), request
        assert found is None or found.mx == ("mail.loc",)
