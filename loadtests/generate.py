"""A load generator: submits messages over SMTP as fast as it can, with a message per connection or kept open.

    python loadtests/generate.py --to HOST:PORT --messages N [--size B] [--sessions S] [--keep]
        [--recipient-domains D] [--tls implicit --ca FILE --user NAME --password-file FILE]

Prints one JSON object: accepted, refused, seconds, messages_per_second, latency percentiles (end of data to 250).
Built on ``ptt.smtp`` and ``ptt.net``; run it as a process of its own.
"""

import argparse
import json
import pathlib
import ssl
import sys
import time

import gevent
import gevent.pool

from ptt.config import split_address
from ptt.net.stream import MAX_READ, StreamError, connect
from ptt.smtp import NEED_DATA, AuthDone, Closed, FinalDot, MessageDone, ProtocolError, Ready
from ptt.smtp.client import ClientSession
from ptt.smtp.sasl import Secret

TIMEOUT = 120.0


class Generator:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.host, self.port = split_address(options.to)
        self.left = options.messages
        self.until = time.monotonic() + options.seconds if options.seconds else float("inf")
        self.accepted = 0
        self.refused = 0
        self.latencies: list[float] = []
        self.context = ssl.create_default_context(cafile=options.ca) if options.tls else None
        self.password = pathlib.Path(options.password_file).read_text().strip() if options.password_file else ""
        line = "The quick brown fox jumps over the lazy dog, and again and again.\r\n"
        head = f"From: <{options.sender}>\r\nTo: <x@dest.example>\r\nSubject: load\r\n"
        head += "Date: Sun, 22 Nov 2026 12:00:00 +0000\r\nMessage-ID: <load@sender.example>\r\n\r\n"
        self.content = (head + line * (options.size // len(line) + 1)).encode()[: len(head) + options.size] + b"\r\n"

    def run(self) -> None:
        pool = gevent.pool.Pool(self.options.sessions)
        for _ in range(self.options.sessions):
            pool.spawn(self.client)
        pool.join()

    def client(self) -> None:
        while self.left > 0 and time.monotonic() < self.until:
            try:
                self.connection()
            except (StreamError, ProtocolError) as e:
                self.refuse(str(e))

    def refuse(self, why: str) -> None:
        self.refused += 1
        if not self.options.quiet:
            print(f"generate: {why}", file=sys.stderr)

    def connection(self) -> None:
        stream = connect(self.host, self.port, TIMEOUT)
        if self.context is not None:
            stream = stream.start_tls(self.context, TIMEOUT, server_side=False, server_hostname=self.host)
        smtp = ClientSession("generator.example", tls=self.context is not None)
        began = 0.0
        try:
            while True:
                event = smtp.next_event()
                if event is NEED_DATA:
                    if out := smtp.data_to_send():
                        stream.write(out, TIMEOUT)
                    smtp.receive_data(stream.read(MAX_READ, TIMEOUT))
                elif isinstance(event, Ready) and self.password and not isinstance(event, AuthDone):
                    smtp.auth(self.options.user, Secret(self.password))
                elif isinstance(event, Ready | AuthDone):
                    if not self.next(smtp):
                        return
                elif isinstance(event, FinalDot):
                    began = time.monotonic()
                elif isinstance(event, MessageDone):
                    self.done(event, began)
                    if not self.options.keep or not self.next(smtp):
                        smtp.quit()
                        stream.write(smtp.data_to_send(), TIMEOUT)
                        return
                elif isinstance(event, Closed):
                    return
        finally:
            stream.close()

    def next(self, smtp: ClientSession) -> bool:
        if self.left <= 0 or time.monotonic() >= self.until:
            return False
        self.left -= 1
        domain = f"dest{self.left % self.options.recipient_domains}.example"
        smtp.send_message(self.options.sender, [f"r{self.left}@{domain}"], [self.content])
        return True

    def done(self, event: MessageDone, began: float) -> None:
        if event.results[0].ok:
            self.accepted += 1
            self.latencies.append(time.monotonic() - began)
        else:
            self.refuse(str(event.results[0].reply))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", required=True)
    parser.add_argument("--messages", type=int, default=1000)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--sessions", type=int, default=50)
    parser.add_argument("--keep", action="store_true", help="many messages a connection")
    parser.add_argument("--recipient-domains", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.0, help="end after this time; 0: after the messages")
    parser.add_argument("--quiet", action="store_true", help="count refusals, do not print them")
    parser.add_argument("--sender", default="bench@sender.example")
    parser.add_argument("--tls", choices=["implicit"])
    parser.add_argument("--ca")
    parser.add_argument("--user", default="")
    parser.add_argument("--password-file")
    options = parser.parse_args()
    generator = Generator(options)
    began = time.monotonic()
    generator.run()
    seconds = time.monotonic() - began
    ordered = sorted(generator.latencies) or [0.0]
    result = {
        "accepted": generator.accepted,
        "refused": generator.refused,
        "seconds": round(seconds, 3),
        "messages_per_second": round(generator.accepted / seconds, 1),
        "latency_p50_ms": round(ordered[len(ordered) // 2] * 1000, 2),
        "latency_p99_ms": round(ordered[int(len(ordered) * 0.99)] * 1000, 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
