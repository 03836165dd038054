"""Checks of the relay's secret files: logins at smarthosts, the secret of rewritten senders."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from ptt.cli.findings import Finding, fail, ok
from ptt.config import Config
from ptt.relay import credentials, srs
from ptt.service.privileges import account_of


def secrets(config: Config) -> Iterator[Finding]:
    """Can the workers use each file, and nobody else read it?"""
    relay = config.relay
    if relay.srs_secret:
        try:
            srs.from_file(relay.srs_secret, time.time)
        except (OSError, ValueError) as e:
            yield fail(
                "relay.srs_secret", str(e), "openssl rand -hex 32 > FILE; chmod 600: no worker starts without it"
            )
        else:
            yield from _owner(relay.srs_secret, config)
    if not os.path.isdir(relay.credentials):
        return
    for file in sorted(os.listdir(relay.credentials)):
        path = os.path.join(relay.credentials, file)
        if not file.endswith(".toml"):
            yield fail(path, "is not NAME.toml", "remove or rename it: no route can name it")
            continue
        try:
            credentials.read(relay.credentials, file.removesuffix(".toml"))
        except credentials.Unusable as e:
            yield fail(path, str(e), "mend it: mail whose route names it waits")
        else:
            yield from _owner(path, config)


def _owner(path: str, config: Config) -> Iterator[Finding]:
    worker = account_of("worker", config)
    owner = os.stat(path).st_uid
    if worker.uid not in (0, owner):
        yield fail(path, f"belongs to user {owner}, workers are {worker.uid}", f"chown {worker.uid} {path}")
    else:
        yield ok(path, "can be used")
