"""Fetch and push between the local repository and its remote, only by fast-forward (libgit2).

Credentials are files in one directory (``config.directory.credentials``), laid out as a home directory:

    .ssh/id                  private key without passphrase (OpenSSH or PEM form), for ssh://
    .ssh/known_hosts         the host keys that are trusted, for ssh://
    https                    one line, USER:PASSWORD (or a token as password), for https://
    ca.pem                   further certificate authorities that are trusted, for https://

Calls block, on the network too: the control process makes them in a thread of their own.
"""

from __future__ import annotations

import os
import stat
import urllib.parse

import pygit2
from pygit2.enums import CredentialType, FetchPrune
from pygit2.remotes import TransferProgress

from ptt.directory.repository import Repository, RepositoryError

SCHEMES = ("file", "ssh", "https")
CONNECT_MS = 10_000
SERVER_MS = 60_000  # of silence in the middle of a transfer
MAX_RECEIVED_BYTES = 1 << 30  # of one fetch: a hundred times the pack of 100,000 users
MAX_SECRET_BYTES = 16_384

INCOMING_REF = "refs/ptt/incoming"  # what this fetch brought
OUTGOING_REF = "refs/ptt/outgoing"  # what is being pushed
REMOTE_REF = "refs/ptt/remote"  # what the remote's branch was when last seen


class Rewritten(RepositoryError):
    """The remote's branch does not contain ours, or was deleted. Nothing was changed here; a person must look."""


class Refused(RepositoryError):
    """The remote refused a push: it has commits that we do not have."""


def shown(url: str) -> str:
    """A URL for the log: without user and password."""
    parts = urllib.parse.urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def synchronise(repository: Repository, url: str, credentials: str, allow_rewrite: bool = False) -> str:
    """Fetch, then move the local branch forward; or push, if it is the local branch that has more commits.

    ``allow_rewrite``: a remote that was rewritten is followed, unless there are commits here that it never had.

    Returns "fetched", "pushed" or "" (nothing to do). Raises RepositoryError, Rewritten.
    """
    theirs = _fetch(repository, url, credentials)
    ours = repository.tip()
    if not theirs:
        if repository.tip(REMOTE_REF):
            raise Rewritten(f"{shown(url)}: {repository.ref} was deleted")
        if not ours:
            return ""
        push(repository, url, credentials, ours)
        return "pushed"
    if theirs == ours:
        _set(repository, REMOTE_REF, theirs)
        return ""
    followed = allow_rewrite and ours == repository.tip(REMOTE_REF)
    if not ours or followed or repository.is_ancestor(ours, theirs):
        repository.move(repository.ref, theirs, ours)
        _set(repository, REMOTE_REF, theirs)
        return "fetched"
    if repository.is_ancestor(theirs, ours):
        push(repository, url, credentials, ours)
        return "pushed"
    raise Rewritten(f"{shown(url)}: {repository.ref} is at {theirs}, which does not contain our {ours}")


def push(repository: Repository, url: str, credentials: str, commit: str) -> None:
    """Push a commit to the branch; the remote takes only a fast-forward. Raises RepositoryError, Refused."""
    callbacks = _Callbacks(credentials)
    _set(repository, OUTGOING_REF, commit)
    try:
        remote = _anonymous(repository, url, credentials)
        remote.push([f"{OUTGOING_REF}:{repository.ref}"], callbacks=callbacks)
    except (pygit2.GitError, KeyError, ValueError, OSError) as e:
        kind = Refused if "non-fastforwardable" in str(e) or "not present locally" in str(e) else RepositoryError
        raise kind(f"push to {shown(url)}: {e}") from e
    if callbacks.refused:
        raise Refused(f"push to {shown(url)}: {callbacks.refused}")
    _set(repository, REMOTE_REF, commit)


def _fetch(repository: Repository, url: str, credentials: str) -> str:
    """The commit at the remote's branch, "" if it has none; its objects are here afterwards."""
    try:
        remote = _anonymous(repository, url, credentials)
        if INCOMING_REF in repository.git.references:
            repository.git.references.delete(INCOMING_REF)  # else a branch deleted there would look unchanged
        remote.fetch(
            [f"+{repository.ref}:{INCOMING_REF}"], callbacks=_Callbacks(credentials), prune=FetchPrune.NO_PRUNE
        )
    except (pygit2.GitError, KeyError, ValueError, OSError) as e:
        raise RepositoryError(f"fetch from {shown(url)}: {e}") from e
    return repository.tip(INCOMING_REF)


def _set(repository: Repository, ref: str, commit: str) -> None:
    before = repository.tip(ref)
    if before != commit:
        repository.move(ref, commit, before)


def _anonymous(repository: Repository, url: str, credentials: str) -> pygit2.Remote:
    if urllib.parse.urlsplit(url).scheme not in SCHEMES:
        raise RepositoryError(f"remote {shown(url)!r}: must be file://, ssh:// or https://")
    pygit2.settings.server_connect_timeout = CONNECT_MS
    pygit2.settings.server_timeout = SERVER_MS
    pygit2.settings.homedir = credentials  # where libgit2 looks for .ssh/known_hosts
    authorities = os.path.join(credentials, "ca.pem")
    if os.path.exists(authorities):
        pygit2.settings.ssl_cert_file = authorities  # libgit2 adds them to those of the system
    return repository.git.remotes.create_anonymous(url)


class _Callbacks(pygit2.RemoteCallbacks):
    """What libgit2 asks during a transfer."""

    def __init__(self, directory: str) -> None:
        super().__init__()
        self._directory = directory
        self._asked = 0
        self.refused = ""

    def credentials(
        self, url: str, username_from_url: str | None, allowed_types: CredentialType
    ) -> pygit2.Username | pygit2.UserPass | pygit2.Keypair:
        if allowed_types & CredentialType.USERNAME:
            return pygit2.Username(username_from_url or "git")
        self._asked += 1
        if self._asked > 1:
            raise RepositoryError(f"{shown(url)} refused our credentials")
        if allowed_types & CredentialType.SSH_KEY:
            key = os.path.join(self._directory, ".ssh", "id")
            _secret(key)
            return pygit2.Keypair(username_from_url or "git", None, key, "")  # the public key: derived
        if allowed_types & CredentialType.USERPASS_PLAINTEXT and url.startswith("https://"):
            user, colon, password = _secret(os.path.join(self._directory, "https")).strip().partition(":")
            if not colon:
                raise RepositoryError("the file https must have the form USER:PASSWORD")
            return pygit2.UserPass(user, password)
        raise RepositoryError(f"{shown(url)} asks for credentials of a kind that we do not have")

    def certificate_check(self, certificate: None, valid: bool, host: bytes) -> bool:
        # Without this method pygit2 accepts every SSH host key, whatever known_hosts says.
        return valid

    def transfer_progress(self, stats: TransferProgress) -> None:
        if stats.received_bytes > MAX_RECEIVED_BYTES:
            raise RepositoryError(f"the remote sends more than {MAX_RECEIVED_BYTES} bytes")

    def push_update_reference(self, refname: str, message: str) -> None:
        if message:
            self.refused = f"{refname}: {message}"


def _secret(path: str) -> str:
    """The content of a file that only its owner may read. Raises RepositoryError."""
    try:
        with open(path, encoding="utf-8") as f:
            if stat.S_IMODE(os.fstat(f.fileno()).st_mode) & 0o077:
                raise RepositoryError(f"{path} must not be accessible by others (chmod 600)")
            return f.read(MAX_SECRET_BYTES)
    except (OSError, UnicodeDecodeError) as e:
        raise RepositoryError(f"{path}: {e}") from e
