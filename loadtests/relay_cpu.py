"""What one delivery costs the relay in CPU, beside DNS: a 4 KiB message to a plain next hop in another process.

    python loadtests/relay_cpu.py [messages]

Prints CPU microseconds per message with a connection for each message, and with connections kept open; both with
20 deliveries at once and one log line each (written to /dev/null).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

import gevent
import gevent.pool
from gevent import socket

from ptt.config import Config
from ptt.config import Relay as Settings
from ptt.dns.resolver import Answer
from ptt.log import Log
from ptt.message import Envelope, Recipient
from ptt.metrics import Counters
from ptt.relay.delivery import Relay

AT_ONCE = 20
BODY = b"From: a@example.com\r\nSubject: x\r\n\r\n" + b"0123456789 0123456789 0123456789 0123456789 01\r\n" * 85


def peer() -> None:
    """An SMTP server that answers what a pipelining client needs, and prints its port."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(512)
    print(listener.getsockname()[1], flush=True)
    while True:
        gevent.spawn(serve, listener.accept()[0])


def serve(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(b"220 peer ESMTP\r\n")
    data, content = b"", False
    while more := sock.recv(65536):
        data += more
        answer = []
        while (end := data.find(b"\r\n.\r\n" if content else b"\r\n")) >= 0:
            line, data = data[:end], data[end + (5 if content else 2) :]
            if content:
                content = False
                answer.append(b"250 2.0.0 Ok: queued as 4AbCdEf\r\n")
            elif line == b"DATA":
                content = True
                answer.append(b"354 End data with <CR><LF>.<CR><LF>\r\n")
            elif line == b"QUIT":
                sock.sendall(b"221 2.0.0 Bye\r\n")
                sock.close()
                return
            elif line.startswith(b"EHLO"):
                answer.append(b"250-peer\r\n250-PIPELINING\r\n250-SIZE 10240000\r\n250-8BITMIME\r\n250 DSN\r\n")
            else:
                answer.append(b"250 2.1.0 Ok\r\n")
        if answer:
            sock.sendall(b"".join(answer))
    sock.close()


class Nothing:
    """DNS that costs nothing."""

    def mx(self, name: str) -> list[tuple[int, str]]:
        return [(10, "peer.example")]

    def addresses(self, host: str) -> list[str]:
        return ["127.0.0.1"]

    addresses_early = addresses

    def txt(self, name: str) -> list[bytes]:
        return []

    def ask_txt(self, name: str) -> None:
        pass

    def answer(self, name: str, rdtype: object) -> Answer:
        return Answer([], False)


def measure(port: int, messages: int, per_connection: int) -> float:
    settings = Settings(mx_port=port, allow_private=True, messages_per_connection=per_connection)
    log = Log("bench", fd=os.open(os.devnull, os.O_WRONLY))
    relay = Relay(Config(hostname="bench.example", relay=settings), Nothing(), log, Counters())
    envelope = Envelope("a@example.com", 0, eightbit=True)
    pool = gevent.pool.Pool(AT_ONCE)
    delivered = []

    def one() -> None:
        outcomes = relay.deliver("example.org", envelope, "id", [(1, Recipient("b@example.org"))], [BODY], int)
        delivered.append(outcomes[1])

    began = time.process_time()
    for _ in range(messages):
        pool.spawn(one)
    pool.join()
    spent = time.process_time() - began
    relay.close()
    if len(delivered) != messages or any(type(o).__name__ != "Delivered" for o in delivered):
        raise SystemExit(f"not all were delivered: {delivered[:3]}")
    return spent / messages * 1e6


def main() -> None:
    if sys.argv[1:] == ["--peer"]:
        peer()
    messages = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    process = subprocess.Popen([sys.executable, __file__, "--peer"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        measure(port, 200, 1)
        print(f"a connection per message: {measure(port, messages, 1):.0f} us CPU a message")
        print(f"connections kept open:    {measure(port, messages, 1000):.0f} us CPU a message")
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
