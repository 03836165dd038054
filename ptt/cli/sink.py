"""``ptt sink``: an SMTP server that takes everything, or defers, rejects, stalls or cuts a share of it.

A stand-in for the recipients' MX in ``make run``, ``ptt demo`` and the load tests. It stores what it is given when told
to, and keeps no promise: no sync, no queue.
"""

from __future__ import annotations

import json
import pathlib
import random
import signal
import ssl
import sys
import time
from typing import Any

import click
import gevent
import gevent.event
from gevent import socket
from gevent.server import StreamServer

from ptt.config import split_address
from ptt.net.stream import MAX_READ, GeventStream, Stream, StreamError, show_address
from ptt.net.tls import server_context
from ptt.smtp.config import ServerConfig
from ptt.smtp.events import NEED_DATA, Closed, MailFrom, MessageComplete, RcptTo, StartTls
from ptt.smtp.reply import Reply
from ptt.smtp.server import ServerSession

TIMEOUT = 300.0
STALL_SECONDS = 3600.0
BACKLOG = 1024

DEFERRED = Reply(451, "4.7.1", "the sink defers this one")
REJECTED = Reply(550, "5.7.1", "the sink rejects this one")


class Sink:
    """Counts and stores. ``shares``: per cent of the messages to "defer", "reject", "stall", "cut" and "slow"."""

    def __init__(
        self, store: pathlib.Path | None, shares: dict[str, float], rng: random.Random, slow_seconds: float = 5.0
    ) -> None:
        self.slow_seconds = slow_seconds
        self.store = store
        self.shares = shares
        self.rng = rng
        self.messages = 0
        self.serial = 0
        self.index = None
        if store is not None:
            store.mkdir(parents=True, exist_ok=True)
            self.index = open(store / "index.jsonl", "a", encoding="utf-8")  # noqa: SIM115  (kept open)
            self.serial = sum(1 for _ in store.glob("*.eml"))

    def verdict(self) -> str:
        """What is done with the next message: "" takes it."""
        draw = self.rng.uniform(0, 100)
        for what, share in self.shares.items():
            if draw < share:
                return what
            draw -= share
        return ""

    def take(self, sender: str, recipients: list[str], content: bytes, tls: str) -> None:
        self.messages += 1
        self.serial += 1
        if self.store is None or self.index is None:
            return
        file = f"{self.serial:08d}.eml"
        (self.store / file).write_bytes(content)
        entry: dict[str, Any] = {"file": file, "sender": sender, "recipients": recipients, "tls": tls}
        self.index.write(json.dumps({**entry, "size": len(content), "time": time.time()}) + "\n")
        self.index.flush()


class SinkSession:
    """One connection."""

    def __init__(self, sink: Sink, stream: Stream, config: ServerConfig, context: ssl.SSLContext | None) -> None:
        self.sink, self.stream, self.context = sink, stream, context
        self.smtp = ServerSession(config)
        self.sender = ""
        self.recipients: list[str] = []

    def serve(self) -> None:
        try:
            self._run()
        except StreamError:
            pass
        finally:
            self.stream.close()

    def _run(self) -> None:
        smtp = self.smtp
        while True:
            event = smtp.next_event()
            if event is NEED_DATA:
                self._flush()
                smtp.receive_data(self.stream.read(MAX_READ, TIMEOUT))
            elif isinstance(event, Closed):
                self._flush()
                return
            elif isinstance(event, StartTls):
                self._flush()
                if self.context is None:
                    raise RuntimeError("STARTTLS without a certificate")
                self.stream = self.stream.start_tls(self.context, TIMEOUT, server_side=True)
                smtp.tls_started()
            elif isinstance(event, MessageComplete):
                if not self._message(b"".join(event.chunks)):
                    return
            else:
                if isinstance(event, MailFrom):
                    self.sender, self.recipients = event.address, []
                elif isinstance(event, RcptTo):
                    self.recipients.append(event.address)
                smtp.accept()

    def _message(self, content: bytes) -> bool:
        """Answer the final dot. False: the connection is to be cut."""
        verdict = self.sink.verdict()
        if verdict == "cut":
            return False
        if verdict == "stall":
            gevent.sleep(STALL_SECONDS)
        if verdict == "slow":
            gevent.sleep(self.sink.slow_seconds)
        if verdict == "defer":
            self.smtp.refuse(DEFERRED)
        elif verdict == "reject":
            self.smtp.refuse(REJECTED)
        else:
            info = self.stream.tls()
            self.sink.take(self.sender, self.recipients, content, info.version if info else "")
            self.smtp.accept()
        return True

    def _flush(self) -> None:
        if out := self.smtp.data_to_send():
            self.stream.write(out, TIMEOUT)


def bind(address: str) -> socket.socket:
    host, port = split_address(address)
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    sock.listen(BACKLOG)
    sock.setblocking(False)
    return sock


_PERCENT = click.FloatRange(0, 100)


@click.command()
@click.option("--listen", required=True, metavar="HOST:PORT")
@click.option("--store", type=click.Path(path_type=pathlib.Path), help="directory for what arrives")
@click.option("--certificate", help="PEM file; with --key the sink offers STARTTLS")
@click.option("--key", help="PEM file")
@click.option("--defer", default=0.0, type=_PERCENT, help="per cent of the messages answered 451")
@click.option("--reject", default=0.0, type=_PERCENT, help="per cent answered 550")
@click.option("--stall", default=0.0, type=_PERCENT, help="per cent never answered")
@click.option("--cut", default=0.0, type=_PERCENT, help="per cent whose connection is cut after the final dot")
@click.option("--slow", default=0.0, type=_PERCENT, help="per cent that are answered late, and taken")
@click.option("--slow-seconds", default=5.0, type=click.FloatRange(0, STALL_SECONDS), help="how late")
@click.option("--seed", type=int, help="of the draws")
def sink(
    listen: str,
    store: pathlib.Path | None,
    certificate: str | None,
    key: str | None,
    defer: float,
    reject: float,
    stall: float,
    cut: float,
    slow: float,
    slow_seconds: float,
    seed: int | None,
) -> None:
    """An SMTP sink that takes everything, or can be told to defer, reject, stall, cut or be slow."""
    if bool(certificate) != bool(key):
        raise click.UsageError("--certificate and --key go together")
    try:
        split_address(listen)
    except ValueError as e:
        raise click.UsageError(f"--listen: {e}") from e
    try:
        context = server_context(certificate, key) if certificate and key else None
    except OSError as e:
        raise click.ClickException(f"{certificate}, {key}: {e.strerror or e}") from e
    config = ServerConfig("sink.example", "ESMTP sink", max_message_bytes=1 << 30, starttls=context is not None)
    shares = {"defer": defer, "reject": reject, "stall": stall, "cut": cut, "slow": slow}
    taker = Sink(store, shares, random.Random(seed), slow_seconds)  # noqa: S311  (draws, not secrets)

    def connected(sock: socket.socket, address: tuple[str, int]) -> None:
        stream = GeventStream(sock, show_address(address[0], address[1]))
        SinkSession(taker, stream, config, context).serve()

    try:
        server = StreamServer(bind(listen), connected)
    except OSError as e:
        raise click.ClickException(f"{listen}: {e.strerror or e}") from e
    server.start()
    stopped = gevent.event.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, stopped.set)
    click.echo("sink: ready")
    sys.stdout.flush()
    stopped.wait()
    server.stop(timeout=1)
    click.echo(f"sink: {taker.messages} messages")
