"""A pushed ``[dkim]`` between real peers: DKIM and ARC of mail as it arrived, with the keys that BIND serves."""

from __future__ import annotations

import os
import pathlib
import subprocess
import time
from collections.abc import Callable
from typing import Any

import dkim
import dns.message
import dns.query
import pytest

pytestmark = [pytest.mark.peer, pytest.mark.slow]

RECIPIENT = "someone@other.test"
TABLE = '\n[dkim]\narc = "beside"\nexpires_seconds = 604800\noversign = ["x-token"]\n'


@pytest.fixture
def service(make_service: Callable[..., Any], peers: Callable[[Any], None]) -> Any:
    return make_service(peers)


def push(service: Any, directory: pathlib.Path) -> str:
    """Append the table to the domain's file; the commit."""
    clone, home = directory / "clone", directory / "home"
    home.mkdir()
    (home / ".gitconfig").write_text("[safe]\ndirectory = *\n[user]\nname = t\nemail = t@example.test\n")
    env = dict(os.environ, HOME=str(home))

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], check=True, env=env, capture_output=True, text=True)
        return done.stdout.strip()

    git("clone", "-q", service.config.directory.repository, str(clone))
    with (clone / "domains" / "example.test.toml").open("a") as file:
        file.write(TABLE)
    git("-C", str(clone), "commit", "-q", "-a", "-m", "ARC beside DKIM")
    git("-C", str(clone), "push", "-q", "origin", "HEAD")
    return git("-C", str(clone), "rev-parse", "HEAD")


def test_a_pushed_table_decides_how_mail_is_signed(
    service: Any, directory: pathlib.Path, named: Any, postfix_mx: Any
) -> None:
    def txt(name: bytes, timeout: float = 5) -> bytes | None:
        answer = dns.query.tcp(dns.message.make_query(name.decode(), "TXT"), "127.0.0.1", timeout, named.port)
        return b"".join(answer.answer[0][0].strings) if answer.answer else None

    commit = push(service, directory)
    service.wait_for(lambda line: line["event"] == "directory in force" and line["commit"] == commit, "the commit")

    def arrives(run: str, message: bytes) -> bytes:
        """What Postfix delivered, without its own fields. ``run`` goes into a field that nobody signs."""
        service.submit([RECIPIENT], b"X-Run: " + run.encode() + b"\r\n" + message)
        [arrived] = postfix_mx.wait(f"X-Run: {run}\r\n".encode())
        starts = [at for name in (b"ARC-Seal:", b"DKIM-Signature:") if (at := arrived.find(name)) >= 0]
        return bytes(arrived[min(starts) :])

    message = b"From: <first@example.test>\r\nTo: <someone@other.test>\r\nX-Token: 1\r\n\r\nhello  \r\n"
    deadline = time.monotonic() + 10
    number = 0
    while b"ARC-Seal:" not in (one := arrives(f"rules-{number}", message)):  # workers look every 0.25 s
        assert time.monotonic() < deadline
        number += 1
    assert b" x=" in one
    assert dkim.verify(one, dnsfunc=txt)
    assert not dkim.verify(one.replace(b"X-Token: 1", b"X-Token: 2"), dnsfunc=txt)
    assert dkim.ARC(one).verify(txt)[0] == dkim.CV_Pass
    two = arrives("rules-pass", one)  # its chain is verified with keys that Unbound finds
    assert b"ARC-Seal: i=2; a=rsa-sha256; cv=pass;" in two
    assert dkim.verify(two, dnsfunc=txt)
    assert dkim.ARC(two).verify(txt)[0] == dkim.CV_Pass
    three = arrives("rules-fail", two.replace(b"X-Token: 1", b"X-Token: 2"))
    assert b"ARC-Seal: i=3; a=rsa-sha256; cv=fail;" in three
    assert dkim.verify(three, dnsfunc=txt)
    assert dkim.ARC(three).verify(txt)[0] is None
