"""The resolver: what DNS says, how long it is believed, and what is not believed at all."""

from __future__ import annotations

import contextlib
import itertools
import struct
from collections.abc import Callable, Iterator

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import gevent
import gevent.event
import pytest
from gevent import socket

from ptt.dns import exchange
from ptt.dns.cache import TtlCache
from ptt.dns.resolver import NoData, NoSuchDomain, Resolver, TemporaryFailure, system_servers
from ptt.metrics import Counters

Message = dns.message.Message
Answers = Callable[[Message], list[bytes]]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def resolver(*servers: str, timeout: float = 5.0, clock: Clock | None = None, entries: int = 1000) -> Resolver:
    return Resolver(servers, timeout, entries, Counters(), clock or Clock())


def asked(r: Resolver) -> dict[str, float]:
    return {labels[0]: value for (name, labels), value in r._counters.counters.items() if "dns" in name}


# -- real servers: BIND, our own, and Unbound in front of BIND -----------------------------------------------------


@pytest.fixture(params=["bind", "own", "unbound"])
def real(request: pytest.FixtureRequest) -> Resolver:
    fixture = {"bind": "named", "own": "own_dns", "unbound": "unbound"}[request.param]
    return resolver(request.getfixturevalue(fixture).address)


@pytest.mark.peer
class TestRealServers:
    def test_mx_in_order_of_preference(self, real: Resolver) -> None:
        assert real.mx("Example.TEST.") == [(10, "mx1.example.test"), (20, "mx2.example.test")]

    def test_null_mx(self, real: Resolver) -> None:
        assert real.mx("null.example.test") == [(0, ".")]

    def test_addresses_of_both_kinds(self, real: Resolver) -> None:
        assert real.addresses("mx1.example.test") == ["127.0.0.1", "::1"]
        assert real.addresses("mx2.example.test") == ["127.0.0.1"]

    def test_strings_of_a_text_are_joined(self, real: Resolver) -> None:
        assert real.txt("two.example.test") == [b"v=DKIM1; p=abc"]

    def test_no_such_domain(self, real: Resolver) -> None:
        for ask in (real.mx, real.addresses, real.txt):
            with pytest.raises(NoSuchDomain, match="nowhere"):
                ask("nowhere.example.test")

    def test_no_data(self, real: Resolver) -> None:
        with pytest.raises(NoData):
            real.mx("mx1.example.test")
        with pytest.raises(NoData):
            real.addresses("two.example.test")

    def test_aliases_are_followed(self, real: Resolver) -> None:
        assert real.addresses("www.example.test") == ["127.0.0.1", "::1"]
        assert real.mx("mail.example.test") == real.mx("example.test")
        assert real.addresses("away.example.test") == ["127.0.0.1"]

    def test_an_alias_into_nothing(self, real: Resolver) -> None:
        with pytest.raises(NoSuchDomain):
            real.addresses("gone.example.test")

    def test_aliases_in_a_circle(self, real: Resolver) -> None:
        with pytest.raises(TemporaryFailure):
            real.addresses("loop1.other.test")

    def test_a_large_answer_comes_over_tcp(self, real: Resolver) -> None:
        found = real.txt("big.example.test")
        assert sorted(t[:3] for t in found) == [b"%03d" % n for n in range(20)]
        assert sum(map(len, found)) > 5000  # no UDP answer holds that


@pytest.mark.peer
def test_answers_are_cached(primary) -> None:
    """Of BIND and of our own server: the tests' Unbound hands on everything with TTL 0."""
    real = resolver(primary.address)
    assert real.mx("example.test") == real.mx("example.test")
    with pytest.raises(NoSuchDomain):
        real.mx("nowhere.example.test")
    with pytest.raises(NoSuchDomain):
        real.mx("nowhere.example.test")
    assert asked(real) == {"found": 1, "cached": 2, "nxdomain": 1}


@pytest.mark.peer
def test_servfail_is_temporary(unbound) -> None:
    with pytest.raises(TemporaryFailure, match="SERVFAIL"):
        resolver(unbound.address).mx("dead.test")


@pytest.mark.peer
def test_a_domain_that_the_server_does_not_serve_is_temporary(named) -> None:
    with pytest.raises(TemporaryFailure, match="REFUSED"):
        resolver(named.address).mx("strange.test")


@pytest.mark.peer
def test_ttl_decides_how_long_an_answer_is_believed(named) -> None:
    clock = Clock()
    r = resolver(named.address, clock=clock)
    assert r.addresses("zero.example.test") == ["127.0.0.1"]
    assert r.mx("example.test")
    named.put("example.test", "example.test", 300, "MX", "5 mx2.example.test.")
    try:
        clock.now += 299
        assert len(r.mx("example.test")) == 2
        clock.now += 1
        assert r.mx("example.test") == [(5, "mx2.example.test")]
    finally:
        named.put("example.test", "example.test", 300, "MX", "10 mx1.example.test.", "20 mx2.example.test.")
    before = asked(r)["found"]
    r.addresses("zero.example.test")
    assert asked(r)["found"] == before + 1  # TTL 0 is not kept
    with pytest.raises(NoSuchDomain):
        r.addresses("late.example.test")
    named.put("example.test", "late.example.test", 60, "A", "127.0.0.1")
    with pytest.raises(NoSuchDomain):
        r.addresses("late.example.test")
    clock.now += 5  # the minimum of the SOA (RFC 2308)
    assert r.addresses("late.example.test") == ["127.0.0.1"]


@pytest.mark.peer
def test_a_dead_server_is_passed_over(named, free_port) -> None:
    r = resolver(f"127.0.0.1:{free_port()}", named.address)
    assert len(r.mx("example.test")) == 2


# -- servers that do as told ---------------------------------------------------------------------------------------


@pytest.fixture
def fake() -> Iterator[Callable[[Answers], str]]:
    """A function: starts a UDP server that sends back, for each query, what the given function returns."""
    sockets, tasks = [], []

    def start(answers: Answers) -> str:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        sockets.append(sock)

        def serve() -> None:
            while True:
                data, peer = sock.recvfrom(4096)
                for answer in answers(dns.message.from_wire(data)):
                    sock.sendto(answer, peer)

        tasks.append(gevent.spawn(serve))
        return f"127.0.0.1:{sock.getsockname()[1]}"

    yield start
    gevent.killall(tasks)
    for sock in sockets:
        sock.close()


def answer(query: Message, *records: str, rcode: dns.rcode.Rcode = dns.rcode.NOERROR) -> Message:
    response = dns.message.make_response(query)
    response.set_rcode(rcode)
    response.answer = [dns.rrset.from_text(*r.split(None, 4)) for r in records]
    return response


def a_record(query: Message, address: str = "127.0.0.1", ttl: int = 60) -> Message:
    name, rdtype = query.question[0].name.to_text(), query.question[0].rdtype
    return answer(query, f"{name} {ttl} IN A {address}") if rdtype == dns.rdatatype.A else answer(query)


def test_answers_that_do_not_fit_are_ignored(fake: Callable[[Answers], str]) -> None:
    def answers(query: Message) -> list[bytes]:
        if query.question[0].rdtype != dns.rdatatype.A:
            return [answer(query).to_wire()]
        other_id, other_name, question = a_record(query), a_record(query), a_record(query)
        other_id.id ^= 1
        other_name.question = dns.message.make_query("evil.test.", "A").question
        question.flags &= ~dns.flags.QR
        bad = [other_id, other_name, question]
        return [b"", b"\0" * 11, b"\xff" * 40, *(m.to_wire() for m in bad), a_record(query, "127.0.0.2").to_wire()]

    assert resolver(fake(answers)).addresses("x.test") == ["127.0.0.2"]


def test_answers_from_elsewhere_are_ignored(fake: Callable[[Answers], str]) -> None:
    elsewhere = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    elsewhere.bind(("127.0.0.1", 0))
    seen: list[int] = []

    class Spoofed(exchange.socket.socket):  # type: ignore[misc,name-defined]
        def send(self, data: bytes, flags: int = 0) -> int:
            seen.append(self.getsockname()[1])
            query = dns.message.from_wire(data)
            elsewhere.sendto(a_record(query, "127.0.0.66").to_wire(), self.getsockname())
            return int(super().send(data, flags))

    with pytest.MonkeyPatch.context() as patch, contextlib.closing(elsewhere):
        patch.setattr(exchange.socket, "socket", Spoofed)
        address = fake(lambda q: [a_record(q, "127.0.0.2").to_wire()])
        assert resolver(address).addresses("x.test") == ["127.0.0.2"]
    assert len(seen) == 2  # it was tried, for A and AAAA


def test_too_many_answers_that_do_not_fit_lead_to_tcp(fake: Callable[[Answers], str]) -> None:
    address = fake(lambda q: [b"guess"] * exchange.MAX_IGNORED)
    with pytest.raises(TemporaryFailure, match="refused"):  # nobody listens there over TCP
        resolver(address).mx("x.test")


def test_an_id_is_hard_to_guess(fake: Callable[[Answers], str]) -> None:
    ids = []

    def answers(query: Message) -> list[bytes]:
        ids.append(query.id)
        return [answer(query).to_wire()]

    r = resolver(fake(answers))
    for n in range(50):
        with pytest.raises(NoData):
            r.mx(f"x{n}.test")
    assert len(set(ids)) > 45
    assert sum(abs(a - b) < 100 for a, b in itertools.pairwise(ids)) < 10


def test_a_truncated_answer_is_fetched_over_tcp(fake: Callable[[Answers], str]) -> None:
    def truncated(query: Message) -> list[bytes]:
        response = answer(query)
        response.flags |= dns.flags.TC
        return [response.to_wire()]

    address = fake(truncated)

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            (length,) = struct.unpack("!H", connection.recv(2))
            query = dns.message.from_wire(connection.recv(length))
            wire = answer(query, "x.test. 60 IN MX 10 mx.x.test.").to_wire()
            for part in (struct.pack("!H", len(wire)), wire[:5], wire[5:]):  # in pieces
                connection.sendall(part)

    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(exchange.Server.at(address).address)
        listener.listen(1)
        task = gevent.spawn(serve)
        assert resolver(address).mx("x.test") == [(10, "mx.x.test")]
        task.get(timeout=5)


def test_a_silent_server_costs_its_share_once_and_then_comes_last(fake: Callable[[Answers], str]) -> None:
    silent, good = [], []
    first = fake(lambda q: silent.append(q) or [])  # type: ignore[func-returns-value]
    second = fake(lambda q: good.append(q) or [answer(q, f"{q.question[0].name} 60 IN MX 10 mx.test.").to_wire()])  # type: ignore[func-returns-value]
    r = resolver(first, second, timeout=0.4)
    for n in range(5):
        assert r.mx(f"x{n}.test") == [(10, "mx.test")]
    assert (len(silent), len(good)) == (1, 5)


@pytest.mark.slow
def test_silence_ends_after_the_timeout(fake: Callable[[Answers], str]) -> None:
    with gevent.Timeout(5), pytest.raises(TemporaryFailure, match="no answer in time"):
        resolver(fake(lambda q: []), timeout=0.3).mx("x.test")


def test_failures_are_not_cached(fake: Callable[[Answers], str]) -> None:
    rcodes = [dns.rcode.SERVFAIL, dns.rcode.REFUSED, dns.rcode.NOERROR]
    r = resolver(fake(lambda q: [answer(q, rcode=rcodes[0]).to_wire()]))
    with pytest.raises(TemporaryFailure, match="SERVFAIL"):
        r.mx("x.test")
    del rcodes[0]
    with pytest.raises(TemporaryFailure, match="REFUSED"):
        r.mx("x.test")
    del rcodes[0]
    with pytest.raises(NoData):
        r.mx("x.test")


def test_one_kind_of_address_is_enough(fake: Callable[[Answers], str]) -> None:
    def answers(query: Message) -> list[bytes]:
        if query.question[0].rdtype == dns.rdatatype.AAAA:
            return [answer(query, rcode=dns.rcode.SERVFAIL).to_wire()]
        return [a_record(query).to_wire()]

    assert resolver(fake(answers)).addresses("x.test") == ["127.0.0.1"]


def test_no_address_and_a_failure_is_temporary(fake: Callable[[Answers], str]) -> None:
    def answers(query: Message) -> list[bytes]:
        failed = query.question[0].rdtype == dns.rdatatype.AAAA
        return [answer(query, rcode=dns.rcode.SERVFAIL if failed else dns.rcode.NOERROR).to_wire()]

    with pytest.raises(TemporaryFailure):
        resolver(fake(answers)).addresses("x.test")


def test_the_same_question_is_asked_once_at_a_time(fake: Callable[[Answers], str]) -> None:
    queries = []

    def answers(query: Message) -> list[bytes]:
        queries.append(query)
        return [answer(query, "x.test. 60 IN MX 10 mx.test.").to_wire()]

    r = resolver(fake(answers))
    tasks = [gevent.spawn(r.mx, "x.test") for _ in range(100)]
    tasks[0].kill(block=False)  # the death of the one who asked first harms nobody
    gevent.joinall(tasks, timeout=5)
    assert [t.value for t in tasks[1:]] == [[(10, "mx.test")]] * 99
    assert len(queries) == 1
    assert r._flights == {}


def test_who_has_little_time_does_not_wait_but_the_question_goes_on(
    fake: Callable[[Answers], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    may_answer = gevent.event.Event()

    def answers(query: Message) -> list[bytes]:
        may_answer.wait(5)
        return [answer(query, "x.test. 60 IN MX 10 mx.test.").to_wire()]

    r = resolver(fake(answers))
    with pytest.raises(TemporaryFailure, match="no answer within"):
        r.mx_soon("x.test", 0.01)
    flight = r._flights["x.test", dns.rdatatype.MX]
    r.ask_mx("x.test")
    monkeypatch.setattr(r._pool, "full", lambda: True)
    with pytest.raises(TemporaryFailure, match="too many"):
        r.mx_soon("y.test", 5)
    r.ask_mx("y.test")
    assert list(r._flights.values()) == [flight]
    may_answer.set()
    flight.wait(5)
    assert r.mx_soon("x.test", 0) == [(10, "mx.test")]


def test_an_answer_belongs_to_the_caller(fake: Callable[[Answers], str]) -> None:
    r = resolver(fake(lambda q: [answer(q, "x.test. 60 IN MX 10 mx.test.").to_wire()]))
    r.mx("x.test").clear()
    assert r.mx("x.test") == [(10, "mx.test")]


def test_an_unending_ttl_ends_after_a_day(fake: Callable[[Answers], str]) -> None:
    clock = Clock()
    r = resolver(fake(lambda q: [answer(q, "x.test. 2147483647 IN MX 10 mx.test.").to_wire()]), clock=clock)
    r.mx("x.test")
    clock.now += 86_399
    r.mx("x.test")
    assert asked(r) == {"found": 1, "cached": 1}
    clock.now += 1
    r.mx("x.test")
    assert asked(r)["found"] == 2


def test_a_denial_without_soa_is_not_cached(fake: Callable[[Answers], str]) -> None:
    r = resolver(fake(lambda q: [answer(q, rcode=dns.rcode.NXDOMAIN).to_wire()]))
    for _ in range(2):
        with pytest.raises(NoSuchDomain):
            r.mx("x.test")
    assert asked(r) == {"nxdomain": 2}


@pytest.mark.parametrize(
    "name",
    ["", ".", "a..b", "x" * 64 + ".test", "x." * 127 + "test", "a b.test", "a\\.b.test", "bücher.test", "a\0b", "a\n"],
)
def test_what_is_no_domain_name_is_never_asked(name: str, fake: Callable[[Answers], str]) -> None:
    queries: list[Message] = []
    r = resolver(fake(lambda q: queries.append(q) or []))  # type: ignore[func-returns-value]
    for ask in (r.mx, r.addresses, r.txt):
        with pytest.raises(NoSuchDomain, match="not a domain name"):
            ask(name)
    assert queries == []


def test_our_own_fault_is_a_temporary_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("bug")

    r = resolver("127.0.0.1:1")
    monkeypatch.setattr(r, "_one", broken)
    with pytest.raises(TemporaryFailure):
        r.mx("x.test")
    assert r._counters.counters["ptt_errors_total", ("dns",)] == 1


def test_servers_of_the_system(tmp) -> None:
    file = tmp / "resolv.conf"
    file.write_text("# c\nsearch x\nnameserver 127.0.0.53\nnameserver ::1\nnameserver\noptions edns0\n")
    assert system_servers(str(file)) == ["127.0.0.53", "::1"]
    assert system_servers(str(tmp / "absent")) == ["127.0.0.1"]


@pytest.mark.parametrize(
    ("text", "port"), [("127.0.0.1", 53), ("127.0.0.1:5353", 5353), ("::1", 53), ("[::1]:5353", 5353)]
)
def test_addresses_of_servers(text: str, port: int) -> None:
    assert exchange.Server.at(text).address[1] == port


def test_a_server_that_is_no_address() -> None:
    with pytest.raises(ValueError, match="HOST"):
        exchange.Server.at("127.0.0.1:port")


def test_the_cache_is_bounded_and_keeps_what_is_used() -> None:
    clock = Clock()
    cache: TtlCache[int, str] = TtlCache(3, clock)
    for n in range(3):
        cache.put(n, str(n), 10)
    assert cache.get(0) == "0"
    cache.put(3, "3", 10)
    assert [cache.get(n) for n in range(4)] == ["0", None, "2", "3"]
    cache.put(0, "new", 20)
    clock.now += 10
    assert [cache.get(n) for n in range(4)] == ["new", None, None, None]
    cache.put(0, "gone", 0)
    assert len(cache) == 0


def test_the_word_of_the_server_on_dnssec(fake: Callable[[Answers], str]) -> None:
    """An answer is secure when the server says so, and all the aliases before it were."""
    vouched = {"good.test.", "late.test."}
    records = {
        "good.test.": "good.test. 60 IN TLSA 3 1 1 " + "ab" * 32,
        "plain.test.": "plain.test. 60 IN TLSA 3 1 1 " + "ab" * 32,
        "alias.test.": "alias.test. 60 IN CNAME late.test.",
        "late.test.": "late.test. 60 IN TLSA 2 0 1 " + "cd" * 32,
    }

    def answers(query: Message) -> list[bytes]:
        assert query.flags & dns.flags.AD
        name = query.question[0].name.to_text()
        response = answer(query, records[name])
        if name in vouched:
            response.flags |= dns.flags.AD
        return [response.to_wire()]

    r = resolver(fake(answers))
    for _ in range(2):  # asked, and from the cache
        assert r.answer("good.test", dns.rdatatype.TLSA) == ([(3, 1, 1, b"\xab" * 32)], True)
        assert r.answer("plain.test", dns.rdatatype.TLSA) == ([(3, 1, 1, b"\xab" * 32)], False)
        assert r.answer("alias.test", dns.rdatatype.TLSA) == ([(2, 0, 1, b"\xcd" * 32)], False)
    vouched.add("alias.test.")
    r.forget("alias.test", dns.rdatatype.TLSA)
    assert r.answer("alias.test", dns.rdatatype.TLSA).secure


@pytest.mark.parametrize("late", ["A", "AAAA"])
def test_addresses_of_one_family_do_not_wait_for_the_other(late: str, fake: Callable[[Answers], str]) -> None:
    """RFC 8305 3: 50 ms, then those that are known are tried; the others are there when they are asked for."""
    known = {"A": "x.test. 60 IN A 127.0.0.1", "AAAA": "x.test. 60 IN AAAA ::1"}

    def answers(query: Message) -> list[bytes]:
        kind = dns.rdatatype.to_text(query.question[0].rdtype)
        return [] if kind == late else [answer(query, known[kind]).to_wire()]

    r = resolver(fake(answers))
    first = {"A": ["::1"], "AAAA": ["127.0.0.1"]}[late]
    assert r.addresses_early("x.test") == first
    assert ("x.test", dns.rdatatype.from_text(late)) in r._flights


def test_both_families_when_both_are_known(fake: Callable[[Answers], str]) -> None:
    def answers(query: Message) -> list[bytes]:
        kind = dns.rdatatype.to_text(query.question[0].rdtype)
        return [answer(query, f"x.test. 60 IN {kind} {'127.0.0.1' if kind == 'A' else '::1'}").to_wire()]

    r = resolver(fake(answers))
    r.addresses("x.test")
    assert r.addresses_early("x.test") == r.addresses("x.test") == ["127.0.0.1", "::1"]


def test_early_addresses_of_a_host_without_any(fake: Callable[[Answers], str]) -> None:
    with pytest.raises(NoData):
        resolver(fake(lambda query: [answer(query).to_wire()])).addresses_early("x.test")


def test_questions_have_edns(fake: Callable[[Answers], str]) -> None:
    """RFC 6891, with a size that no path fragments."""
    seen = []

    def answers(query: Message) -> list[bytes]:
        seen.append((query.edns, query.payload))
        return [answer(query, "x.test. 60 IN MX 10 mx.test.").to_wire()]

    resolver(fake(answers)).mx("x.test")
    assert seen == [(0, 1232)]
