"""Zone truth: a key is used when all servers of the zone and the resolver serve it. BIND, Knot, a lagging secondary."""

from __future__ import annotations

import json
import pathlib

import gevent
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from ptt import config as configuration
from ptt.config import Config
from ptt.dns.authority import Authorities
from ptt.dns.keycheck import difference
from ptt.dns.ownership import marker_name, marker_text, standing
from ptt.dns.publish import Publisher
from ptt.dns.update import Change, TsigKey, look, txt, update_txt
from ptt.log import Log
from ptt.metrics import Counters
from ptt.signer.keystore import record_of
from ptt.signer.state import read_state, state_path

ZONE = "example.test"
RECORD = "v=DKIM1; k=rsa; p=" + "MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8A" * 12
HOST = "mail.example.test"


class Site:
    """A publisher over a fleet's zone."""

    def __init__(self, directory: pathlib.Path, fleet, zones: bool = True) -> None:
        self.directory, self.fleet = directory, fleet
        for name in ("run", "public"):
            (directory / name).mkdir()
        text = f'hostname = "{HOST}"\n[dns]\ntimeout_seconds = 2.0\nresolvers = ["{fleet.primary}"]\n'
        text += f"authority_port = {fleet.port}\n"
        if zones:
            text += (
                f'[[dns.zones]]\nname = "{ZONE}"\nprimary = "{fleet.primary}"\nkey_file = "{fleet.key_file}"\nttl = 1\n'
            )
        (directory / "ptt.toml").write_text(text)
        self.config: Config = configuration.load(directory / "ptt.toml")
        self.counters = Counters()
        self.publisher = Publisher(self.config, Log("test", "error"), self.counters)

    def key(self, domain: str, selector: str, record: str = RECORD) -> None:
        folder = self.directory / "public" / domain
        folder.mkdir(exist_ok=True)
        key = {"domain": domain, "selector": selector, "algorithm": "rsa2048", "record": record, "created": 1}
        (folder / f"{selector}.pub").write_text(json.dumps(key))

    def look(self) -> tuple[bool, str]:
        (result,) = self.publisher.run_once()
        return result.served, result.why

    def put(self, name: str, *texts: bytes) -> None:
        before = look(self.fleet.primary, name, 2).records
        change = Change(name, before, [txt(text) for text in texts])
        update_txt(self.fleet.primary, ZONE, TsigKey.load(self.fleet.key_file), [change], 1, 2)

    def drifts(self, what: str) -> float:
        return self.counters.counters.get(("ptt_dkim_drift_total", (ZONE, what)), 0)


@pytest.fixture
def site(tmp: pathlib.Path, fleet) -> Site:
    fleet.transfer()
    return Site(tmp, fleet)


@pytest.mark.peer
@pytest.mark.slow
class TestEveryServer:
    def test_a_secondary_that_lags_holds_a_new_key_back(self, site: Site, fleet) -> None:
        site.key(ZONE, "lag")
        assert site.look() == (False, "ns2.example.test (127.0.0.2): no record there")
        assert look(fleet.primary, f"lag._domainkey.{ZONE}", 2).texts == [RECORD.encode()]
        fleet.transfer()
        assert site.look() == (True, "")
        assert [state.served for state in read_state(state_path(site.config))] == [True]
        assert site.drifts("gone") == site.drifts("changed") == 0

    def test_a_server_that_goes_back_stops_the_key(self, site: Site, fleet) -> None:
        """The secondary alone serves something else: drift, though the primary is right."""
        name = f"back._domainkey.{ZONE}"
        site.put(name, b"v=DKIM1; p=OLD")
        fleet.transfer()
        site.put(name)
        site.key(ZONE, "back")
        served, why = site.look()
        assert (served, why.startswith("ns2.example.test (127.0.0.2): another record there")) == (False, True)
        fleet.transfer()
        assert site.look() == (True, "")
        site.put(name, b"v=DKIM1; p=EVIL")
        fleet.transfer()
        served, why = site.look()  # written again at the primary; the secondary still has the other
        assert (served, why.startswith("ns2.example.test (127.0.0.2): another record there")) == (False, True)
        assert site.drifts("changed") == 1
        fleet.transfer()
        assert site.look() == (True, "")

    def test_a_silent_server_holds_back_what_is_new_alone(self, site: Site, fleet) -> None:
        site.key(ZONE, "silent")
        site.look()
        fleet.transfer()
        assert site.look()[0]
        fleet.stop_secondary()
        try:
            served, why = site.look()
            assert (served, why.startswith("ns2.example.test (127.0.0.2): 127.0.0.2")) == (True, True)
            site.key(ZONE, "fresh")
            results = {r.key.selector: r.served for r in site.publisher.run_once()}
            assert results == {"silent": True, "fresh": False}
        finally:
            fleet.start_secondary()
        fleet.transfer()
        assert all(r.served for r in site.publisher.run_once())

    def test_somebody_elses_record_is_reported_and_left(self, site: Site, fleet) -> None:
        site.key(ZONE, "foreign")
        served, why = site.look()
        assert not served
        assert "another record there: v=DKIM1; p=THEIRS; it is not ours, so it is not replaced" in why
        assert look(fleet.primary, f"foreign._domainkey.{ZONE}", 2).texts == [b"v=DKIM1; p=THEIRS"]

    def test_the_marker_of_another_host_is_respected(self, site: Site, fleet) -> None:
        name = f"shared._domainkey.{ZONE}"
        site.put(marker_name(name), marker_text("other.example.test", b"x"))
        site.key(ZONE, "shared")
        assert not site.look()[0]
        assert look(fleet.primary, name, 2).texts == []

    def test_a_delegated_selector_is_published_at_its_target(self, site: Site, fleet) -> None:
        """customer's selector is an alias of a name in our zone."""
        site.key(f"customer.{ZONE}", "alias")
        site.look()
        assert look(fleet.primary, f"target._domainkey.{ZONE}", 2).texts == [RECORD.encode()]
        fleet.transfer()
        assert site.look() == (True, "")
        site.put(f"target._domainkey.{ZONE}", b"v=DKIM1; p=OTHER")
        assert site.look()[0]  # repaired at the target; the secondary never saw it

    def test_a_domain_that_is_not_ours_is_asked_of_every_server(self, tmp: pathlib.Path, fleet) -> None:
        fleet.transfer()
        site = Site(tmp, fleet, zones=False)
        site.key(ZONE, "theirs")
        site.put(f"theirs._domainkey.{ZONE}", RECORD.encode())
        assert site.look() == (False, "ns2.example.test (127.0.0.2): no record there")
        fleet.transfer()
        assert site.look() == (True, "")

    def test_rsa_4096_everywhere(self, site: Site, fleet) -> None:
        record = record_of(rsa.generate_private_key(65537, 4096))
        site.key(ZONE, "rsa4096", record)
        site.look()
        fleet.transfer()
        assert site.look() == (True, "")
        assert [len(s) for s in look(fleet.secondary, f"rsa4096._domainkey.{ZONE}", 2).records[0].strings][:2] == [
            255,
            255,
        ]

    def test_withdrawn(self, site: Site, fleet) -> None:
        name = f"bye._domainkey.{ZONE}"
        site.key(ZONE, "bye")
        site.look()
        fleet.transfer()
        (result,) = site.publisher.run_once()
        check = site.publisher.check
        assert check.withdraw(result.key) == "ns2.example.test (127.0.0.2): still serves the key"
        assert look(fleet.primary, name, 2).texts == look(fleet.primary, marker_name(name), 2).texts == []
        fleet.transfer()
        assert check.withdraw(result.key) == ""
        site.put(name, b"v=DKIM1; p=THEIRS")
        assert check.withdraw(result.key) == ""  # no longer ours: stays
        assert look(fleet.primary, name, 2).texts == [b"v=DKIM1; p=THEIRS"]
        site.put(name)


@pytest.mark.peer
@pytest.mark.slow
def test_the_servers_of_a_zone(fleet, tmp: pathlib.Path) -> None:
    site = Site(tmp, fleet)
    authorities = Authorities(site.config.dns, site.counters)
    zone, hosts = authorities.servers(f"s1._domainkey.{ZONE}")
    assert (zone, [str(host) for host in hosts]) == (
        ZONE,
        ["ns1.example.test (127.0.0.1)", "ns2.example.test (127.0.0.2)"],
    )
    with gevent.Timeout(20):
        faults = authorities.faults(f"nobody.{ZONE}", lambda texts: difference(RECORD, texts))
    assert [fault.what for fault in faults] == ["gone", "gone", "gone"]


def test_whose_a_record_is() -> None:
    ours, old = marker_text(HOST, b"new"), marker_text(HOST, b"old")
    theirs = marker_text("other.example.test", b"x")
    assert standing([], False, [], HOST) == "free"
    assert standing([b"x"], False, [], HOST) == "foreign"
    assert standing([b"x"], True, [theirs], HOST) == "same"
    assert standing([], False, [theirs], HOST) == "foreign"
    assert standing([], False, [b"google"], HOST) == "foreign"
    assert standing([b"old"], False, [old], HOST.upper()) == "ours"
    assert standing([b"x"], False, [old], HOST) == "edited"
    assert standing([b"new", b"x"], False, [ours], HOST) == "edited"
    assert standing([], False, [ours], HOST) == "free"
