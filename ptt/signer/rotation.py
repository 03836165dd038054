"""The rotation of a domain's keys: its steps, and the file that holds them. Pure but for the file; no secret in it.

    generate -> publish -> seen -> use -> retire -> remove -> done

========  =====================================================  =====================================================
step      what is done in it                                     it ends when
========  =====================================================  =====================================================
generate  the key process makes the new keys                     their public files are there
publish   the publisher writes their records                     the primary shows them
seen      nothing                                                every server and the resolver serve them
use       workers sign with the new keys, no longer the old      run/dkim.json says so
retire    the old keys stay published: mail under way            the longest age in the queue and a TTL are over
remove    the old records go, then the old key files             no server serves them
========  =====================================================  =====================================================

The selectors are chosen and stored before anything is done with them, so a step that is repeated after a crash makes
the same key again, that is none. A rotation because of a compromise (``now``) takes the old keys out of use and out of
DNS at once, in whatever step the new ones are, and skips ``retire``.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from ptt.config import Config
from ptt.signer.state import KeyAlgorithm, PublicKey, Revoked

Step = Literal["generate", "publish", "seen", "use", "retire", "remove"]
STEPS: tuple[Step, ...] = ("generate", "publish", "seen", "use", "retire", "remove")
MAX_FILE = 16 * 1024 * 1024  # some 30,000 rotations
SPARE_MS = 60_000  # for clocks, and for workers that look at run/dkim.json four times a second
DAY_MS = 86_400_000

KeyId = tuple[str, str]  # domain, selector


class NewKey(msgspec.Struct, frozen=True):
    selector: str
    algorithm: KeyAlgorithm


class Rotation(msgspec.Struct, frozen=True):
    """One domain's rotation. ``times``: step -> when it began, ms since the epoch; ``wait``: what it waits for."""

    domain: str
    new: tuple[NewKey, ...]
    old: tuple[str, ...]  # selectors that are still there
    step: Step
    times: dict[str, int]
    now: bool = False  # because of a compromise
    wait: str = ""
    due: int = 0  # when ``retire`` ends, ms since the epoch; 0: in no other step


class Book(msgspec.Struct, frozen=True):
    """All that is under way. ``revoked``: compromised keys, whose signatures no mail may bear."""

    rotations: tuple[Rotation, ...] = ()
    revoked: tuple[Revoked, ...] = ()


class Roles(msgspec.Struct, frozen=True):
    """What the publisher must know: keys that stay published but sign no more, and keys that DNS shall not have."""

    retired: frozenset[KeyId] = frozenset()
    withdrawn: frozenset[KeyId] = frozenset()
    revoked: tuple[Revoked, ...] = ()


def roles(book: Book) -> Roles:
    """The part of every key that is being replaced."""
    retired: set[KeyId] = set()
    withdrawn: set[KeyId] = set()
    for rotation in book.rotations:
        keys = {(rotation.domain, selector) for selector in rotation.old}
        if rotation.now or rotation.step == "remove":
            withdrawn |= keys
        elif rotation.step in ("use", "retire"):
            retired |= keys
    return Roles(frozenset(retired), frozenset(withdrawn), book.revoked)


def begin(
    domain: str, keys: Sequence[PublicKey], under_way: Rotation | None, now_ms: int, *, compromise: bool = False
) -> Rotation:
    """A rotation of all of a domain's ``keys``: a new one of each kind, as strong as the newest of that kind.

    It replaces a rotation that is ``under_way``, with the keys which that was about to make.
    """
    date = datetime.datetime.fromtimestamp(now_ms / 1000, datetime.UTC)
    newest: dict[bool, PublicKey] = {}
    for key in sorted(keys, key=lambda key: key.created, reverse=True):
        newest.setdefault(key.algorithm == "ed25519", key)
    new = [NewKey(f"s{date:%Y%m%d%H%M%S}{'e' * kind}", newest[kind].algorithm) for kind in sorted(newest)]
    others = [*(key.selector for key in under_way.new), *under_way.old] if under_way else []
    old = tuple(dict.fromkeys([*(key.selector for key in keys), *others]))
    return Rotation(domain, tuple(new), old, "generate", {"generate": now_ms}, compromise)


def revoke(book: Book, rotation: Rotation, until_ms: int) -> tuple[Revoked, ...]:
    """The list of revoked keys with the old ones of ``rotation``, until no mail can bear their signatures any more."""
    kept = [
        key for key in book.revoked if (key.domain, key.selector) not in {(rotation.domain, s) for s in rotation.old}
    ]
    return (*kept, *(Revoked(rotation.domain, selector, until_ms) for selector in rotation.old))


def at(rotation: Rotation, step: Step, now_ms: int, due: int = 0) -> Rotation:
    """``rotation`` at the beginning of another step."""
    times = {**rotation.times, step: now_ms}
    return msgspec.structs.replace(rotation, step=step, times=times, wait="", due=due)


def is_old(keys: Iterable[PublicKey], days: int, now_ms: int) -> bool:
    """Shall a domain with these keys be rotated: is the newest of one kind older than ``days``? 0: never."""
    newest: dict[bool, int] = {}
    for key in keys:
        kind = key.algorithm == "ed25519"
        newest[kind] = max(newest.get(kind, 0), key.created)
    return bool(days and newest) and now_ms - min(newest.values()) >= days * DAY_MS


# -- the file ------------------------------------------------------------------------------------------------------

_BOOK = msgspec.json.Decoder(Book)


def book_path(config: Config) -> str:
    return os.path.join(config.data, "control", "rotation.json")


def read_book(path: str) -> Book:
    """What is under way; nothing when there is no file. Raises OSError, ValueError for one that cannot be read."""
    try:
        with open(path, "rb") as file:
            return _BOOK.decode(file.read(MAX_FILE))
    except FileNotFoundError:
        return Book()
    except msgspec.MsgspecError as e:
        raise ValueError(f"{path}: {e}") from e


def write_book(path: str, book: Book) -> None:
    """Replace the file in one step; it is on stable storage when this returns. Raises OSError."""
    temporary = f"{path}.new"
    try:
        with open(temporary, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(book), indent=1) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
