"""A rotation over a zone with two servers: both ends of it wait for the one that lags. BIND and Knot as primary."""

from __future__ import annotations

import os
import pathlib
import time

import pytest

from ptt import config as configuration
from ptt.dkim.keys import record_name
from ptt.dns.publish import Publisher
from ptt.dns.update import look
from ptt.log import Log
from ptt.metrics import Counters
from ptt.signer import keystore
from ptt.signer.rotator import Rotator
from ptt.signer.state import KeyView, all_public_keys

ZONE = "example.test"


class Control:
    """What the control process composes, with the key files in its own hands; ``now`` is its clock."""

    def __init__(self, base: pathlib.Path, fleet) -> None:
        for name in ("run", "data/control"):
            (base / name).mkdir(parents=True)
        text = f'hostname = "mail.{ZONE}"\n[dns]\ntimeout_seconds = 2.0\nresolvers = ["{fleet.primary}"]\n'
        text += f'authority_port = {fleet.port}\n[[dns.zones]]\nname = "{ZONE}"\nprimary = "{fleet.primary}"\n'
        (base / "ptt.toml").write_text(f'{text}key_file = "{fleet.key_file}"\nttl = 1\n')
        self.config = configuration.load(base / "ptt.toml")
        self.now = time.time()
        log, counters = Log("test", "error"), Counters()
        self.publisher = Publisher(self.config, log, counters, lambda: self.now, lambda: self.rotator.roles)
        withdraw = self.publisher.check.withdraw
        self.rotator = Rotator(self.config, self, withdraw, lambda _: True, log, counters, lambda: self.now)

    def make(self, domain: str, selector: str, algorithm: keystore.KeyAlgorithm) -> None:
        signer = self.config.signer
        keystore.ensure(signer.keys, signer.public, os.getuid(), domain, selector, algorithm, int(self.now * 1000))

    def remove(self, domain: str, selector: str) -> None:
        keystore.remove(self.config.signer.keys, self.config.signer.public, domain, selector)

    def turns(self, number: int = 4) -> None:
        for _ in range(number):
            self.publisher.step()
            self.rotator.step()
            self.now += self.config.dns.retry_seconds

    def signing(self) -> list[str]:
        return [key.selector for key in KeyView(self.config).active(ZONE).signing]


@pytest.mark.peer
@pytest.mark.slow
@pytest.mark.parametrize("compromise", [False, True])
def test_every_step_waits_for_the_server_that_lags(tmp_path: pathlib.Path, fleet, compromise: bool) -> None:
    control = Control(tmp_path, fleet)
    control.now += 1000 * compromise  # the zone is the other's too, and selectors are times
    old = f"old{int(compromise)}"
    control.make(ZONE, old, "ed25519")
    control.turns()
    fleet.transfer()
    control.turns()
    assert control.signing() == [old]
    new = control.rotator.start(ZONE, compromise=compromise).new[0].selector
    control.turns()
    (rotation,) = control.rotator.book.rotations
    assert rotation.step == "seen"
    assert f"{new}: ns2.example.test (127.0.0.2): no record there" in rotation.wait
    assert control.signing() == ([] if compromise else [old])
    assert bool(look(fleet.primary, record_name(ZONE, old), 2).texts) is not compromise
    fleet.transfer()
    control.turns()
    assert control.signing() == [new]
    if not compromise:
        (rotation,) = control.rotator.book.rotations
        assert rotation.step == "retire"
        control.now = rotation.due / 1000
        control.turns()
        (rotation,) = control.rotator.book.rotations
        assert rotation.wait == f"{old}: ns2.example.test (127.0.0.2): still serves the key"
        assert look(fleet.primary, record_name(ZONE, old), 2).texts == []
        fleet.transfer()
        control.turns()
    assert control.rotator.book.rotations == ()
    assert [key.selector for key in all_public_keys(control.config.signer.public)] == [new]
    control.rotator.close()
