"""The care of the DKIM keys in the control process: publication, rotation, and the method ``rotate``."""

from __future__ import annotations

import os
import time
from typing import Any

import gevent
import msgspec

from ptt.config import Config
from ptt.directory.reader import Snapshot
from ptt.dkim.keys import record_name
from ptt.dns.ownzones import zone_of
from ptt.dns.publish import Publisher
from ptt.log import Log
from ptt.metrics import Counters
from ptt.net.rpc import RpcError
from ptt.service.privileges import account
from ptt.signer.rotator import KeyProcess, RotationRefused, Rotator

STEP_SECONDS = 1.0


class KeyCare:
    """``run_forever`` starts what goes on until it is killed."""

    def __init__(self, config: Config, log: Log, counters: Counters) -> None:
        self._config = config
        self._log = log
        self._counters = counters
        self.publisher = Publisher(config, log, counters, time.monotonic, lambda: self.rotator.roles)
        self.rotator = Rotator(config, KeyProcess(config), self.publisher.check.withdraw, self._ours, log, counters)

    def run_forever(self) -> None:
        """Publish and rotate."""
        publishing = gevent.spawn(self.publisher.run_forever)
        try:
            while True:
                try:
                    self.rotator.step()
                except Exception as e:
                    self._counters.count("ptt_errors_total", "rotation")
                    self._log.exception("rotation failed unexpectedly", e)
                gevent.sleep(STEP_SECONDS)
        finally:
            publishing.kill()
            self.rotator.close()

    def rotate(self, argument: Any) -> Any:
        """The method "rotate": [domain, because of a compromise?] -> the rotation. Raises RpcError.

        When it answers, compromised keys are out of use for every worker that looks, even if this process dies now.
        """
        try:
            domain, compromise = msgspec.convert(argument, tuple[str, bool])
            begun = self.rotator.start(domain, compromise)
            self.publisher.take_roles()
            return msgspec.to_builtins(begun)
        except msgspec.ValidationError as e:
            raise RpcError("rotate takes a domain, and whether its keys are compromised") from e
        except RotationRefused as e:
            raise RpcError(str(e)) from e
        except OSError as e:
            raise RpcError(f"the rotation cannot be stored: {e.strerror or e}") from e

    def may_rotate(self, callers: frozenset[int]) -> frozenset[int]:
        """Of those who may call control: the operator, not the workers, where they have a user of their own."""
        worker = account(self._config.users.worker).uid
        return callers if worker == os.getuid() else callers - {worker}

    def warnings(self) -> list[str]:
        """What a person must do for rotations: a compromised domain that cannot sign yet."""
        found = [rotation for rotation in self.rotator.book.rotations if rotation.now and rotation.step != "remove"]
        return [f"{r.domain} has no key since a compromise; step {r.step}: {r.wait or 'just begun'}" for r in found]

    def _ours(self, domain: str) -> bool:
        """Are its keys replaced by age? Not where others publish them, nor where its file names the keys that sign."""
        zone = zone_of(record_name(domain, "s"), self._config.dns.zones)
        return zone is not None and "dkim" in zone.manage and not self._named(domain)

    def _named(self, domain: str) -> bool:
        """Does the domain's file in the git database name its selectors? Asked of a domain whose keys are old."""
        snapshot = Snapshot(self._config.directory.snapshots)
        try:
            return bool(snapshot.rules(domain).selectors)
        finally:
            snapshot.close()
