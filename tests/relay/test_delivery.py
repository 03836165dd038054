"""The relay against scripted peers: hosts in turn, connections kept, TLS, the hops between roles."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import gevent
import pytest

from ptt.config import Tls
from ptt.dns.resolver import NoData, NoSuchDomain, TemporaryFailure
from ptt.message import Envelope, Recipient
from ptt.net.tls import server_context
from ptt.relay import hop
from ptt.relay.outcome import Deferred, Delivered, Failed

STARTTLS = b"250-peer\r\n250-PIPELINING\r\n250-STARTTLS\r\n250 8BITMIME\r\n"
Files = dict[str, pathlib.Path]


def until(condition: Callable[[], bool]) -> None:
    """Let other greenlets run until it holds."""
    with gevent.Timeout(5):
        while not condition():
            gevent.sleep(0.001)


# --- hosts in turn ----------------------------------------------------------------------------------------------


@pytest.fixture
def two(dns: Any) -> None:
    """example.org has a second MX at 127.0.0.2."""
    dns.records["example.org"] = [(10, "mx.example.org"), (20, "mx2.example.org")]
    dns.hosts["mx2.example.org"] = ["127.0.0.2"]


@pytest.mark.usefixtures("two")
def test_first_host_dead(peer: Any, sender: Any) -> None:
    second = peer(ip="127.0.0.2")
    relay = sender(second.port)
    (outcome,) = relay.send()
    assert isinstance(outcome, Delivered)
    assert outcome.peer.startswith("mx2.example.org[127.0.0.2]")
    assert [line["phase"] for line in relay.log()] == ["connect", "end of DATA"]
    assert relay.relay.site_of("example.org") == "mx.example.org,mx2.example.org"
    assert relay.relay.site_of("other.example") is None


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("step", ["greeting", "EHLO", "MAIL", "RCPT", "DATA", "dot"])
def test_first_host_defers(step: str, peer: Any, sender: Any) -> None:
    first = peer({step: b"451 4.3.0 later\r\n"})
    second = peer(ip="127.0.0.2", port=first.port)
    (outcome,) = sender(first.port).send()
    assert isinstance(outcome, Delivered)
    assert (first.connections, second.connections) == (1, 1)


@pytest.mark.usefixtures("two")
def test_first_host_does_not_want_us(peer: Any, sender: Any) -> None:
    first = peer({"greeting": b"554 5.7.1 go away\r\n"})
    peer(ip="127.0.0.2", port=first.port)
    assert isinstance(sender(first.port).send()[0], Delivered)


@pytest.mark.usefixtures("two")
def test_a_refusal_for_good_is_not_taken_elsewhere(peer: Any, sender: Any) -> None:
    first = peer({"RCPT": b"550 5.1.1 unknown\r\n"})
    second = peer(ip="127.0.0.2", port=first.port)
    assert isinstance(sender(first.port).send()[0], Failed)
    assert second.connections == 0


@pytest.mark.usefixtures("two")
def test_maybe_delivered_is_not_taken_elsewhere(peer: Any, sender: Any, action: Any) -> None:
    first = peer({"dot": action.CUT})
    second = peer(ip="127.0.0.2", port=first.port)
    (outcome,) = sender(first.port).send()
    assert isinstance(outcome, Deferred)
    assert outcome.maybe
    assert second.connections == 0


def test_several_addresses_of_one_host(dns: Any, peer: Any, sender: Any) -> None:
    dns.hosts["mx.example.org"] = ["127.0.0.3", "127.0.0.2"]
    there = peer(ip="127.0.0.2")
    assert isinstance(sender(there.port).send()[0], Delivered)


def test_tries_of_one_attempt_are_bounded(dns: Any, peer: Any, sender: Any, free_port: Callable[[], int]) -> None:
    dns.hosts["mx.example.org"] = [f"127.0.0.{n}" for n in range(2, 50)]
    relay = sender(free_port())
    (outcome,) = relay.send()
    assert isinstance(outcome, Deferred)
    assert outcome.enhanced == "4.4.1"
    assert len(relay.log()) == 5
    there = [peer({"RCPT": b"450 later\r\n"}, ip="127.0.0.2")]
    there += [peer({"RCPT": b"450 later\r\n"}, ip=f"127.0.0.{n}", port=there[0].port) for n in (3, 4)]
    sender(there[0].port).send()
    assert [p.connections for p in there] == [1, 1, 0]


@pytest.mark.parametrize(
    ("addresses", "kind", "enhanced"),
    [(NoSuchDomain, Failed, "5.4.4"), (NoData, Failed, "5.4.4"), (TemporaryFailure, Deferred, "4.4.3")],
)
def test_mx_without_address(dns: Any, sender: Any, addresses: Any, kind: type, enhanced: str) -> None:
    dns.hosts["mx.example.org"] = addresses
    (outcome,) = sender().send()
    assert isinstance(outcome, kind)
    assert outcome.enhanced == enhanced  # type: ignore[attr-defined]


def test_one_temporary_reason_is_enough(dns: Any, two: None, sender: Any) -> None:
    dns.hosts["mx2.example.org"] = TemporaryFailure
    dns.hosts["mx.example.org"] = NoData
    assert isinstance(sender().send()[0], Deferred)


@pytest.mark.parametrize("mx", [NoSuchDomain, [(0, ".")], NoData])
def test_domains_without_mail(dns: Any, sender: Any, mx: Any) -> None:
    dns.records["example.org"] = mx
    relay = sender()
    outcomes = relay.send("a@example.org", "b@example.org")
    assert all(isinstance(o, Failed) for o in outcomes)
    assert outcomes[0].enhanced == ("5.1.10" if isinstance(mx, list) else "5.1.2")
    assert relay.log()


@pytest.mark.parametrize("ip", ["127.0.0.1", "10.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_private_networks_are_refused(dns: Any, peer: Any, sender: Any, ip: str) -> None:
    there = peer()
    dns.hosts["mx.example.org"] = [ip]
    (outcome,) = sender(there.port, allow_private=False).send()
    assert isinstance(outcome, Failed)
    assert "private" in outcome.text
    assert there.connections == 0
    (outcome,) = sender(there.port, allow_private=False).send(lane=f"[{'IPv6:' if ':' in ip else ''}{ip}]")
    assert isinstance(outcome, Failed)
    assert there.connections == 0


def test_localhost_is_not_asked_of_dns(dns: Any, peer: Any, sender: Any) -> None:
    dns.records["example.org"] = [(10, "localhost")]
    there = peer()
    assert isinstance(sender(there.port, allow_private=False).send()[0], Failed)
    assert isinstance(sender(there.port).send()[0], Delivered)


def test_mail_for_ourselves(dns: Any, sender: Any) -> None:
    dns.records["example.org"] = [(10, "us.example.net")]
    (outcome,) = sender().send()
    assert isinstance(outcome, Failed)
    assert outcome.enhanced == "5.4.6"


def test_smarthost(dns: Any, peer: Any, sender: Any) -> None:
    there = peer()
    relay = sender(smarthost=f"127.0.0.1:{there.port}", allow_private=False)
    assert isinstance(relay.send(lane="anything.example")[0], Delivered)
    assert not dns.asked
    assert relay.relay.site_of("anything.example") == f"smarthost:127.0.0.1:{there.port}"


class Override(NamedTuple):
    via: str
    host: str = ""
    tls: str = "opportunistic"
    credentials: str = ""
    fallback: str = ""
    source: str = ""


def test_a_route_of_the_git_database(dns: Any, peer: Any, sender: Any) -> None:
    there, everything = peer(), peer()
    routes = {"one.example": Override("smarthost", f"127.0.0.1:{there.port}"), "example.org": Override("mx")}
    direct = peer()
    relay = sender(direct.port, smarthost=f"127.0.0.1:{everything.port}", overrides=routes.get)
    for lane, used in (("one.example", there), ("example.org", direct), ("other.example", everything)):
        before = len(used.contents)
        assert isinstance(relay.send(lane=lane)[0], Delivered)
        assert len(used.contents) == before + 1
    assert relay.relay.site_of("one.example") == f"smarthost:127.0.0.1:{there.port}"
    routes["one.example"] = Override("smarthost", f"127.0.0.1:{everything.port}")  # a new commit
    assert isinstance(relay.send(lane="one.example")[0], Delivered)
    assert len(everything.contents) == 2


def test_the_tls_policy_of_a_route(peer: Any, sender: Any) -> None:
    there = peer()  # has no STARTTLS
    routes = {
        "strict.example": Override("smarthost", f"127.0.0.1:{there.port}", "verify"),
        "lax.example": Override("smarthost", f"127.0.0.1:{there.port}"),
        "none.example": Override("smarthost", f"127.0.0.1:{there.port}", "none"),
    }
    relay = sender(overrides=routes.get)
    assert isinstance(relay.send(lane="lax.example")[0], Delivered)
    assert isinstance(relay.send(lane="none.example")[0], Delivered)
    assert isinstance(relay.send(lane="strict.example")[0], Deferred)  # not over the open connection of the others
    assert len({relay.relay.site_of(lane) for lane in routes}) == 3


# --- recipients -------------------------------------------------------------------------------------------------


def test_each_recipient_has_its_own_outcome(peer: Any, sender: Any) -> None:
    there = peer({"RCPT no@example.org": b"550 5.1.1 unknown\r\n", "RCPT later@example.org": b"450 4.2.1 grey\r\n"})
    relay = sender(there.port)
    yes, no, later = relay.send("yes@example.org", "no@example.org", "later@example.org")
    assert isinstance(yes, Delivered)
    assert isinstance(no, Failed)
    assert isinstance(later, Deferred)
    assert relay.log()[0]["delivered"] == 1
    assert relay.log()[0]["recipients"] == 3


@pytest.mark.parametrize("ehlo", [b"250-peer\r\n250 PIPELINING\r\n", b"250 peer\r\n"])
def test_lost_after_some_were_refused(ehlo: bytes, peer: Any, sender: Any, action: Any) -> None:
    there = peer({"EHLO": ehlo, "RCPT no@example.org": b"550 5.1.1 unknown\r\n", "dot": action.CUT})
    no, yes = sender(there.port).send("no@example.org", "yes@example.org")
    assert isinstance(no, Failed)
    assert isinstance(yes, Deferred)
    assert yes.maybe


def test_many_recipients_go_in_several_transactions(peer: Any, sender: Any) -> None:
    there = peer()
    relay = sender(there.port)
    outcomes = relay.send(*(f"u{n}@example.org" for n in range(250)))
    assert all(isinstance(o, Delivered) for o in outcomes)
    assert (there.connections, len(there.contents), relay.marks) == (1, 3, 3)
    assert sum(c.startswith("RCPT") for c in there.commands) == 250


def test_addresses_that_cannot_be_sent(peer: Any, sender: Any) -> None:
    there = peer()
    assert isinstance(sender(there.port).send("a\r\nDATA@example.org")[0], Failed)
    assert not there.contents
    (outcome,) = sender(there.port).send("jos\u00e9@example.org")
    assert isinstance(outcome, Failed)
    assert outcome.enhanced == "5.6.7"


def test_a_fault_of_ours_is_not_final(peer: Any, sender: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(*_: Any) -> Any:
        raise ValueError("a fault of ours")

    there = peer()
    ours = sender(there.port)
    monkeypatch.setattr("ptt.smtp.client.transaction_commands", fault)
    with pytest.raises(ValueError, match="a fault of ours"):  # the pipeline defers what raises
        ours.send()
    assert not ours.relay.idle


def test_dsn_parameters_go_to_those_who_know_them(peer: Any, sender: Any) -> None:
    there = peer({"EHLO": b"250-peer\r\n250 DSN\r\n"}, {"EHLO": b"250 peer\r\n"})
    relay = sender(there.port, messages_per_connection=1)
    envelope = Envelope("me@example.net", 1, ret="HDRS", envid="a b")
    wanted = [(1, Recipient("x@example.org", "NEVER", "rfc822;x@example.org"))]
    for _ in range(2):
        relay.relay.deliver("example.org", envelope, "id", wanted, [b"a: b\r\n\r\n"], relay.mark)
    assert there.commands[1:3] == [
        "MAIL FROM:<me@example.net> RET=HDRS ENVID=a+20b",
        "RCPT TO:<x@example.org> NOTIFY=NEVER ORCPT=rfc822;x@example.org",
    ]
    assert "MAIL FROM:<me@example.net>" in there.commands
    assert "RCPT TO:<x@example.org>" in there.commands


# --- connections kept -------------------------------------------------------------------------------------------


def test_connections_are_reused(peer: Any, sender: Any) -> None:
    there = peer()
    relay = sender(there.port)
    for _ in range(3):
        assert isinstance(relay.send()[0], Delivered)
    assert there.connections == 1
    assert "RSET" not in there.commands
    assert [line["reused"] for line in relay.log()] == [False, True, True]


def test_domains_with_the_same_hosts_share_connections(dns: Any, peer: Any, sender: Any) -> None:
    dns.records["example.com"] = [(5, "mx.example.org")]
    there = peer()
    relay = sender(there.port)
    relay.send()
    relay.send("x@example.com", lane="example.com")
    assert there.connections == 1


def test_messages_of_a_connection_are_bounded(peer: Any, sender: Any) -> None:
    there = peer()
    relay = sender(there.port, messages_per_connection=2)
    for _ in range(4):
        relay.send()
    assert there.connections == 2
    until(lambda: there.commands.count("QUIT") == 2)


def test_a_refused_recipient_does_not_cost_the_connection(peer: Any, sender: Any) -> None:
    there = peer({"RCPT no@example.org": b"550 5.1.1 unknown\r\n"})
    relay = sender(there.port)
    assert isinstance(relay.send("no@example.org")[0], Failed)
    assert isinstance(relay.send()[0], Delivered)
    assert there.connections == 1


@pytest.mark.parametrize("stale", ["CUT", "RESET", b"421 4.4.2 idle too long\r\n"])
def test_a_stale_connection_is_replaced_unnoticed(stale: Any, peer: Any, sender: Any, action: Any) -> None:
    there = peer({"idle": action[stale] if isinstance(stale, str) else stale}, {})
    relay = sender(there.port)
    assert isinstance(relay.send()[0], Delivered)
    assert isinstance(relay.send()[0], Delivered)
    assert there.connections == 2
    assert len(relay.log()) == 2


@pytest.mark.parametrize("answer", [b"421 4.4.2 too late\r\n", "CUT"])
def test_a_connection_that_dies_at_mail_is_replaced(answer: Any, peer: Any, sender: Any, action: Any) -> None:
    answer = action[answer] if isinstance(answer, str) else answer
    there = peer({"MAIL": [b"250 ok\r\n", answer]}, {})
    relay = sender(there.port)
    relay.send()
    assert isinstance(relay.send()[0], Delivered)
    assert there.connections == 2
    assert len(relay.log()) == 2


def test_a_kept_connection_lost_after_the_final_dot_is_not_replaced(peer: Any, sender: Any, action: Any) -> None:
    """That would be a duplicate: the peer may have the message."""
    there = peer({"dot": [b"250 ok\r\n", action.CUT]}, {})
    relay = sender(there.port)
    relay.send()
    (outcome,) = relay.send()
    assert isinstance(outcome, Deferred)
    assert outcome.maybe
    assert (there.connections, len(there.contents)) == (1, 2)


def test_a_kept_connection_that_hangs_is_not_replaced_at_once(peer: Any, sender: Any, action: Any) -> None:
    """It took its time-out already; and the same host is not asked twice in one attempt."""
    there = peer({"MAIL": [b"250 ok\r\n", action.HANG]}, {})
    relay = sender(there.port, waits=0.1)
    relay.send()
    (outcome,) = relay.send()
    assert isinstance(outcome, Deferred)
    assert outcome.enhanced == "4.4.1"
    assert there.connections == 1


def test_what_a_kept_connection_said_before_it_died_counts(peer: Any, sender: Any, action: Any) -> None:
    no = b"550 5.1.1 unknown\r\n"
    there = peer({"EHLO": b"250 peer\r\n", "RCPT no@example.org": no, "RCPT": [b"250 ok\r\n", action.CUT]}, {})
    relay = sender(there.port)
    relay.send()
    no_more, lost = relay.send("no@example.org", "lost@example.org")
    assert isinstance(no_more, Failed)
    assert isinstance(lost, Deferred)
    assert there.connections == 1


def test_closing_down_after_the_content_is_an_answer(peer: Any, sender: Any) -> None:
    there = peer({"dot": [b"250 ok\r\n", b"421 4.3.2 shutting down\r\n"]}, {})
    relay = sender(there.port)
    relay.send()
    (outcome,) = relay.send()
    assert isinstance(outcome, Deferred)
    assert not outcome.maybe
    assert there.connections == 1


def test_the_host_of_a_kept_connection_is_not_asked_again(peer: Any, sender: Any) -> None:
    there = peer({"RCPT": [b"250 ok\r\n", b"450 4.2.1 later\r\n"]})
    relay = sender(there.port)
    relay.send()
    assert isinstance(relay.send()[0], Deferred)
    assert there.connections == 1


def test_idle_connections_are_closed_in_time(peer: Any, sender: Any) -> None:
    there = peer()
    relay = sender(there.port, idle_seconds=0.02)
    relay.send()
    assert len(relay.relay.idle) == 1
    until(lambda: len(relay.relay.idle) == 0)
    until(lambda: "QUIT" in there.commands)


def test_close_and_reload_close_what_is_idle(peer: Any, sender: Any) -> None:
    there = peer()
    relay = sender(there.port)
    for close in (relay.relay.reload, relay.relay.close):
        relay.send()
        assert len(relay.relay.idle) == 1
        close()
        assert len(relay.relay.idle) == 0


def test_a_delivery_that_is_killed_closes_its_connection(peer: Any, sender: Any, action: Any) -> None:
    there = peer({"DATA": action.HANG})
    relay = sender(there.port)
    delivery = gevent.spawn(relay.send)
    until(lambda: "DATA" in there.commands)
    delivery.kill()
    assert len(relay.relay.idle) == 0


def test_a_fault_of_our_own_leaves_and_closes(peer: Any, sender: Any) -> None:
    there = peer()
    relay = sender(there.port)

    def broken() -> None:
        raise RuntimeError("ours")

    with pytest.raises(RuntimeError, match="ours"):
        relay.relay.deliver(
            "example.org", Envelope("a@b", 1), "id", [(1, Recipient("x@example.org"))], [b"a: b\r\n"], broken
        )
    assert len(relay.relay.idle) == 0
    assert not there.contents


def test_many_at_once(peer: Any, sender: Any) -> None:
    there = peer()
    relay = sender(there.port)
    jobs = [gevent.spawn(relay.send) for _ in range(40)]
    assert all(isinstance(job.get(timeout=20)[0], Delivered) for job in jobs)
    assert len(there.contents) == 40
    assert len(relay.relay.idle) == 20


# --- TLS --------------------------------------------------------------------------------------------------------


@pytest.fixture
def mx_tls(certificates: Files) -> Any:
    return server_context(str(certificates["mx"]), str(certificates["mx.key"]))


def test_starttls_is_used_when_offered(peer: Any, sender: Any, mx_tls: Any) -> None:
    there = peer({"EHLO": STARTTLS}, tls=mx_tls)
    relay = sender(there.port)
    assert isinstance(relay.send()[0], Delivered)
    assert isinstance(relay.send()[0], Delivered)
    assert there.connections == 1
    assert there.commands[:3] == ["EHLO us.example.net", "STARTTLS", "EHLO us.example.net"]
    assert all(line["tls"].startswith("TLSv1.3 ") for line in relay.log())


def test_starttls_can_be_switched_off(peer: Any, sender: Any, mx_tls: Any) -> None:
    there = peer({"EHLO": STARTTLS}, tls=mx_tls)
    relay = sender(there.port, tls="none")
    assert isinstance(relay.send()[0], Delivered)
    assert relay.log()[-1]["tls"] == ""


@pytest.mark.parametrize("junk", [b"this is not TLS\r\n", "CUT", "RESET"])
def test_a_failed_handshake_falls_back_to_clear(junk: Any, peer: Any, sender: Any, mx_tls: Any, action: Any) -> None:
    there = peer({"EHLO": STARTTLS, "tls": action[junk] if isinstance(junk, str) else junk}, tls=mx_tls)
    relay = sender(there.port)
    assert isinstance(relay.send()[0], Delivered)
    assert there.connections == 2
    assert relay.log()[0]["event"] == "TLS failed, going on without"
    assert relay.log()[-1]["tls"] == ""


def test_refused_starttls_goes_on_in_clear(peer: Any, sender: Any) -> None:
    there = peer({"EHLO": STARTTLS, "STARTTLS": b"454 4.7.0 not now\r\n"})
    assert isinstance(sender(there.port).send()[0], Delivered)
    assert there.connections == 1


def test_bytes_behind_starttls_are_not_believed(peer: Any, sender: Any, mx_tls: Any) -> None:
    """Replies injected in clear: the session is given up; what follows is a connection without TLS."""
    there = peer({"EHLO": STARTTLS, "STARTTLS": b"220 go\r\n250 injected\r\n"}, tls=mx_tls)
    relay = sender(there.port)
    assert isinstance(relay.send()[0], Delivered)
    assert relay.log()[0]["event"] == "TLS failed, going on without"


@pytest.mark.parametrize(
    ("plan", "name", "good"),
    [
        ({"EHLO": STARTTLS}, "mx.example.org", True),
        ({"EHLO": STARTTLS}, "mx9.example.org", False),
        ({"EHLO": STARTTLS, "STARTTLS": b"454 no\r\n"}, "mx.example.org", False),
        ({}, "mx.example.org", False),
    ],
)
def test_verified_tls(
    plan: Any,
    name: str,
    good: bool,
    dns: Any,
    peer: Any,
    sender: Any,
    mx_tls: Any,
    certificates: Files,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates["ca"]))  # in place of the system's CAs
    dns.records["example.org"] = [(10, name)]
    dns.hosts[name] = ["127.0.0.1"]
    there = peer(plan, tls=mx_tls)
    (outcome,) = sender(there.port, tls="verify").send()
    assert isinstance(outcome, Delivered) == good
    assert bool(there.contents) == good
    if not good:
        assert isinstance(outcome, Deferred)
        assert outcome.enhanced == "4.7.5"


# --- the hops between roles -------------------------------------------------------------------------------------


def files_of(certificates: Files, name: str) -> Tls:
    return Tls(
        internal_certificate=str(certificates[name]),
        internal_key=str(certificates[f"{name}.key"]),
        internal_ca=str(certificates["ca"]),
    )


def role_listener(certificates: Files, name: str) -> Any:
    return server_context(str(certificates[name]), str(certificates[f"{name}.key"]), client_ca=str(certificates["ca"]))


HOP_PLAN = {"EHLO": b"250-peer\r\n250-PIPELINING\r\n250-STARTTLS\r\n250-XPTT\r\n250 8BITMIME\r\n"}


@pytest.fixture
def to_hop(certificates: Files, sender: Any, peer: Any) -> Callable[..., Any]:
    """A function: a relay of role signer with a next hop that shows the certificate ``name``."""

    def make(name: str = "relay", plan: Any = HOP_PLAN, **settings: Any) -> Any:
        there = peer(plan, tls=role_listener(certificates, name))
        where = f"127.0.0.1:{there.port}"
        tls = files_of(certificates, "submission")
        return there, sender(role="signer", files=tls, next_hop=where, waits=2.0, **settings), hop.LANE + where

    return make


def test_next_hop_gets_the_envelope(to_hop: Any) -> None:
    there, relay, lane = to_hop(next_hop_name="mx.example.org", allow_private=False)
    envelope = Envelope("me@example.net", 7, "example.net", user="me", commit="abc")
    (outcome,) = relay.send(lane=lane, envelope=envelope)
    assert isinstance(outcome, Delivered)
    mail = next(c for c in there.commands if c.startswith("MAIL"))
    assert hop.decode(mail.rpartition("XPTT=")[2]) == envelope
    assert relay.log()[-1]["tls"].startswith("TLSv1.3 ")
    assert relay.relay.site_of(lane) == lane
    relay.send(lane=lane)
    assert there.connections == 1


def test_every_lane_leads_to_the_next_hop(to_hop: Any) -> None:
    there, relay, _ = to_hop()
    assert isinstance(relay.send(lane="example.org")[0], Delivered)
    assert there.connections == 1


@pytest.mark.parametrize(
    ("name", "plan", "settings"),
    [
        ("stranger", HOP_PLAN, {}),  # certificate of another CA
        ("mx", HOP_PLAN, {}),  # of our CA, but no role
        ("submission", HOP_PLAN, {}),  # another role than the next one
        ("relay", HOP_PLAN, {"next_hop_name": "else.example.org"}),  # another host
        ("relay", {}, {}),  # TLS is not offered
        ("relay", {**HOP_PLAN, "STARTTLS": b"454 4.7.0 no\r\n"}, {}),
        ("relay", {**HOP_PLAN, "tls": b"junk junk junk\r\n"}, {}),
    ],
)
def test_a_next_hop_that_is_not_who_it_should_be(name: str, plan: Any, settings: Any, to_hop: Any) -> None:
    there, relay, lane = to_hop(name, plan, **settings)
    (outcome,) = relay.send(lane=lane)
    assert isinstance(outcome, Deferred)
    assert not there.contents
    assert not any(c.startswith("MAIL") for c in there.commands)
    assert there.connections == 1
    assert relay.marks == 0


def test_strangers_never_see_the_envelope(peer: Any, sender: Any, mx_tls: Any) -> None:
    there = peer(HOP_PLAN, tls=mx_tls)
    assert isinstance(sender(there.port).send()[0], Delivered)
    assert not any("XPTT" in c for c in there.commands)


def test_a_hop_that_dns_does_not_know_yet_is_waited_for(certificates: Files, sender: Any) -> None:
    tls = files_of(certificates, "submission")
    relay = sender(role="signer", files=tls, next_hop="relay.example.net:25")
    (outcome,) = relay.send(lane="hop:relay.example.net:25")
    assert isinstance(outcome, Deferred)
    assert outcome.enhanced == "4.4.3"


def test_certificates_that_are_missing(sender: Any, tmp_path: pathlib.Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        sender(role="signer", files=Tls(str(tmp_path / "a")), next_hop="127.0.0.1:25")


# --- what a peer does not offer ---------------------------------------------------------------------------------


def ehlo(*keywords: str) -> bytes:
    lines = ["peer", "PIPELINING", *keywords]
    return "".join(f"250{' ' if n == len(lines) else '-'}{line}\r\n" for n, line in enumerate(lines, 1)).encode()


EIGHT = "Subject: x\r\n\r\ngr\u00fc\u00dfe\r\n".encode()


def test_8_bits_are_not_sent_to_a_peer_of_7(peer: Any, sender: Any) -> None:
    there = peer({"EHLO": ehlo("SIZE")})
    (outcome,) = sender(there.port).send(content=EIGHT)
    assert isinstance(outcome, Deferred)
    assert outcome.seven_bit
    assert there.contents == []
    (outcome,) = sender(there.port).send(content=EIGHT, envelope=Envelope("me@x.example", 1, sevenbit=True))
    assert isinstance(outcome, Delivered)


@pytest.mark.usefixtures("two")
def test_another_host_may_take_8_bits(peer: Any, sender: Any) -> None:
    first = peer({"EHLO": ehlo("SIZE")})
    second = peer({"EHLO": ehlo("8BITMIME")}, ip="127.0.0.2", port=first.port)
    (outcome,) = sender(first.port).send(content=EIGHT)
    assert isinstance(outcome, Delivered)
    assert second.contents[0].endswith(EIGHT)


@pytest.mark.parametrize(("keywords", "dsn"), [(("DSN", "8BITMIME"), True), (("8BITMIME",), False)])
def test_dsn_is_passed_on_where_it_is_offered(peer: Any, sender: Any, keywords: Any, dsn: bool) -> None:
    there = peer({"EHLO": ehlo(*keywords)})
    relay = sender(there.port)
    about = Envelope("me@example.net", 1, ret="HDRS", envid="a+b")
    wanted = [(1, Recipient("you@example.org", "SUCCESS,DELAY", "rfc822;first+x@example.org"))]
    outcome = relay.relay.deliver("example.org", about, "shown", wanted, [b"", b"\r\nx\r\n"], relay.mark)[1]
    assert isinstance(outcome, Delivered)
    assert outcome.dsn == dsn
    mail, rcpt = there.commands[1:3]
    assert mail.endswith(" RET=HDRS ENVID=a+2Bb") == dsn
    assert rcpt.endswith(" NOTIFY=SUCCESS,DELAY ORCPT=rfc822;first+2Bx@example.org") == dsn


def test_an_idn_domain_without_smtputf8(dns: Any, peer: Any, sender: Any) -> None:
    dns.records["xn--fa-hia.example"] = [(10, "mx.example.org")]
    there = peer()
    (outcome,) = sender(there.port).send("you@fa\u00df.example", lane="fa\u00df.example")
    assert isinstance(outcome, Delivered)
    assert there.commands[2] == "RCPT TO:<you@xn--fa-hia.example>"


def test_limits_of_the_peer(peer: Any, sender: Any) -> None:
    """RFC 9422: recipients of a transaction, messages on a connection."""
    there = peer({"EHLO": ehlo("LIMITS RCPTMAX=2 MAILMAX=3")})
    relay = sender(there.port)
    outcomes = relay.send(*(f"u{n}@example.org" for n in range(5)))
    assert all(isinstance(o, Delivered) for o in outcomes)
    assert (there.connections, len(there.contents), relay.marks) == (1, 3, 3)
    assert len(relay.log()) == 1
    relay.send()
    assert there.connections == 2  # the first one was full


def test_limits_that_leave_some_for_later(peer: Any, sender: Any) -> None:
    there = peer({"EHLO": ehlo("LIMITS RCPTMAX=2 MAILMAX=1")})
    first, second, third = sender(there.port).send("a@example.org", "b@example.org", "c@example.org")
    assert isinstance(first, Delivered)
    assert isinstance(second, Delivered)
    assert isinstance(third, Deferred)
    assert not third.maybe


def test_lost_in_the_second_transaction(peer: Any, sender: Any, action: Any) -> None:
    there = peer({"EHLO": ehlo("LIMITS RCPTMAX=1"), "MAIL": [b"250 ok\r\n", action.CUT]})
    first, second = sender(there.port).send("a@example.org", "b@example.org")
    assert isinstance(first, Delivered)
    assert isinstance(second, Deferred)


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("second", [None, b"450 4.2.0 later\r\n"])
def test_a_host_of_7_bits_and_one_that_takes_nothing_now(peer: Any, sender: Any, second: bytes | None) -> None:
    """The message is converted for the first one, whatever the second one has said."""
    first = peer({"EHLO": ehlo("SIZE")})
    if second is not None:
        peer({"MAIL": second}, ip="127.0.0.2", port=first.port)
    (outcome,) = sender(first.port).send(content=EIGHT)
    assert isinstance(outcome, Deferred)
    assert outcome.seven_bit


def test_verp(peer: Any, sender: Any) -> None:
    """A transaction for each recipient, over one connection."""
    there = peer()
    relay = sender(there.port)
    outcomes = relay.send("a@example.org", "b@example.org", envelope=Envelope("me@example.net", 1, verp=True))
    assert all(isinstance(o, Delivered) for o in outcomes)
    assert there.connections == 1
    assert [c.partition(">")[0] for c in there.commands if c.startswith("MAIL")] == [
        "MAIL FROM:<me+a=example.org@example.net",
        "MAIL FROM:<me+b=example.org@example.net",
    ]
