"""``ptt-worker``: binds the sockets, starts the processes, restarts what dies, stops them in order.

Plain Python, one thread that starts processes (a child is told when the *thread* that started it ends) and one that
watches the queue process. It handles no mail, opens no store and no key.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import selectors
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

from ptt_queue.client import QueueClient
from ptt_queue.errors import QueueError

import ptt
from ptt.config import Config, ConfigError, load
from ptt.log import Log
from ptt.service import handover, layout, state
from ptt.service.locks import RunningError, take_locks
from ptt.service.logfiles import log_files
from ptt.service.notify import Notify
from ptt.service.privileges import KINDS, UserError, account_of
from ptt.service.processes import STOP_ORDER, Spec, environment, next_delay, specs, stop_seconds
from ptt.service.renewal import Renewal
from ptt.service.running import Adopted, Running
from ptt.service.watchdog import STUCK_SECONDS, Watchdog
from ptt.submission import census

WRONG_USAGE = 2
WRITE_SECONDS = 1.0  # supervisor.json is at most so old
TICK_SECONDS = 0.5

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2, signal.SIGCHLD)


class Supervisor:
    """The processes of one service, from start to end: ``run`` returns the exit code."""

    def __init__(
        self,
        config: Config,
        file: str,
        planned: list[Spec],
        sockets: layout.Sockets,
        log: Log,
        locks: tuple[int, int],
        counts: int,
        former: list[Adopted],
    ) -> None:
        self.config = config
        self.sockets = sockets
        self.log = log
        self.locks = locks
        self.children_lock = locks[1]
        self.former = former  # what ran before an upgrade in place
        self.notify = Notify()
        self.counts = counts  # the workers' memory of who is connected
        self.running = [Running(spec) for spec in planned]
        self.started_ms = int(time.time() * 1000)
        self.env = environment(os.environ)
        self.selector = selectors.DefaultSelector()
        self.announced = False
        self.stopping = False
        self.failed: int | None = None  # a process said that the configuration is wrong
        self.wanted: list[int] = []  # signals to act on
        self.written = 0.0
        self.watchdog = Watchdog(self._queue_pid, queue_question(config), self._stuck)
        self.renewal = Renewal(config, file, self.env, log)

    # -- life ------------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Start everything, keep it running until a signal, stop it. Returns the exit code."""
        self._catch_signals()
        self._replace_former()
        self.watchdog.start()
        try:
            while not self.stopping:
                self.notify.alive()
                self._start_due()
                self._wait(self._timeout())
                self._reap()
                self._act()
                self._announce()
                self.renewal.look(self.announced)
            return self._stop()
        finally:
            self.renewal.stop()
            self.watchdog.stop()
            state.remove(self.config)
            layout.remove_sockets(self.config)

    def _catch_signals(self) -> None:
        reader, writer = os.pipe()
        for fd in (reader, writer):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self.selector.register(reader, selectors.EVENT_READ)
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)  # an upgrade in place blocked them

    def _replace_former(self) -> None:
        """After an upgrade: the processes that own something end before their replacements start, workers drain beside
        theirs. Their sockets are ours, so what connects meanwhile waits.
        """
        for kind in reversed(STOP_ORDER):
            for one in self.former:
                if one.kind == kind:
                    one.stop(stop_seconds(kind, self.config))
            while kind != "worker" and any(one.kind == kind and not one.ended() for one in self.former):
                time.sleep(0.01)
        self.former = [one for one in self.former if one.kind == "worker"]

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number != signal.SIGCHLD:
            self.wanted.append(number)

    def _wait(self, timeout: float) -> None:
        """Wait for a signal, a process that is ready or has ended, or the time."""
        for key, _ in self.selector.select(timeout):
            running = key.data
            with contextlib.suppress(BlockingIOError):
                said = os.read(key.fd, 4096)
                if running is not None:
                    self._heard(running, said)

    def _heard(self, running: Running, said: bytes) -> None:
        self.selector.unregister(running.ready_fd)
        running.closed()
        if said:
            running.ready = True
            self.log.event("ready", child=running.spec.name, seconds=round(time.monotonic() - running.started, 3))
            self._write_state()

    def _timeout(self) -> float:
        now = time.monotonic()
        dues = [running.due - now for running in self.running if running.due is not None]
        return max(0.0, min([TICK_SECONDS, *dues]))

    def _start_due(self) -> None:
        now = time.monotonic()
        for running in self.running:
            if running.due is not None and running.due <= now:
                try:
                    fd = running.start(os.getpid(), self.env, self.children_lock, bool(self.config.log.deliveries))
                except OSError as e:  # no memory, no descriptors: tried again like a process that died
                    self._later(running, 0.0)
                    self.log.error("cannot start", child=running.spec.name, reason=str(e))
                    continue
                self.selector.register(fd, selectors.EVENT_READ, running)
                assert running.process is not None  # noqa: S101  (it was just started)
                self.log.event("started", child=running.spec.name, pid=running.process.pid)
                self._write_state()
        if now - self.written > WRITE_SECONDS:
            self._write_state()

    def _reap(self) -> None:
        """Notice what has ended, and say when it is started again."""
        self.former = [one for one in self.former if not one.ended()]
        for running in self.running:
            if running.process is None or (code := running.process.poll()) is None:
                continue
            running.process = None
            self._forget(running)
            if running.ready_fd >= 0:
                self.selector.unregister(running.ready_fd)
                running.closed()
            if not self.stopping:
                lived = time.monotonic() - running.started
                self._later(running, lived)
                fields = {"child": running.spec.name, "code": code, "lived": round(lived, 1), "again_in": running.delay}
                self.log.error("process ended", **fields)
                if code == WRONG_USAGE and not self.announced:
                    self.failed = code
                    self.stopping = True

    def _forget(self, running: Running) -> None:
        """The connections of a worker that ended are closed: they count no more."""
        if running.spec.kind == "worker":
            with contextlib.suppress(OSError):
                census.clear(self.counts, int(running.spec.name.rpartition(".")[2]))

    def _later(self, running: Running, lived: float) -> None:
        running.delay = next_delay(running.delay, lived)
        running.due = time.monotonic() + running.delay
        running.restarts += 1
        running.ready = False
        self._write_state()

    def _act(self) -> None:
        while self.wanted:
            number = self.wanted.pop(0)
            if number == signal.SIGHUP:
                self._reload()
            elif number == signal.SIGUSR2:
                self._upgrade()
            elif number in (signal.SIGTERM, signal.SIGINT):
                self.stopping = True
                return

    def _reload(self) -> None:
        self.notify.reloading()
        try:
            files = log_files(self.config)
        except OSError as e:
            files = []
            self.log.error("log not opened again", reason=str(e))
        self.log.event("reload")
        for running in self.running:
            running.reload(files)
        self.notify.ready()

    def _announce(self) -> None:
        if not self.announced and all(running.ready for running in self.running):
            self.announced = True
            with contextlib.suppress(OSError):
                sys.stdout.write("ptt: ready\n")
                sys.stdout.flush()
            self.notify.ready()

    def _upgrade(self) -> None:
        """Execute the program anew in this process, with the sockets and the locks. Returns if that cannot be."""
        if wrong := handover.trial(self.env):
            self.log.error("upgrade refused", reason=wrong)
            return
        self.log.event("upgrade")
        self.notify.reloading()
        state.remove(self.config)  # what it says of the processes is not true until the new ones run
        children = [(r.spec.name, r.spec.kind, r.process.pid) for r in self.running if r.process is not None]
        children += [(one.name, one.kind, one.pid) for one in self.former]
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # those that come wait for the new program
        try:
            handover.execute(handover.pack(self.config, self.sockets, self.locks, children))
        except OSError as e:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            self.log.error("upgrade refused", reason=str(e))

    # -- the end ---------------------------------------------------------------------------------------------------

    def _stop(self) -> int:
        """End the processes kind by kind; a second signal, or time, kills what is left."""
        self.log.event("stopping")
        self.notify.stopping()
        self.watchdog.stop()
        self._write_state()
        self.sockets.close()  # the workers have theirs; nobody waits in ours for a replacement that will not come
        for kind in STOP_ORDER:
            mine = [running for running in self.running if running.spec.kind == kind]
            for running in mine:
                running.signal(signal.SIGTERM)
            deadline = time.monotonic() + stop_seconds(kind, self.config)
            while any(running.process is not None for running in mine) and not self._hurry():
                if time.monotonic() > deadline:
                    break
                self._wait(0.1)
                self._reap()
            for running in mine:
                if running.process is not None:
                    self.log.warning("killed", child=running.spec.name)
                    running.signal(signal.SIGKILL)
                    running.process.wait()
        self.log.event("stopped")
        return self.failed or 0

    def _hurry(self) -> bool:
        return any(number in (signal.SIGTERM, signal.SIGINT) for number in self.wanted)

    # -- what others see -------------------------------------------------------------------------------------------

    def _queue_pid(self) -> int:
        """The queue process, when it is ready to answer; 0 when not."""
        queue = self.running[0]
        process = queue.process
        return process.pid if process is not None and queue.ready else 0

    def _stuck(self, pid: int) -> None:
        """The queue process has answered nothing for too long (called by the watchdog's thread)."""
        process = self.running[0].process
        if process is not None and process.pid == pid:
            self.log.error("queue process is stuck", pid=pid)
            process.kill()

    def _write_state(self) -> None:
        self.written = time.monotonic()
        processes = [
            state.ProcessState(
                r.spec.name, r.spec.kind, r.process.pid if r.process else 0, r.started_ms, r.restarts, r.ready
            )
            for r in self.running
        ]
        now = state.ServiceState(
            os.getpid(), self.started_ms, ptt.__version__, self.config.role, self.announced, self.stopping, processes
        )
        with contextlib.suppress(OSError):  # a full disk must not stop the service
            state.write(self.config, now)


def queue_question(config: Config) -> Callable[[], bool]:
    """What asks the queue process a question, over one connection: was it answered in time?"""
    client = QueueClient(os.path.join(config.run, "queue.sock"), timeout=STUCK_SECONDS)

    def ask() -> bool:
        try:
            client.stats()
        except QueueError:
            client.close()
            return False
        return True

    return ask


# -- start ---------------------------------------------------------------------------------------------------------


def serve(config: Config, file: str, takeover: int = -1) -> int:
    """Run the service until it is told to stop. Returns the exit code. Raises RunningError, LayoutError, UserError.

    ``takeover``: the descriptor in which the program that this one replaces says what it hands over.
    """
    for kind in KINDS:
        account_of(kind, config)  # all users exist, before anything starts
    layout.make_directories(config)
    if takeover >= 0:
        taken = handover.take(takeover)
    else:
        taken = handover.Taken(handover.activated(config), take_locks(config), [])
    locks = taken.locks
    layout.reserve_key_state(config)
    sockets = layout.bind_all(config, taken.given)
    log_files(config)
    log = Log("supervisor", config.log.level)
    log.event("start", version=ptt.__version__, role=config.role, workers=config.workers, pid=os.getpid())
    counts = census.make(config.workers)
    try:
        planned = specs(config, file, sockets, counts)
        return Supervisor(config, file, planned, sockets, log, locks, counts, taken.former).run()
    finally:
        for fd in (*locks, counts):
            os.close(fd)


def main() -> None:
    """The command ``ptt-worker``."""
    parser = argparse.ArgumentParser(prog="ptt-worker", description="Run the PTT service in the foreground.")
    default = os.environ.get("PTT_CONFIG") or ("ptt.toml" if os.path.exists("ptt.toml") else "/etc/ptt/ptt.toml")
    parser.add_argument("--config", metavar="FILE", default=default, help="the configuration (default: %(default)s)")
    parser.add_argument("--pool", metavar="N", type=int, help="number of workers (0: one for each core)")
    parser.add_argument("--role", choices=("all", "submission", "signer", "relay"), help="what this host does")
    parser.add_argument("--trial", action="store_true", help=argparse.SUPPRESS)  # before an upgrade in place
    parser.add_argument("--takeover", type=int, default=-1, help=argparse.SUPPRESS)
    found = parser.parse_args()
    file = os.path.abspath(found.config)
    try:
        config = load(file, role=found.role, pool=found.pool)
        code = 0 if found.trial else serve(config, file, found.takeover)
    except ConfigError as e:
        sys.stderr.write(f"{e}\n")
        code = WRONG_USAGE
    except UserError as e:
        sys.stderr.write(f"{file}: users: {e}\n")
        code = WRONG_USAGE
    except (RunningError, layout.LayoutError, OSError) as e:
        sys.stderr.write(f"ptt-worker: {e}\n")
        code = 1
    sys.exit(code)


if __name__ == "__main__":
    main()
