"""Recipients that DNS knows cannot be reached, and all the others."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from ptt.config import Config
from ptt.directory.records import Limits
from ptt.dns.resolver import NoData, NoSuchDomain, TemporaryFailure
from ptt.submission.quotas import Pair
from ptt.submission.recipients import MAX_AHEAD, Recipients, looks_up

USER = "anna@ours.test"
ANSWERS: dict[str, Any] = {
    "gone.test": NoSuchDomain("gone.test: no such domain"),
    "null.test": [(0, ".")],
    "mx.test": [(10, "mx.mx.test")],
    "implicit.test": NoData("no MX"),
    "broken.test": TemporaryFailure("SERVFAIL"),
    "xn--bcher-kva.test": [(0, ".")],
}


class Lookup:
    def __init__(self) -> None:
        self.asked: list[str] = []
        self.seconds = -1.0

    def mx_soon(self, name: str, seconds: float) -> list[tuple[int, str]]:
        self.asked.append(name)
        self.seconds = seconds
        answer = ANSWERS[name]
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]

    def ask_mx(self, name: str) -> None:
        self.asked.append(name)


class Directory:
    commit = ""

    def our_domain(self, name: str) -> object | None:
        return "ours" if name == "ours.test" else None

    def route(self, domain: str) -> object | None:
        return "route" if domain == "routed.test" else None

    def may_post(self, user: str, address: str) -> bool:
        return (user, address) != (USER, "closed@ours.test")

    def limits(self, user: str) -> Pair | None:
        return (None, Limits(max_recipients=2)) if user == "few@ours.test" else None

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was asked")


@pytest.fixture
def lookup() -> Lookup:
    return Lookup()


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("a@gone.test", "550 5.1.2"),
        ("a@GONE.test", "550 5.1.2"),
        ("a@null.test", "556 5.1.10"),
        ("a@bücher.test", "556 5.1.10"),
        ("a@mx.test", ""),
        ("a@implicit.test", ""),
        ("a@broken.test", ""),
    ],
)
def test_what_dns_knows(lookup: Lookup, address: str, code: str) -> None:
    reply = Recipients(Directory(), lookup).refusal(USER, address, 1, 1.5)
    assert (f"{reply.code} {reply.enhanced}" if reply else "") == code
    assert lookup.seconds == 1.5


@pytest.mark.parametrize("address", ["a@ours.test", "a@routed.test", "a@[192.0.2.1]", "a@[IPv6:2001:db8::1]"])
def test_what_is_not_asked_of_dns(lookup: Lookup, address: str) -> None:
    assert Recipients(Directory(), lookup).refusal(USER, address, 1, 1.0) is None
    Recipients(Directory(), lookup).ahead(f"\nRCPT TO:<{address}>\r\n".encode())
    assert lookup.asked == []


def test_nobody_is_asked_where_dns_decides_nothing() -> None:
    assert Recipients(Directory(), None).refusal(USER, "a@gone.test", 1, 1.0) is None
    Recipients(Directory(), None).ahead(b"\nRCPT TO:<a@gone.test>\r\n")


def test_pipelined_recipients_are_looked_up_together(lookup: Lookup) -> None:
    group = (
        b"MAIL FROM:<x@y.test>\r\nRCPT TO:<a@one.test>\r\nrcpt to:<b@TWO.test>\r\nRCPT TO:<c@one.test> X=Y\r\nDATA\r\n"
    )
    Recipients(Directory(), lookup).ahead(group)
    assert sorted(lookup.asked) == ["one.test", "two.test"]
    lookup.asked.clear()
    Recipients(Directory(), lookup).ahead(b"".join(b"\nRCPT TO:<a@d%d.test>\r" % n for n in range(1000)))
    assert len(lookup.asked) == MAX_AHEAD


@pytest.mark.parametrize(
    ("role", "settings", "asks"),
    [
        ("all", {}, True),
        ("all", {"relay": {"smarthost": "s.test:25"}}, False),
        ("all", {"relay": {"next_hop": "s.test:25"}}, False),
        ("submission", {"relay": {"next_hop": "s.test:25"}}, False),
        ("submission", {"relay": {"next_hop": "s.test:25"}, "dns": {"resolvers": ["192.0.2.53"]}}, True),
        ("signer", {"dns": {"resolvers": ["192.0.2.53"]}}, False),
        ("relay", {}, False),
    ],
)
def test_where_dns_is_asked(role: str, settings: dict[str, Any], asks: bool) -> None:
    config = msgspec.convert({"hostname": "mail.test", "role": role, **settings}, Config)
    assert looks_up(config) is asks


def test_groups_and_limits(lookup: Lookup) -> None:
    recipients = Recipients(Directory(), lookup)
    closed = recipients.refusal(USER, "closed@ours.test", 1, 1.0)
    assert closed is not None
    assert closed.text == "anna@ours.test may not write to the group closed@ours.test"
    assert recipients.refusal("few@ours.test", "closed@ours.test", 2, 1.0) is None
    third = recipients.refusal("few@ours.test", "b@ours.test", 3, 1.0)
    assert third is not None
    assert (third.code, third.enhanced) == (452, "4.5.3")
