"""The configuration: one TOML file, decoded here into frozen structures; every mistake is reported at once.

``load`` is the only way in. Paths in the file are relative to the file's directory and absolute after loading.
What changes daily (users, domains, aliases) is not here but in the git database.
"""

from __future__ import annotations

import ipaddress
import os
import pathlib
import tomllib
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec

from ptt.toml_shape import mistakes_in

Role = Literal["all", "submission", "signer", "relay"]

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(gt=0)]


class ConfigError(Exception):
    """The configuration cannot be used. ``mistakes``: one line each, with the key. The commands exit with 2."""

    def __init__(self, file: str, mistakes: list[str]) -> None:
        self.file = file
        self.mistakes = mistakes
        super().__init__("\n".join(f"{file}: {m}" for m in mistakes))


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Listen(_Section, frozen=True):
    """One listening address."""

    address: str  # "HOST:PORT", IPv6 in brackets
    service: Literal["submission", "relay"]
    # submission: users who authenticate. relay: our own roles (mutual TLS), and the trusted networks below.
    tls: Literal["implicit", "starttls", "none"] = "starttls"
    trusted: tuple[str, ...] = ()  # relay only: networks that may relay without a client certificate
    proxies: tuple[str, ...] = ()  # networks of proxies, which must send the PROXY protocol; no others may connect then
    greeting_delay: Annotated[float, msgspec.Meta(ge=0, le=30)] = 0.0  # seconds; who talks before the 220 is refused


class Tls(_Section, frozen=True):
    """Certificates. ``public_*`` is shown to users on submission; ``internal_*`` to the other roles."""

    public_certificate: str = "tls/public.pem"
    public_key: str = "tls/public.key"
    internal_certificate: str = "tls/internal.pem"
    internal_key: str = "tls/internal.key"
    internal_ca: str = "tls/ca.pem"
    submission_client_ca: str = ""  # whose certificates let users log in (AUTH EXTERNAL); empty: none


class Smtp(_Section, frozen=True):
    """Limits of a server session."""

    max_message_bytes: Positive = 36_700_160  # 35 MiB
    max_recipients: Positive = 1000
    max_connections: Positive = 2000  # per worker
    hide_client: bool = False  # leave the client's address out of Received


class Connections(_Section, frozen=True):
    """Limits of clients' connections, over all workers; 0: no limit. A network is a /24, of IPv6 a /64."""

    per_address: Count = 100  # open at once
    per_network: Count = 400
    per_user: Count = 50
    address_per_minute: Count = 600  # new ones
    network_per_minute: Count = 2400
    exempt: tuple[str, ...] = ("127.0.0.0/8", "::1/128")  # networks; so are listen.trusted and our roles


class Queue(_Section, frozen=True):
    path: str = "data/queue"
    map_bytes: Positive = 1 << 40  # sparse: the file grows with use
    max_bytes: int = 0  # accept no more above so many bytes in use; 0: map_bytes * 0.9
    max_messages: int = 0  # refuse above so many messages; 0: no limit
    max_body_bytes: int = 0  # refuse above so many bytes of bodies queued; 0: no limit
    min_free_bytes: int = 256 * 1024 * 1024  # refuse when the file system has less
    max_commit_seconds: Annotated[float, msgspec.Meta(ge=0)] = 2.0  # refuse while commits take longer; 0: no limit
    resume_percent: Annotated[int, msgspec.Meta(ge=1, le=100)] = 90  # of these marks, below which mail is taken again
    max_age_seconds: Seconds = 5 * 86400.0  # after that a message expires and bounces


class Signer(_Section, frozen=True):
    keys: str = "keys"  # private keys, DOMAIN/SELECTOR.pem: only the key process opens them
    public: str = "public"  # public keys, DOMAIN/SELECTOR.pub
    processes: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    domains: tuple[str, ...] = ()  # role signer: domains that submission hosts may have signed; empty: all
    rotate_days: Annotated[int, msgspec.Meta(ge=0)] = 180  # replace keys of this age, in zones of ours; 0: never


class Zone(_Section, frozen=True):
    """A zone that the control process updates (RFC 2136)."""

    name: str
    primary: str  # HOST:PORT of the primary DNS server
    key_file: str  # TSIG key, as BIND's tsig-keygen prints it
    ttl: Positive = 3600
    manage: tuple[Literal["dkim", "spf", "dmarc"], ...] = ("dkim",)  # which records of the zone are ours to write


class Dns(_Section, frozen=True):
    resolvers: tuple[str, ...] = ()  # HOST or HOST:PORT; empty: those of /etc/resolv.conf
    trust_ad: bool = False  # believe resolvers that are not on this host that DNSSEC vouches for an answer
    timeout_seconds: Seconds = 5.0
    cache_entries: Positive = 50_000
    zones: tuple[Zone, ...] = ()
    recheck_seconds: Seconds = 300.0  # how often a published key is read back
    retry_seconds: Seconds = 5.0  # how soon a failed publication is tried again
    authority_port: Port = 53  # of the authoritative servers, which are asked directly (another one in tests)


class Retry(_Section, frozen=True):
    """When a deferred delivery is tried again: first * factor^n, at most ``ceiling``, with jitter."""

    first_seconds: Seconds = 300.0
    factor: Annotated[float, msgspec.Meta(ge=1)] = 1.8
    ceiling_seconds: Seconds = 14_400.0


class Source(_Section, frozen=True):
    """An own address that a route of the git database may name, to connect from."""

    name: str
    address: str  # IPv4 or IPv6; a name may be given twice, once for each
    ehlo: str = ""  # what EHLO says from there; empty: as everywhere


class SiteLimit(_Section, frozen=True):
    """Limits of the sites all of whose MX hosts match: before the presets. 0: as they have it, or as for all."""

    match: tuple[str, ...]  # patterns of MX host names: "*.example.com"
    connections: Count = 0  # at once, over the whole pool
    connections_per_source: Count = 0  # of these from one address of ours
    connections_per_second: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    messages_per_second: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    messages_per_connection: Count = 0
    recipients: Count = 0  # of one transaction


class Relay(_Section, frozen=True):
    next_hop: str = ""  # "HOST:PORT" of the next role (mutual TLS); empty: the recipients' MX
    next_hop_name: str = ""  # the name its internal certificate must bear; empty: the host of next_hop
    bounce_hop: str = ""  # role relay: "HOST:PORT" of the signer, where our bounces go first; empty: as other mail
    smarthost: str = ""  # "HOST:PORT": everything goes there instead of the MX, opportunistic TLS
    mx_port: Port = 25
    ehlo: str = ""  # empty: hostname
    tls: Literal["opportunistic", "none", "encrypt", "verify"] = "opportunistic"
    mta_sts: bool = True  # keep to the policies that domains publish over HTTPS (RFC 8461)
    mta_sts_port: Port = 443  # of HTTPS (another one in tests)
    allow_private: bool = False  # deliver to private and loopback addresses (tests, internal networks)
    site_in_flight: Positive = 50  # messages at once to one site, over the whole pool
    in_flight: Positive = 400  # messages at once in one worker, beside those that are slow
    idle_seconds: Seconds = 10.0  # keep a connection for the next message
    messages_per_connection: Positive = 100
    connect_seconds: Seconds = 30.0
    command_seconds: Seconds = 300.0  # RFC 5321 4.5.3.2
    data_seconds: Seconds = 180.0
    final_dot_seconds: Seconds = 600.0
    on_maybe: Literal["retry", "hold"] = "retry"  # mail whose last attempt may have delivered it: hold for an operator
    delay_warning_seconds: Annotated[float, msgspec.Meta(ge=0)] = 14_400.0  # tell the sender that it waits; 0: never
    credentials: str = "credentials"  # directory with the logins that routes name, one file each, mode 0600
    srs_secret: str = ""  # file with the secret that senders of forwarded mail are rewritten with; empty: they stay
    retry: Retry = Retry()
    sources: tuple[Source, ...] = ()
    limits: tuple[SiteLimit, ...] = ()


class Directory(_Section, frozen=True):
    """The git database of users, domains and aliases."""

    repository: str = "directory.git"  # bare repository, kept in sync with the remote
    branch: str = "main"
    remote: str = ""  # file://, ssh:// or https://; empty: the local repository is the database
    credentials: str = "git-credentials"  # directory with the secrets for the remote: docs/git-database.md
    interval_seconds: Seconds = 30.0
    snapshots: str = "data/snapshot"
    allow_rewrite: bool = False  # a branch whose history was rewritten comes into force too
    allowed_signers: str = ""  # file of ssh-keygen(1): only commits that one of them signed come into force
    hook_secret: str = ""  # file with the secret of the web hook; empty: there is no hook


class Admin(_Section, frozen=True):
    listen: str = "127.0.0.1:8025"


class Log(_Section, frozen=True):
    level: Literal["debug", "info", "warning", "error"] = "info"
    file: str = ""  # empty: standard error
    deliveries: str = ""  # a file for accounting: a line for each attempt and recipient that is done; empty: none


class Users(_Section, frozen=True):
    """Who the processes run as when started as root: names or numbers. Empty: no change of user."""

    queue: str | int = ""
    worker: str | int = ""
    signer: str | int = ""
    control: str | int = ""


class Config(_Section, frozen=True):
    hostname: str
    role: Role = "all"
    pool: int = 0  # workers; 0: one for each core
    run: str = "run"  # sockets and state of the running service
    data: str = "data"
    listen: tuple[Listen, ...] = ()
    tls: Tls = Tls()
    smtp: Smtp = Smtp()
    connections: Connections = Connections()
    queue: Queue = Queue()
    signer: Signer = Signer()
    dns: Dns = Dns()
    relay: Relay = Relay()
    directory: Directory = Directory()
    admin: Admin = Admin()
    log: Log = Log()
    users: Users = Users()
    drain_seconds: Seconds = 30.0

    @property
    def ehlo(self) -> str:
        return self.relay.ehlo or self.hostname

    @property
    def workers(self) -> int:
        return self.pool or os.cpu_count() or 1

    @property
    def signs(self) -> bool:
        """Does this role have a key process?"""
        return self.role in ("all", "signer")


_PATHS: dict[str, tuple[str, ...]] = {
    "tls": (
        "public_certificate",
        "public_key",
        "internal_certificate",
        "internal_key",
        "internal_ca",
        "submission_client_ca",
    ),
    "queue": ("path",),
    "signer": ("keys", "public"),
    "directory": ("repository", "credentials", "snapshots", "allowed_signers", "hook_secret"),
    "log": ("file", "deliveries"),
    "relay": ("credentials", "srs_secret"),
}


def split_address(text: str, default_port: int | None = None) -> tuple[str, int]:
    """``"HOST:PORT"`` or ``"[V6]:PORT"`` -> (host, port). Raises ValueError."""
    host, colon, port = text.rpartition(":")
    if not colon or port.endswith("]") or (":" in host and not host.startswith("[")):
        if default_port is None:
            raise ValueError(f"{text!r} is not HOST:PORT")
        host, port = text, str(default_port)
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise ValueError(f"{text!r} is not HOST:PORT")
    return host, int(port)


def load(file: str | os.PathLike[str], role: Role | None = None, pool: int | None = None) -> Config:
    """Read, check and complete the file. ``role`` and ``pool`` override it. Raises ConfigError with all mistakes."""
    name = os.fspath(file)
    try:
        raw = tomllib.loads(pathlib.Path(file).read_text(encoding="utf-8"))
    except OSError as e:
        raise ConfigError(name, [f"cannot be read: {e.strerror}"]) from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ConfigError(name, [f"is not TOML: {e}"]) from e
    if role is not None:
        raw["role"] = role
    if pool is not None:
        raw["pool"] = pool
    mistakes = list(mistakes_in(raw, Config))
    try:
        config = msgspec.convert(raw, Config)
    except msgspec.ValidationError as e:  # something that has no default is missing
        raise ConfigError(name, mistakes or [str(e)]) from e
    told = [mistake.partition(":")[0] + "." for mistake in mistakes]
    mistakes += [m for m in check(config) if not any(key.startswith(m.partition(":")[0] + ".") for key in told)]
    if mistakes:
        raise ConfigError(name, mistakes)
    return _absolute(config, pathlib.Path(file).resolve().parent)


def check(config: Config) -> list[str]:
    """Mistakes that types do not show."""
    mistakes = [*_address_mistakes(config), *_listen_mistakes(config)]
    if config.role in ("submission", "signer") and not config.relay.next_hop:
        mistakes.append(f"relay.next_hop: role {config.role} needs the address of the next role")
    unnamed = [kind for kind in config.users.__struct_fields__ if getattr(config.users, kind) == ""]
    if 0 < len(unnamed) < len(config.users.__struct_fields__):
        mistakes.append(f"users: name all four or none; missing: {', '.join(unnamed)}")
    if config.pool < 0:
        mistakes.append("pool: must be 0 (one for each core) or more")
    if not config.hostname or any(c.isspace() for c in config.hostname):
        mistakes.append("hostname: must be the host's full domain name")
    return mistakes


def _address_mistakes(config: Config) -> Iterator[str]:
    addresses = [(f"listen[{n}].address", x.address) for n, x in enumerate(config.listen)]
    addresses.append(("admin.listen", config.admin.listen))
    addresses += [(f"dns.zones[{n}].primary", z.primary) for n, z in enumerate(config.dns.zones)]
    addresses += [(f"dns.resolvers[{n}]", resolver) for n, resolver in enumerate(config.dns.resolvers)]
    for key in ("next_hop", "bounce_hop", "smarthost"):
        if getattr(config.relay, key):
            addresses.append((f"relay.{key}", getattr(config.relay, key)))
    for key, address in addresses:
        try:
            split_address(address, 53 if key.startswith("dns") else None)
        except ValueError as e:
            yield f"{key}: {e}"
    for n, source in enumerate(config.relay.sources):
        try:
            ipaddress.ip_address(source.address)
        except ValueError as e:
            yield f"relay.sources[{n}].address: {e}"


def _network_mistakes(key: str, networks: tuple[str, ...]) -> Iterator[str]:
    for network in networks:
        try:
            ipaddress.ip_network(network)
        except ValueError as e:
            yield f"{key}: {e}"


def _listen_mistakes(config: Config) -> Iterator[str]:
    yield from _network_mistakes("connections.exempt", config.connections.exempt)
    for n, listen in enumerate(config.listen):
        yield from _network_mistakes(f"listen[{n}].trusted", listen.trusted)
        yield from _network_mistakes(f"listen[{n}].proxies", listen.proxies)
        if listen.tls == "implicit" and listen.greeting_delay:
            yield f"listen[{n}].greeting_delay: only without implicit TLS, where the client talks first"
        if listen.service == "submission" and listen.tls == "none":
            yield f"listen[{n}].tls: submission needs implicit or starttls, passwords are sent"
        if listen.service == "submission" and listen.trusted:
            yield f'listen[{n}].trusted: only for service = "relay"'


def _absolute(config: Config, base: pathlib.Path) -> Config:
    def full(value: str) -> str:
        return str(base / value) if value else ""

    changes: dict[str, Any] = {"run": full(config.run), "data": full(config.data)}
    for section, keys in _PATHS.items():
        part = getattr(config, section)
        changes[section] = msgspec.structs.replace(part, **{k: full(getattr(part, k)) for k in keys})
    zones = tuple(msgspec.structs.replace(z, key_file=full(z.key_file)) for z in config.dns.zones)
    changes["dns"] = msgspec.structs.replace(config.dns, zones=zones)
    return msgspec.structs.replace(config, **changes)
