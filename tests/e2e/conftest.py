"""The service as its users have it: real processes, between real peers."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import smtplib
import ssl
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ptt.cli.sandbox import Sandbox, free_port

DOMAIN = "example.test"
RECIPIENTS = "other.test"  # its MX is mx1.example.test, which is 127.0.0.1


class Real(Sandbox):
    """The service with a real primary, a real resolver and a real MX in place of the sandbox's stand-ins."""

    def __init__(self, directory: pathlib.Path, change: Callable[[Any], None], **options: Any) -> None:
        super().__init__(directory, domain=DOMAIN, retry_seconds=0.5, **options)
        self._change = change

    def adapt(self, document: Any) -> None:
        for listen in document["listen"]:
            listen["address"] = f"127.0.0.1:{free_port()}"
        document["admin"]["listen"] = f"127.0.0.1:{free_port()}"
        document["relay"]["retry"] = {"first_seconds": 0.5, "ceiling_seconds": 2.0}
        document["relay"]["allow_private"] = True
        self._change(document)

    def start(self) -> None:
        self.start_service()

    def starttls_client(self) -> smtplib.SMTP:
        host, port = self.address("submission", "starttls")
        client = smtplib.SMTP(host, port, timeout=30)
        client.starttls(context=ssl.create_default_context(cafile=self.config.tls.internal_ca))
        client.login(self.user, self.password)
        return client

    def submit(self, recipients: list[str], message: bytes, sender: str = "") -> str:
        """Send one message on the implicit-TLS port; its queue id."""
        client = self.client()
        client.mail(sender or self.user)
        for recipient in recipients:
            code, text = client.rcpt(recipient)
            assert code == 250, (code, text)
        code, text = client.data(message)
        client.quit()
        assert code == 250, (code, text)
        return text.decode().rsplit(" ", 1)[-1]

    def wait_for(self, wanted: Callable[[dict[str, Any]], bool], what: str, seconds: float = 30.0) -> dict[str, Any]:
        """The first line of the log for which ``wanted`` is true."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for line in self.log_lines():
                if wanted(line):
                    return line
            time.sleep(0.05)
        raise AssertionError(f"{what}: not in the log after {seconds} s\n{self.log.read_text()[-4000:]}")


@contextlib.contextmanager
def open_directory() -> Iterator[pathlib.Path]:
    """A directory that other users can enter: as root each process then has its own user."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="ptt-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def services(directory: pathlib.Path) -> Iterator[Callable[..., Real]]:
    made: list[Real] = []

    def make(change: Callable[[Any], None], name: str = "ptt", start: bool = True, **options: Any) -> Real:
        service = Real(directory / name, change, **options)
        made.append(service)
        service.prepare()
        if start:
            service.start()
        return service

    yield make
    for service in made:
        service.stop()
        if service.log.exists():  # pytest shows it when the test failed
            print("".join(service.log.read_text().splitlines(keepends=True)[-40:]))


def use_peers(document: Any, named: Any, resolver: str, mx_port: int) -> None:
    document["dns"] = {
        "resolvers": [resolver],
        "authority_port": named.port,
        "retry_seconds": 0.3,
        "zones": [{"name": DOMAIN, "primary": named.address, "key_file": "primary.key"}],
    }
    document["relay"]["mx_port"] = mx_port


def peers_of(directory: pathlib.Path, named: Any, unbound: Any, postfix_mx: Any) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        key = directory / "ptt" / "primary.key"
        if not key.exists():
            shutil.copyfile(named.key_file, key)
            key.chmod(0o600)
            if os.geteuid() == 0 and "users" in document:
                os.chown(key, int(document["users"]["control"]), int(document["users"]["control"]))
        use_peers(document, named, unbound.address, postfix_mx.port)

    return change


@pytest.fixture
def directory() -> Iterator[pathlib.Path]:
    with open_directory() as path:
        yield path


@pytest.fixture
def make_service(directory: pathlib.Path) -> Iterator[Callable[..., Real]]:
    """A function (change, name="ptt", start=True): a service whose configuration ``change`` has edited."""
    with services(directory) as make:
        yield make


@pytest.fixture
def peers(named: Any, unbound: Any, postfix_mx: Any, directory: pathlib.Path) -> Callable[[Any], None]:
    """A change of the configuration: BIND as primary, Unbound as resolver, Postfix as everybody's MX."""
    return peers_of(directory, named, unbound, postfix_mx)


@pytest.fixture(scope="module")
def shared_service(named: Any, unbound: Any, postfix_mx: Any) -> Iterator[Real]:
    """One service between those peers for all tests of a module, which tell their messages apart by tokens."""
    with open_directory() as directory, services(directory) as make:
        yield make(peers_of(directory, named, unbound, postfix_mx))
