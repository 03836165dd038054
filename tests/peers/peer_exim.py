"""Exim as a client that sends through our submission. It is unpacked beside the tests (it cannot be installed beside
Postfix), is configured by one file, and runs as root only."""

from __future__ import annotations

import os
import pathlib
import pwd
import smtplib
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from peer_programs import Program, missing

EXIM = pathlib.Path(sys.prefix) / "peers" / "exim" / "usr" / "sbin" / "exim4"
USER = "Debian-exim"

CONF = """
exim_path = {exim}
spool_directory = {directory}/spool
log_file_path = {directory}/log/%slog
pid_file_path = {directory}/spool/exim.pid
primary_hostname = client.example.test
local_interfaces = 127.0.0.1
daemon_smtp_ports = {port}
disable_ipv6 = true
host_lookup =
rfc1413_query_timeout = 0s
tls_advertise_hosts =
dsn_advertise_hosts = *
smtputf8_advertise_hosts = *
chunking_advertise_hosts =
keep_environment =
add_environment =
acl_smtp_rcpt = accept
acl_smtp_data = accept
log_selector = +smtp_protocol_error +tls_cipher
begin routers
smarthost:
  driver = manualroute
  route_list = * 127.0.0.1
  self = send
  transport = out
begin transports
out:
  driver = smtp
  port = {smarthost_port}
  allow_localhost
  hosts_require_tls = *
  hosts_require_auth = *
  hosts_try_chunking = *
  hosts_try_prdr =
  tls_verify_certificates = {ca}
  tls_verify_hosts =
  tls_try_verify_hosts = *
begin retry
* * F,1h,1s
begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  client_send = ^{user}^{password}
"""


class Exim(Program):
    """One instance on ``127.0.0.1:port``. What it is given by SMTP it sends on with a login, by BDAT where offered."""

    def __init__(self, directory: pathlib.Path, port: int, smarthost_port: int, user: str, password: str, ca: str):
        if os.geteuid() != 0 or not EXIM.exists():
            missing("Exim is not there, or this is not root (as root: sh tests/install-peers.sh)")
        self.directory, self.port = directory, port
        owner = pwd.getpwnam(USER)
        for folder in ("spool", "log"):
            (directory / folder).mkdir()
            os.chown(directory / folder, owner.pw_uid, owner.pw_gid)
        conf = directory / "exim.conf"
        text = CONF.format(
            exim=EXIM,
            directory=directory,
            port=port,
            smarthost_port=smarthost_port,
            user=user,
            password=password.replace("^", "^^"),
            ca=ca,
        )
        conf.write_text(text)
        conf.chmod(0o640)
        os.chown(conf, 0, owner.pw_gid)
        super().__init__([str(EXIM), "-C", str(conf), "-bdf", "-q2s"], directory / "output", self._listens)

    def _listens(self) -> bool:
        try:
            with smtplib.SMTP("127.0.0.1", self.port, timeout=2):
                return True
        except (OSError, smtplib.SMTPException):
            return False

    @property
    def main_log(self) -> str:
        path = self.directory / "log" / "mainlog"
        return path.read_text(errors="replace") if path.exists() else ""

    def version(self) -> str:
        return subprocess.run([str(EXIM), "-bV"], capture_output=True, text=True).stdout


@pytest.fixture
def exim_client(
    peer_dir: Callable[[str], pathlib.Path], free_port: Callable[[], int]
) -> Iterator[Callable[[int, str, str, str], Exim]]:
    """A function (smarthost_port, user, password, ca): an Exim that sends all it gets through that submission port."""
    made: list[Exim] = []

    def make(smarthost_port: int, user: str, password: str, ca: str) -> Exim:
        made.append(Exim(peer_dir("exim"), free_port(), smarthost_port, user, password, ca))
        made[-1].start()
        return made[-1]

    yield make
    for client in made:
        client.stop()
