"""BIND and Unbound, and our own server, each with the same zones."""

from __future__ import annotations

import base64
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator

import dns.exception
import dns.message
import dns.query
import dns.rcode
import dns.update
import pytest
from peer_programs import Program, need

from ptt.dns.update import TsigKey

ZONES = ("example.test", "other.test")
LONG_TEXT = "x" * 250

# The data of all servers. Addresses are loopback: what delivers to a host of these zones stays here.
RECORDS = [
    "example.test. 300 MX 20 mx2.example.test.",
    "example.test. 300 MX 10 mx1.example.test.",
    "example.test. 300 A 127.0.0.1",
    "mx1.example.test. 60 A 127.0.0.1",
    "mx1.example.test. 60 AAAA ::1",
    "mx2.example.test. 60 A 127.0.0.1",
    "null.example.test. 300 MX 0 .",
    "zero.example.test. 0 A 127.0.0.1",
    "short.example.test. 5 A 127.0.0.1",
    "www.example.test. 300 CNAME mx1.example.test.",
    "mail.example.test. 300 CNAME example.test.",
    "gone.example.test. 300 CNAME nowhere.example.test.",
    "away.example.test. 300 CNAME host.other.test.",
    "host.other.test. 300 A 127.0.0.1",
    'two.example.test. 300 TXT "v=DKIM1; p=" "abc"',
    "loop1.other.test. 300 CNAME loop2.other.test.",
    "loop2.other.test. 300 CNAME loop1.other.test.",
    *(f'big.example.test. 300 TXT "{n:03d} {LONG_TEXT}"' for n in range(20)),
    # The domains of end-to-end tests: a recipient's, and one whose mail the tests sign.
    "other.test. 300 MX 10 mx1.example.test.",
]

NAMED_CONF = """
options {{
    directory "{directory}"; pid-file none; session-keyfile none; lock-file none;
    listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }};
    recursion no; dnssec-validation no; notify no; allow-transfer {{ none; }}; minimal-responses no-auth;
}};
controls {{ }};
include "{directory}/ptt.key";
include "{directory}/admin.key";
{zones}
"""
NAMED_ZONE = """
zone "{zone}" {{
    type primary; file "{directory}/{zone}.zone";
    update-policy {{ grant ptt wildcard *._domainkey.{zone}. TXT; grant admin zonesub ANY; }};
}};
"""
ZONE_FILE = """$TTL 60
@ IN SOA ns hostmaster 1 3600 600 86400 5
@ IN NS ns
ns IN A 127.0.0.1
"""
UNBOUND_CONF = """
server:
    interface: 127.0.0.1
    port: {port}
    do-ip6: no
    do-daemonize: no
    username: ""
    chroot: ""
    directory: "{directory}"
    pidfile: ""
    use-syslog: no
    module-config: "iterator"
    do-not-query-localhost: no
    local-zone: "test." nodefault
    num-threads: 1
    cache-max-ttl: 0
remote-control:
    control-enable: no
{stubs}
stub-zone:
    name: "dead.test"
    stub-addr: 127.0.0.1@{lame}
"""


def answers(port: int, zone: str = ZONES[0]) -> bool:
    """Does a server on this port of 127.0.0.1 answer for the zone?"""
    try:
        answer = dns.query.tcp(dns.message.make_query(zone, "SOA"), "127.0.0.1", 0.5, port)
    except (OSError, EOFError, dns.exception.DNSException):
        return False
    return answer.rcode() == dns.rcode.NOERROR and bool(answer.answer)


KEYS = (("ptt.key", "ptt"), ("wrong.key", "ptt"), ("unknown.key", "unknown"), ("admin.key", "admin"))


def _tsig_keygen(name: str) -> str:
    command = [need("tsig-keygen"), "-a", "hmac-sha256", name]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _own_key(name: str) -> str:
    secret = base64.b64encode(os.urandom(32)).decode()
    return f'key "{name}" {{\n\talgorithm hmac-sha256;\n\tsecret "{secret}";\n}};\n'


def _write_keys(directory: pathlib.Path, make: Callable[[str], str]) -> None:
    for file, name in KEYS:
        (directory / file).touch(0o600)
        (directory / file).write_text(make(name))


class Primary:
    """A primary DNS server. ``key_file``: may change TXT below _domainkey; ``address``: "127.0.0.1:PORT"."""

    def __init__(self, kind: str, port: int, directory: pathlib.Path, program: Program) -> None:
        self.kind = kind
        self.port = port
        self.address = f"127.0.0.1:{port}"
        self.zones = ZONES
        self.key_file = str(directory / "ptt.key")
        self.wrong_key_file = str(directory / "wrong.key")  # the same name, another secret
        self.unknown_key_file = str(directory / "unknown.key")  # a name that the server does not know
        self._admin = directory / "admin.key"
        self._program = program

    def start(self) -> None:
        self._program.start()

    def stop(self) -> None:
        self._program.stop()

    @property
    def log(self) -> str:
        return self._program.log.read_text(errors="replace")

    def put(self, zone: str, name: str, ttl: int, rdtype: str, *values: str) -> None:
        """Make ``values`` the records at ``name`` (absolute, without final dot); none: remove them. BIND only."""
        key = TsigKey.load(str(self._admin))
        update = dns.update.UpdateMessage(zone, keyring=key.for_dnspython(), keyalgorithm=key.algorithm)
        update.delete(f"{name}.", rdtype)
        for value in values:
            update.add(f"{name}.", ttl, rdtype, value)
        answer = dns.query.tcp(update, "127.0.0.1", 5, self.port)
        assert answer.rcode() == dns.rcode.NOERROR, dns.rcode.to_text(answer.rcode())


@pytest.fixture(scope="session")
def make_named(
    peer_dir: Callable[[str], pathlib.Path], free_port: Callable[[], int]
) -> Iterator[Callable[[], Primary]]:
    """A function: another BIND with the zones above, started."""
    made: list[Primary] = []

    def make() -> Primary:
        binary = need("named")
        directory, port = peer_dir("named"), free_port()
        _write_keys(directory, _tsig_keygen)
        zones = ""
        for zone in ZONES:
            records = "".join(f"{r}\n" for r in RECORDS if f".{r.split()[0]}".endswith(f".{zone}."))
            (directory / f"{zone}.zone").write_text(ZONE_FILE + records)
            zones += NAMED_ZONE.format(zone=zone, directory=directory)
        configuration = directory / "named.conf"
        configuration.write_text(NAMED_CONF.format(directory=directory, port=port, zones=zones))
        command = [binary, "-g", "-n", "1", "-c", str(configuration)]
        program = Program(command, directory / "named.log", lambda: all(answers(port, z) for z in ZONES))
        made.append(Primary("bind", port, directory, program))
        made[-1].start()
        return made[-1]

    yield make
    for primary in made:
        primary.stop()


@pytest.fixture(scope="session")
def named(make_named: Callable[[], Primary]) -> Primary:
    """BIND 9 as primary of ZONES, with update-policy. A test that stops it starts it again."""
    return make_named()


@pytest.fixture(scope="session")
def own_dns(peer_dir: Callable[[str], pathlib.Path], free_port: Callable[[], int]) -> Iterator[Primary]:
    """Our demonstration server as primary of ZONES."""
    directory, port = peer_dir("dns"), free_port()
    _write_keys(directory, _own_key)
    command = [sys.executable, "-m", "ptt.dns.server", "--listen", f"127.0.0.1:{port}"]
    command += ["--key", str(directory / "ptt.key")]
    command += [word for zone in ZONES for word in ("--zone", zone)]
    command += [word for record in RECORDS for word in ("--record", record)]
    primary = Primary("own", port, directory, Program(command, directory / "dns.log", lambda: answers(port)))
    primary.start()
    yield primary
    primary.stop()


@pytest.fixture(scope="session", params=["bind", "own"])
def primary(request: pytest.FixtureRequest) -> Primary:
    """BIND and our own server in turn: what holds for one holds for the other."""
    fixture = {"bind": "named", "own": "own_dns"}[request.param]
    found: Primary = request.getfixturevalue(fixture)
    return found


class Recursive:
    """A recursive resolver at ``address``; the zone ``dead.test`` is lame: SERVFAIL."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.address = f"127.0.0.1:{port}"


@pytest.fixture(scope="session")
def unbound(
    named: Primary, peer_dir: Callable[[str], pathlib.Path], free_port: Callable[[], int]
) -> Iterator[Recursive]:
    """Unbound, which asks ``named`` about ZONES."""
    binary = need("unbound")
    directory, port = peer_dir("unbound"), free_port()
    stubs = "".join(f'stub-zone:\n    name: "{z}"\n    stub-addr: 127.0.0.1@{named.port}\n' for z in ZONES)
    configuration = directory / "unbound.conf"
    configuration.write_text(UNBOUND_CONF.format(directory=directory, port=port, stubs=stubs, lame=named.port))
    program = Program([binary, "-d", "-c", str(configuration)], directory / "unbound.log", lambda: answers(port))
    program.start()
    yield Recursive(port)
    program.stop()
