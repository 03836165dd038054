"""Checks of this machine: ports and descriptors."""

from __future__ import annotations

import resource
from collections.abc import Iterator

from ptt.cli.findings import Finding, fail, ok, warn
from ptt.config import Config
from ptt.places import SLOW_SHARE
from ptt.service import layout, locks, state

SPARE = 100  # descriptors of a worker beside its connections: libraries, logs, sockets of the other processes


def ports(config: Config) -> Iterator[Finding]:
    """Are the ports free, or is it our service that holds them?"""
    if locks.held(config):
        found = state.read(config)
        if found is None or not found.ready:
            yield warn("service", "it is starting", "run this again when it has said `ptt: ready`")
            return
        yield ok("service", f"running as process {found.pid}, with its ports")
        for process in found.processes:
            if not process.ready:
                yield fail("service", f"process {process.name} is down", "the log says why")
            elif process.restarts:
                yield warn("service", f"process {process.name} was restarted {process.restarts} times", "see the log")
        return
    wrong = 0
    for address in (*(listen.address for listen in config.listen), config.admin.listen):
        try:
            layout.try_address(address)
        except layout.LayoutError as e:
            wrong += 1
            text, _, advice = str(e).partition(": ")
            yield fail("port", text, advice)
    if not config.listen:
        yield warn("port", "nothing is listened on for mail", "add [[listen]] tables")
    elif not wrong:
        yield ok("ports", "free; the service is not running")


def descriptors(config: Config) -> Iterator[Finding]:
    """Do the connections that are allowed fit into the limit of open files?"""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    needed = len(config.listen) * config.smtp.max_connections + (1 + SLOW_SHARE) * config.relay.in_flight + SPARE
    if hard != resource.RLIM_INFINITY and hard < needed:
        text = f"{hard} open files are allowed, a worker may want {needed}"
        yield warn("limits", text, "raise the hard limit (LimitNOFILE= in a systemd unit), or lower max_connections")
    else:
        yield ok("limits", f"a worker may want {needed} descriptors, and gets them")
