"""The control process: the git database, passwords, publication of keys, metrics, the admin port.

``python -m ptt.service.control``, started by the supervisor. It never sees a mail or a private key. While it is away
workers go on with the snapshot that they have and with the logins that they remember; new logins get 454.

Calls that it answers on run/control.sock:

========  ============================================  ==========================================================
method    argument                                      result
========  ============================================  ==========================================================
verify    [user, password, client]                      ptt.directory.authenticator; so scram_first, scram_final
push      [process name, pid, start in ms, Snapshot]    None
status    (any)                                         {"health": as /healthz, "directory": {...}}
rotate    [domain, because of a compromise?]            ``ptt.signer.rotation.Rotation`` as built-in types
========  ============================================  ==========================================================
"""

from gevent import monkey

monkey.patch_all()

import os  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402
import gevent.event  # noqa: E402
import msgspec  # noqa: E402
from gevent import socket  # noqa: E402
from ptt_queue.client import QueueClient  # noqa: E402

import ptt  # noqa: E402
from ptt.directory.control import DirectoryControl  # noqa: E402
from ptt.metrics import Counters  # noqa: E402
from ptt.net import rpc  # noqa: E402
from ptt.service import child as children  # noqa: E402
from ptt.service.admin import Admin, Health, health  # noqa: E402
from ptt.service.child import Child  # noqa: E402
from ptt.service.collector import ServiceCollector  # noqa: E402
from ptt.service.githook import GitHook  # noqa: E402
from ptt.service.keycare import KeyCare  # noqa: E402
from ptt.service.lag import Lag  # noqa: E402
from ptt.service.ledger import Identity  # noqa: E402
from ptt.service.observe import ASK_SECONDS, POLL_SECONDS, Observer  # noqa: E402
from ptt.signer.state import read_state, state_path  # noqa: E402

SAVE_SECONDS = 5.0
MAX_REASONS = 10  # keys named by /healthz; all of them are in the metrics
CONTROL, ADMIN = 0, 1  # which of the inherited sockets is which (ptt.service.processes)


class Control:
    """The composition of the process. ``run`` returns after SIGTERM."""

    def __init__(self, child: Child) -> None:
        config = child.config
        self.child = child
        self.counters = Counters()
        self.collector = ServiceCollector(os.path.join(config.data, "control", "metrics.dat"), self._refresh)
        queue = os.path.join(config.run, "queue.sock")
        self.observer = Observer(config, self.collector.ledger, lambda: QueueClient(queue, ASK_SECONDS))
        self.directory = DirectoryControl(config, child.log, self.counters)
        self.keys = KeyCare(config, child.log, self.counters) if config.signs else None
        self.admin = Admin(self.collector.text, self.health, child.log, self.counters, self._hook())
        self.stopped = gevent.event.Event()

    def _hook(self) -> GitHook | None:
        file = self.child.config.directory.hook_secret
        return GitHook(file, self.directory.fetch_soon, self.child.log, self.counters) if file else None

    def run(self) -> None:
        """Serve until SIGTERM. Raises OSError, RepositoryError when the git database cannot be used at all."""
        gevent.signal_handler(signal.SIGTERM, self.stopped.set)
        gevent.signal_handler(signal.SIGINT, self.stopped.set)
        gevent.signal_handler(signal.SIGHUP, self._reload)
        if wrong := self.collector.load():
            self.child.log.error("metrics not kept", reason=wrong)
        sockets = {index: socket.socket(fileno=fd) for index, fd in self.child.listen}
        work = [gevent.spawn(self.admin.serve, sockets[ADMIN])]
        self.directory.start()
        logins = self.directory.logins
        methods: dict[str, rpc.Handler] = {
            "verify": logins.rpc_verify,
            "scram_first": logins.rpc_scram_first,
            "scram_final": logins.rpc_scram_final,
            "push": self.observer.push,
            "status": lambda _: self.status(),
        }
        restricted = {}
        if self.keys is not None:
            methods["rotate"] = self.keys.rotate
            restricted["rotate"] = self.keys.may_rotate(self.child.uids)
        work += [
            gevent.spawn(rpc.serve, sockets[CONTROL], methods, self.child.uids, restricted),
            gevent.spawn(self._every, POLL_SECONDS, self.observer.ask_queue),
            gevent.spawn(self._every, POLL_SECONDS, self.observer.ask_signers),
            gevent.spawn(self._every, SAVE_SECONDS, self.observer.notice_waits),
            gevent.spawn(self._every, SAVE_SECONDS, self._save),
        ]
        work.append(gevent.spawn(Lag(self.counters, self.child.name).run))
        if self.keys is not None:
            work.append(gevent.spawn(self.keys.run_forever))
        following = gevent.spawn(self.directory.run)
        self.child.ready()
        self.stopped.wait()
        self.directory.stop()
        gevent.killall(work, timeout=1)
        following.join(timeout=5)
        self._save()
        self.directory.close()

    def _reload(self) -> None:
        self.child.reopen()
        self.directory.fetch_soon()

    def _every(self, seconds: float, work: Callable[[], None]) -> None:
        while True:
            try:
                work()
            except Exception as e:
                self.counters.count("ptt_errors_total", "control")
                self.child.log.exception("control failed unexpectedly", e)
            gevent.sleep(seconds)

    # -- metrics ---------------------------------------------------------------------------------------------------

    def _refresh(self) -> None:
        """Enter what is known without asking anybody: our own counts, and the processes."""
        identity = Identity(self.child.name, os.getpid(), self.child.started)
        self.observer.report(identity, self.counters.snapshot())
        self.observer.look()

    def _save(self) -> None:
        self._refresh()
        try:
            self.collector.save()
        except OSError as e:
            self.child.log.error("metrics not kept", reason=str(e))

    # -- health ----------------------------------------------------------------------------------------------------

    def health(self) -> Health:
        """What /healthz says."""
        self.observer.look()
        return health(self.observer.failures(), self.warnings(), ptt.__version__, self.observer.processes())

    def warnings(self) -> list[str]:
        """What needs a person, though mail flows."""
        directory = self.directory.status()
        found = []
        if directory["refused"]:
            found.append(f"commit {directory['refused']} of the git database is refused; see the log")
        if directory["remote_problem"]:
            found.append(f"the git remote: {directory['remote_problem']}")
        found += [f"mail waits for its signature: {reason}" for reason in self.observer.waits()]
        if self.keys is not None:
            found += self.keys.warnings()
            states = read_state(state_path(self.child.config))
            unserved = [key for key in states if not key.served and not key.retired]
            found += [f"DKIM key {k.selector} of {k.domain} is not served: {k.why}" for k in unserved[:MAX_REASONS]]
            if len(unserved) > MAX_REASONS:
                found.append(f"and {len(unserved) - MAX_REASONS} more keys")
        return found

    def status(self) -> dict[str, Any]:
        """The method "status"."""
        return {"health": msgspec.to_builtins(self.health()), "directory": self.directory.status()}


def main() -> int:
    child = children.start("control")
    child.enter()
    if {CONTROL, ADMIN} - {index for index, _ in child.listen}:
        sys.stderr.write("ptt control: --listen-fd 0:FD and 1:FD are missing\n")
        return children.USAGE
    Control(child).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
