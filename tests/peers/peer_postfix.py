"""Postfix as the recipients' MX, and as a client that sends through our submission. Postfix runs as root only."""

from __future__ import annotations

import os
import pathlib
import smtplib
import subprocess
from collections.abc import Callable, Iterator

import pytest
from peer_programs import missing, need, wait_until

MAIN_CF = """
compatibility_level = 3.6
queue_directory = {directory}/queue
data_directory = {directory}/data
command_directory = {command_directory}
daemon_directory = {daemon_directory}
mail_owner = postfix
setgid_group = postdrop
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mydestination =
local_recipient_maps =
alias_maps =
mynetworks = 127.0.0.0/8
maillog_file = {directory}/maillog
maillog_file_prefixes = {directory}
smtpd_peername_lookup = no
smtp_dns_support_level = disabled
smtp_host_lookup = native
smtpd_client_connection_count_limit = 0
smtpd_client_connection_rate_limit = 0
message_size_limit = 52428800
mailbox_size_limit = 0
virtual_mailbox_limit = 0
in_flow_delay = 0
"""
MASTER_CF = """
127.0.0.1:{port} inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
virtual unix - n n - - virtual
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""
# Takes mail for every domain; all of it lands in one Maildir, with X-Original-To and Delivered-To.
MX_CF = """
myhostname = mx1.example.test
virtual_mailbox_domains = static:all
virtual_mailbox_maps = static:mail/
virtual_mailbox_base = {directory}
virtual_minimum_uid = 1
virtual_uid_maps = static:65534
virtual_gid_maps = static:65534
smtpd_recipient_restrictions = permit_mynetworks, reject
smtpd_tls_security_level = may
smtpd_tls_chain_files = {directory}/tls.pem
smtpd_tls_received_header = yes
smtpd_tls_loglevel = 1
"""
# Sends everything through our submission, with a password, over TLS.
CLIENT_CF = """
myhostname = client.example.test
relayhost = [127.0.0.1]:{smarthost_port}
smtp_sasl_auth_enable = yes
smtp_sasl_password_maps = inline:{{ {{ [127.0.0.1]:{smarthost_port} = {user}:{password} }} }}
smtp_sasl_security_options = noanonymous
smtp_tls_security_level = {tls_level}
smtp_tls_wrappermode = {wrapper}
smtp_tls_CAfile = {ca}
smtp_tls_loglevel = 1
smtpd_recipient_restrictions = permit_mynetworks, reject
minimal_backoff_time = 2s
queue_run_delay = 2s
"""


def _default(parameter: str) -> str:
    command = [need("postconf"), "-d", "-h", parameter]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _listens(port: int) -> bool:
    try:
        with smtplib.SMTP("127.0.0.1", port, timeout=2):
            return True
    except (OSError, smtplib.SMTPException):
        return False


class Postfix:
    """One instance of Postfix on ``127.0.0.1:port``."""

    def __init__(self, directory: pathlib.Path, port: int, extra: str) -> None:
        self._postfix = need("postfix")
        if os.geteuid() != 0:
            missing("Postfix runs as root only")
        self.directory, self.port = directory, port
        self.address = f"127.0.0.1:{port}"
        self._etc = directory / "etc"
        for folder in ("etc", "queue", "data", "mail"):
            (directory / folder).mkdir()
        subprocess.run(["chown", "postfix", str(directory / "data")], check=True)
        os.chown(directory / "mail", 65534, 65534)
        main = MAIN_CF.format(
            directory=directory,
            command_directory=_default("command_directory"),
            daemon_directory=_default("daemon_directory"),
        )
        (self._etc / "main.cf").write_text(main + extra)
        (self._etc / "master.cf").write_text(MASTER_CF.format(port=port))

    def start(self) -> None:
        done = subprocess.run([self._postfix, "-c", str(self._etc), "start"], capture_output=True, text=True)
        assert done.returncode == 0, f"{done.stdout}{done.stderr}{self.log}"
        wait_until(lambda: _listens(self.port), "start of Postfix")

    def stop(self) -> None:
        subprocess.run([self._postfix, "-c", str(self._etc), "stop"], capture_output=True)

    @property
    def log(self) -> str:
        path = self.directory / "maillog"
        return path.read_text(errors="replace") if path.exists() else ""

    def flush(self) -> None:
        """Try everything that is queued here again, now."""
        subprocess.run([self._postfix, "-c", str(self._etc), "flush"], capture_output=True, check=True)

    def queued(self) -> str:
        """What ``postqueue -p`` prints."""
        command = [need("postqueue"), "-c", str(self._etc), "-p"]
        return subprocess.run(command, capture_output=True, text=True).stdout


class PostfixMx(Postfix):
    """Takes mail for every domain and keeps it as it arrived, with its own header fields in front."""

    def messages(self) -> list[bytes]:
        """What has been delivered, in order of delivery."""
        files = [*(self.directory / "mail" / "new").glob("*")] if (self.directory / "mail" / "new").exists() else []
        return [f.read_bytes().replace(b"\n", b"\r\n") for f in sorted(files, key=lambda f: f.stat().st_mtime_ns)]

    def wait(self, text: bytes, count: int = 1, seconds: float = 20.0) -> list[bytes]:
        """Wait for ``count`` messages that contain ``text`` (a Message-ID, say); returns them."""

        def found() -> list[bytes]:
            return [m for m in self.messages() if text in m]

        try:
            wait_until(lambda: len(found()) >= count, f"delivery of {count} message(s) with {text!r}", seconds)
        except AssertionError as e:
            raise AssertionError(f"{e}\n{self.log[-3000:]}") from e
        return found()

    def clear(self) -> None:
        for file in (self.directory / "mail").glob("new/*"):
            file.unlink()


def _certificate(directory: pathlib.Path) -> None:
    """A self-signed certificate, behind its key in tls.pem."""
    pem = directory / "tls.pem"
    command = [need("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=mx1.example.test", "-keyout", str(pem), "-out", str(directory / "cert.pem")]
    subprocess.run(command, capture_output=True, check=True)
    pem.write_text(pem.read_text() + (directory / "cert.pem").read_text())  # the key first, then the certificate


@pytest.fixture(scope="session")
def postfix_mx(peer_dir: Callable[[str], pathlib.Path], free_port: Callable[[], int]) -> Iterator[PostfixMx]:
    """Postfix as the MX of every domain, with STARTTLS under a self-signed certificate."""
    need("postfix")
    directory = peer_dir("mx")
    _certificate(directory)
    mx = PostfixMx(directory, free_port(), MX_CF.format(directory=directory))
    mx.start()
    yield mx
    mx.stop()


@pytest.fixture
def postfix_narrow(peer_dir: Callable[[str], pathlib.Path], free_port: Callable[[], int]) -> Iterator[PostfixMx]:
    """The same without DSN, SMTPUTF8, 8BITMIME and CHUNKING; it refuses gone@ and gone-too@other.test."""
    need("postfix")
    directory = peer_dir("narrow")
    _certificate(directory)
    without = "smtpd_discard_ehlo_keywords = dsn, smtputf8, 8bitmime, chunking\n"
    gone = "{ gone@other.test = 550 5.1.1 gone }, { gone-too@other.test = 550 5.1.1 gone }"
    usual = "smtpd_recipient_restrictions = "
    about = MX_CF.format(directory=directory).replace(usual, f"{usual}check_recipient_access inline:{{ {gone} }}, ")
    mx = PostfixMx(directory, free_port(), about + without)
    mx.start()
    yield mx
    mx.stop()


@pytest.fixture
def postfix_client(
    peer_dir: Callable[[str], pathlib.Path], free_port: Callable[[], int]
) -> Iterator[Callable[..., Postfix]]:
    """A function (smarthost_port, user, password, ca="", implicit=False): a Postfix on a port of its own that sends
    all it gets through the submission service on that port of 127.0.0.1. ``ca``: file to verify it with; "": not
    verified. ``implicit``: TLS from the first byte.
    """
    made: list[Postfix] = []

    def make(smarthost_port: int, user: str, password: str, ca: str = "", implicit: bool = False) -> Postfix:
        need("postfix")
        extra = CLIENT_CF.format(
            smarthost_port=smarthost_port,
            user=user,
            password=password,
            tls_level="verify" if ca else "encrypt",
            wrapper="yes" if implicit else "no",
            ca=ca,
        )
        made.append(Postfix(peer_dir("client"), free_port(), extra))
        made[-1].start()
        return made[-1]

    yield make
    for client in made:
        client.stop()
