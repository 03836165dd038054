"""The decisions of the relay that need no peer: MX order, outcomes, retries, idle connections, the hop's parameter."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptt.config import Retry
from ptt.dns.resolver import NoData, NoSuchDomain, TemporaryFailure
from ptt.message import Envelope, Recipient, Schedule
from ptt.net.stream import ConnectFailed, PeerClosed, ReadTimeout, TlsFailed
from ptt.relay import hop, mx
from ptt.relay.attempt import Job, compose, merge, unsettled
from ptt.relay.connections import IdleConnections, Key
from ptt.relay.outcome import Deferred, Delivered, Failed, Outcome, of_error, of_reply
from ptt.relay.retry import JITTER, delay_seconds, next_attempt
from ptt.smtp import ProtocolError, Reply
from ptt.smtp.capabilities import Capabilities

NOBODY: frozenset[str] = frozenset()


# --- MX -------------------------------------------------------------------------------------------------------


def hosts(records: list[tuple[int, str]], own: frozenset[str] = NOBODY, seed: int = 0) -> tuple[str, ...]:
    found = mx.choose("example.org", records, own, random.Random(seed))
    assert isinstance(found, mx.Route)
    return found.hosts


def test_preference_decides() -> None:
    assert hosts([(30, "c"), (10, "a"), (20, "b")]) == ("a", "b", "c")


def test_equals_are_shuffled_and_nobody_else() -> None:
    orders = {hosts([(10, "a"), (10, "b"), (20, "c"), (5, "z")], seed=n) for n in range(50)}
    assert orders == {("z", "a", "b", "c"), ("z", "b", "a", "c")}


def test_equals_share_evenly() -> None:
    rng = random.Random(1)
    first = [mx.choose("d", [(10, x) for x in "abcd"], NOBODY, rng) for _ in range(4000)]
    for name in "abcd":
        assert 850 < sum(isinstance(r, mx.Route) and r.hosts[0] == name for r in first) < 1150


def test_ourselves_and_what_is_not_better_is_cut() -> None:
    us = frozenset({"us"})
    assert hosts([(5, "a"), (10, "us"), (10, "b"), (20, "c")], us) == ("a",)
    for records in ([(10, "us")], [(10, "us"), (10, "b"), (20, "c")]):
        outcome = mx.choose("d", records, us, random.Random(0))
        assert isinstance(outcome, Failed)
        assert outcome.enhanced == "5.4.6"


def test_a_host_named_twice_is_one_host() -> None:
    assert hosts([(10, "a"), (20, "a"), (30, "b")]) == ("a", "b")


def test_many_hosts_are_bounded() -> None:
    assert len(hosts([(n, f"h{n}") for n in range(100)])) == mx.MAX_HOSTS


@pytest.mark.parametrize("records", [[(0, ".")], [(10, ""), (0, ".")]])
def test_null_mx(records: list[tuple[int, str]]) -> None:
    outcome = mx.choose("d", records, NOBODY, random.Random(0))
    assert isinstance(outcome, Failed)
    assert outcome.enhanced == "5.1.10"


def test_a_null_mx_beside_others_means_nothing() -> None:
    assert hosts([(0, "."), (10, "a")]) == ("a",)


@pytest.mark.parametrize("host", ["a,b", "a b", "[10.0.0.1]", "a..b", "-\n", "é"])
def test_hosts_that_are_no_names(host: str) -> None:
    assert hosts([(10, host), (20, "b")]) == ("b",)
    assert isinstance(mx.choose("d", [(10, host)], NOBODY, random.Random(0)), Failed)


def route(dns: Any, domain: str) -> mx.Route | Deferred | Failed:
    return mx.route(domain, dns, NOBODY, random.Random(0))


def test_implicit_mx(dns: Any) -> None:
    dns.records["bare.example"] = NoData
    found = route(dns, "bare.example")
    assert found == mx.Route(("bare.example",), "bare.example")


@pytest.mark.parametrize(
    ("error", "kind", "enhanced"),
    [(NoSuchDomain, Failed, "5.1.2"), (TemporaryFailure, Deferred, "4.4.3")],
)
def test_dns_that_fails(dns: Any, error: Any, kind: type, enhanced: str) -> None:
    dns.records["x.example"] = error
    outcome = route(dns, "x.example")
    assert isinstance(outcome, kind)
    assert outcome.enhanced == enhanced  # type: ignore[union-attr]


def test_international_domains_are_asked_as_a_labels(dns: Any) -> None:
    dns.records["xn--bcher-kva.example"] = [(1, "mx.example.org")]
    assert isinstance(route(dns, "bücher.example"), mx.Route)
    assert isinstance(route(dns, "ü" * 64 + ".example"), Failed)


@pytest.mark.parametrize(
    ("literal", "ip"),
    [("[192.0.2.1]", "192.0.2.1"), ("[IPv6:2001:db8::1]", "2001:db8::1"), ("[ipv6:2001:DB8::1]", "2001:db8::1")],
)
def test_address_literals(dns: Any, literal: str, ip: str) -> None:
    found = route(dns, literal)
    assert isinstance(found, mx.Route)
    assert found.hosts == (ip,)
    assert not dns.asked


@pytest.mark.parametrize("literal", ["[]", "[1.2.3]", "[2001:db8::1]", "[IPv6:fe80::1%lo]", "[1.2.3.4", "[[1.2.3.4]]"])
def test_bad_address_literals(dns: Any, literal: str) -> None:
    outcome = route(dns, literal)
    assert isinstance(outcome, Failed)
    assert outcome.enhanced == "5.1.3"


def test_site_is_the_set_of_hosts() -> None:
    assert mx.site_name(("b", "a")) == mx.site_name(("a", "b")) == "a,b"
    many = [f"mail{n}.example.org" for n in range(100)]
    assert mx.site_name(many) == mx.site_name(many[::-1])
    assert len(mx.site_name(many)) <= mx.MAX_SITE
    assert mx.site_name(many) != mx.site_name(many[1:])


@pytest.mark.parametrize(
    "ip", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1"]
)
def test_public_addresses(ip: str) -> None:
    assert mx.is_public(ip)


@pytest.mark.parametrize(
    "ip",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.1.1", "100.64.0.1", "0.0.0.0", "0.1.2.3"),
        *("192.0.0.9", "192.88.99.1", "192.31.196.1", "192.52.193.1", "192.175.48.1", "198.51.100.1", "203.0.113.1"),
        *("64:ff9b:1::1", "100::1", "2001:1::1", "2001:2::1", "2001:20::1", "2620:4f:8000::1", "3fff::1", "5f00::1"),
        *("::8.8.8.8", "2002:a00:1::1", "64:ff9b::10.0.0.1", "::ffff:169.254.1.1", "4000::1"),
        *("192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
        *("::", "::1", "fe80::1", "fc00::1", "fd12::1", "ff02::1", "2001:db8::1", "::ffff:127.0.0.1"),
        *("::ffff:10.0.0.1", "64:ff9b::127.0.0.1", "2002:7f00:1::", "2001:0:53aa:64c::1", "fec0::1", "nonsense", ""),
    ],
)
def test_special_addresses(ip: str) -> None:
    assert not mx.is_public(ip)


# --- outcome --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "phase", "kind", "enhanced"),
    [
        (Reply(250, "2.0.0", "ok"), "end of DATA", Delivered, "2.0.0"),
        (Reply(250, "2.0.0", "ok"), "RCPT", Deferred, "4.0.0"),  # nothing before the end of DATA delivers
        (Reply(550, "5.1.1", "no"), "RCPT", Failed, "5.1.1"),
        (Reply(550, "", "no"), "RCPT", Failed, "5.0.0"),
        (Reply(554, "5.7.1", "no"), "MAIL", Failed, "5.7.1"),
        (Reply(554, "", "no"), "DATA", Failed, "5.0.0"),
        (Reply(552, "5.3.4", "no"), "end of DATA", Failed, "5.3.4"),
        (Reply(552, "", "too many"), "RCPT", Deferred, "4.0.0"),
        (Reply(552, "5.5.3", "too many"), "RCPT", Deferred, "4.0.0"),
        (Reply(552, "5.2.2", "full"), "RCPT", Failed, "5.2.2"),
        (Reply(450, "4.2.1", "later"), "RCPT", Deferred, "4.2.1"),
        (Reply(421, "", "bye"), "end of DATA", Deferred, "4.0.0"),
        (Reply(554, "5.7.1", "go away"), "greeting", Deferred, "4.0.0"),
        (Reply(503, "", "what"), "RSET", Deferred, "4.0.0"),
        (Reply(354, "", "go"), "end of DATA", Deferred, "4.0.0"),
    ],
)
def test_of_reply(reply: Reply, phase: str, kind: type, enhanced: str) -> None:
    outcome = of_reply(reply, phase, "peer")
    assert isinstance(outcome, kind)
    assert outcome.enhanced == enhanced
    assert outcome.text == str(reply)
    assert (outcome.phase, outcome.peer) == (phase, "peer")


@given(st.integers(200, 599), st.text(), st.sampled_from(["MAIL", "RCPT", "DATA", "end of DATA", "greeting", "x"]))
def test_no_reply_delivers_but_2xx_to_the_end(code: int, text: str, phase: str) -> None:
    outcome = of_reply(Reply(code, "", text), phase, "peer")
    assert isinstance(outcome, Delivered) == (phase == "end of DATA" and 200 <= code < 300)
    assert len(outcome.text) <= 500


@pytest.mark.parametrize(
    ("error", "enhanced"),
    [
        (ReadTimeout("x"), "4.4.1"),
        (ConnectFailed("x"), "4.4.1"),
        (PeerClosed("x"), "4.4.2"),
        (TlsFailed("x"), "4.7.5"),
        (ProtocolError("x"), "4.5.0"),
    ],
)
def test_of_error(error: Any, enhanced: str) -> None:
    for maybe in (False, True):
        assert of_error(error, "DATA", "peer", maybe) == Deferred("x", "DATA", "peer", enhanced, maybe)


# --- retry ----------------------------------------------------------------------------------------------------

HOUR = 3_600_000


def test_delays_grow_to_the_ceiling() -> None:
    delays = [delay_seconds(Retry(), n) for n in range(20)]
    assert delays[:3] == pytest.approx([300.0, 540.0, 972.0])
    assert delays[-1] == 14_400.0
    assert delay_seconds(Retry(factor=10.0), 5000) == 14_400.0


def test_jitter_stays_in_its_bounds(rng: random.Random) -> None:
    dues = [next_attempt(Retry(), 0, HOUR, 0, rng) - HOUR for _ in range(500)]
    assert 300_000 * (1 - JITTER) - 1 <= min(dues) < 270_000
    assert 330_000 < max(dues) <= 300_000 * (1 + JITTER)


def test_last_attempt_is_at_expiry_and_then_never(rng: random.Random) -> None:
    assert next_attempt(Retry(), 9, HOUR, HOUR + 1000, rng) == HOUR + 1000
    assert next_attempt(Retry(), 9, HOUR + 1000, HOUR + 1000, rng) == 0
    assert next_attempt(Retry(), 9, HOUR, HOUR - 1, rng) == 0
    assert next_attempt(Retry(), 9, HOUR, 0, rng) > HOUR


# --- idle connections -----------------------------------------------------------------------------------------

SITE, OTHER = Key("a", "x"), Key("b", "x")


def test_the_last_used_connection_is_taken_first() -> None:
    pool: IdleConnections[str] = IdleConnections(10.0)
    for n, name in enumerate(("one", "two", "other")):
        assert pool.give(OTHER if name == "other" else SITE, name, n) == []
    assert [pool.take(SITE, 3), pool.take(SITE, 3), pool.take(SITE, 3)] == ["two", "one", None]
    assert len(pool) == 1
    assert pool.take(OTHER._replace(tls="verify"), 3) is None


def test_idle_connections_expire() -> None:
    pool: IdleConnections[str] = IdleConnections(10.0)
    assert pool.next_expiry() is None
    pool.give(SITE, "one", 0)
    pool.give(SITE, "two", 5)
    assert pool.next_expiry() == 10.0
    assert pool.expired(9.9) == []
    assert pool.expired(10.0) == ["one"]
    assert pool.take(SITE, 15.1) is None  # too old to be used, still there to be closed
    assert pool.expired(15.1) == ["two"]
    assert len(pool) == 0


def test_idle_connections_are_bounded() -> None:
    pool: IdleConnections[str] = IdleConnections(10.0, most=4, most_per_site=2)
    closed = [c for n in range(4) for c in pool.give(SITE, f"a{n}", n)]
    assert closed == ["a0", "a1"]
    closed = [c for n in range(4) for c in pool.give(Key(f"s{n}", ""), f"s{n}", 10 + n)]
    assert closed == ["a2", "a3"]
    assert len(pool) == 4
    assert sorted(pool.clear()) == ["s0", "s1", "s2", "s3"]
    assert len(pool) == 0


# --- an attempt's parts ---------------------------------------------------------------------------------------

WANTED = [(1, Recipient("a@example.org")), (2, Recipient("b@example.org"))]


def test_another_host_is_tried_for_the_deferred_only() -> None:
    outcomes: dict[int, Outcome] = {1: Delivered("ok")}
    assert [i for i, _ in unsettled(WANTED, outcomes)] == [2]
    outcomes[2] = Deferred("x", "RCPT")
    assert [i for i, _ in unsettled(WANTED, outcomes)] == [2]
    for settled in (Failed("x", "RCPT"), Deferred("x", "end of DATA", maybe=True)):
        outcomes[2] = settled
        assert unsettled(WANTED, outcomes) == []


def test_a_reply_is_kept_over_an_unreachable_host() -> None:
    said, gone = Deferred("450 later", "RCPT", reply=True), Deferred("refused", "connect")
    maybe, done = Deferred("lost", "end of DATA", maybe=True), Delivered("ok")
    for new, kept in ((gone, said), (maybe, maybe), (done, done)):
        outcomes: dict[int, Outcome] = {1: said}
        merge(outcomes, {1: new})
        assert outcomes[1] is kept


def offers(*keywords: str) -> Capabilities:
    return Capabilities(Reply(250, "", "\n".join(["peer", *keywords])))


def job(envelope: Envelope, size: int = 100) -> Job:
    return Job("id", "example.org", envelope, [b"x"], size, int)


def test_size_is_looked_at_before_sending() -> None:
    message, refused = compose(job(Envelope("me", 1), 101), WANTED, offers("SIZE 100"), False, "peer")
    assert message is None
    assert {type(o) for o in refused.values()} == {Failed}
    assert all(isinstance(o, Failed) and o.enhanced == "5.3.4" for o in refused.values())
    for limit in ("SIZE 101", "SIZE 0", "SIZE", "SIZE nonsense"):
        assert compose(job(Envelope("me", 1), 101), WANTED, offers(limit), False, "peer")[0] is not None


def test_international_addresses_need_smtputf8() -> None:
    wanted = [(1, Recipient("jos\u00e9@example.org")), (2, Recipient("b@example.org"))]
    message, refused = compose(job(Envelope("me@x", 1, smtputf8=True)), wanted, offers(), False, "peer")
    assert message is not None
    assert message.recipients == ["b@example.org"]
    assert isinstance(refused[1], Failed)
    assert refused[1].enhanced == "5.6.7"
    assert compose(job(Envelope("jos\u00e9@x", 1)), wanted, offers(), False, "peer")[0] is None
    message, refused = compose(job(Envelope("me@x", 1, smtputf8=True)), wanted, offers("SMTPUTF8"), False, "peer")
    assert message is not None
    assert not refused


UTF8 = Envelope("me@x", 1, smtputf8=True)


@pytest.mark.parametrize(
    ("sender", "recipient", "header", "offered", "sent", "said", "code"),
    [
        ("me@x", "you@y", "Subject: x", True, True, False, ""),  # not needed: not said
        ("me@x", "you@y", "Subject: x", False, True, False, ""),
        ("me@x", "you@y", "Subject: \u00fc", True, True, True, ""),
        ("me@x", "you@y", "Subject: \u00fc", False, False, False, "5.6.9"),
        ("jos\u00e9@x", "you@y", "Subject: x", True, True, True, ""),
        ("jos\u00e9@x", "you@y", "Subject: x", False, False, False, "5.6.7"),
        ("me@x", "jos\u00e9@y", "Subject: x", True, True, True, ""),
        ("me@x", "jos\u00e9@y", "Subject: x", False, False, False, "5.6.7"),
        ("me@b\u00fccher.example", "you@fa\u00df.example", "Subject: x", False, True, False, ""),
        ("me@b\u00fccher.example", "you@fa\u00df.example", "Subject: x", True, True, True, ""),
        ("me@x", "you@\u2603..example", "Subject: x", False, False, False, "5.6.7"),  # no name
    ],
)
def test_smtputf8(sender: str, recipient: str, header: str, offered: bool, sent: bool, said: bool, code: str) -> None:
    content = [b"Received: here\r\n", f"{header}\r\n\r\n\u00fc\r\n".encode()]
    one = job(msgspec.structs.replace(UTF8, sender=sender))._replace(content=content)
    keywords = ["8BITMIME", "SMTPUTF8"] if offered else ["8BITMIME"]
    message, outcomes = compose(one, [(1, Recipient(recipient))], offers(*keywords), False, "peer")
    assert (message is not None) == sent
    if message is None:
        assert isinstance(outcomes[1], Failed)
        assert outcomes[1].enhanced == code
        return
    assert message.mail.smtputf8 == said
    if not offered:
        assert (message.sender + message.recipients[0]).isascii()
    if "\u00fc" in sender:
        domains = [message.sender.partition("@")[2], message.recipients[0].partition("@")[2]]
        a_labels = ["xn--bcher-kva.example", "xn--fa-hia.example"]
        assert domains == (["b\u00fccher.example", "fa\u00df.example"] if offered else a_labels)


@pytest.mark.parametrize(
    ("offered", "sevenbit", "body", "sent"),
    [
        ("8BITMIME", False, "\u00fc", True),
        ("SIZE", False, "u", True),
        ("SIZE", False, "\u00fc", False),
        ("SIZE", True, "\u00fc", True),  # what the conversion left, it left in header fields
    ],
)
def test_8_bits_for_a_peer_of_7(offered: str, sevenbit: bool, body: str, sent: bool) -> None:
    content = [b"Received: here\r\n", f"Subject: \u00fc\r\n\r\n{body}\r\n".encode()]
    one = job(Envelope("me@x", 1, sevenbit=sevenbit))._replace(content=content)
    message, outcomes = compose(one, WANTED, offers(offered), False, "peer")
    assert (message is not None) == sent
    assert all(isinstance(o, Deferred) and o.seven_bit for o in outcomes.values())


def test_international_orcpt_is_sent_in_ascii() -> None:
    wanted = [(1, Recipient("a@example.org", orcpt="utf-8;jos\u00e9@example.org"))]
    message, _ = compose(job(Envelope("me@x", 1)), wanted, offers("DSN"), False, "peer")
    assert message is not None
    assert message.rcpt[0].orcpt == "utf-8;jos\\x{E9}@example.org"


def test_parameters_of_the_envelope() -> None:
    envelope = Envelope("me@x", 1, eightbit=True, ret="HDRS", envid="e1")
    wanted = [(1, Recipient("a@example.org", "NEVER", "rfc822;o@example.org")), (2, Recipient("b@example.org"))]
    message, _ = compose(job(envelope), wanted, offers("XPTT"), False, "peer")
    assert message is not None
    assert (message.mail.body, message.mail.ret, message.mail.envid, message.mail.size) == (
        "8BITMIME",
        "HDRS",
        "e1",
        100,
    )
    assert message.mail.extra == ()  # a stranger who offers XPTT gets nothing
    assert [(r.notify, r.orcpt) for r in message.rcpt] == [("NEVER", "rfc822;o@example.org"), ("", "")]
    message, _ = compose(job(envelope), wanted, offers("XPTT"), True, "peer")
    assert message is not None
    assert hop.decode(dict(message.mail.extra)["XPTT"]) == envelope


# --- the hop's parameter --------------------------------------------------------------------------------------


@given(
    st.builds(
        Envelope,
        sender=st.just("me@example.org"),
        received=st.integers(0, 2**50),
        user=st.text("abcxyz@.", max_size=60),
        eightbit=st.booleans(),
        commit=st.text("0123456789abcdef", max_size=40),
    )
)
def test_envelope_crosses(envelope: Envelope) -> None:
    text = hop.encode(envelope)
    assert text
    assert len(text) <= hop.MAX_CHARS
    assert hop.decode(text) == envelope


def test_too_large_an_envelope_is_left_out() -> None:
    assert hop.encode(Envelope("me", 1, user="x" * 2000)) == ""


def test_what_a_client_calls_itself_keeps_no_signature_away() -> None:
    envelope = Envelope("me@example.org", 1, "example.org", "me@example.org", "::1", helo="\U0001f4ee" * 255)
    assert hop.decode(hop.encode(envelope)).signing_domain == "example.org"


@pytest.mark.parametrize(("user", "keywords"), [("x" * 2000, ("XPTT",)), ("me", ())])
def test_nothing_goes_to_a_role_without_its_envelope(user: str, keywords: tuple[str, ...]) -> None:
    envelope = Envelope("me", 1, "example.org", user)
    message, outcomes = compose(job(envelope), WANTED, offers(*keywords), True, "peer")
    assert message is None
    assert {type(o) for o in outcomes.values()} == {Deferred}
    assert len(outcomes) == len(WANTED)


@given(
    st.one_of(st.text(max_size=2000), st.binary(max_size=1000).map(lambda b: b.hex()), st.text("AB-_z9", max_size=99))
)
def test_nonsense_is_refused(text: str) -> None:
    reply = None
    try:
        hop.decode(text)
    except ProtocolError as e:
        reply = e.reply
    else:
        return
    assert reply is not None
    assert reply.code == 501


@pytest.mark.parametrize(
    "bad", [{"sender": "a\r\nb"}, {"user": "\x00"}, {"received": -1}, {"schedule": Schedule(expires=-1)}]
)
def test_envelopes_that_nobody_makes(bad: dict[str, Any]) -> None:
    text = hop.encode(msgspec.structs.replace(Envelope("me", 1), **bad))
    with pytest.raises(ProtocolError):
        hop.decode(text)
