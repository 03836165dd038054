"""Quotas, submission key, later release and binary mail in the whole service: several workers, killed in between."""

from __future__ import annotations

import email
import os
import pathlib
import shutil
import signal
import smtplib
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator

import dkim
import pytest

from ptt.cli.sandbox import Sandbox

pytestmark = pytest.mark.slow

OTHER, PASSWORD = "other@demo.example", "another password"
TEXT = b".a dot, and a blank at the end \r\n"
OCTETS = bytes(range(256)) * 40 + b"\r.\r\n.\r\n"
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
        made.ptt("user", "add", OTHER, "--password-stdin", stdin=f"{PASSWORD}\n")
        made.ptt("limits", OTHER, "messages_per_day=2", "over=hold")
        made.start()
        yield made
    finally:
        made.stop()
        print("".join(made.log.read_text().splitlines(keepends=True)[-40:]))
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


def other_client(service: Sandbox) -> smtplib.SMTP_SSL:
    context = ssl.create_default_context(cafile=service.config.tls.internal_ca)
    client = smtplib.SMTP_SSL(*service.address("submission", "implicit"), timeout=60, context=context)
    client.login(OTHER, PASSWORD)
    return client


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


@pytest.fixture(scope="module")
def binary(service: Sandbox) -> None:
    """A message was sent by BODY=BINARYMIME, of two parts, one of them binary, in three chunks."""
    content = (
        f"From: <{OTHER}>\r\nX-Token: binary\r\nMIME-Version: 1.0\r\n".encode()
        + b"Content-Type: multipart/mixed; boundary=b\r\nContent-Transfer-Encoding: binary\r\n\r\n"
        + b"--b\r\nContent-Type: text/plain\r\n\r\n%s\r\n" % TEXT
        + b"--b\r\nContent-Type: image/png\r\nContent-Transfer-Encoding: binary\r\n\r\n%s\r\n--b--\r\n" % OCTETS
    )
    with other_client(service) as client:
        assert client.sock is not None
        assert "binarymime" in client.esmtp_features
        assert client.mail(OTHER, ("BODY=BINARYMIME",))[0] == 250
        assert client.rcpt("x@else.example")[0] == 250
        assert client.docmd("DATA")[0] == 503
        for start, end, last in ((0, 50, ""), (50, len(content) - 9, ""), (len(content) - 9, len(content), " LAST")):
            client.sock.sendall(b"BDAT %d%s\r\n" % (end - start, last.encode()) + content[start:end])
            assert client.getreply()[0] == 250


@pytest.mark.usefixtures("binary")
def test_binary_mail_arrives_as_it_was(service: Sandbox) -> None:
    """As lines, signed after the conversion; each part decodes to what it was."""
    until(lambda: arrived(service, "X-Token: binary") != b"")
    content = arrived(service, "X-Token: binary")
    assert dkim.verify(content, dnsfunc=lambda name, timeout=5: service.txt(name, timeout))
    assert b"\0" not in content
    assert b"encoding: binary" not in content.lower()
    parts = list(email.message_from_bytes(content).walk())
    assert [part.get_content_type() for part in parts] == ["multipart/mixed", "text/plain", "image/png"]
    assert [part.get_payload(decode=True) for part in parts[1:]] == [TEXT, OCTETS]


@pytest.mark.usefixtures("binary")
def test_over_quota_is_held_over_a_restart(service: Sandbox) -> None:
    def send_one(number: int) -> tuple[int, bytes]:
        with other_client(service) as client:
            client.mail(OTHER)
            client.rcpt("x@else.example")
            return client.data(f"From: <{OTHER}>\r\nX-Token: hold {number}\r\n\r\nhello\r\n".encode())

    assert send_one(1)[1].startswith(b"2.0.0 queued as")  # 2 of 2: the binary one was the first
    code, text = send_one(2)
    assert (code, text[:14]) == (250, b"2.0.0 over quo")
    os.kill(service.pid_of("service"), signal.SIGKILL)
    service.restart_service()
    assert send_one(3)[1].startswith(b"2.0.0 over quota, held")
    until(lambda: arrived(service, "X-Token: hold 1") != b"")
    assert arrived(service, "X-Token: hold 2") == b""
    service.ptt("queue", "release", text.split()[-1].decode())
    until(lambda: arrived(service, "X-Token: hold 2") != b"")
    assert arrived(service, "X-Token: hold 3") == b""


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
