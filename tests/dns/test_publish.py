"""The publisher, on the same tests against BIND and our own server: what is served, what is repaired, what waits."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from collections.abc import Callable

import gevent
import pytest

from ptt import config as configuration
from ptt.config import Config, Zone
from ptt.dns import ownzones
from ptt.dns.keycheck import difference
from ptt.dns.keyfiles import KeyFiles
from ptt.dns.ownzones import zone_of
from ptt.dns.publish import MAX_STEP, Publisher, publish_once
from ptt.dns.update import Change, TsigKey, UpdateError, look, txt, update_txt
from ptt.log import Log
from ptt.metrics import Counters
from ptt.signer.state import read_state, state_path

RECORD = "v=DKIM1; k=rsa; p=" + "MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8A" * 12
OTHER = "v=DKIM1; k=rsa; p=MCowBQYDK2VwAyEA"


class Memory(Log):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__("test")
        self.lines: list[tuple[str, dict[str, object]]] = []

    def event(self, event: str, level: str = "info", **fields: object) -> None:
        self.lines.append((event, {"level": level, **fields}))

    def count(self, event: str) -> int:
        return sum(name == event for name, _ in self.lines)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Site:
    """A publisher with its directory, clock and log."""

    def __init__(self, directory: pathlib.Path, primary: str, key_file: str, resolver: str = "") -> None:
        self.directory = directory
        (directory / "run").mkdir(exist_ok=True)
        (directory / "public").mkdir(exist_ok=True)
        zones = f'[[dns.zones]]\nname = "example.test"\nprimary = "{primary}"\nkey_file = "{key_file}"\nttl = 60\n'
        resolvers = f'[dns]\ntimeout_seconds = 2.0\nresolvers = ["{resolver or primary}"]\n'
        resolvers += f"authority_port = {primary.rpartition(':')[2]}\n"
        (directory / "ptt.toml").write_text(f'hostname = "mail.example.test"\n{resolvers}{zones}')
        self.config: Config = configuration.load(directory / "ptt.toml")
        self.again()

    def again(self) -> None:
        """As after a restart of the control process."""
        self.clock, self.log, self.counters = Clock(), Memory(), Counters()
        self.publisher = Publisher(self.config, self.log, self.counters, self.clock)

    def key(self, domain: str, selector: str, record: str = RECORD) -> None:
        folder = self.directory / "public" / domain
        folder.mkdir(exist_ok=True)
        key = {"domain": domain, "selector": selector, "algorithm": "rsa2048", "record": record, "created": 1}
        (folder / "new").write_text(json.dumps(key))
        (folder / "new").rename(folder / f"{selector}.pub")

    def served(self) -> dict[str, bool]:
        return {k.selector: k.served for k in read_state(state_path(self.config))}

    def gauge(self, domain: str, selector: str) -> float | None:
        return self.counters.gauges.get(("ptt_dkim_key_served", (domain, selector)))


@pytest.fixture
def site(tmp: pathlib.Path, primary) -> Site:
    return Site(tmp, primary.address, primary.key_file)


def read_back(address: str, name: str, timeout: float) -> list[bytes]:
    return look(address, name, timeout).texts


def name_of(selector: str, domain: str = "example.test") -> str:
    return f"{selector}._domainkey.{domain}"


@pytest.mark.peer
class TestPublisher:
    def test_a_new_key_is_published_seen_and_told(self, site: Site, primary) -> None:
        site.key("example.test", "new")
        (result,) = site.publisher.run_once()
        assert (result.served, result.updated, result.why) == (True, True, "")
        assert read_back(primary.address, name_of("new"), 2) == [RECORD.encode()]
        (state,) = read_state(state_path(site.config))
        assert (state.domain, state.selector, state.record, state.served) == ("example.test", "new", RECORD, True)
        assert state.checked > 0
        assert site.gauge("example.test", "new") == 1.0
        assert site.log.count("DKIM record published") == site.log.count("DKIM key served") == 1

    def test_what_is_there_already_is_not_written_again(self, site: Site, primary) -> None:
        key = TsigKey.load(primary.key_file)
        spaced = RECORD.replace("; ", " ;").replace("p=", "p= ")
        update_txt(primary.address, "example.test", key, [Change(name_of("there"), (), [txt(spaced.encode())])], 60, 2)
        site.key("example.test", "there")
        (result,) = site.publisher.run_once()
        assert (result.served, result.updated) == (True, False)
        assert read_back(primary.address, name_of("there"), 2) == [spaced.encode()]

    def test_a_key_of_a_domain_below_the_zone(self, site: Site, primary) -> None:
        site.key("sub.example.test", "deep")
        (result,) = site.publisher.run_once()
        if primary.kind == "own":
            assert result.served
        else:  # the grant of these tests covers the zone's own keys only
            assert not result.served
            assert result.why.startswith("REFUSED")

    def test_drift_is_noticed_repaired_and_logged(self, site: Site, primary) -> None:
        site.key("example.test", "drift")
        site.publisher.step()
        key = TsigKey.load(primary.key_file)
        before = look(primary.address, name_of("drift"), 2).records
        change = Change(name_of("drift"), before, [txt(OTHER.encode())])
        update_txt(primary.address, "example.test", key, [change], 60, 2)
        site.clock.now += site.config.dns.recheck_seconds - 1
        assert site.publisher.step() == []
        site.clock.now += 1
        (result,) = site.publisher.step()
        assert result.served
        assert read_back(primary.address, name_of("drift"), 2) == [RECORD.encode()]
        assert site.log.count("DKIM record drifted") == 1

    def test_a_refused_update_leaves_the_key_unserved(self, site: Site, primary) -> None:
        zone = Zone(name="example.test", primary=primary.address, key_file=primary.wrong_key_file)
        site.config = configuration.msgspec.structs.replace(
            site.config, dns=configuration.msgspec.structs.replace(site.config.dns, zones=(zone,))
        )
        site.again()
        site.key("example.test", "refused")
        (result,) = site.publisher.run_once()
        assert not result.served
        assert "secret differs" in result.why
        assert site.served() == {"refused": False}
        assert site.gauge("example.test", "refused") == 0.0

    def test_a_domain_that_others_publish_is_only_looked_up(self, site: Site, primary) -> None:
        site.key("other.test", "foreign")
        (result,) = site.publisher.run_once()
        assert (result.served, result.updated) == (False, False)
        assert result.why == "ns.other.test (127.0.0.1): no record there; the resolver: no record there"

    def test_a_removed_key_is_forgotten(self, site: Site) -> None:
        site.key("example.test", "stays")
        site.key("example.test", "goes")
        site.publisher.run_once()
        (site.directory / "public/example.test/goes.pub").unlink()
        site.publisher.step()
        assert site.served() == {"stays": True}
        assert site.gauge("example.test", "goes") is None

    def test_for_a_command(self, site: Site) -> None:
        site.key("example.test", "one")
        site.key("sub.example.test", "two")
        (result,) = publish_once(site.config, "example.test")
        assert result.served
        assert [r.key.selector for r in publish_once(site.config)] == ["one", "two"]
        assert read_state(state_path(site.config)) == []  # that is the service's


@pytest.mark.peer
def test_a_key_that_others_published_counts_when_the_resolver_shows_it(named, unbound, tmp: pathlib.Path) -> None:
    site = Site(tmp, named.address, named.key_file, unbound.address)
    site.key("other.test", "theirs")
    named.put("other.test", name_of("theirs", "other.test"), 1, "TXT", f'"{RECORD[:200]}" "{RECORD[200:]}"')
    (result,) = site.publisher.run_once()
    assert (result.served, result.updated) == (True, False)


@pytest.mark.peer
@pytest.mark.slow
def test_a_server_that_is_down_at_start_and_again_later(make_named, tmp: pathlib.Path) -> None:
    named = make_named()
    site = Site(tmp, named.address, named.key_file)
    site.key("example.test", "patient")
    site.key("example.test", "too")
    named.stop()
    for _ in range(3):
        assert not any(r.served or r.reached for r in site.publisher.step())
        site.clock.now += site.config.dns.retry_seconds
    assert site.served() == {"patient": False, "too": False}
    assert site.log.count("DNS primary silent") == 1  # once, not at every try
    assert site.log.count("DKIM key not served") == 2
    named.start()
    assert all(r.served for r in site.publisher.step())
    assert site.log.count("DNS primary answers") == 1
    checked = read_state(state_path(site.config))[0].checked
    named.stop()  # what was seen stays in force
    site.clock.now += site.config.dns.recheck_seconds
    assert all(r.served and not r.reached for r in site.publisher.step())
    assert site.served() == {"patient": True, "too": True}
    site.again()  # also over a restart of ours
    assert all(r.served and not r.reached for r in site.publisher.step())
    assert site.served() == {"patient": True, "too": True}
    assert read_state(state_path(site.config))[0].checked == checked
    site.key("example.test", "too", OTHER)  # but a new key in its place was never seen
    site.publisher.step()
    assert site.served() == {"patient": True, "too": False}


@pytest.mark.peer
@pytest.mark.slow
def test_a_primary_that_fails_takes_nothing_back(own_dns, tmp: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SERVFAIL is no word on the record: a key that was seen goes on signing, a new one waits."""
    site = Site(tmp, own_dns.address, own_dns.key_file)
    site.key("example.test", "seen")
    site.publisher.run_once()
    assert site.served() == {"seen": True}

    def fails(server: str, *_: object) -> None:
        raise UpdateError("SERVFAIL", f"{server} failed")

    monkeypatch.setattr(ownzones, "look", fails)
    site.key("example.test", "unseen")
    results = {result.key.selector: result for result in site.publisher.run_once()}
    assert site.served() == {"seen": True, "unseen": False}
    assert results["seen"].why == results["unseen"].why == f"SERVFAIL: {own_dns.address} failed"
    assert site.log.count("DKIM record drifted") == 0


def test_the_loop_notices_a_new_key_within_a_second(own_dns, tmp: pathlib.Path) -> None:
    site = Site(tmp, own_dns.address, own_dns.key_file)
    site.key("example.test", "first")
    task = gevent.spawn(site.publisher.run_forever)
    try:
        for selector in ("first", "second"):
            site.key("example.test", selector)
            with gevent.Timeout(5):
                while not site.served().get(selector):
                    gevent.sleep(0.01)
    finally:
        task.kill()


def test_the_loop_survives_a_fault_of_our_own(tmp: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(tmp, "127.0.0.1:1", "none")
    turns: list[int] = []

    def broken() -> None:
        turns.append(1)
        if len(turns) == 3:
            raise gevent.GreenletExit
        raise RuntimeError("bug")

    monkeypatch.setattr(site.publisher, "step", broken)
    monkeypatch.setattr(gevent, "sleep", lambda seconds: None)
    with pytest.raises(gevent.GreenletExit):
        site.publisher.run_forever()
    assert site.log.count("publication failed unexpectedly") == 2


def test_a_missing_tsig_key_is_the_reason_given(own_dns, tmp: pathlib.Path) -> None:
    site = Site(tmp, own_dns.address, str(tmp / "absent.key"))
    site.key("example.test", "nokey")
    (result,) = site.publisher.run_once()
    assert not result.served
    assert "absent.key: cannot be read" in result.why


def test_a_state_that_cannot_be_written_is_logged(own_dns, tmp: pathlib.Path) -> None:
    site = Site(tmp, own_dns.address, own_dns.key_file)
    shutil.rmtree(tmp / "run")
    site.key("example.test", "s")
    assert site.publisher.run_once()[0].served
    assert site.log.count("DKIM state not written") == 1


def test_new_keys_do_not_wait_behind_many_old_ones(tmp: pathlib.Path, free_port: Callable[[], int]) -> None:
    site = Site(tmp, f"127.0.0.1:{free_port()}", "none")
    for n in range(MAX_STEP + 10):
        site.key("example.test", f"s{n}")
    assert len(site.publisher.step()) == MAX_STEP
    site.clock.now += site.config.dns.retry_seconds
    site.key("example.test", "zzz")
    checked = {r.key.selector for r in site.publisher.step()}
    assert len(checked) == MAX_STEP
    assert "zzz" in checked
    assert len(read_state(state_path(site.config))) == MAX_STEP + 11


def test_folders_are_read_only_when_they_changed(tmp: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(tmp, "127.0.0.1:1", "none")
    site.key("example.test", "a")
    long_ago = 1_700_000_000_000_000_000
    os.utime(tmp / "public/example.test", ns=(long_ago, long_ago))
    files = KeyFiles(site.config.signer.public)
    assert [k.selector for k in files.scan()] == ["a"]
    with monkeypatch.context() as patch:
        patch.setattr("ptt.dns.keyfiles.public_keys", lambda *_: pytest.fail("read again"))
        assert [k.selector for k in files.scan()] == ["a"]
    site.key("example.test", "b")
    assert {k.selector for k in files.scan()} == {"a", "b"}
    site.key("example.test", "c")  # perhaps within the same tick of the folder's time
    assert {k.selector for k in files.scan()} == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("found", "why"),
    [
        ([RECORD.encode()], ""),
        ([RECORD.replace("; ", ";").encode() + b";"], ""),
        ([RECORD.replace("k=rsa; ", "").encode()], ""),
        ([], "no record there"),
        ([RECORD.encode(), b"x"], "2 TXT records there, must be one"),
        ([RECORD.encode()] * 2, "2 TXT records there, must be one"),
        ([OTHER.encode()], f"another record there: {OTHER}"),
        ([b"v=DKIM1; p="], "the record there is revoked (empty p=)"),
        ([RECORD.encode() + b"; t=y"], f"another record there: {RECORD[:60]}"),
        ([RECORD.encode() + b"; p=x"], f"another record there: {RECORD[:60]}"),
        ([b"\xff\xfe"], r"another record there: \xff\xfe"),
    ],
)
def test_difference(found: list[bytes], why: str) -> None:
    assert difference(RECORD, found) == why


@pytest.mark.parametrize(
    ("domain", "zone"),
    [
        ("example.test", "example.test"),
        ("a.example.test", "example.test"),
        ("a.sub.example.test", "Sub.Example.test."),
        ("sub.example.test", "Sub.Example.test."),
        ("notexample.test", None),
        ("test", None),
    ],
)
def test_zone_of(domain: str, zone: str | None) -> None:
    zones = [Zone(name=n, primary="127.0.0.1", key_file="k") for n in ("example.test", "Sub.Example.test.", "b.test")]
    found = zone_of(domain, zones)
    assert (found and found.name) == zone
