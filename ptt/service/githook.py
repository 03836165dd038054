"""The web hook: a forge says that somebody pushed, and the git remote is asked at once. ``POST /hook/git``.

The request must prove that it knows the secret: by the HMAC-SHA256 of its body (GitHub, Gitea and Forgejo:
X-Hub-Signature-256) or by naming it (GitLab: X-Gitlab-Token). What the body says is not looked at: it only starts a
fetch, and what comes into force is decided as ever.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus

from ptt.log import Log
from ptt.metrics import Counters

PATH = "/hook/git"
MAX_BODY = 25 * 1024 * 1024  # what GitHub sends at most; it is hashed as it arrives, not kept
MIN_SECRET = 16  # bytes: a shorter one can be guessed
MAX_SECRET = 4096
FAILURES = 10  # of one address in FAILURE_SECONDS; further requests are not even hashed
FAILURE_SECONDS = 60.0
KNOWN_ADDRESSES = 1024  # whose failures are remembered, the latest ones

Fields = Mapping[str, str]  # header fields, names in lower case
Body = Callable[[int], Iterator[bytes]]  # so many bytes of the body, in pieces; raises OSError, EOFError


def signed(secret: bytes, fields: Fields, body: Iterator[bytes]) -> bool:
    """Does the request prove that its sender knows the secret? Takes the same time for every wrong proof."""
    if (given := fields.get("x-hub-signature-256")) is not None:
        digest = hmac.new(secret, digestmod=hashlib.sha256)
        for piece in body:
            digest.update(piece)
        expected = f"sha256={digest.hexdigest()}"
        return hmac.compare_digest(given.strip().lower().encode("utf-8", "surrogateescape"), expected.encode())
    token = fields.get("x-gitlab-token", "").encode("utf-8", "surrogateescape")
    return hmac.compare_digest(hashlib.sha256(token).digest(), hashlib.sha256(secret).digest())


def read_secret(path: str) -> bytes:
    """The secret in a file that only its owner may read. Raises OSError, ValueError."""
    with open(path, "rb") as f:
        if stat.S_IMODE(os.fstat(f.fileno()).st_mode) & 0o077:
            raise ValueError("must not be accessible by others (chmod 600)")
        secret = f.read(MAX_SECRET).strip()
    if len(secret) < MIN_SECRET:
        raise ValueError(f"must have {MIN_SECRET} bytes or more")
    return secret


class GitHook:
    """``file``: with the secret. ``fetch``: asks the remote soon, and returns at once. ``clock``: monotonic seconds."""

    def __init__(
        self,
        file: str,
        fetch: Callable[[], None],
        log: Log,
        counters: Counters,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file = file
        self._fetch = fetch
        self._log = log
        self._counters = counters
        self._clock = clock
        self._failures: OrderedDict[str, list[float]] = OrderedDict()

    def answer(self, client: str, fields: Fields, body: Body) -> HTTPStatus:
        """Answer one request. ``client``: its address. Raises OSError, EOFError when the body does not arrive."""
        if self._too_many(client):
            return self._counted(HTTPStatus.TOO_MANY_REQUESTS)
        length = fields.get("content-length", "")
        if not (length.isascii() and length.isdigit()) or "transfer-encoding" in fields:
            return self._counted(HTTPStatus.LENGTH_REQUIRED)
        if len(length) > len(str(MAX_BODY)) or int(length) > MAX_BODY:
            return self._counted(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        try:
            secret = read_secret(self._file)  # each time: a new one is in force at once
        except (OSError, ValueError) as e:
            self._log.error("git hook secret not readable", reason=f"{self._file}: {e}")
            return self._counted(HTTPStatus.SERVICE_UNAVAILABLE)
        if not signed(secret, fields, body(int(length))):
            self._failures.setdefault(client, []).append(self._clock())
            self._log.warning("git hook refused", client=client)
            return self._counted(HTTPStatus.FORBIDDEN)
        self._fetch()
        self._log.event("git hook", client=client)
        return self._counted(HTTPStatus.ACCEPTED)

    def _too_many(self, client: str) -> bool:
        since = self._clock() - FAILURE_SECONDS
        kept = [at for at in self._failures.pop(client, []) if at > since]
        if kept:
            self._failures[client] = kept  # at the end: the latest
        while len(self._failures) > KNOWN_ADDRESSES:
            self._failures.popitem(last=False)
        return len(kept) >= FAILURES

    def _counted(self, status: HTTPStatus) -> HTTPStatus:
        self._counters.count("ptt_git_hooks_total", "accepted" if status == HTTPStatus.ACCEPTED else "refused")
        return status
