"""The files of the private keys: made, checked and opened here, by the key process alone.

    keys/DOMAIN/SELECTOR.pem     PKCS#8, mode 0600, owned by the key process's user    (never leaves it)
    public/DOMAIN/SELECTOR.pub   ``ptt.signer.state.PublicKey`` as JSON, mode 0644     (for everybody else)

A file that another user could have read or written is refused, with the reason in the answer, the log and
``ptt check``. The private file is written first: a crash in between leaves a key that nothing refers to.
"""

from __future__ import annotations

import contextlib
import glob
import os
import stat
from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa

from ptt.dkim.field import Algorithm
from ptt.dkim.keys import record_text, valid_name
from ptt.signer.state import KeyAlgorithm, PublicKey, public_keys

MAX_KEYS = 4096  # open at once, some 10 KiB each; others are opened again
MAX_KEY_FILE = 64 * 1024  # RSA-4096 in PEM is 3.3 KiB
MIN_RSA_BITS = 1024  # RFC 8301, 3.2: verifiers refuse shorter ones
BITS: dict[KeyAlgorithm, int] = {"rsa2048": 2048, "rsa3072": 3072, "rsa4096": 4096}

Key = rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey

_PADDING = padding.PKCS1v15()
_SHA256 = hashes.SHA256()


class KeyRefused(Exception):
    """A key cannot be used or made. The text says why and names no secret; callers see it as it is."""


class PrivateKey:
    """An open key: ``sign(data)`` returns the signature over the SHA-256 of ``data`` (RFC 6376, 3.3; RFC 8463, 3)."""

    def __init__(self, key: Key) -> None:
        self._key = key
        self.record = record_of(key)
        self.bits = key.key_size if isinstance(key, rsa.RSAPrivateKey) else 0  # of RSA
        self.algorithm: Algorithm = "rsa-sha256" if isinstance(key, rsa.RSAPrivateKey) else "ed25519-sha256"

    def sign(self, data: bytes) -> bytes:
        if isinstance(self._key, rsa.RSAPrivateKey):
            return self._key.sign(data, _PADDING, _SHA256)
        digest = hashes.Hash(_SHA256)
        digest.update(data)
        return self._key.sign(digest.finalize())


def refusal(found: os.stat_result, uid: int) -> str:
    """Why a key file with this status may not be used by the user ``uid``; "" when it may."""
    if not stat.S_ISREG(found.st_mode):
        return "is not a regular file (symbolic links are not followed)"
    if found.st_uid != uid:
        return f"belongs to user {found.st_uid}, must belong to the key process's user {uid}"
    if mode := stat.S_IMODE(found.st_mode) & 0o177:
        return f"has mode {stat.S_IMODE(found.st_mode):04o}, must have 0600 (others may read it: {bool(mode & 0o44)})"
    return ""


def check_names(domain: str, selector: str) -> None:
    """Raises KeyRefused for what is not a domain or selector (and so could name a file elsewhere)."""
    for what, name in (("domain", domain), ("selector", selector)):
        if not valid_name(name):
            raise KeyRefused(f"{name[:80]!r} is not a {what}: lower-case labels of letters, digits and hyphens")


def key_path(keys: str, domain: str, selector: str) -> str:
    """Raises KeyRefused for bad names."""
    check_names(domain, selector)
    return os.path.join(keys, domain, f"{selector}.pem")


def problems(keys: str, uid: int) -> Iterator[tuple[str, str]]:
    """(path, reason) of each private key that the key process, running as ``uid``, would refuse. Opens none.

    Raises PermissionError where the caller may not look at all.
    """
    with contextlib.suppress(FileNotFoundError), os.scandir(keys) as domains:
        for domain in sorted(domains, key=lambda entry: entry.name):
            if domain.is_symlink():
                yield domain.path, "is a symbolic link"
                continue
            for file in sorted(os.scandir(domain.path), key=lambda entry: entry.name) if domain.is_dir() else ():
                if file.name.endswith(".pem") and (reason := refusal(file.stat(follow_symlinks=False), uid)):
                    yield file.path, reason


class _Open(NamedTuple):
    path: str
    mark: tuple[int, ...]
    key: PrivateKey


class Keystore:
    """The keys that are open. A key is opened when first asked for, and again when its file changed.

    Each use looks at the file's status (2 us), so one that was removed or made readable signs nothing more.
    ``public``: the directory of the public keys; a private key that is not the one of its public file is refused.
    """

    def __init__(self, keys: str, uid: int, public: str = "") -> None:
        self._keys = keys
        self._public = public
        self._uid = uid
        self._open: OrderedDict[tuple[str, str], _Open] = OrderedDict()

    def get(self, domain: str, selector: str) -> PrivateKey:
        """Raises KeyRefused."""
        name = (domain, selector)
        held = self._open.pop(name, None)
        path = held.path if held is not None else key_path(self._keys, domain, selector)
        try:
            found = os.lstat(path)
            if reason := refusal(found, self._uid):
                raise KeyRefused(f"key {selector} of {domain} is refused: its file {reason}")
            if held is None or held.mark != _mark(found):
                held = self._load(path, domain, selector)
                self._compare(held.key, domain, selector)
        except OSError as e:
            raise KeyRefused(f"key {selector} of {domain} cannot be opened: {e.strerror}") from e
        self._open[name] = held
        if len(self._open) > MAX_KEYS:
            self._open.popitem(last=False)
        return held.key

    def _compare(self, key: PrivateKey, domain: str, selector: str) -> None:
        """Raises KeyRefused when DNS would serve another key than this one, say after a wrong file was brought back."""
        known = public_keys(self._public, domain) if self._public else []
        if any(public.selector == selector and public.record != key.record for public in known):
            raise KeyRefused(f"key {selector} of {domain} does not belong to its public key")

    def _load(self, path: str, domain: str, selector: str) -> _Open:
        """Open, look at what was opened, and read just that. Raises OSError, KeyRefused."""
        folder = os.open(os.path.join(self._keys, domain), os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(f"{selector}.pem", flags, dir_fd=folder)
        finally:
            os.close(folder)
        with open(fd, "rb") as file:
            found = os.fstat(fd)
            if reason := refusal(found, self._uid):
                raise KeyRefused(f"key {selector} of {domain} is refused: its file {reason}")
            return _Open(path, _mark(found), _parse(file.read(MAX_KEY_FILE), f"{selector} of {domain}"))


def _mark(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size


def _parse(pem: bytes, name: str) -> PrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as e:
        raise KeyRefused(f"key {name} is not an unencrypted private key in PEM") from e
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return PrivateKey(key)
    if not isinstance(key, rsa.RSAPrivateKey):
        raise KeyRefused(f"key {name} is neither RSA nor Ed25519")
    if key.key_size < MIN_RSA_BITS:
        raise KeyRefused(f"key {name} has {key.key_size} bits, verifiers want {MIN_RSA_BITS} at least (RFC 8301)")
    return PrivateKey(key)


def generate(
    keys: str, public: str, domain: str, selector: str, algorithm: KeyAlgorithm, now_ms: int, key: Key | None = None
) -> PublicKey:
    """Make a pair of keys and write both files; they are on stable storage when this returns the public one.

    ``key``: the private one, of that algorithm; None: a random one. Never replaces a file. Raises KeyRefused.
    """
    path = key_path(keys, domain, selector)
    public_path = os.path.join(public, domain, f"{selector}.pub")
    if os.path.lexists(public_path):  # a private key beside another one's record would make signatures that fail
        raise KeyRefused(f"key {selector} of {domain} exists already: {public_path}")
    key = key or _random(algorithm)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    found = PublicKey(domain, selector, algorithm, record_of(key), now_ms)
    try:
        make_directory(keys, 0o700)
        make_directory(public, 0o755)
        _write(path, pem, 0o600, 0o700)
        _write_public(public, found)
    except FileExistsError as e:
        raise KeyRefused(f"key {selector} of {domain} exists already") from e
    except OSError as e:
        raise KeyRefused(f"key {selector} of {domain} cannot be written: {e.filename}: {e.strerror}") from e
    return found


def _random(algorithm: KeyAlgorithm) -> Key:
    if algorithm == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    if algorithm in BITS:
        return rsa.generate_private_key(65537, BITS[algorithm])
    raise KeyRefused(f"unknown algorithm {algorithm!r}; known: {', '.join((*BITS, 'ed25519'))}")


def ensure(
    keys: str, public: str, uid: int, domain: str, selector: str, algorithm: KeyAlgorithm, now_ms: int
) -> PublicKey:
    """As ``generate``, but what is there already is taken: a repeated call makes nothing, and one after a crash between
    the two files makes the second. Raises KeyRefused.
    """
    path = key_path(keys, domain, selector)
    found = next((key for key in public_keys(public, domain) if key.selector == selector), None)
    if found is None and not os.path.lexists(path):
        return generate(keys, public, domain, selector, algorithm, now_ms)
    own = Keystore(keys, uid).get(domain, selector)
    if found is None:
        found = PublicKey(domain, selector, algorithm, own.record, now_ms)
        _write_public(public, found)
    if (own.record, algorithm) != (found.record, found.algorithm) or own.bits != BITS.get(algorithm, 0):
        raise KeyRefused(f"key {selector} of {domain} exists already, and is another")
    return found


def remove(keys: str, public: str, domain: str, selector: str) -> None:
    """Delete both files of a key, for good when this returns; it is no fault when they are gone. Raises KeyRefused."""
    path = key_path(keys, domain, selector)
    try:
        for file in (path, os.path.join(public, domain, f"{selector}.pub")):
            _clear(file)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(file)
                _sync(os.path.dirname(file))
    except OSError as e:
        raise KeyRefused(f"key {selector} of {domain} cannot be deleted: {e.filename}: {e.strerror}") from e


def _write_public(public: str, key: PublicKey) -> None:
    """Raises OSError."""
    shown = msgspec.json.format(msgspec.json.encode(key), indent=1) + b"\n"
    _write(os.path.join(public, key.domain, f"{key.selector}.pub"), shown, 0o644, 0o755)


def record_of(key: Key) -> str:
    """The text of the TXT record that belongs to a private key."""
    if isinstance(key, ed25519.Ed25519PrivateKey):
        raw = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        return record_text("ed25519", raw)
    der = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return record_text("rsa", key.public_key().public_bytes(*der))


def make_directory(path: str, mode: int) -> None:
    """The directory, whatever the umask, with its entry on stable storage. One that exists stays as it is."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
        os.chmod(path, mode)
        _sync(os.path.dirname(path))


def _write(path: str, data: bytes, mode: int, folder_mode: int) -> None:
    """A new file, whole or not there. Its name appears last, so a crash leaves no half-written key."""
    folder = os.path.dirname(path)
    make_directory(folder, folder_mode)
    temporary = f"{path}.{os.getpid()}.new"
    _clear(path)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            os.fchmod(fd, mode)
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.link(temporary, path)  # unlike a rename, refuses to replace
    finally:
        os.unlink(temporary)
    _sync(folder)


def _clear(path: str) -> None:
    """Delete what processes left that were killed while they wrote ``path``."""
    for left in glob.iglob(f"{glob.escape(path)}.*.new"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(left)


def _sync(folder: str) -> None:
    fd = os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
