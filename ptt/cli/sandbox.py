"""The whole service on loopback with a stand-in for the Internet: what ``make run`` and ``ptt demo`` share.

A sandbox is a directory made by ``ptt init``, and four real processes: a small DNS server that accepts signed
updates, a sink that is every domain's MX, ``ptt-worker``, and what the caller submits. Nothing leaves loopback.
"""

from __future__ import annotations

import json
import os
import pathlib
import secrets
import signal
import smtplib
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import dns.exception
import dns.message
import dns.query
import dns.rdatatype
import tomlkit

from ptt.config import Config, load, split_address

DOMAIN = "demo.example"
USER = f"first@{DOMAIN}"
MX_HOST = "mx.sink.example"
START_SECONDS = 60.0
STOP_SECONDS = 40.0


class SandboxError(Exception):
    """A part of the sandbox did not start or stopped early; the text says which and where its log is."""


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    """A port of 127.0.0.1 that nobody listens on now; with SOCK_DGRAM over TCP too, as name servers need it."""
    while True:
        with socket.socket(socket.AF_INET, kind) as s, socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp:
            s.bind(("127.0.0.1", 0))
            port: int = s.getsockname()[1]
            if kind == socket.SOCK_DGRAM:
                try:
                    tcp.bind(("127.0.0.1", port))
                except OSError:
                    continue
            return port


def _is_free(address: str) -> bool:
    host, port = split_address(address)
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((host, port))
        except OSError:
            return False
    return True


class Sandbox:
    """``directory`` is created when it is not there. ``start`` to ``stop``; use it as a context manager."""

    def __init__(
        self,
        directory: pathlib.Path,
        pool: int = 2,
        retry_seconds: float = 5.0,
        domain: str = DOMAIN,
        usual_ports: bool = False,
    ) -> None:
        self.directory = directory
        self.pool = pool
        self.domain = domain
        self.usual_ports = usual_ports  # those of the first configuration, where they are free; else any
        self.user = f"first@{domain}"
        self.retry_seconds = retry_seconds  # a stand-in for the Internet needs no five minutes
        self.file = directory / "ptt.toml"
        self.log = directory / "ptt.log"
        self.sunk = directory / "sink"
        self.replaced: list[tuple[str, str]] = []  # addresses that were taken, and what stands in for them
        self.sink_options: list[str] = []  # what else ``ptt sink`` is told
        self.dns_port = 0
        self.password = ""
        self.config: Config
        self._children: list[tuple[str, subprocess.Popen[str]]] = []

    # -- set-up ------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the directory on the first use; give every process a free port; make sure of the first user."""
        first = not self.file.exists()
        if first:
            self.ptt(
                "init", str(self.directory), "--domain", self.domain, "--hostname", f"mail.{self.domain}", config=False
            )
        self._write_configuration()
        self.config = load(self.file)
        secret = self.directory / "first-user.password"
        if secret.exists():
            self.password = secret.read_text(encoding="ascii").strip()
        else:
            self.password = secrets.token_hex(10)  # no character that a shell or an option parser minds
            self.ptt("user", "add", self.user, "--password-stdin", stdin=self.password + "\n")
            descriptor = os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="ascii") as f:
                f.write(self.password + "\n")

    def _write_configuration(self) -> None:
        """Point the service at the sandbox's own DNS server and sink; replace ports that are taken."""
        document: Any = tomlkit.parse(self.file.read_text(encoding="utf-8"))
        self.adapt(document)
        self.file.write_text(tomlkit.dumps(document), encoding="utf-8")

    def adapt(self, document: Any) -> None:
        """Change the configuration that ``ptt init`` wrote (a tomlkit document)."""
        for listen in document["listen"]:
            listen["address"] = self._usable(str(listen["address"]))
        admin = document.setdefault("admin", tomlkit.table())
        admin["listen"] = self._usable(str(admin.get("listen", "127.0.0.1:8025")))
        self.dns_port = free_port(socket.SOCK_DGRAM)
        dns_table = document.setdefault("dns", tomlkit.table())
        dns_table["resolvers"] = [f"127.0.0.1:{self.dns_port}"]
        dns_table["retry_seconds"] = 0.5
        dns_table["authority_port"] = self.dns_port
        zone = tomlkit.inline_table()
        zone.update({"name": self.domain, "primary": f"127.0.0.1:{self.dns_port}", "key_file": "tsig.key"})
        zones = tomlkit.array()
        zones.append(zone)
        dns_table["zones"] = zones
        relay = document.setdefault("relay", tomlkit.table())
        relay["mx_port"] = free_port()
        relay["allow_private"] = True
        retry = relay.setdefault("retry", tomlkit.table())
        retry["first_seconds"] = self.retry_seconds

    def _usable(self, address: str) -> str:
        if not self.usual_ports:
            return f"127.0.0.1:{free_port()}"
        if _is_free(address):
            return address
        replacement = f"127.0.0.1:{free_port()}"
        self.replaced.append((address, replacement))
        return replacement

    def ptt(self, *words: str, stdin: str = "", config: bool = True) -> str:
        """Run a ``ptt`` command with the sandbox's configuration; its output. Raises SandboxError when it fails."""
        command = [sys.executable, "-P", "-m", "ptt", *words]
        if config:
            command += ["--config", str(self.file)]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            raise SandboxError(f"ptt {words[0]}: {(done.stderr or done.stdout).strip()}")
        return done.stdout

    # -- processes -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the DNS server, the sink and the service; return when all are ready. Raises SandboxError."""
        self.spawn_stand_ins()
        self.start_service()

    def spawn_stand_ins(self, store: bool = True) -> None:
        """Start the DNS server and the sink, which keeps what it gets if ``store``."""
        self.sunk.mkdir(exist_ok=True)
        key = str(self.directory / "tsig.key")
        dns_command = ["ptt.dns.server", "--listen", f"127.0.0.1:{self.dns_port}", "--zone", self.domain]
        self._spawn("dns", [*dns_command, "--key", key, "--wildcard-mx", MX_HOST], "dns: ready")
        self.spawn_sink(*self.sink_options, *(["--store", str(self.sunk)] if store else []))

    def spawn_sink(self, *options: str) -> None:
        """Start the sink, in place of one that runs, with options of ``ptt sink``."""
        self._end("sink")
        certificate = ["--certificate", self.config.tls.public_certificate, "--key", self.config.tls.public_key]
        command = ["ptt", "sink", "--listen", f"127.0.0.1:{self.config.relay.mx_port}", *certificate]
        self._spawn("sink", [*command, *options], "sink: ready")

    def start_service(self) -> None:
        self._spawn(
            "service",
            ["ptt.service.supervisor", "--config", str(self.file), "--pool", str(self.pool)],
            "ptt: ready",
        )

    def restart_service(self) -> None:
        """Start the service again: after its supervisor died, or after it was ended here."""
        self._end("service")
        self.start_service()

    def _spawn(self, name: str, command: list[str], ready: str) -> None:
        with open(self.log if name == "service" else self.directory / f"{name}.log", "a", encoding="utf-8") as log:
            child = subprocess.Popen(
                [sys.executable, "-P", "-m", *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                process_group=0,  # Ctrl-C is ours to hand on, in order
            )
        self._children.append((name, child))
        assert child.stdout is not None  # noqa: S101  (PIPE above)
        watchdog = time.monotonic() + START_SECONDS
        for line in child.stdout:
            if line.strip() == ready:
                return
            if time.monotonic() > watchdog:
                break
        raise SandboxError(f"{name} did not start; see {log.name}")

    def pid_of(self, name: str) -> int:
        return next(child.pid for known, child in reversed(self._children) if known == name)

    def ended(self) -> str | None:
        """The name of a process that has ended by itself, or None."""
        return next((name for name, child in self._children if child.poll() is not None), None)

    def stop(self) -> None:
        """End the processes, the service first so that it can drain."""
        for name, _child in reversed(self._children.copy()):
            self._end(name)

    def _end(self, name: str) -> None:
        for entry in [c for c in self._children if c[0] == name]:
            child = entry[1]
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
                try:
                    child.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()
            if child.stdout:
                child.stdout.close()
            self._children.remove(entry)

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # -- use -------------------------------------------------------------------------------------------------------

    def address(self, service: str, tls: str) -> tuple[str, int]:
        """Where the listener of that kind listens."""
        for listen in self.config.listen:
            if listen.service == service and listen.tls == tls:
                return split_address(listen.address)
        raise SandboxError(f"the configuration has no {service} listener with tls = {tls}")

    def client(self) -> smtplib.SMTP_SSL:
        """A logged-in client on the implicit-TLS submission port, its certificate verified."""
        host, port = self.address("submission", "implicit")
        context = ssl.create_default_context(cafile=self.config.tls.internal_ca)
        client = smtplib.SMTP_SSL(host, port, timeout=60, context=context)
        client.login(self.user, self.password)
        return client

    def txt(self, name: bytes, timeout: float = 5) -> bytes | None:
        """A TXT record as the sandbox's DNS serves it (the form that dkimpy asks for)."""
        query = dns.message.make_query(name.decode().rstrip("."), dns.rdatatype.TXT)
        try:
            answer = dns.query.tcp(query, "127.0.0.1", timeout=timeout, port=self.dns_port)
        except (OSError, dns.exception.DNSException):
            return None
        for rrset in answer.answer:
            for record in rrset:
                return b"".join(record.strings)
        return None

    def log_lines(self, shown_id: str | None = None) -> Iterator[dict[str, Any]]:
        """The service's log as it is now, of one message or of all."""
        with open(self.log, encoding="utf-8", errors="replace") as f:
            for line in f:
                if shown_id is not None and shown_id not in line:
                    continue
                try:
                    yield json.loads(line)
                except ValueError:  # something below us wrote to standard error
                    continue

    def delivered(self) -> Iterator[dict[str, Any]]:
        """What the sink has received: its index, one entry a message."""
        index = self.sunk / "index.jsonl"
        if index.exists():
            with open(index, encoding="utf-8") as f:
                for line in f:
                    if line.endswith("\n"):
                        yield json.loads(line)
