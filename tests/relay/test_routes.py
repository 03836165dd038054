"""Routes of the git database, each against a peer: login, fall-back, LMTP, discard, sources."""

from __future__ import annotations

import base64
import pathlib
from typing import Any, NamedTuple

import pytest

from ptt.config import Source
from ptt.dns.resolver import TemporaryFailure
from ptt.net.tls import server_context
from ptt.relay import credentials
from ptt.relay.outcome import Deferred, Delivered, Failed
from ptt.relay.routing import Source as OwnAddresses

AUTH = b"250-peer\r\n250-PIPELINING\r\n250-STARTTLS\r\n250-AUTH PLAIN\r\n250 8BITMIME\r\n"
LHLO = b"250-peer\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 ENHANCEDSTATUSCODES\r\n"


class Override(NamedTuple):
    via: str
    host: str = ""
    tls: str = "opportunistic"
    credentials: str = ""
    fallback: str = ""
    source: str = ""


def everywhere(route: Override) -> Any:
    return lambda _: route


# --- login ------------------------------------------------------------------------------------------------------


@pytest.fixture
def secrets(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "good.toml").write_text('user = "us"\npassword = "opensesame"\n')
    (tmp_path / "good.toml").chmod(0o600)
    return tmp_path


@pytest.fixture
def smarthost(peer: Any, sender: Any, certificates: Any, secrets: pathlib.Path) -> Any:
    def make(plan: Any, name: str = "good", tls: str = "opportunistic") -> Any:
        context = server_context(str(certificates["mx"]), str(certificates["mx.key"]))
        there = peer(plan, tls=context)
        route = Override("smarthost", f"127.0.0.1:{there.port}", tls, name)
        return there, sender(overrides=everywhere(route), credentials=str(secrets))

    return make


def test_login_at_a_smarthost(smarthost: Any) -> None:
    there, relay = smarthost({"EHLO": AUTH, "AUTH": b"235 2.7.0 welcome\r\n"})
    assert isinstance(relay.send()[0], Delivered)
    assert isinstance(relay.send()[0], Delivered)
    logins = [c for c in there.commands if c.startswith("AUTH")]
    assert logins == ["AUTH PLAIN " + base64.b64encode(b"\0us\0opensesame").decode()]  # once for a connection
    assert there.commands.index("STARTTLS") < there.commands.index(logins[0])


@pytest.mark.parametrize(
    ("plan", "name", "text"),
    [
        ({"EHLO": AUTH, "AUTH": b"535 5.7.8 no\r\n"}, "good", "535 5.7.8 no"),
        ({"EHLO": AUTH.replace(b"250-AUTH PLAIN\r\n", b"")}, "good", "mechanism"),
        ({"EHLO": AUTH.replace(b"250-STARTTLS\r\n", b"")}, "good", "does not offer STARTTLS"),
        ({"EHLO": AUTH, "tls": b"junk"}, "good", "TLS"),
        ({"EHLO": AUTH}, "missing", "credentials missing: No such file"),
    ],
)
def test_no_login_no_mail(plan: Any, name: str, text: str, smarthost: Any) -> None:
    """It waits: a wrong password is the operator's to mend. The password is never sent in clear, nor logged."""
    there, relay = smarthost(plan, name)
    (outcome,) = relay.send()
    assert isinstance(outcome, Deferred)
    assert text in outcome.text
    assert not there.contents
    assert "opensesame" not in str(relay.log())
    if "STARTTLS" not in there.commands:
        assert not [c for c in there.commands if c.startswith("AUTH")]


@pytest.mark.parametrize(
    ("text", "mode", "wrong"),
    [
        ('user = "a"\npassword = "b"', 0o644, "0600"),
        ('user = "a"\npassword = "b"', 0o620, "0600"),
        ('user = "a"', 0o600, "needs user and password"),
        ('user = "a"\npassword = 7', 0o600, "needs user and password"),
        ("secret words", 0o600, "is not TOML"),
    ],
)
def test_files_that_are_not_used(text: str, mode: int, wrong: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "x.toml").write_text(text)
    (tmp_path / "x.toml").chmod(mode)
    with pytest.raises(credentials.Unusable, match=wrong) as caught:
        credentials.read(str(tmp_path), "x")
    assert "secret" not in str(caught.value)
    (tmp_path / "d.toml").mkdir(mode=0o700)
    with pytest.raises(credentials.Unusable):
        credentials.read(str(tmp_path), "d")


# --- fall-back --------------------------------------------------------------------------------------------------


def test_the_fallback_gets_what_reached_nobody(peer: Any, sender: Any, free_port: Any) -> None:
    backup = peer()
    relay = sender(free_port(), overrides=everywhere(Override("mx", fallback=f"127.0.0.1:{backup.port}")))
    assert isinstance(relay.send()[0], Delivered)
    assert [line["outcome"] for line in relay.log()] == ["deferred", "delivered"]


def test_the_fallback_when_dns_does_not_answer(dns: Any, peer: Any, sender: Any) -> None:
    dns.records["example.org"] = TemporaryFailure
    backup = peer()
    relay = sender(overrides=everywhere(Override("mx", fallback=f"127.0.0.1:{backup.port}")))
    assert isinstance(relay.send()[0], Delivered)


@pytest.mark.parametrize(
    ("plan", "kind"),
    [
        ({"RCPT": b"450 4.2.1 greylisted\r\n"}, Deferred),
        ({"RCPT": b"550 5.1.1 unknown\r\n"}, Failed),
        ({}, Delivered),
        ({"dot": "CUT"}, Deferred),  # maybe delivered: elsewhere it would be a duplicate
    ],
)
def test_what_a_host_has_answered_is_not_taken_to_the_fallback(
    plan: Any, kind: type, peer: Any, sender: Any, action: Any
) -> None:
    plan = {k: action.CUT if v == "CUT" else v for k, v in plan.items()}
    there, backup = peer(plan), peer()
    relay = sender(there.port, overrides=everywhere(Override("mx", fallback=f"127.0.0.1:{backup.port}")))
    assert isinstance(relay.send()[0], kind)
    assert backup.connections == 0


# --- LMTP, discard ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unix", [False, True])
def test_lmtp(unix: bool, peer: Any, sender: Any, tmp: pathlib.Path) -> None:
    """Each recipient has its own reply behind the final dot, in the order of RCPT (RFC 2033 4.2)."""
    plan = {
        "LHLO": LHLO,
        "RCPT b@example.org": b"550 5.1.1 unknown\r\n",
        "dot": b"250 2.0.0 saved\r\n452 4.2.2 full\r\n552 5.2.3 too large for this one\r\n",
    }
    there = peer(plan, ip=str(tmp / "lmtp")) if unix else peer(plan)
    host = f"unix:{tmp}/lmtp" if unix else f"127.0.0.1:{there.port}"
    relay = sender(overrides=everywhere(Override("lmtp", host)), allow_private=False)
    a, b, c, d = relay.send("a@example.org", "b@example.org", "c@example.org", "d@example.org")
    assert isinstance(a, Delivered)
    assert isinstance(b, Failed)
    assert isinstance(c, Deferred)
    assert isinstance(d, Failed)
    assert (b.phase, c.phase, d.phase) == ("RCPT", "end of DATA", "end of DATA")
    assert there.contents == [b"X: y\r\nSubject: test\r\n\r\nhello\r\n..dot\r\n"]
    assert there.commands[0] == "LHLO us.example.net"
    assert relay.marks == 1
    assert relay.log()[-1]["delivered"] == 1


def test_lmtp_that_is_lost_in_the_middle_of_its_replies(peer: Any, sender: Any) -> None:
    """What was said counts; of the others it is unknown. The peer says nothing more until the time-out."""
    there = peer({"LHLO": LHLO, "dot": b"250 2.0.0 saved\r\n"})
    relay = sender(waits=0.2, overrides=everywhere(Override("lmtp", f"127.0.0.1:{there.port}")))
    a, b = relay.send("a@example.org", "b@example.org")
    assert isinstance(a, Delivered)
    assert isinstance(b, Deferred)
    assert b.maybe


@pytest.mark.parametrize("step", ["greeting", "LHLO", "MAIL", "RCPT", "DATA"])
@pytest.mark.parametrize(("answer", "kind"), [(b"450 4.0.0 no\r\n", Deferred), (b"550 5.0.0 no\r\n", Failed)])
def test_lmtp_that_refuses(step: str, answer: bytes, kind: type, peer: Any, sender: Any) -> None:
    there = peer({"LHLO": LHLO, step: answer})
    relay = sender(waits=1, overrides=everywhere(Override("lmtp", f"127.0.0.1:{there.port}")))
    outcomes = relay.send("a@example.org", "b@example.org")
    expected = Deferred if step in ("greeting", "LHLO") else kind
    assert all(isinstance(o, expected) for o in outcomes)
    assert not relay.marks


@pytest.mark.parametrize("step", ["greeting", "LHLO", "MAIL", "RCPT", "DATA", "dot"])
@pytest.mark.parametrize(
    "what", ["HANG", "CUT", "DRIP", b"nonsense\r\n", b"354 go\r\n", b"250 ok\r\n" * 3, b"354 go\r\n250 ok\r\n"]
)
def test_lmtp_that_misbehaves(step: str, what: Any, peer: Any, sender: Any, action: Any) -> None:
    """It ends in time and claims nothing that was not said."""
    there = peer({"LHLO": LHLO, step: action[what] if isinstance(what, str) else what})
    relay = sender(waits=0.1, overrides=everywhere(Override("lmtp", f"127.0.0.1:{there.port}")))
    outcomes = relay.send("a@example.org", "b@example.org")
    said = what == b"250 ok\r\n" * 3 and step == "dot"
    said |= what == b"354 go\r\n" and step == "DATA"  # as it should be; then one reply for two recipients
    assert said or not any(isinstance(o, Delivered) for o in outcomes)
    if step == "dot" and not said:
        assert all(isinstance(o, Deferred) and o.maybe for o in outcomes)


def test_lmtp_that_is_not_there(sender: Any, tmp: pathlib.Path, free_port: Any) -> None:
    for host in (f"unix:{tmp}/nobody", f"127.0.0.1:{free_port()}"):
        (outcome,) = sender(overrides=everywhere(Override("lmtp", host))).send()
        assert isinstance(outcome, Deferred)
        assert outcome.phase == "connect"


def test_discard(dns: Any, sender: Any) -> None:
    relay = sender(overrides=everywhere(Override("discard")))
    outcomes = relay.send("a@example.org", "b@example.org")
    assert all(isinstance(o, Delivered) and "discarded" in o.text for o in outcomes)
    assert not dns.asked
    assert relay.log()[-1]["phase"] == "discard"


# --- sources ----------------------------------------------------------------------------------------------------


def test_a_route_from_its_own_address(peer: Any, sender: Any) -> None:
    there = peer()
    sources = (Source("bulk", "127.0.0.9", "bulk.example.net"), Source("plain", "127.0.0.8"))
    routes = {"bulk.example": "bulk", "plain.example": "plain", "example.org": ""}
    found = lambda lane: Override("smarthost", f"127.0.0.1:{there.port}", source=routes[lane])  # noqa: E731
    relay = sender(overrides=found, sources=sources)
    for lane in ("bulk.example", "plain.example", "example.org", "bulk.example"):
        assert isinstance(relay.send(lane=lane)[0], Delivered)
    assert there.connections == 3  # one address does not use another's connections
    hello = [c for c in there.commands if c.startswith("EHLO")]
    assert hello == ["EHLO bulk.example.net", "EHLO us.example.net", "EHLO us.example.net"]
    assert there.clients[:3] == ["127.0.0.9", "127.0.0.8", "127.0.0.1"]


def test_a_source_that_this_host_has_not(peer: Any, sender: Any) -> None:
    there = peer()
    (outcome,) = sender(there.port, overrides=everywhere(Override("mx", source="bulk"))).send()
    assert isinstance(outcome, Deferred)
    assert "bulk" in outcome.text
    sources = (Source("bulk", "::1"),)
    (outcome,) = sender(there.port, overrides=everywhere(Override("mx", source="bulk")), sources=sources).send()
    assert isinstance(outcome, Deferred)
    assert there.connections == 0


def test_a_name_with_an_address_of_each_family(sender: Any) -> None:
    relay = sender(sources=(Source("bulk", "127.0.0.9", "b.example.net"), Source("bulk", "::1")))
    (source,) = relay.relay.router.sources.values()
    assert source == OwnAddresses("bulk", "b.example.net", "127.0.0.9", "::1")
    assert source.towards("192.0.2.1") == "127.0.0.9"
    assert source.towards("2001:db8::1") == "::1"
