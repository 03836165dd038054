"""A rotation of the running service: its control process, key process and DNS server, each the real one."""

from __future__ import annotations

import json
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import dkim
import pytest

from ptt.cli.sandbox import Sandbox, SandboxError
from ptt.signer.state import public_keys, read_state, state_path

pytestmark = pytest.mark.slow

SIGNED_WITH = re.compile(rb"^DKIM-Signature:(?:.|\r\n[ \t])*?\bs=([^;\s]+)", re.M)


class Impatient(Sandbox):
    """Tries again each second: the wait would double with each attempt that the machine's load makes time for."""

    def adapt(self, document: Any) -> None:
        super().adapt(document)
        document["relay"]["retry"]["ceiling_seconds"] = 1.0


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with tempfile.TemporaryDirectory(prefix="ptt") as directory:
        base = pathlib.Path(directory)
        base.chmod(0o755)
        with Impatient(base / "service", retry_seconds=0.5) as made:
            made.prepare()
            made.start()
            yield made


def submit(sandbox: Sandbox, subject: str) -> str:
    """Its queue id."""
    message = f"From: <{sandbox.user}>\r\nSubject: {subject}\r\n\r\nhello\r\n".encode()
    client = sandbox.client()
    client.mail(sandbox.user)
    client.rcpt("x@dest.example")
    client.rcpt("x@other.example")  # two lanes: what is stored of a signature is shared by two tasks
    code, text = client.data(message)
    client.quit()
    assert code == 250, text
    return text.decode().rsplit(" ", 1)[-1]


def test_a_compromise_of_a_running_service(sandbox: Sandbox, until: Callable[[Callable[[], object]], None]) -> None:
    """The old key goes from DNS and disk; mail that it has signed and that waits arrives with the new one's alone."""

    def keys() -> list[str]:
        return [key.selector for key in public_keys(sandbox.config.signer.public, sandbox.domain)]

    def signing() -> list[str]:
        return [key.selector for key in read_state(state_path(sandbox.config)) if key.served and not key.retired]

    def events(shown_id: str) -> list[str]:
        return [str(line["event"]) for line in sandbox.log_lines(shown_id)]

    def done(action: str) -> bool:
        try:
            sandbox.ptt("queue", action, "--all")
        except SandboxError:  # a worker is at it
            return False
        return True

    (old,) = keys()
    until(lambda: signing() == [old])
    sandbox.spawn_sink("--defer", "100")
    waiting = submit(sandbox, "signed before")
    until(lambda: events(waiting).count("attempt") >= 2)
    assert events(waiting).count("signed") == 1
    begun = json.loads(sandbox.ptt("dkim", "rotate", "--domain", sandbox.domain, "--now", "--json"))
    assert (begun["old"], begun["now"]) == ([old], True)
    new = begun["new"][0]["selector"]
    until(lambda: keys() == signing() == [new])
    assert not (pathlib.Path(sandbox.config.signer.keys) / sandbox.domain / f"{old}.pem").exists()
    assert sandbox.txt(f"{old}._domainkey.{sandbox.domain}".encode()) is None
    assert sandbox.txt(f"_ptt.{old}._domainkey.{sandbox.domain}".encode()) is None
    until(lambda: done("hold"))  # nobody is to find the port closed: its site would be left alone for a while
    sandbox.spawn_sink("--store", str(sandbox.sunk))
    until(lambda: done("release"))
    until(lambda: sum(len(entry["recipients"]) for entry in sandbox.delivered()) == 2)
    assert "signature revoked" in events(waiting)
    for entry in sandbox.delivered():
        raw = (sandbox.sunk / entry["file"]).read_bytes()
        assert SIGNED_WITH.findall(raw) == [new.encode()]
        assert dkim.verify(raw, dnsfunc=sandbox.txt)
