"""``ptt init DIR``: the first configuration, with everything that it names."""

from __future__ import annotations

import base64
import datetime
import os
import pathlib
import secrets
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Sequence

import click

from ptt.cli.template import Choices, render
from ptt.config import Config, ConfigError, load, split_address
from ptt.directory.names import domain_mistake
from ptt.service import layout
from ptt.service.certificates import CA_DAYS, INTERNAL_DAYS, PUBLIC_DAYS, Pair, issue, load_pair, make_ca
from ptt.service.privileges import KINDS, Account, UserError, account_of

ROLES = ("submission", "signer", "relay")
FIRST_UID = 60801  # of 60578 to 61183, which nobody uses (systemd's table of ids); from 61184 on they are dynamic
TSIG_NAME = "ptt"
HELPER_SECONDS = 120.0
_MADE = ("ptt.toml", "tls", "keys", "public", "directory.git", "tsig.key", "data", "run")


class InitError(Exception):
    """The text says what is wrong. The command exits with 1."""


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=pathlib.Path, file_okay=False))
@click.option("--domain", metavar="D", help="the first domain that sends mail [the host's]")
@click.option("--hostname", metavar="H", help="this host's full name [as the system says]")
@click.option("--role", type=click.Choice(("all", *ROLES)), default="all", help="what this host does [all]")
@click.option("--next-hop", metavar="HOST:PORT", default="", help="the next role; submission and signer need it")
@click.option("--ca", metavar="DIR", type=click.Path(path_type=pathlib.Path), help="take the internal CA of that one")
@click.option("--submission-port", default=4650, show_default=True, type=click.IntRange(1, 65535))
@click.option("--starttls-port", default=5870, show_default=True, type=click.IntRange(1, 65535))
@click.option("--relay-port", default=2525, show_default=True, type=click.IntRange(1, 65535))
@click.option("--admin-port", default=8025, show_default=True, type=click.IntRange(1, 65535))
@click.option("--free-ports", is_flag=True, help="replace ports that are taken by free ones")
def init(
    directory: pathlib.Path,
    domain: str | None,
    hostname: str | None,
    role: str,
    next_hop: str,
    ca: pathlib.Path | None,
    submission_port: int,
    starttls_port: int,
    relay_port: int,
    admin_port: int,
    free_ports: bool,
) -> None:
    """Write DIR/ptt.toml, certificates, DKIM keys and an empty git database. Overwrites nothing."""
    directory = directory.absolute()
    host = (hostname or default_hostname()).lower().rstrip(".")
    own = (domain or host.partition(".")[2] or host).lower().rstrip(".")
    given = (submission_port, starttls_port, relay_port, admin_port)
    implicit, starttls, relay, admin = usable_ports(given) if free_ports else given
    try:
        if role in ("submission", "signer") and not next_hop:
            raise click.UsageError(f"--role {role} needs --next-hop")
        if next_hop:
            _address("--next-hop", next_hop)
        for option, name in (("hostname", host), ("domain", own)):
            if wrong := domain_mistake(name):
                raise click.UsageError(f"--{option}: {wrong}")
        users = separate_users(directory)
        choices = Choices(
            hostname=host,
            domain=own,
            role=role,
            next_hop=next_hop,
            implicit=f"127.0.0.1:{implicit}",
            starttls=f"127.0.0.1:{starttls}",
            relay=f"127.0.0.1:{relay}",
            admin=f"127.0.0.1:{admin}",
            users=users,
        )
        make(directory, choices, ca)
    except (InitError, layout.LayoutError, UserError) as e:
        raise click.ClickException(str(e)) from e
    _report(directory, choices, [(g, u) for g, u in zip(given, (implicit, starttls, relay, admin), strict=True)])


def make(directory: pathlib.Path, choices: Choices, ca: pathlib.Path | None = None) -> Config:
    """Make everything below ``directory``; after a failure nothing of it stays. ``ca``: directory of another ``init``
    whose authority issues the certificates. Raises InitError, OSError.
    """
    for name in _MADE:
        if (directory / name).exists():
            raise InitError(f"{directory / name} exists; nothing is overwritten")
    created = not directory.exists()
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    try:
        return _make(directory, choices, ca)
    except BaseException:
        for name in _MADE:
            path = directory / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        if created:
            directory.rmdir()
        raise


def _make(directory: pathlib.Path, choices: Choices, ca: pathlib.Path | None) -> Config:
    file = directory / "ptt.toml"
    _write(file, render(choices).encode(), 0o644)
    try:
        config = load(file)
    except ConfigError as e:
        raise InitError(str(e)) from e
    layout.make_directories(config)
    _certificates(directory / "tls", choices, account_of("worker", config), ca)
    _write(directory / "tsig.key", tsig_key(TSIG_NAME), 0o600, account_of("control", config))
    repository = pathlib.Path(config.directory.repository)
    repository.mkdir(mode=0o700)
    os.chown(repository, *account_of("control", config))
    _helper("-m", "ptt", "domain", "add", choices.domain, "--config", str(file))
    if config.signs:
        selector = f"ptt{datetime.datetime.now(datetime.UTC):%Y%m}"
        _helper("-m", "ptt.signer.keyprocess", "--config", str(file), "--generate", choices.domain, selector)
    return config


def _address(option: str, text: str) -> None:
    try:
        split_address(text)
    except ValueError as e:
        raise click.UsageError(f"{option}: {e}") from e


def _certificates(tls: pathlib.Path, choices: Choices, worker: Account, other: pathlib.Path | None) -> None:
    """The authority, the internal certificate and the one that users see."""
    now = datetime.datetime.now(datetime.UTC)
    tls.mkdir(mode=0o755)
    authority = _load_ca(other) if other else make_ca(f"PTT internal CA {secrets.token_hex(4)}", now)
    _write(tls / "ca.pem", authority.certificate_pem(), 0o644)
    if other is None:  # another host's authority stays where it is
        _write(tls / "ca.key", authority.key_pem(), 0o600)
    hosts = [choices.hostname, *(h for h in ("localhost", "127.0.0.1", "::1") if h != choices.hostname)]
    roles = ROLES if choices.role == "all" else (choices.role,)
    days = min(INTERNAL_DAYS, CA_DAYS)
    for name, pair in (
        ("internal", issue(authority, hosts, roles, now, days)),
        ("public", issue(authority, hosts, (), now, PUBLIC_DAYS)),
    ):
        kept = (other / "tls" if other else tls) / "issued"  # by which `ptt tls` knows it
        kept.mkdir(mode=0o755, exist_ok=True)
        _write(kept / f"{pair.certificate.serial_number:x}.pem", pair.certificate_pem(), 0o644)
        _write(tls / f"{name}.pem", pair.certificate_pem(), 0o644)
        _write(tls / f"{name}.key", pair.key_pem(), 0o600, worker)


def _load_ca(other: pathlib.Path) -> Pair:
    try:
        return load_pair((other / "tls/ca.pem").read_bytes(), (other / "tls/ca.key").read_bytes())
    except (OSError, ValueError) as e:
        raise InitError(f"no authority in {other}/tls: {e}") from e


def tsig_key(name: str) -> bytes:
    """A fresh TSIG key in the form of BIND's ``tsig-keygen`` (RFC 8945; 256 bits for HMAC-SHA256)."""
    secret = base64.b64encode(secrets.token_bytes(32)).decode()
    return f'key "{name}" {{\n\talgorithm hmac-sha256;\n\tsecret "{secret}";\n}};\n'.encode()


def separate_users(directory: pathlib.Path) -> dict[str, int] | str:
    """The numbers of the four users, or why the processes share one."""
    if os.getuid() != 0:
        return "`ptt init` was not run as root"
    existing = directory
    while not existing.exists():
        existing = existing.parent
    for ancestor in (existing, *existing.parents):
        if not ancestor.stat().st_mode & stat.S_IXOTH:
            return f"other users cannot enter {ancestor} (chmod o+x would let them)"
    return {kind: FIRST_UID + n for n, kind in enumerate(KINDS)}


def usable_ports(wanted: Sequence[int]) -> list[int]:
    """The same ports, those replaced on which somebody listens on 127.0.0.1."""
    held = []
    try:
        for port in wanted:
            sock = socket.socket()
            held.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", port))
                sock.listen(1)
            except OSError:
                held[-1].close()
                held[-1] = socket.create_server(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in held]
    finally:
        for sock in held:
            sock.close()


def default_hostname() -> str:
    """The host's name without asking DNS; one without a dot gets a domain that is nobody's."""
    name = socket.gethostname()
    return name if "." in name else f"{name or 'localhost'}.localdomain"


def _helper(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-P", *arguments], capture_output=True, text=True, timeout=HELPER_SECONDS, check=False
    )
    if done.returncode:
        raise InitError(f"{arguments[1]}: {(done.stderr or done.stdout).strip()}")


def _write(path: pathlib.Path, data: bytes, mode: int, owner: Account | None = None) -> None:
    """A new file, never readable by more than ``mode`` says."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        os.fchmod(file.fileno(), mode)
        if owner is not None:
            os.fchown(file.fileno(), *owner)


def _report(directory: pathlib.Path, choices: Choices, ports: list[tuple[int, int]]) -> None:
    for given, used in ports:
        if given != used:
            click.echo(f"port {given} is taken: using {used}")
    if isinstance(choices.users, str):
        click.echo(f"all processes will share one user: {choices.users}")
    key = f"a DKIM key for {choices.domain}, " if choices.role in ("all", "signer") else ""
    click.echo(f"wrote {directory}/ptt.toml, certificates, {key}an empty git database")
    if choices.role in ("all", "submission"):
        click.echo(f"next: ptt user add NAME@{choices.domain} --config {directory}/ptt.toml")
    click.echo(f"      ptt check --config {directory}/ptt.toml")
    click.echo(f"      ptt-worker --config {directory}/ptt.toml")
