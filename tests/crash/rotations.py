"""``kill -9`` of the control process at random instants of a rotation, with BIND as the zone's primary.

    python tests/crash/rotations.py --kills 25 [--seed N] [--json]

Each round begins a rotation, kills the control process (and at times the key process too) while it goes on, and waits
for its end. Then there is one key of each kind, on disk, in DNS and in use; the zone, read by transfer, holds its
record and marker and no others; and a message that waited meanwhile arrives with its signature.
"""

import argparse
import contextlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import dkim
import dns.exception
import dns.query
import dns.rdatatype
import dns.zone
import tomlkit

from ptt.cli.sandbox import DOMAIN, Sandbox
from ptt.net.rpc import RpcClient, RpcError
from ptt.signer.rotation import book_path, read_book
from ptt.signer.state import public_keys, read_state, state_path

CANNOT = 77  # exit code: this machine has no BIND
PATH = os.environ.get("PATH", "") + os.pathsep + "/usr/sbin"
END_SECONDS = 60.0
LONGEST = 3.0  # a rotation because of a compromise takes two to three seconds
LOOK_SECONDS = 0.5  # by then every worker knows which keys are out of use
AGAIN = 5  # kills after which the service is started afresh: the supervisor waits longer after each death
SELECTOR = re.compile(rb"^DKIM-Signature:(?:.|\r\n[ \t])*?\bs=([^;\s]+)", re.M)

NAMED = """
options {{
    directory "{directory}"; pid-file none; session-keyfile none; lock-file none;
    listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }};
    recursion no; dnssec-validation no; notify no; allow-transfer {{ 127.0.0.1; }};
}};
controls {{ }};
include "{directory}/tsig.key";
zone "." {{ type primary; file "{directory}/root.zone"; }};
zone "{domain}" {{
    type primary; file "{directory}/own.zone";
    update-policy {{ grant ptt wildcard *._domainkey.{domain}. TXT; }};
}};
"""
SOA = "$TTL 1\n@ IN SOA ns.sink.example. hostmaster.sink.example. 1 3600 600 86400 1\n@ IN NS ns.sink.example.\n"
ROOT = SOA + "ns.sink.example. IN A 127.0.0.1\nmx.sink.example. IN A 127.0.0.1\n* IN MX 10 mx.sink.example.\n"


class Service(Sandbox):
    """The sandbox, with BIND in place of the demonstration's DNS server."""

    def adapt(self, document: Any) -> None:
        super().adapt(document)
        document["dns"]["zones"][0]["ttl"] = 1  # for a step "retire" of little more than a minute
        document.setdefault("queue", tomlkit.table())["max_age_seconds"] = 30

    def spawn_stand_ins(self, store: bool = True) -> None:
        self.sunk.mkdir(exist_ok=True)
        directory = self.directory / "named"
        directory.mkdir(exist_ok=True)
        key = self.directory / "tsig.key"  # of the control process; written in place it stays so
        keygen = [str(shutil.which("tsig-keygen", path=PATH)), "-a", "hmac-sha256", "ptt"]
        key.write_text(subprocess.run(keygen, capture_output=True, text=True, check=True).stdout)
        shutil.copy(key, directory)  # named gives up root's right to read what is another user's
        (directory / "root.zone").write_text(ROOT)
        (directory / "own.zone").write_text(SOA)
        conf = directory / "named.conf"
        conf.write_text(NAMED.format(directory=directory, port=self.dns_port, domain=DOMAIN))
        with open(directory / "log", "ab") as log:
            command = [str(shutil.which("named", path=PATH)), "-g", "-n", "1", "-c", str(conf)]
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, text=True)
        self._children.append(("dns", child))
        wait(lambda: self.zone() is not None, "BIND answers")
        self.spawn_sink("--store", str(self.sunk))

    def zone(self) -> set[str] | None:
        """The TXT names of the zone, by transfer; None: not to be had."""
        try:
            transfer = dns.query.xfr("127.0.0.1", DOMAIN, port=self.dns_port, timeout=5)
            zone = dns.zone.from_xfr(transfer, check_origin=False)
        except (OSError, EOFError, dns.exception.DNSException):
            return None
        return {str(name) for name, node in zone.items() if node.get_rdataset(zone.rdclass, dns.rdatatype.TXT)}

    def pids(self, kind: str) -> list[int]:
        with contextlib.suppress(OSError, ValueError):
            found = json.loads((pathlib.Path(self.config.run) / "supervisor.json").read_text())["processes"]
            return [process["pid"] for process in found if process["kind"] == kind and process["pid"]]
        return []

    def kill(self, kind: str) -> int:
        """How many it were."""
        for pid in self.pids(kind):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                return 1
        return 0

    def rotate(self, now: bool) -> None:
        """As ``ptt dkim rotate``, asked again until there is an answer."""

        def ask() -> bool:
            client = RpcClient(os.path.join(self.config.run, "control.sock"), 5)
            try:
                client.call("rotate", [DOMAIN, now])
            except RpcError:
                return False
            finally:
                client.close()
            return True

        wait(ask, "the rotation begins")


def wait(condition: Callable[[], object], what: str, seconds: float = END_SECONDS) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.02)


def settled(service: Service) -> list[str]:
    """What is wrong at the end of a rotation; []: nothing."""
    keys = public_keys(service.config.signer.public, DOMAIN)
    selectors = {key.selector for key in keys}
    found = []
    if read_book(book_path(service.config)).rotations:
        found.append("the rotation is not done")
    if sorted(key.algorithm for key in keys) != ["ed25519", "rsa2048"]:
        found.append(f"keys {sorted(selectors)}")
    states = read_state(state_path(service.config))
    if {s.selector for s in states if s.served and not s.retired} != selectors or len(states) != len(selectors):
        found.append(f"states {[(s.selector, s.served, s.why) for s in states]}")
    files = {p.name for p in pathlib.Path(service.config.signer.keys, DOMAIN).iterdir()}
    if files != {f"{selector}.pem" for selector in selectors}:
        found.append(f"private files {sorted(files)}")
    published = {f"{mark}{selector}._domainkey" for selector in selectors for mark in ("", "_ptt.")}
    if (zone := service.zone()) != published:
        found.append(f"records {sorted(zone or ())}")
    return found


def submit(service: Service, token: str) -> None:
    client = service.client()
    client.mail(service.user)
    client.rcpt("x@dest.test")
    code, text = client.data(f"From: <{service.user}>\r\nSubject: {token}\r\n\r\nhello\r\n".encode())
    client.quit()
    if code != 250:
        raise AssertionError(f"refused: {code} {text!r}")


def arrived(service: Service, token: str) -> bytes:
    for entry in service.delivered():
        raw = (service.sunk / entry["file"]).read_bytes()
        if f"\r\nSubject: {token}\r\n".encode() in raw:
            return raw
    return b""


def one_round(service: Service, rng: random.Random, number: int, kills: int, now: bool) -> int:
    """Begin, kill, wait for the end, look. How often something was killed."""
    before = {key.selector for key in public_keys(service.config.signer.public, DOMAIN)}
    began = read_began(service)
    service.rotate(now)
    killed = 0
    for _ in range(kills):
        time.sleep(rng.uniform(0, LONGEST))
        killed += service.kill("control")
        if rng.random() < 0.2:
            service.kill("signer")
    time.sleep(LOOK_SECONDS)
    token = f"round {number} {began}"
    submit(service, token)
    wait(lambda: not settled(service), f"round {number}", END_SECONDS * (1 if now else 4))
    after = {key.selector for key in public_keys(service.config.signer.public, DOMAIN)}
    if before & after:
        raise AssertionError(f"round {number}: {sorted(before & after)} are still there")
    wait(lambda: arrived(service, token), f"the message of round {number}")
    raw = arrived(service, token)
    used = {selector.decode() for selector in SELECTOR.findall(raw)}
    if not used or not used <= (after if now else before | after):  # RSA alone, while Ed25519 is not yet to be seen
        raise AssertionError(f"round {number}: signed with {sorted(used)}, the keys are {sorted(after)}")
    if used <= after and not dkim.DKIM(raw).verify(0, dnsfunc=service.txt):  # RSA; dkimpy alone knows no Ed25519
        raise AssertionError(f"round {number}: the signature does not verify")
    return killed


def read_began(service: Service) -> int:
    return sum(line.get("event") == "DKIM rotation begun" for line in service.log_lines())


def run(service: Service, options: argparse.Namespace) -> dict[str, Any]:
    rng = random.Random(options.seed)
    service.prepare()
    service.ptt("dkim", "keygen", "--domain", DOMAIN, "--algorithm", "ed25519", "--selector", "first-ed")
    service.start()
    wait(lambda: not settled(service), "the first keys")
    killed = rounds = 0
    while killed < options.kills:
        if rounds and rounds % AGAIN == 0:
            service.restart_service()
        rounds += 1
        killed += one_round(service, rng, rounds, 1, now=True)
    if options.by_age:
        service.restart_service()
        rounds += 1
        killed += one_round(service, rng, rounds, AGAIN, now=False)
    drifted = sum(line.get("event") == "DKIM record drifted" for line in service.log_lines())
    return {"control_kills": killed, "rotations": rounds, "drifts": drifted, "seed": options.seed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--by-age", action="store_true", help="and a rotation with all its steps, some 70 s")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not all(shutil.which(program, path=PATH) for program in ("named", "tsig-keygen")):
        sys.stderr.write("BIND is not installed\n")
        sys.exit(CANNOT)
    print(f"seed {options.seed}", file=sys.stderr, flush=True)
    directory = pathlib.Path(tempfile.mkdtemp(prefix="ptt"))
    directory.chmod(0o755)
    service = Service(directory / "service", retry_seconds=0.5)
    try:
        with service:
            result = run(service, options)
    except AssertionError as e:
        print(f"{e}\nleft for you to look at: {directory}", file=sys.stderr)
        with contextlib.suppress(OSError, AttributeError):
            print("\n".join(settled(service)), file=sys.stderr)
        sys.exit(1)
    shutil.rmtree(directory)
    print(json.dumps(result) if options.json else "\n".join(f"{k}: {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
