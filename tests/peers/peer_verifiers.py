"""Verifiers of DKIM signatures and ARC chains that others wrote, with records from files in place of DNS."""

from __future__ import annotations

import json
import pathlib
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterator, Mapping

import pytest
from peer_programs import Program, missing, need

Records = Mapping[str, str]
"""Name of a key's record, without final dot -> its text."""

MAIL_DKIM = pathlib.Path(__file__).parent / "mail_dkim.pl"

RSPAMD = """
lua = "/usr/share/rspamd/rules/rspamd.lua";
options {{
  pidfile = "{base}/pid";
  filters = "dkim";
  url_tld = "{base}/tld";
  dns {{ nameserver = ["127.0.0.1:9"]; timeout = 1s; retransmits = 1; fake_records = {records}; }}
}}
logging {{ type = "console"; level = "warning"; }}
modules {{ path = "/usr/share/rspamd/plugins/arc.lua"; }}
arc {{ }}
dkim {{ }}
metric {{ name = "default"; actions {{ reject = 100500; }} unknown_weight = 1; }}
worker "normal" {{ bind_socket = "127.0.0.1:{port}"; count = 1; task_timeout = 30s; }}
"""


class MailDkim:
    """Perl's Mail::DKIM. Debian's knows no Ed25519."""

    def __init__(self, base: pathlib.Path, records: Records) -> None:
        self._perl = need("perl")
        if subprocess.run([self._perl, "-MMail::DKIM", "-e", "1"], capture_output=True).returncode:
            missing("Mail::DKIM is not installed (as root: sh tests/install-peers.sh)")
        self._zone = base / "zone"
        self._zone.write_text("".join(f"{name}\t{text}\n" for name, text in records.items()))

    def dkim(self, message: bytes) -> list[tuple[str, str, str, str]]:
        """(domain, selector, algorithm, result) of each signature."""
        lines = self._run("dkim", message).splitlines()
        return [(d, s, a, r) for d, s, a, r in (line.split() for line in lines)]

    def arc(self, message: bytes) -> str:
        """The chain: none, pass or fail."""
        return self._run("arc", message).strip()

    def _run(self, kind: str, message: bytes) -> str:
        command = [self._perl, str(MAIL_DKIM), kind, str(self._zone)]
        return subprocess.run(command, input=message, capture_output=True, check=True, timeout=60).stdout.decode()


class Rspamd:
    """A running rspamd."""

    def __init__(self, base: pathlib.Path, records: Records, port: int) -> None:
        path = need("rspamd")
        fakes = [{"name": name, "type": "txt", "replies": [text]} for name, text in records.items()]
        (base / "tld").write_text("com\n")
        (base / "conf").write_text(RSPAMD.format(base=base, port=port, records=json.dumps(fakes)))
        self._url = f"http://127.0.0.1:{port}/checkv2"
        self._program = Program([path, "-f", "-i", "-c", str(base / "conf")], base / "log", lambda: self._open(port))
        self._program.start()

    def stop(self) -> None:
        self._program.stop()

    def dkim(self, message: bytes) -> list[tuple[str, bool]]:
        """("DOMAIN:s=SELECTOR", verified?) of each signature, sorted."""
        found = self._symbols(message)
        kinds = {"R_DKIM_ALLOW": True, "R_DKIM_REJECT": False}
        return sorted((o, good) for name, good in kinds.items() for o in found.get(name, {}).get("options", []))

    def arc(self, message: bytes) -> str:
        """The chain: none, pass or fail."""
        names = {"ARC_NA": "none", "ARC_ALLOW": "pass"}
        return next((names[name] for name in self._symbols(message) if name in names), "fail")

    def _symbols(self, message: bytes) -> dict[str, dict[str, list[str]]]:
        with urllib.request.urlopen(urllib.request.Request(self._url, message), timeout=60) as answer:
            found: dict[str, dict[str, list[str]]] = json.load(answer)["symbols"]
        return found

    @staticmethod
    def _open(port: int) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="session")
def mail_dkim(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Records], MailDkim]:
    """A function: Mail::DKIM with these records."""
    return lambda records: MailDkim(tmp_path_factory.mktemp("mail-dkim"), records)


@pytest.fixture(scope="session")
def rspamd(
    tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]
) -> Iterator[Callable[[Records], Rspamd]]:
    """A function: an rspamd with these records, which runs until the session ends."""
    running = []

    def start(records: Records) -> Rspamd:
        running.append(Rspamd(tmp_path_factory.mktemp("rspamd"), records, free_port()))
        return running[-1]

    yield start
    for one in running:
        one.stop()
