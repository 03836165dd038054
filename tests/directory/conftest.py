"""A repository with a few records, and the directory service over it."""

import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator

import gevent
import pytest

from ptt.config import Config, Directory
from ptt.directory.control import DirectoryControl
from ptt.directory.reader import Snapshot
from ptt.directory.repository import Author, Repository
from ptt.log import Log
from ptt.metrics import Counters

AUTHOR = Author("tester", "tester@host.example")
FAST_HASH = "$argon2id$v=19$m=8,t=1,p=1$EDz8tQxFnQaZTRlFffu4Cg$jzJTPR3jRhFlN0f2Dx7tu95efPdPY2Fp+ysY72FJBd8"


class Base:
    """The git database of a test: commits on the branch, and what the service makes of them."""

    def __init__(self, root: pathlib.Path, remote: str = "") -> None:
        self.root = root
        settings = Directory(
            repository=str(root / "directory.git"),
            snapshots=str(root / "data" / "snapshot"),
            credentials=str(root / "git-credentials"),
            remote=remote,
            interval_seconds=0.2,
        )
        self.config = Config(hostname="mail.example", data=str(root / "data"), directory=settings)
        self.counters = Counters()
        self._log = os.open(root / "log", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self.log = Log("test", fd=self._log)
        self.repository = Repository(settings.repository, settings.branch, create=True)
        self._services: list[DirectoryControl] = []

    def commit(self, changes: dict[str, bytes | str | None]) -> str:
        """Put a commit on the branch, whatever is in it."""
        parent = self.repository.tip()
        data = {path: v.encode() if isinstance(v, str) else v for path, v in changes.items()}
        commit = self.repository.commit(data, "test", AUTHOR, parent)
        self.repository.move(self.repository.ref, commit, parent)
        return commit

    def control(self) -> DirectoryControl:
        """A started service; its greenlet is not running."""
        service = DirectoryControl(self.config, self.log, self.counters)
        service.start()
        self._services.append(service)
        return service

    def snapshot(self) -> Snapshot:
        return Snapshot(self.config.directory.snapshots)

    def events(self, name: str) -> list[dict[str, object]]:
        lines = (self.root / "log").read_text().splitlines()
        return [e for e in map(json.loads, lines) if e["event"] == name]

    def alarm(self) -> float:
        return self.counters.gauges["ptt_directory_alarm", ()]

    def close(self) -> None:
        for service in self._services:
            service.stop()
            service.close()
        os.close(self._log)


@pytest.fixture
def make_base(tmp_path: pathlib.Path) -> Iterator[Callable[..., Base]]:
    made: list[Base] = []

    def make(name: str = "here", remote: str = "") -> Base:
        (tmp_path / name).mkdir()
        made.append(Base(tmp_path / name, remote))
        return made[-1]

    yield make
    for base in made:
        base.close()


@pytest.fixture
def base(make_base: Callable[..., Base]) -> Base:
    """A database with two domains, a user and an alias, not yet in force."""
    found = make_base()
    found.commit(
        {
            "domains/a.example.toml": "",
            "domains/b.example.toml": 'sign = false\nsubdomains = true\npostmaster = "boss@a.example"\n',
            "users/a.example/anna.toml": f'password = "{FAST_HASH}"\naddresses = ["*@b.example", "sales@a.example"]\n',
            "aliases/a.example/all.toml": 'targets = ["anna@a.example", "Foo@x.example"]\n',
        }
    )
    return found


@pytest.fixture
def until() -> Callable[[Callable[[], object]], float]:
    """Wait for a condition while other greenlets run; returns the seconds it took."""

    def wait(condition: Callable[[], object], seconds: float = 10.0) -> float:
        began = time.monotonic()
        while not condition():
            assert time.monotonic() - began < seconds, "the condition did not come true"
            gevent.sleep(0.005)
        return time.monotonic() - began

    return wait


@pytest.fixture
def fast_hash() -> str:
    """A hash of the password "secret" that costs little."""
    return FAST_HASH
