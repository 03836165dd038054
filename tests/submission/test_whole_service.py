"""Quotas, the submission key and a later release, in the whole service: several workers, killed in between."""

from __future__ import annotations

import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator

import pytest

from ptt.cli.sandbox import Sandbox

pytestmark = pytest.mark.slow

LIMITS = "\n[limits]\nmessages_per_day = 6\nmax_recipients = 3\n"
HOLD_SECONDS = 3


@pytest.fixture(scope="module")
def service() -> Iterator[Sandbox]:
    """One whose user has limits."""
    directory = pathlib.Path(tempfile.mkdtemp(prefix="ptt-"))
    directory.chmod(0o755)  # as root each process has a user of its own
    made = Sandbox(directory / "ptt", retry_seconds=0.5)
    try:
        made.prepare()
        _limit(made, directory)
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(directory, ignore_errors=True)


def _limit(service: Sandbox, directory: pathlib.Path) -> None:
    home, clone = directory / "home", directory / "clone"
    home.mkdir()
    (home / ".gitconfig").write_text("[safe]\ndirectory = *\n[user]\nname = t\nemail = t@example.test\n")

    def git(*words: str) -> None:
        subprocess.run(["git", *words], check=True, env=dict(os.environ, HOME=str(home)), capture_output=True)

    git("clone", service.config.directory.repository, str(clone))
    local, _, domain = service.user.partition("@")
    with (clone / "users" / domain / f"{local}.toml").open("a") as f:
        f.write(LIMITS)
    git("-C", str(clone), "commit", "-a", "-m", "limits")
    git("-C", str(clone), "push", "origin", "HEAD")


def send(service: Sandbox, fields: str = "", options: tuple[str, ...] = ()) -> tuple[int, bytes]:
    with service.client() as client:
        client.ehlo()
        assert client.mail(service.user, options)[0] == 250
        assert client.rcpt("x@else.example")[0] == 250
        return client.data(f"From: <{service.user}>\r\n{fields}\r\nhello\r\n".encode())


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def arrived(service: Sandbox, token: str) -> bytes:
    """The message in the sink, b"" when it is not there."""
    for entry in service.delivered():
        content = (service.sunk / entry["file"]).read_bytes()
        if token.encode() in content:
            return content
    return b""


def test_the_submission_key_then_later_then_the_quota(service: Sandbox) -> None:
    keyed = "PTT-Submission-Key: k1\r\nX-Token: once\r\nBcc: hidden@else.example\r\n"
    first = send(service, keyed)
    assert first[0] == 250
    assert send(service, keyed) == first

    began = time.time()
    assert send(service, "X-Token: later\r\n", (f"HOLDFOR={HOLD_SECONDS}", "MT-PRIORITY=3"))[0] == 250
    until(lambda: arrived(service, "X-Token: once") != b"")
    assert b"hidden" not in arrived(service, "X-Token: once")
    assert arrived(service, "X-Token: later") == b"" or time.time() > began + HOLD_SECONDS
    until(lambda: arrived(service, "X-Token: later") != b"")
    assert time.time() >= began + HOLD_SECONDS - 0.1

    with service.client() as client:
        client.mail(service.user)
        assert [client.rcpt(f"r{n}@else.example")[0] for n in range(4)] == [250, 250, 250, 452]

    assert [send(service)[0] for _ in range(2)] == [250, 250]  # 4 of 6
    os.kill(service.pid_of("service"), signal.SIGKILL)  # all of it
    service.restart_service()
    assert [send(service)[0] for _ in range(2)] == [250, 250]
    code, text = send(service)
    assert (code, text[:6]) == (452, b"4.7.1 ")
    assert b"quota of 6 messages per day for user" in text
    assert send(service, keyed) == first  # it was stored before: that is no new message
    refused = [line for line in service.log_lines() if line["event"] == "message refused"]
    assert [line["reply"].partition(" ")[0] for line in refused] == ["452"]
