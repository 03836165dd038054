"""Checks of what lies on disk: users, owners and modes, keys, space, the git database."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from ptt_queue.errors import StoreError
from ptt_queue.files import check_file_system

from ptt.cli.findings import Finding, fail, ok, warn
from ptt.config import Config
from ptt.directory.compiler import Refused, examine
from ptt.directory.repository import Repository, RepositoryError
from ptt.service import layout
from ptt.service.privileges import KINDS, UserError, account_of, separate
from ptt.signer.keystore import problems
from ptt.signer.state import all_public_keys

ROOMY = 10  # times queue.min_free_bytes
MISTAKES = 10  # of the git database, shown


def users(config: Config) -> Iterator[Finding]:
    """Does each kind of process have a user of its own?"""
    try:
        accounts = {kind: account_of(kind, config) for kind in KINDS}
    except UserError as e:
        yield fail("users", str(e), "create it, or name another in [users]")
        return
    if separate(config):
        ids = ", ".join(f"{kind} {found.uid}" for kind, found in accounts.items())
        yield ok("users", f"each kind of process has its own ({ids})")
    elif os.getuid() != 0 and any(getattr(config.users, kind) != "" for kind in KINDS):
        yield warn("users", "[users] takes effect only when the service is started as root", "run this check as root")
    else:
        text = (
            f"all processes share user {accounts['queue'].uid}: only our code, not the kernel, keeps the private"
            " keys from the workers, which speak with the Internet; who takes over a worker can read the keys and sign"
            " as your domains"
        )
        yield warn("users", text, "set [users] and start as root: then the kernel keeps them apart")


def ownership(config: Config) -> Iterator[Finding]:
    """Do the directories belong to those who write them, and to nobody else?"""
    wrong = 0
    for directory in layout.directories(config):
        try:
            found = os.stat(directory.path)
        except FileNotFoundError:
            continue  # made at the start
        uid = layout.owner_of(directory, config).uid
        if found.st_uid != uid:
            wrong += 1
            yield fail(directory.path, f"belongs to user {found.st_uid}", f"chown -R {uid} {directory.path}")
        elif excess := stat.S_IMODE(found.st_mode) & 0o777 & ~directory.mode:
            wrong += 1
            text = f"has mode {stat.S_IMODE(found.st_mode):o}: {excess:o} too much"
            yield fail(directory.path, text, f"chmod {directory.mode:o} {directory.path}")
    if not wrong:
        yield ok("directories", "owners and modes are right")


def keys(config: Config) -> Iterator[Finding]:
    """Would the key process open each private key? None is opened here."""
    if not config.signs:
        return
    uid = account_of("signer", config).uid
    try:
        refused = list(problems(config.signer.keys, uid))
    except PermissionError as e:
        yield warn("keys", f"{e.filename}: only the key process may look there", "run this check as root")
        return
    for path, reason in refused:
        yield fail("keys", f"{path} {reason}", f"chown {uid} {path}; chmod 600 {path}")
    public = all_public_keys(config.signer.public)
    if not public:
        yield warn("keys", "there is no DKIM key", "ptt dkim keygen --domain DOMAIN")
    missing = [k for k in public if not os.path.exists(os.path.join(config.signer.keys, k.domain, f"{k.selector}.pem"))]
    for key in missing:
        public_file = os.path.join(config.signer.public, key.domain, f"{key.selector}.pub")
        what = f"bring it back, or make another key and remove this one: ptt dkim keygen --domain {key.domain}"
        yield fail("keys", f"the private key of {key.selector} of {key.domain} is missing", f"{what}; rm {public_file}")
    if public and not refused and not missing:
        yield ok("keys", f"{len(public)} with right owners and modes")


def disk(config: Config) -> Iterator[Finding]:
    """Is the queue on a file system that will do, with room?"""
    path = config.queue.path
    while not os.path.exists(path):
        path = os.path.dirname(path)
    try:
        check_file_system(path)
    except StoreError as e:
        yield fail("queue", str(e), "put [queue] path on a local ext4 or xfs")
        return
    status = os.statvfs(path)
    free, least = status.f_bavail * status.f_frsize, config.queue.min_free_bytes
    text = f"{free >> 20} MiB free on {path}"
    if free < least:
        advice = f"mail is refused below {least >> 20} MiB (queue.min_free_bytes); make room"
        yield fail("disk", text, advice)
    elif free < least * ROOMY:
        yield warn("disk", text, f"mail is refused below {least >> 20} MiB (queue.min_free_bytes)")
    else:
        yield ok("disk", text)


def repository(config: Config) -> Iterator[Finding]:
    """Does the git database open, and does its newest commit keep the rules?"""
    what = "git database"
    if not os.path.isdir(config.directory.repository):
        text = f"there is none at {config.directory.repository}"
        yield warn(what, text, "ptt domain add DOMAIN creates it, or set directory.remote")
        return
    try:
        found = Repository(config.directory.repository, config.directory.branch)
        tip = found.tip()
        if not tip:
            yield warn(what, f"branch {config.directory.branch} has no commit", "ptt domain add DOMAIN")
            return
        records = examine(found, tip, "", None).changes.records
    except Refused as e:
        for mistake in e.mistakes[:MISTAKES]:
            yield fail(what, f"{e.commit[:12]}: {mistake}", "correct it; the last good commit stays in force")
        return
    except RepositoryError as e:
        yield fail(what, str(e), "is it a git repository that this user may read?")
        return
    yield ok(what, f"commit {tip[:12]} keeps the rules, {len(records.users)} users")
