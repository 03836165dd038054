"""The git database inside the control process: keeps the newest good commit in force.

    directory = DirectoryControl(config, log, counters)
    directory.start()              # what was in force last time, or the branch's tip; never raises for a bad commit
    gevent.spawn(directory.run)    # local commits at once, the remote at its interval
    rpc.serve(..., {"verify": directory.logins.rpc_verify, ...})

All that blocks (libgit2, compiling) happens in two real threads: one for the local branch, one for the remote, so a
remote that stalls delays no local commit. A bad commit changes nothing but the alarm and the log.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import gevent
import gevent.event
import gevent.lock
import gevent.threadpool
import lmdb

from ptt.config import Config
from ptt.directory.authenticator import Authenticator
from ptt.directory.compiler import Refused, Trust, compile_commit
from ptt.directory.reader import Pointer
from ptt.directory.remote import Rewritten, shown, synchronise
from ptt.directory.repository import Repository, RepositoryError, disk_bytes
from ptt.directory.snapshot import Store
from ptt.directory.status import Status, write_status
from ptt.directory.verifiers import VerifierFile
from ptt.log import Log
from ptt.metrics import Counters

POLL_SECONDS = 0.25  # between looks at the local branch: a commit is in force within a second
BACKOFF_CEILING_SECONDS = 600.0  # between attempts at a remote that fails
RETRY_SECONDS = 5.0  # after an error of disk or repository, before the same commit is compiled again
LOGGED_MISTAKES = 10  # of one commit, one line each
SIZE_SECONDS = 600.0  # between looks at the size of the repository, which take a second for 100,000 loose objects
LARGE_BYTES = 2 << 30  # twice what one fetch may bring

_Errors = (RepositoryError, OSError, lmdb.Error)


P = ParamSpec("P")
T = TypeVar("T")


def _caught(work: Callable[..., object], args: Any, kwargs: Any) -> tuple[object, Exception | None]:
    try:
        return work(*args, **kwargs), None
    except Exception as e:
        return None, e


class DirectoryControl:
    """See the module. ``clock``: monotonic seconds. Its methods are called from greenlets of one loop."""

    def __init__(
        self, config: Config, log: Log, counters: Counters, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = config.directory
        self._data = config.data
        self._trust = Trust(config.directory.allow_rewrite, config.directory.allowed_signers)
        self._log = log
        self._counters = counters
        self._clock = clock
        self._store = Store(config.directory.snapshots, os.path.join(config.data, "control"))
        self._local: Repository | None = None
        self._pointer: Pointer | None = None
        self._verifiers: VerifierFile | None = None
        self._refused = ""  # the commit that was refused last, "deleted" for a branch that is gone
        self._diverged = ""  # why the remote's branch was refused
        self._retry_at = 0.0
        self._failing = ""
        self._last_fetch = 0.0
        self._why = ""  # of a refused commit: the first mistake, with file and line
        self._written: Status | None = None
        self._refreshing = gevent.lock.BoundedSemaphore()
        self._fetching = gevent.lock.BoundedSemaphore()
        self._threads = gevent.threadpool.ThreadPool(2)
        self._stopping = gevent.event.Event()
        self._wanted = gevent.event.Event()  # a fetch, before its time
        self.logins = Authenticator(log, counters, clock)

    # -- life --------------------------------------------------------------------------------------------------

    @property
    def commit(self) -> str:
        """The commit in force, full hexadecimal; "" before the first."""
        return self._pointer.commit if self._pointer else ""

    def start(self) -> None:
        """Put in force what was in force before, then the tip of the branch if it is good.

        Works with the remote away and with an empty repository, which it creates if need be. Raises OSError and
        RepositoryError if the directories or the repository cannot be used.
        """
        self._store.prepare()
        self.logins.start(self._store.private)
        self._local = self._in_thread(self._open_repository)
        self._counters.gauge("ptt_directory_alarm", value=0)
        pointer = self._store.usable()
        if pointer is not None:
            self._verifiers = VerifierFile(self._store.paths(pointer.file)[1])
            self.logins.use(self._verifiers)
            self._in_force(pointer)
        self.refresh()
        if self._settings.remote and not self.commit:
            self.fetch()

    def run(self) -> None:
        """Follow the local branch and the remote until ``stop``; run it in a greenlet."""
        others = [gevent.spawn(self._watch_size)]
        if self._settings.remote:
            others.append(gevent.spawn(self._follow_remote))
        while not self._stopping.wait(POLL_SECONDS):
            self._guarded(self.refresh)
        gevent.joinall(others)

    def stop(self) -> None:
        """End ``run``. What runs in a thread is waited for by ``run``'s greenlet."""
        self._stopping.set()
        self._wanted.set()

    def fetch_soon(self) -> None:
        """Let ``run`` ask the remote now; returns at once. Many calls during one fetch make one more, not many."""
        self._wanted.set()

    def close(self) -> None:
        """After ``run`` has ended: give back threads and files."""
        self._threads.kill()
        self.logins.close()
        if self._verifiers is not None:
            self.logins.use(None)
            self._verifiers.close()
            self._verifiers = None

    def status(self) -> dict[str, Any]:
        """For the admin port: the commit in force, and what is wrong, if anything."""
        return {
            "commit": self.commit,
            "refused": self._refused,
            "remote": shown(self._settings.remote) if self._settings.remote else "",
            "remote_problem": self._diverged or self._failing,
            "last_fetch": self._last_fetch,
        }

    def _follow_remote(self) -> None:
        pause = 0.0
        while True:
            self._wanted.wait(pause)
            self._wanted.clear()
            if self._stopping.is_set():
                return
            good = self._guarded(self.fetch)
            longest = max(BACKOFF_CEILING_SECONDS, self._settings.interval_seconds)
            pause = self._settings.interval_seconds if good else min(max(pause, 1.0) * 2, longest)

    def _watch_size(self) -> None:
        """What fetches bring stays, also of commits that were refused, until somebody runs ``git gc``."""
        large = False
        while True:
            size = self._in_thread(disk_bytes, self._settings.repository)
            self._counters.gauge("ptt_directory_repository_bytes", value=size)
            if size > LARGE_BYTES and not large:
                self._log.warning("directory repository is large", bytes=size)
            large = size > LARGE_BYTES
            if self._stopping.wait(SIZE_SECONDS):
                return

    def _guarded(self, work: Callable[[], bool]) -> bool:
        try:
            return work()
        except Exception as e:
            self._counters.count("ptt_errors_total", "directory")
            self._log.exception("directory failed unexpectedly", e)
            return False

    # -- the local branch ----------------------------------------------------------------------------------------

    def refresh(self) -> bool:
        """Look at the branch, and put its tip in force if it is new and good. Returns: is the tip in force now?"""
        with self._refreshing:
            if self._local is None:
                return False
            try:
                tip = self._in_thread(self._local.tip)
                if not tip:
                    return self._no_branch()
                if tip == self.commit:
                    self._refused = ""
                    self._set_alarm()
                    return True
                if tip == self._refused or self._clock() < self._retry_at:
                    return False
                self._put_in_force(self._in_thread(compile_commit, self._local, tip, self._store, self._trust))
            except Refused as e:
                return self._refuse(e)
            except _Errors as e:
                self._retry_at = self._clock() + RETRY_SECONDS
                self._log.error("directory cannot be compiled", reason=str(e), in_force=self.commit)
                return False
            return True

    def _no_branch(self) -> bool:
        if self.commit and self._refused != "deleted":
            self._refused = "deleted"
            self._why = f"the branch {self._settings.branch} is gone"
            self._log.error("directory branch is gone", branch=self._settings.branch, in_force=self.commit)
            self._set_alarm()
        return not self.commit

    def _refuse(self, error: Refused) -> bool:
        self._refused = error.commit
        self._why = f"{error.commit[:12]}: {error.mistakes[0]}" if error.mistakes else error.commit
        self._counters.count("ptt_directory_bad_commits_total")
        for mistake in error.mistakes[:LOGGED_MISTAKES]:
            place = {"file": mistake.path, "line": mistake.line, "reason": mistake.text}
            self._log.error("directory commit refused", commit=error.commit, in_force=self.commit, **place)
        if (more := len(error.mistakes) - LOGGED_MISTAKES) > 0:
            self._log.error("directory commit refused", commit=error.commit, reason=f"and {more} more mistakes")
        self._set_alarm()
        return False

    def _put_in_force(self, pointer: Pointer) -> None:
        # The verifiers first: a user whom workers know already must not be told that the password is wrong.
        opened = VerifierFile(self._store.paths(pointer.file)[1])
        before, self._verifiers = self._verifiers, opened
        try:
            self.logins.use(opened)
            self._in_thread(self._store.point, pointer)
        except BaseException:
            self._verifiers = before
            self.logins.use(before)
            opened.close()
            raise
        if before is not None:
            before.close()
        self._in_force(pointer)

    def _in_force(self, pointer: Pointer) -> None:
        self._counters.gauges.pop(("ptt_directory_commit_info", (self.commit,)), None)
        self._pointer = pointer
        self._refused = ""
        self._counters.gauge("ptt_directory_commit_info", pointer.commit, value=1)
        self._set_alarm()
        self._log.event("directory in force", commit=pointer.commit)

    def _set_alarm(self) -> None:
        self._counters.gauge("ptt_directory_alarm", value=1 if self._refused or self._diverged else 0)
        self._write_status()

    def _write_status(self) -> None:
        """Leave for ``ptt git status`` how things stand, if that is news."""
        alarm = (self._why if self._refused else "") or self._diverged
        status = Status(self._last_fetch, alarm, self._failing)
        if status == self._written:
            return
        self._written = status
        try:
            self._in_thread(write_status, self._data, status)
        except OSError as e:
            self._log.warning("directory status not written", reason=str(e))

    def _in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call in a thread and wait. gevent prints the exceptions of its threads, so they come back as values."""
        result, error = self._threads.apply(_caught, (work, args, kwargs))
        if error is not None:
            raise error
        return cast(T, result)

    def _open_repository(self) -> Repository:
        return Repository(self._settings.repository, self._settings.branch, create=True)

    # -- the remote ------------------------------------------------------------------------------------------------

    def fetch(self) -> bool:
        """Synchronise with the remote now, and put in force what came. Returns: did the remote answer, and agree?"""
        if not self._settings.remote:
            return True
        with self._fetching:
            try:
                done = self._in_thread(self._synchronise)
            except Rewritten as e:
                if self._diverged != str(e):
                    self._log.error("directory remote refused", reason=str(e), in_force=self.commit)
                self._diverged, self._failing = str(e), ""
                self._set_alarm()
                return False
            except _Errors as e:
                self._failing = str(e)
                self._counters.count("ptt_directory_fetch_errors_total")
                self._log.warning("directory fetch failed", reason=str(e), in_force=self.commit)
                self._write_status()
                return False
            self._diverged = self._failing = ""
            self._last_fetch = time.time()
            self._set_alarm()
            if done:
                self._log.event("directory synchronised", done=done)
        self.refresh()
        return True

    def _synchronise(self) -> str:
        # An object of its own: this thread may run beside the one of the local branch.
        settings, repository = self._settings, self._open_repository()
        with repository.lock():
            return synchronise(repository, settings.remote, settings.credentials, settings.allow_rewrite)
