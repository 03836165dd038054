"""``ptt tls issue|renew|revoke|list``: the internal authority, where ``ca.key`` lies beside ``tls.internal_ca``."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import pathlib
import shutil
import signal
from collections.abc import Iterator
from typing import Protocol

import click
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from ptt.config import Config
from ptt.net.tls import crl_path, revocations
from ptt.service import certificates, locks, state
from ptt.service.certificates import INTERNAL_DAYS, Pair, load_pair

ROLES = ("submission", "signer", "relay")


class Shared(Protocol):
    """What the ``ptt`` command hands on."""

    @property
    def config(self) -> Config: ...


class Row(msgspec.Struct, frozen=True):
    """One certificate in ``list``. ``file``: where this host uses it, "" when it does not."""

    serial: str
    hosts: list[str]
    roles: list[str]
    until: str
    revoked: bool
    file: str


@click.group()
def tls() -> None:
    """Issue, renew, revoke and list the certificates of the internal authority."""


@tls.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=pathlib.Path, file_okay=False))
@click.option("--host", "hosts", multiple=True, required=True, help="name or address; the first one is the main name")
@click.option("--role", "roles", multiple=True, type=click.Choice(ROLES), help="what that host does; none: for users")
@click.option("--days", default=INTERNAL_DAYS, show_default=True, type=click.IntRange(1, INTERNAL_DAYS))
@click.pass_obj
def issue(shared: Shared, directory: pathlib.Path, hosts: tuple[str, ...], roles: tuple[str, ...], days: int) -> None:
    """Make a certificate and its key for another host in DIR, with the authority and its revocations."""
    config = shared.config
    pair = certificates.issue(_authority(config), hosts, roles, _now(), days)
    name = "internal" if roles else "public"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in (directory / f"{name}.pem", directory / f"{name}.key"):
        if path.exists():
            raise click.ClickException(f"{path} exists; nothing is overwritten")
    _keep(config, pair.certificate)
    _replace(directory / f"{name}.key", pair.key_pem(), 0o600)
    _replace(directory / f"{name}.pem", pair.certificate_pem(), 0o644)
    for file in (config.tls.internal_ca, crl_path(config.tls.internal_ca)):
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(file, directory / os.path.basename(file))
    click.echo(f"wrote {directory}/{name}.pem and {name}.key, serial {_serial(pair.certificate)}")


@tls.command()
@click.option("--due", is_flag=True, help="only those that have lived two thirds of their life")
@click.option("--new-key", is_flag=True, help="with new keys: the old ones may be known to others")
@click.pass_obj
def renew(shared: Shared, due: bool, new_key: bool) -> None:
    """Renew this host's certificates, those that the authority issued; the service reloads them."""
    config = shared.config
    authority = _authority(config)
    renewed = 0
    for certificate, key in _own(config):
        try:
            old = load_pair(pathlib.Path(certificate).read_bytes(), pathlib.Path(key).read_bytes())
            if due and not certificates.is_due(old.certificate, authority.certificate, _now()):
                continue
            made = certificates.renew(authority, old, _now(), new_key=new_key)
        except ValueError as e:
            if not due:
                click.echo(f"{certificate}: {e}: left as it is", err=True)
            continue
        _keep(config, old.certificate)
        _keep(config, made.certificate)
        if new_key:  # a reload between the two fails and leaves the old pair in force
            _replace(pathlib.Path(key), made.key_pem(), 0o600)
        _replace(pathlib.Path(certificate), made.certificate_pem(), 0o644)
        until = f"{made.certificate.not_valid_after_utc:%Y-%m-%d}"
        click.echo(f"{certificate}: valid until {until}, serial {_serial(made.certificate)}")
        renewed += 1
    if renewed:
        _reload(config)


@tls.command()
@click.argument("serial")
@click.pass_obj
def revoke(shared: Shared, serial: str) -> None:
    """Refuse a certificate (its SERIAL, as `list` shows it) from now on, on both sides of every hop."""
    config = shared.config
    authority = _authority(config)
    if serial.lower() not in {_serial(one) for _, one in _issued(config)}:
        raise click.ClickException(f"the authority issued no certificate with serial {serial}: ptt tls list")
    crl = certificates.revoke(authority, revocations(config.tls.internal_ca), [int(serial, 16)], _now())
    path = crl_path(config.tls.internal_ca)
    _replace(pathlib.Path(path), crl.public_bytes(serialization.Encoding.PEM), 0o644)
    click.echo(f"revoked; give {path} to the other hosts too, beside their {os.path.basename(config.tls.internal_ca)}")
    _reload(config)


@tls.command("list")
@click.option("--json", "as_json", is_flag=True, help="one JSON array")
@click.pass_obj
def list_(shared: Shared, as_json: bool) -> None:
    """Every certificate of the authority that is known here."""
    config = shared.config
    crl = revocations(config.tls.internal_ca)
    rows = []
    for path, one in _issued(config):
        hosts, roles = certificates.names_of(one)
        revoked = crl is not None and crl.get_revoked_certificate_by_serial_number(one.serial_number) is not None
        until = f"{one.not_valid_after_utc:%Y-%m-%d}"
        file = "" if os.path.dirname(path) == _kept(config) else path
        rows.append(Row(_serial(one), hosts, roles, until, revoked, file))
    if as_json:
        click.echo(json.dumps([msgspec.to_builtins(row) for row in rows]))
    for row in () if as_json else rows:
        mark = "  revoked" if row.revoked else ""
        what = ",".join(row.roles) or "users"
        click.echo(f"{row.serial}  {row.until}  {what:23}  {' '.join(row.hosts)}  {row.file}{mark}")


# -- files -----------------------------------------------------------------------------------------------------------


def _authority(config: Config) -> Pair:
    ca = config.tls.internal_ca
    key = os.path.join(os.path.dirname(ca), "ca.key")
    try:
        return load_pair(pathlib.Path(ca).read_bytes(), pathlib.Path(key).read_bytes())
    except FileNotFoundError as e:
        raise click.ClickException(f"{e.filename} is not here: the authority is on another host") from e
    except ValueError as e:
        raise click.ClickException(f"{ca} and {key}: {e}") from e


def _own(config: Config) -> list[tuple[str, str]]:
    files = config.tls
    pairs = [(files.internal_certificate, files.internal_key), (files.public_certificate, files.public_key)]
    return [pair for pair in pairs if os.path.exists(pair[0])]


def _kept(config: Config) -> str:
    """Where copies of all issued certificates lie, by serial."""
    return os.path.join(os.path.dirname(config.tls.internal_ca), "issued")


def _keep(config: Config, certificate: x509.Certificate) -> None:
    folder = pathlib.Path(_kept(config))
    folder.mkdir(mode=0o755, exist_ok=True)
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    _replace(folder / f"{_serial(certificate)}.pem", pem, 0o644)


def _issued(config: Config) -> Iterator[tuple[str, x509.Certificate]]:
    """This host's certificates of the authority, then the others that it issued; each once."""
    authority = x509.load_pem_x509_certificate(pathlib.Path(config.tls.internal_ca).read_bytes())
    kept = sorted(str(path) for path in pathlib.Path(_kept(config)).glob("*.pem"))
    seen: set[int] = set()
    for path in [*(certificate for certificate, _ in _own(config)), *kept]:
        with contextlib.suppress(ValueError):
            one = x509.load_pem_x509_certificate(pathlib.Path(path).read_bytes())
            if one.issuer == authority.subject and one.serial_number not in seen:
                seen.add(one.serial_number)
                yield path, one


def _replace(path: pathlib.Path, data: bytes, mode: int) -> None:
    """Replace a file in one step; the owner of one that was there stays."""
    temporary = path.with_name(f"{path.name}.new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
        with contextlib.suppress(FileNotFoundError):
            before = path.stat()
            os.fchown(file.fileno(), before.st_uid, before.st_gid)
        os.fchmod(file.fileno(), mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _reload(config: Config) -> None:
    """Tell the running service to read its certificates again."""
    found = state.read(config)
    if found is not None and locks.held(config):
        os.kill(found.pid, signal.SIGHUP)


def _serial(certificate: x509.Certificate) -> str:
    return f"{certificate.serial_number:x}"


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
