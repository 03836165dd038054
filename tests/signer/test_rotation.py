"""Rotation under a fake clock, over a DNS server in memory, with a crash at each thing that it does."""

from __future__ import annotations

import os
import pathlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import dns.message
import dns.update
import gevent
import pytest

from ptt import config as configuration
from ptt.config import Config
from ptt.dkim.keys import record_name
from ptt.dns import publish, resolver, update
from ptt.dns.publish import Publisher
from ptt.dns.server import Responder
from ptt.dns.update import TsigKey
from ptt.dns.zonedata import ZoneData
from ptt.log import Log
from ptt.metrics import Counters
from ptt.net.rpc import RpcError
from ptt.signer import keystore, rotation
from ptt.signer.rotation import Book, read_book
from ptt.signer.rotator import RotationRefused, Rotator
from ptt.signer.state import KeyView, all_public_keys, public_keys, read_state, state_path

DOMAIN = "example.test"
START = 1_800_000_000.0
DAY = 86_400.0
KEY = TsigKey("ptt", "hmac-sha256", b"secret")


class Crash(BaseException):
    """As kill -9: nothing of ours catches it."""


class World:
    """Everything that outlives a crash: files, DNS, the clock; and when the next crash comes."""

    def __init__(self, base: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.base = base
        self.now = START
        self.effects: list[str] = []
        self.crash_at = -1
        self.dead = False
        self.zones = ZoneData([DOMAIN])
        self.responder = Responder(self.zones, KEY)
        self.published: set[str] = set()
        for name in ("run", "public", "keys", "data/control"):
            (base / name).mkdir(parents=True, mode=0o700)
        (base / "ptt.key").write_text('key "ptt" { algorithm hmac-sha256; secret "c2VjcmV0"; };')
        (base / "ptt.key").chmod(0o600)
        zone = f'[[dns.zones]]\nname = "{DOMAIN}"\nprimary = "127.0.0.1"\nkey_file = "ptt.key"\nttl = 3600\n'
        text = 'hostname = "mail.example.test"\n[dns]\nresolvers = ["127.0.0.1"]\n'
        (base / "ptt.toml").write_text(
            f"{text}{zone}[queue]\nmax_age_seconds = {5 * DAY}\n[signer]\nrotate_days = 90\n"
        )
        self.config: Config = configuration.load(base / "ptt.toml")
        monkeypatch.setattr(gevent.get_hub(), "NOT_ERROR", (*gevent.get_hub().NOT_ERROR, Crash))
        monkeypatch.setattr(os, "fsync", lambda _fd: None)  # only the process dies here, not the power
        monkeypatch.setattr(update, "ask_tcp", self.ask)
        monkeypatch.setattr(resolver, "ask", self.ask)
        self.watch(monkeypatch, "book", rotation, "write_book")
        self.watch(monkeypatch, "state", publish, "write_state")
        self.watch(monkeypatch, "file", keystore, "_write")
        self.watch(monkeypatch, "unlink", keystore.os, "unlink")
        self.start()

    def watch(self, monkeypatch: pytest.MonkeyPatch, name: str, module: Any, function: str) -> None:
        plain = getattr(module, function)

        def watched(*arguments: Any, **named: Any) -> Any:
            self.effect(f"{name} before")
            result = plain(*arguments, **named)
            self.effect(f"{name} after")
            return result

        monkeypatch.setattr(module, function, watched)

    def effect(self, name: str) -> None:
        self.effects.append(name)
        self.dead = self.dead or len(self.effects) - 1 == self.crash_at
        if self.dead:  # whatever greenlet tries it
            raise Crash(name)

    def ask(self, query: dns.message.Message, server: Any, timeout: float) -> dns.message.Message:
        wire = query.to_wire()
        self.effect("question")
        data = self.responder.respond(wire, udp=False)
        assert data is not None
        if isinstance(query, dns.update.UpdateMessage):
            self.published |= {
                k.selector for k in all_public_keys(self.config.signer.public) if self.served(k.selector)
            }
        self.effect("answer")
        keyring = query.keyring if query.keyring is not None else False
        return dns.message.from_wire(data, keyring=keyring, request_mac=query.mac if query.keyring is not None else b"")

    def texts(self, name: str) -> list[bytes]:
        answer = self.responder.respond(dns.message.make_query(name, "TXT").to_wire(), udp=False)
        assert answer is not None
        return [b"".join(r.strings) for rrset in dns.message.from_wire(answer).answer for r in rrset]

    def served(self, selector: str) -> bool:
        return bool(self.texts(record_name(DOMAIN, selector)))

    def make(self, domain: str, selector: str, algorithm: Any) -> None:
        signer = self.config.signer
        keystore.ensure(signer.keys, signer.public, os.getuid(), domain, selector, algorithm, int(self.now * 1000))

    def remove(self, domain: str, selector: str) -> None:
        keystore.remove(self.config.signer.keys, self.config.signer.public, domain, selector)

    def start(self) -> None:
        """A new control process."""
        log, counters = Log("test", "error"), Counters()
        clock: Callable[[], float] = lambda: self.now  # noqa: E731
        self.publisher = Publisher(self.config, log, counters, clock, lambda: self.rotator.roles)
        check = self.publisher.check
        self.rotator = Rotator(self.config, self, check.withdraw, lambda _: True, log, counters, clock)

    def restart(self) -> None:
        self.dead, self.crash_at = False, -1
        self.rotator.close()
        self.start()

    def turn(self) -> None:
        self.publisher.step()
        self.rotator.step()
        if self.dead:
            raise Crash("in another greenlet")

    def selectors(self) -> list[str]:
        return [key.selector for key in public_keys(self.config.signer.public, DOMAIN)]

    def signing(self) -> list[str]:
        return [key.selector for key in KeyView(self.config).active(DOMAIN).signing]

    def book(self) -> Book:
        return read_book(rotation.book_path(self.config))

    def through(self, until: Callable[[], bool], seconds: float = 60.0) -> None:
        """Turns, with time passing, until it holds."""
        for _ in range(400):
            if until():
                return
            try:
                self.turn()
            except Crash:
                self.restart()
            self.now += seconds
        raise AssertionError(self.book())


@pytest.fixture
def world(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tmp_path, monkeypatch)
    made.make(DOMAIN, "first", "ed25519")
    made.turn()
    assert made.signing() == ["first"]
    yield made
    made.rotator.close()


def test_by_age_through_every_step(world: World) -> None:
    world.now = START + 89 * DAY
    world.turn()
    assert world.book() == Book()
    world.now = START + 90 * DAY
    world.turn()
    (begun,) = world.book().rotations
    assert (begun.old, begun.step, begun.now) == (("first",), "generate", False)
    (new,) = begun.new
    seen = []

    def note() -> bool:
        seen.extend(r.step for r in world.book().rotations if not seen or seen[-1] != r.step)
        return not world.book().rotations

    def retiring() -> bool:
        note()
        return seen[-1] == "retire"

    world.through(retiring)
    assert world.signing() == [new.selector]
    assert world.served("first")
    assert {s.selector: s.retired for s in read_state(state_path(world.config))} == {"first": True, new.selector: False}
    (retiring_one,) = world.book().rotations
    assert retiring_one.due - retiring_one.times["retire"] == (5 * DAY + 3600 + 60) * 1000
    world.now = retiring_one.due / 1000 - 1
    world.turn()
    assert world.served("first")
    assert world.book().rotations[0].wait == "mail signed with the old keys"
    world.now += 1
    world.through(note)
    assert not world.served("first")
    assert world.texts(f"_ptt.{record_name(DOMAIN, 'first')}") == []
    assert world.selectors() == world.signing() == [new.selector]
    assert not (world.base / "keys" / DOMAIN / "first.pem").exists()
    assert list(dict.fromkeys(seen)) == [s for s in rotation.STEPS if s in seen]
    assert world.published == {"first", new.selector}


def test_the_old_key_signs_until_every_server_has_the_new_one(world: World) -> None:
    world.rotator.start(DOMAIN, compromise=False)
    (begun,) = world.book().rotations
    world.rotator.step()
    world.rotator.step()
    assert world.signing() == ["first"]
    assert world.book().rotations[0].step == "publish"
    assert world.book().rotations[0].wait == f"{begun.new[0].selector}: not looked at yet"
    with pytest.raises(RotationRefused, match="is under way, at step publish"):
        world.rotator.start(DOMAIN, compromise=False)
    world.publisher.step()
    world.rotator.step()
    assert world.signing() == [begun.new[0].selector]


@pytest.mark.parametrize("algorithm", ["ed25519", "rsa2048"])
def test_compromise(world: World, algorithm: str) -> None:
    world.make(DOMAIN, "second", algorithm)
    world.publisher.step()
    world.rotator.start(DOMAIN, compromise=True)
    view = KeyView(world.config)
    world.publisher.step()
    assert view.active(DOMAIN).signing == ()  # mail waits
    assert view.revoked() == {(DOMAIN, "first"), (DOMAIN, "second")}
    world.rotator.step()
    assert not world.served("first")  # at once
    assert not world.served("second")
    world.through(lambda: not world.book().rotations, seconds=1)
    assert world.now - START < 60
    kinds = sorted(key.algorithm for key in public_keys(world.config.signer.public, DOMAIN))
    assert kinds == sorted({"ed25519", algorithm})
    assert len(world.signing()) == len(kinds)
    assert not list((world.base / "keys" / DOMAIN).glob("first*"))
    assert len(world.book().revoked) == 2  # mail in the queue may bear their signatures
    world.now += 5 * DAY + 3600 + 61
    world.turn()
    assert world.book().revoked == ()
    world.turn()
    assert KeyView(world.config).revoked() == frozenset()


def test_compromise_in_the_middle_of_a_rotation(world: World) -> None:
    world.rotator.start(DOMAIN, compromise=False)
    world.through(lambda: world.book().rotations[0].step == "retire", seconds=1)
    (under_way,) = world.book().rotations
    made = world.rotator.start(DOMAIN, compromise=True)
    assert set(made.old) == {"first", under_way.new[0].selector}
    world.through(lambda: not world.book().rotations, seconds=1)
    assert world.selectors() == [made.new[0].selector] == world.signing()
    assert not world.served("first")
    assert not world.served(under_way.new[0].selector)


def test_what_is_refused(world: World) -> None:
    with pytest.raises(RotationRefused, match=r"no key of other\.test"):
        world.rotator.start("other.test", compromise=False)
    log, counters = Log("test", "error"), Counters()
    other = Rotator(world.config, world, lambda _: "", lambda _: True, log, counters, lambda: world.now)
    with pytest.raises(RotationRefused, match="another control process"):
        other.start(DOMAIN, compromise=False)
    other.step()  # does nothing


def test_a_key_process_that_is_away_is_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise RpcError("not there")

    world.rotator.start(DOMAIN, compromise=True)
    with monkeypatch.context() as patch:
        patch.setattr(world, "make", away)
        world.turn()
        world.turn()
        assert world.book().rotations[0].wait == "the key process: not there"
        assert not world.served("first")
    world.through(lambda: not world.book().rotations, seconds=1)


def test_a_damaged_book_is_put_aside(world: World) -> None:
    path = pathlib.Path(rotation.book_path(world.config))
    path.write_text("{")
    world.restart()
    assert world.rotator.book == Book()
    assert path.with_name("rotation.json.damaged").read_text() == "{"


def finished(world: World, compromise: bool) -> dict[str, object]:
    """Rotate to the end; what is left, without what depends on the time."""
    while True:
        try:
            if world.book() == Book() and world.selectors() == ["first"]:
                world.rotator.start(DOMAIN, compromise=compromise)
            break
        except Crash:
            world.restart()
    world.through(lambda: all(r.step == "retire" for r in world.book().rotations), 10.0)
    world.now += 6 * DAY
    world.through(lambda: not world.book().rotations and not world.book().revoked, 10.0)
    turns = iter(range(3))
    world.through(lambda: next(turns, None) is None, 10.0)
    (selector,) = world.selectors()
    files = sorted(
        str(p.relative_to(world.base)).replace(selector, "NEW") for p in world.base.rglob("*") if p.is_file()
    )
    return {
        "files": [file for file in files if not file.endswith(".new")],
        "signing": [s.replace(selector, "NEW") for s in world.signing()],
        "states": [
            (s.selector.replace(selector, "NEW"), s.served, s.retired) for s in read_state(state_path(world.config))
        ],
        "published": len(world.published),
        "old": world.served("first"),
    }


@pytest.mark.slow
@pytest.mark.parametrize("compromise", [False, True])
def test_a_crash_at_each_step_changes_nothing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, rng: random.Random, compromise: bool
) -> None:
    """Killed after each write and deletion and a quarter of DNS' answers, and started again: the end is the same, and
    only one new key was ever published.
    """

    def run(number: int) -> tuple[dict[str, object], list[str], int]:
        base = tmp_path / str(number)
        base.mkdir()
        with monkeypatch.context() as patch:
            world = World(base, patch)
            world.make(DOMAIN, "first", "ed25519")
            world.turn()
            world.now += 1
            begun = len(world.effects)
            world.crash_at = begun + number if number >= 0 else -1
            result = finished(world, compromise)
            world.rotator.close()
            return result, world.effects[begun:], world.crash_at

    expected, effects, _ = run(-1)
    assert (expected["signing"], expected["published"], expected["old"]) == (["NEW"], 2, False)
    last = max(n for n, effect in enumerate(effects) if effect.startswith(("book", "unlink", "file")))
    for number in range(last + 2):
        assert run(number)[0] == expected, (number, effects[number])
    assert {"book before", "state after", "file before", "unlink after", "question", "answer"} <= set(
        effects[: last + 1]
    )
