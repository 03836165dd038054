"""Do dead and slow sites hold up the others? (As root: the script makes a network namespace of its own.)

    python loadtests/dead_sites.py [--messages 4000] [--dead 200] [--slow 200] [--each 10] [--repeats 3] [--json]

The whole service (pool 2, no signing) gets messages for 20 sites that answer at once: without anything else in the
queue, and with ``--each`` messages for each of the dead sites (their SYN goes into a tunnel that nobody reads) and of
the slow ones (which take ``--delay`` seconds for each reply). Runs without and with are made in turns, each with a
fresh queue. Prints messages per second of the 20 sites, from the first accepted to the last delivered, and the ratio
of the medians.
"""

import argparse
import asyncio
import fcntl
import json
import multiprocessing
import os
import pathlib
import smtplib
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from typing import Any

import dns.message
import dns.rrset

from ptt.cli.sandbox import Sandbox, free_port

HERE = pathlib.Path(__file__).parent
GOOD_SITES = 20
GOOD = "127.88.0.2"  # the address of them all; their names are different, so they are sites of their own
SETTLE_SECONDS = 15.0  # the dead and slow ones are under way before the clock starts
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000


def enter_namespace() -> int:
    """Everything from here on is alone on its network. The descriptor of the tunnel into which SYNs disappear."""
    if os.environ.get("PTT_DEAD_SITES") != "inside":
        os.environ["PTT_DEAD_SITES"] = "inside"
        os.execvp("unshare", ["unshare", "--net", sys.executable, *sys.argv])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    tunnel = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tunnel, TUNSETIFF, struct.pack("16sH", b"nowhere", IFF_TUN | IFF_NO_PI))
    for command in ("ip addr add 10.66.0.1/16 dev nowhere", "ip link set nowhere up"):
        subprocess.run(command.split(), check=True)
    return tunnel


def answer(question: dns.message.Message) -> dns.message.Message:
    """MX of KINDn.example is mx.KINDn.example; its address says which kind it is."""
    reply = dns.message.make_response(question)
    name, kind = question.question[0].name, question.question[0].rdtype
    labels = name.to_text().lower().split(".")
    site = labels[-3] if len(labels) > 2 else ""
    number = int("".join(c for c in site if c.isdigit()) or 0)
    if kind == dns.rdatatype.MX and not labels[0].startswith("mx"):
        reply.answer.append(dns.rrset.from_text(name, 3600, "IN", "MX", f"10 mx.{name}"))
    elif kind == dns.rdatatype.A:
        octets = f"{number // 250}.{number % 250 + 2}"
        address = {"dead": f"10.66.{octets}", "slow": f"127.77.{octets}"}.get(site[:4], GOOD)
        reply.answer.append(dns.rrset.from_text(name, 3600, "IN", "A", address))
    return reply


def serve_dns(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", port))
        while True:
            data, client = sock.recvfrom(4096)
            sock.sendto(answer(dns.message.from_wire(data)).to_wire(), client)


async def slow_session(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
    try:
        await asyncio.sleep(delay)
        writer.write(b"220 slow\r\n")
        while line := await reader.readline():
            word = line[:4].upper()
            await asyncio.sleep(delay)
            if word == b"DATA":
                writer.write(b"354 go on\r\n")
                await reader.readuntil(b"\r\n.\r\n")
                await asyncio.sleep(delay)
            writer.write(b"250 ok\r\n")
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


def serve_slowly(port: int, delay: float) -> None:
    async def main() -> None:
        async def session(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await slow_session(reader, writer, delay)

        async with await asyncio.start_server(session, [f"127.77.0.{n}" for n in range(2, 252)], port) as server:
            await server.serve_forever()

    asyncio.run(main())


class World(Sandbox):
    """The service between our DNS and our hosts. ``port``: of all MXs."""

    resolver = 0
    port = 0

    def adapt(self, document: Any) -> None:
        super().adapt(document)
        for listen in document["listen"]:
            if listen["service"] == "relay":
                listen["tls"] = "none"
                listen["trusted"] = ["127.0.0.0/8"]
        document["dns"]["resolvers"] = [f"127.0.0.1:{self.resolver}"]
        document["relay"].update({"mx_port": self.port, "tls": "none", "mta_sts": False})

    def spawn_sink(self, *options: str) -> None:
        self._spawn("sink", ["ptt", "sink", "--listen", f"{GOOD}:{self.port}", *options], "sink: ready")

    @property
    def relay_address(self) -> str:
        host, port = self.address("relay", "none")
        return f"{host}:{port}"


def burden(world: World, o: argparse.Namespace) -> None:
    """Mail for the dead and the slow sites, accepted."""
    host, _, port = world.relay_address.rpartition(":")
    with smtplib.SMTP(host, int(port), timeout=60) as client:
        for n in range(o.each):
            for kind, count in (("dead", o.dead), ("slow", o.slow)):
                for site in range(count):
                    client.sendmail("bench@sender.example", [f"r{n}@{kind}{site}.example"], "Subject: x\r\n\r\nx\r\n")


def delivered(world: World, offset: int) -> tuple[int, int]:
    """Deliveries to the good sites in the log from ``offset`` on, and where it ends now."""
    with open(world.log, "rb") as log:
        log.seek(offset)
        data = log.read()
    data = data[: data.rfind(b"\n") + 1]
    return sum(b'"dest' in line and b'"attempt"' in line and b'"delivered"' in line for line in data.splitlines()), (
        offset + len(data)
    )


def measure(world: World, o: argparse.Namespace) -> float:
    """Messages per second of the sites that answer."""
    offset, found = world.log.stat().st_size, 0
    command = [sys.executable, str(HERE / "generate.py"), "--to", world.relay_address, "--keep"]
    command += ["--messages", str(o.messages), "--recipient-domains", str(GOOD_SITES)]
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as generator:
        while found < o.messages:
            if time.monotonic() - began > 300:
                raise SystemExit(f"{found} of {o.messages} after 300 s")
            more, offset = delivered(world, offset)
            found += more
            time.sleep(0.05)
        seconds = time.monotonic() - began
        generator.wait(60)
    return o.messages / seconds


def run(o: argparse.Namespace, resolver: int, port: int, burdened: bool) -> float:
    with tempfile.TemporaryDirectory(prefix="ptt-") as directory:
        os.chmod(directory, 0o755)
        world = World(pathlib.Path(directory) / "ptt")
        world.resolver, world.port = resolver, port
        world.prepare()
        try:
            world.spawn_stand_ins(store=False)
            world.start_service()
            if burdened:
                burden(world, o)
                time.sleep(SETTLE_SECONDS)
            measure(world, argparse.Namespace(messages=500))  # caches are filled, widths found
            rate = measure(world, o)
            if burdened:
                found = sum(b"did not answer" in line for line in world.log.read_bytes().splitlines())
                print(f"{found} attempts at dead sites meanwhile", file=sys.stderr)
            return rate
        finally:
            world.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("messages", 4000),
        ("dead", 200),
        ("slow", 200),
        ("each", 10),
        ("repeats", 3),
        ("delay", 30),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", action="store_true")
    o = parser.parse_args()
    tunnel = enter_namespace()
    resolver, port = free_port(socket.SOCK_DGRAM), free_port()
    servers = [
        multiprocessing.Process(target=serve_dns, args=(resolver,), daemon=True),
        multiprocessing.Process(target=serve_slowly, args=(port, o.delay), daemon=True),
    ]
    for server in servers:
        server.start()
    found: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(o.repeats):
        for burdened in (False, True):
            found[burdened].append(round(run(o, resolver, port, burdened), 1))
            print("with" if burdened else "without", found[burdened][-1], file=sys.stderr, flush=True)
    for server in servers:
        server.kill()
    os.close(tunnel)
    ratio = statistics.median(found[True]) / statistics.median(found[False])
    if o.json:
        print(json.dumps({"without": found[False], "with": found[True], "ratio": round(ratio, 3)}))
    else:
        print(f"without {found[False]}, with {found[True]} messages/s: {ratio:.1%}")


if __name__ == "__main__":
    main()
