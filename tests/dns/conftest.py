"""Zones with two name servers: BIND or Knot as primary, and a secondary (Knot) that lags until it is told."""

from __future__ import annotations

import contextlib
import pathlib
import subprocess
from collections.abc import Callable, Iterator

import dns.exception
import dns.flags
import dns.message
import dns.opcode
import dns.query
import dns.rcode
import dns.rdatatype
import pytest
from peer_programs import Program, need, wait_until

from ptt.dns.update import ALGORITHMS, TsigKey

ZONE = "example.test"
FIRST, SECOND = "127.0.0.1", "127.0.0.2"

ZONE_FILE = f"""$ORIGIN {ZONE}.
$TTL 1
@ IN SOA ns1 hostmaster 1 3600 600 86400 1
@ IN NS ns1
@ IN NS ns2
ns1 IN A {FIRST}
ns2 IN A {SECOND}
@ IN TXT "other=1"
@ IN TXT "other=2"
mail IN A 127.0.0.1
foreign._domainkey IN TXT "v=DKIM1; p=THEIRS"
alias._domainkey.customer IN CNAME target._domainkey
"""
OPTIONS = """
options {{
    directory "{directory}"; pid-file none; session-keyfile none; lock-file none;
    listen-on port {port} {{ {address}; }}; listen-on-v6 {{ none; }};
    recursion no; dnssec-validation no; notify no; allow-transfer {{ 127.0.0.0/8; }};
}};
controls {{ }};
"""
BIND_PRIMARY = """
zone "{zone}" {{
    type primary; file "{directory}/primary.zone";
    update-policy {{ {grants} }};
}};
"""
GRANTS = """grant "{key}" wildcard *._domainkey.{zone}. TXT; grant "{key}" name {zone}. TXT;
    grant "{key}" name _ptt.{zone}. TXT; grant "{key}" subdomain _dmarc.{zone}. TXT;
    grant "{key}" name _ptt._dmarc.{zone}. TXT; """
SECONDARY = """
server:
    rundir: "{directory}/second"
    listen: {second}@{port}
log:
  - target: stderr
    any: info
database:
    storage: "{directory}/second"
remote:
  - id: first
    address: {first}@{port}
acl:
  - id: notify
    address: 127.0.0.0/8
    action: notify
zone:
  - domain: {zone}
    storage: "{directory}/second"
    zonefile-sync: -1
    journal-content: all
    master: first
    acl: notify
"""
KNOT = """
server:
    rundir: "{directory}"
    listen: {first}@{port}
log:
  - target: stderr
    any: info
database:
    storage: "{directory}"
{keys}
acl:
  - id: update
    key: [{names}]
    action: update
    update-type: [TXT]
    update-owner: name
    update-owner-match: sub
    update-owner-name: [_domainkey]
  - id: policies
    key: [{names}]
    action: update
    update-type: [TXT]
    update-owner: name
    update-owner-match: equal
    update-owner-name: [{zone}., _ptt, _dmarc, _ptt._dmarc]
  - id: transfer
    address: 127.0.0.0/8
    action: transfer
zone:
  - domain: {zone}
    file: "{directory}/primary.zone"
    storage: "{directory}"
    zonefile-sync: -1
    zonefile-load: difference-no-serial
    journal-content: all
    acl: [update, policies, transfer]
"""


class Fleet:
    """A primary at 127.0.0.1 and a secondary at 127.0.0.2, on one port. ``keys``: TSIG key file by algorithm."""

    def __init__(self, kind: str, directory: pathlib.Path, port: int) -> None:
        self.kind, self.directory, self.port = kind, directory, port
        self.primary, self.secondary = f"{FIRST}:{port}", f"{SECOND}:{port}"
        self.keys = {algorithm: str(directory / f"{algorithm}.key") for algorithm in ALGORITHMS}
        self.key_file = self.keys["hmac-sha256"]
        for algorithm, file in self.keys.items():
            command = [need("tsig-keygen"), "-a", algorithm, f"ptt-{algorithm}"]
            text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            pathlib.Path(file).touch(0o600)
            pathlib.Path(file).write_text(text)
        (directory / "primary.zone").write_text(ZONE_FILE)
        self._first = self._bind_primary() if kind == "bind" else self._knot_primary()
        self._second = self._secondary()
        self.start()

    def start(self) -> None:
        self._first.start()
        try:
            self._second.start()
        except BaseException:
            self._first.stop()
            raise

    def stop(self) -> None:
        self._second.stop()
        self._first.stop()

    def stop_secondary(self) -> None:
        self._second.stop()

    def start_secondary(self) -> None:
        self._second.start()

    def transfer(self) -> None:
        """Let the secondary take over what the primary has: the NOTIFY that the primary does not send."""
        wait_until(self._transferred, "the transfer to the secondary")

    def _transferred(self) -> bool:
        if self.serial(FIRST) == self.serial(SECOND):
            return True
        notify = dns.message.make_query(ZONE, "SOA", flags=dns.flags.AA)
        notify.set_opcode(dns.opcode.NOTIFY)
        with contextlib.suppress(dns.exception.DNSException, OSError):
            dns.query.udp(notify, SECOND, 1, self.port, source=FIRST)
        return False

    def serial(self, address: str) -> int:
        try:
            answer = dns.query.tcp(dns.message.make_query(ZONE, "SOA"), address, 1, self.port)
        except (OSError, EOFError, dns.exception.DNSException):
            return -1
        found = [rrset for rrset in answer.answer if rrset.rdtype == dns.rdatatype.SOA]
        return int(found[0][0].serial) if answer.rcode() == dns.rcode.NOERROR and found else -1

    def _bind_primary(self) -> Program:
        grants = "".join(GRANTS.format(key=f"ptt-{algorithm}", zone=ZONE) for algorithm in ALGORITHMS)
        includes = "".join(f'include "{file}";\n' for file in self.keys.values())
        text = includes + OPTIONS.format(directory=self.directory, port=self.port, address=FIRST)
        text += BIND_PRIMARY.format(zone=ZONE, directory=self.directory, grants=grants)
        return self._program("named", "primary.conf", text, "-g -n 1 -c", lambda: self.serial(FIRST) > 0)

    def _knot_primary(self) -> Program:
        loaded = [TsigKey.load(file) for file in self.keys.values()]
        keys = "key:\n"
        for file, key in zip(self.keys.values(), loaded, strict=True):
            secret = pathlib.Path(file).read_text().split('secret "')[1].split('"')[0]
            keys += f'  - id: {key.name}\n    algorithm: {key.algorithm}\n    secret: "{secret}"\n'
        names = ", ".join(key.name for key in loaded)
        fields = {"directory": self.directory, "port": self.port, "first": FIRST, "zone": ZONE}
        text = KNOT.format(keys=keys, names=names, **fields)
        return self._program("knotd", "knot.conf", text, "-c", lambda: self.serial(FIRST) > 0)

    def _secondary(self) -> Program:
        (self.directory / "second").mkdir()
        fields = {"first": FIRST, "second": SECOND, "port": self.port, "directory": self.directory, "zone": ZONE}
        text = SECONDARY.format(**fields)
        return self._program("knotd", "second.conf", text, "-c", lambda: self.serial(SECOND) > 0)

    def _program(self, binary: str, file: str, text: str, options: str, ready: Callable[[], bool]) -> Program:
        (self.directory / file).write_text(text)
        command = [need(binary), *options.split(), str(self.directory / file)]
        return Program(command, self.directory / f"{file}.log", ready)


@pytest.fixture(scope="session", params=["bind", "knot"])
def fleet(
    request: pytest.FixtureRequest, peer_dir: Callable[[str], pathlib.Path], free_port: Callable[[], int]
) -> Iterator[Fleet]:
    """The zone ``example.test`` at two servers; the secondary lags until ``transfer()``."""
    need("named")
    need("knotd")
    made = Fleet(request.param, peer_dir("fleet"), free_port())
    yield made
    made.stop()
