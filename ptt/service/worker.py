"""A worker: listeners, the pipeline, delivery. ``python -m ptt.service.worker``, started by the supervisor.

The composition root of a worker: everything is built here by name, in order. Never writes to the store, opens no key,
runs no libgit2 and no argon2.
"""

from gevent import monkey

monkey.patch_all()

import contextlib  # noqa: E402
import os  # noqa: E402
import random  # noqa: E402
import signal  # noqa: E402
import time  # noqa: E402

import gevent  # noqa: E402
import gevent.event  # noqa: E402
from gevent import socket  # noqa: E402

from ptt.directory.logins import Logins  # noqa: E402
from ptt.directory.reader import Snapshot, run_refresh  # noqa: E402
from ptt.dns.resolver import Resolver  # noqa: E402
from ptt.metrics import Counters  # noqa: E402
from ptt.net.rpc import RpcClient, RpcError  # noqa: E402
from ptt.pipeline import Pipeline  # noqa: E402
from ptt.relay import srs  # noqa: E402
from ptt.relay.classify import rules  # noqa: E402
from ptt.relay.delivery import Relay  # noqa: E402
from ptt.service import child as children  # noqa: E402
from ptt.service.child import Child  # noqa: E402
from ptt.service.lag import Lag  # noqa: E402
from ptt.signer.stage import build as build_signing  # noqa: E402
from ptt.spool import Spool  # noqa: E402
from ptt.submission import census  # noqa: E402
from ptt.submission.accept import Accept  # noqa: E402
from ptt.submission.census import Census  # noqa: E402
from ptt.submission.listener import Contexts, Listener, listeners  # noqa: E402
from ptt.submission.recipients import looks_up  # noqa: E402

PUSH_SECONDS = 1.0


class Worker:
    """One worker process. ``run`` returns after SIGTERM and the drain."""

    def __init__(self, child: Child) -> None:
        config, log = child.config, child.log
        self.child = child
        self.counters = Counters()
        self.control = RpcClient(os.path.join(config.run, "control.sock"))
        self.snapshot = Snapshot(config.directory.snapshots)
        self.spool = Spool(os.path.join(config.run, "queue.sock"), log, self.counters)
        dns = config.dns
        resolver = Resolver(dns.resolvers, dns.timeout_seconds, dns.cache_entries, self.counters, trust_ad=dns.trust_ad)
        rng = random.SystemRandom()
        self.relay = Relay(config, resolver, log, self.counters, rng, overrides=self.snapshot.route, slots=self.spool)
        self.spool.on_wanted = self.relay.give_up
        self.pipeline = Pipeline(
            config,
            self.spool,
            build_signing(config, self.snapshot.rules, resolver.txt) if config.signs else None,
            self.relay,
            log,
            self.counters,
            self.snapshot.signing_domain,
            rng=rng,
        )
        self.contexts = Contexts(config)
        lookup = resolver if looks_up(config) else None
        rewriter = srs.from_file(config.relay.srs_secret, time.time)
        accept = Accept(config, self.pipeline, self.snapshot, log, self.counters, lookup=lookup, srs=rewriter)
        logins = Logins(self.control, self.snapshot)
        sockets = [(index, socket.socket(fileno=fd)) for index, fd in child.listen]
        self.listeners: list[Listener] = listeners(
            config,
            sockets,
            self.contexts,
            logins,
            self.snapshot,
            accept,
            log,
            self.counters,
            self._census(),
            self.spool,
        )
        self.stopped = gevent.event.Event()

    def _census(self) -> Census:
        number, fd = self.child.census
        return Census(census.make(1), 0) if fd < 0 else Census(fd, number)  # a worker by hand counts for itself

    def run(self) -> None:
        gevent.signal_handler(signal.SIGTERM, self.stopped.set)
        gevent.signal_handler(signal.SIGINT, self.stopped.set)
        gevent.signal_handler(signal.SIGHUP, self._reload)
        lag = Lag(self.counters, self.child.name)
        background = [gevent.spawn(run_refresh, self.snapshot, self._no_snapshot)]
        background += [gevent.spawn(self._push_for_ever), gevent.spawn(lag.run)]
        leasing = gevent.spawn(self.pipeline.run)
        for listener in self.listeners:
            listener.start()
        self.child.ready()
        self.stopped.wait()
        self._drain(self.child.config.drain_seconds)
        gevent.killall([leasing, *background], timeout=1)
        self._push()

    def _drain(self, seconds: float) -> None:
        """Take no more, end what is under way; what is left waits in the queue for the next worker."""
        self.child.log.event("draining")
        deadline = time.monotonic() + seconds
        self.pipeline.stopping = True
        gevent.joinall([gevent.spawn(x.drain, seconds) for x in self.listeners], timeout=seconds)
        self.pipeline.stop(max(0.1, deadline - time.monotonic()))
        self.relay.close()
        self.spool.close()

    def _reload(self) -> None:
        self.child.reopen()
        try:
            self.contexts.reload()
            self.relay.reload()
        except OSError as e:
            self.child.log.error("certificates not reloaded", reason=str(e))
        else:
            self.child.log.event("certificates reloaded")

    def _no_snapshot(self, reason: str) -> None:
        self.child.log.error("snapshot not opened", reason=reason, in_force=self.snapshot.commit)

    def _push_for_ever(self) -> None:
        while True:
            self._push()
            gevent.sleep(PUSH_SECONDS)

    def _push(self) -> None:
        """Hand our counts to control; one that is away gets them next time, they are totals."""
        with contextlib.suppress(RpcError):
            self.control.call("push", [self.child.name, os.getpid(), self.child.started, self.counters.snapshot()])


def main() -> None:
    child = children.start("worker")
    rules()  # its file, too, may be out of reach after the change of user
    child.enter()
    Worker(child).run()


if __name__ == "__main__":
    main()
