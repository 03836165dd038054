"""One look at each key: is it in DNS as it is here, and if not and the zone is ours, put it there.

Called by the publisher and by ``publish_once``. Keeps nothing: what was served before comes in.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence, Set

import gevent.pool
import msgspec

from ptt.config import Dns, Zone
from ptt.dkim.keys import record_name
from ptt.dns.resolver import DnsError, Resolver, TemporaryFailure
from ptt.dns.update import NotReached, TsigKey, TsigKeyError, UpdateError, publish_txt, read_back
from ptt.log import Log
from ptt.metrics import Counters
from ptt.signer.state import PublicKey

MAX_GROUPS = 100  # primaries, or look-ups through the resolver, worked on at once

KeyId = tuple[str, str]  # domain, selector


class Result(msgspec.Struct, frozen=True):
    """What was found, and done, about one key. ``why``: the reason when it is not served, or not known to be."""

    key: PublicKey
    served: bool
    why: str = ""
    reached: bool = True  # the server answered; False: ``served`` is only what was known before
    updated: bool = False  # the record was written now

    @property
    def id(self) -> KeyId:
        return key_id(self.key)


def key_id(key: PublicKey) -> KeyId:
    return key.domain, key.selector


class KeyCheck:
    """``check`` goes through keys; ``log`` hears of what was written to DNS and why."""

    def __init__(self, config: Dns, log: Log, counters: Counters) -> None:
        self._config = config
        self._log = log
        self._counters = counters
        self._resolver: Resolver | None = None  # made when a key first needs it
        self._silent: set[str] = set()  # primaries that did not answer when last asked

    def check(self, keys: Iterable[PublicKey], before: Set[KeyId]) -> Iterator[list[Result]]:
        """Results as they come: the keys of one primary one after the other, primaries beside each other.

        ``before``: the keys that were served, as they are now, when last seen.
        """
        groups: dict[str, list[tuple[PublicKey, Zone | None]]] = defaultdict(list)
        for key in keys:
            zone = zone_of(key.domain, self._config.zones)
            groups[zone.primary if zone else f"domain {key.domain}"].append((key, zone))
        pool = gevent.pool.Pool(MAX_GROUPS)
        yield from pool.imap_unordered(lambda group: self._group(group, before), groups.values())

    def _group(self, group: Sequence[tuple[PublicKey, Zone | None]], before: Set[KeyId]) -> list[Result]:
        """After a server did not answer, the rest of its keys does not wait for it again."""
        results: list[Result] = []
        down = ""
        for key, zone in group:
            served = key_id(key) in before
            if down:
                results.append(Result(key, served, down, reached=False))
                continue
            try:
                results.append(self._in_zone(key, zone, served) if zone else self._elsewhere(key))
            except (NotReached, TemporaryFailure) as e:
                down = str(e)
                if zone and zone.primary not in self._silent:
                    self._silent.add(zone.primary)
                    self._log.warning("DNS primary silent", primary=zone.primary, reason=down)
                results.append(Result(key, served, down, reached=False))
            except (UpdateError, TsigKeyError, DnsError, ValueError) as e:
                results.append(Result(key, False, str(e)))
        return results

    def _in_zone(self, key: PublicKey, zone: Zone, before: bool) -> Result:
        """Raises NotReached, UpdateError, TsigKeyError, ValueError."""
        name, timeout = record_name(key.domain, key.selector), self._config.timeout_seconds
        found = difference(key.record, read_back(zone.primary, name, timeout))
        if zone.primary in self._silent:
            self._silent.remove(zone.primary)
            self._log.event("DNS primary answers", primary=zone.primary)
        if not found:
            return Result(key, True)
        if before:
            self._log.warning("DKIM record drifted", domain=key.domain, selector=key.selector, found=found)
        tsig = TsigKey.load(zone.key_file)
        publish_txt(zone.primary, zone.name, tsig, name, key.record.encode("ascii"), zone.ttl, timeout)
        self._log.event("DKIM record published", domain=key.domain, selector=key.selector, primary=zone.primary)
        why = difference(key.record, read_back(zone.primary, name, timeout))
        return Result(key, not why, why, updated=True)

    def _elsewhere(self, key: PublicKey) -> Result:
        """A domain in no zone of ours: what the resolver says. Raises DnsError's kinds, ValueError."""
        if self._resolver is None:
            self._resolver = Resolver(self._config.resolvers, self._config.timeout_seconds, 100, self._counters)
        name = record_name(key.domain, key.selector)
        self._resolver.forget(name)
        why = difference(key.record, self._resolver.txt(name))
        return Result(key, not why, why)


def zone_of(domain: str, zones: Iterable[Zone]) -> Zone | None:
    """The longest zone that ``domain`` lies in."""
    fitting = [z for z in zones if f".{domain}".endswith(f".{_bare(z)}")]
    return max(fitting, key=lambda zone: len(_bare(zone)), default=None)


def _bare(zone: Zone) -> str:
    return zone.name.lower().removesuffix(".")


def difference(record: str, found: Sequence[bytes]) -> str:
    """Why what DNS serves at a key's name is not ``record``; "" when it says that and nothing else."""
    if not found:
        return "no record there"
    if len(found) > 1:  # RFC 6376 3.6.2.2: a verifier may take any of them
        return f"{len(found)} TXT records there, must be one"
    theirs = _tags(found[0].decode("utf-8", "replace"))
    if theirs is not None and theirs == _tags(record):
        return ""
    if theirs is not None and theirs.get("p") == "":
        return "the record there is revoked (empty p=)"
    return f"another record there: {found[0][:60].decode('ascii', 'backslashreplace')}"


def _tags(record: str) -> dict[str, str] | None:
    """The tags of a key record (RFC 6376 3.6.1) without white space and with k= filled in; None: not a tag list.

    All tags count, not only the key: ``s=`` or ``h=`` can make a record useless for mail.
    """
    tags: dict[str, str] = {}
    for part in record.rstrip().removesuffix(";").split(";"):
        name, equals, value = part.partition("=")
        name = name.strip()
        if not equals or not name or name in tags:
            return None
        tags[name] = "".join(value.split())
    return {"k": "rsa", **tags}
