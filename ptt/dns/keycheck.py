"""One look at each key: does DNS serve it everywhere as it is here, and if not and the zone is ours, put it there.

Called by the publisher and by ``publish_once``. Keeps nothing: what was served before comes in.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence, Set

import gevent.pool
import msgspec

from ptt.config import Config, Zone
from ptt.dkim.keys import record_name
from ptt.dns.authority import Authorities, Fault
from ptt.dns.ownership import standing
from ptt.dns.ownzones import OwnZones, Place, zone_of
from ptt.dns.resolver import DnsError, TemporaryFailure
from ptt.dns.update import NotReached, TsigKeyError, UpdateError
from ptt.log import Log
from ptt.metrics import Counters
from ptt.signer.state import PublicKey

MAX_GROUPS = 100  # primaries, or look-ups through the resolver, worked on at once
MAX_FAULTS = 3  # servers that a reason names

KeyId = tuple[str, str]  # domain, selector


class Result(msgspec.Struct, frozen=True):
    """What was found, and done, about one key. ``why``: the reason when it is not served, or not known to be."""

    key: PublicKey
    served: bool
    why: str = ""
    reached: bool = True  # the server answered; False: ``served`` is only what was known before
    updated: bool = False  # the record was written now
    published: bool = False  # where it is published it is to be seen

    @property
    def id(self) -> KeyId:
        return key_id(self.key)


def key_id(key: PublicKey) -> KeyId:
    return key.domain, key.selector


def _none(_key: KeyId) -> bool:
    return False


class KeyCheck:
    """``check`` goes through keys; ``log`` hears of what was written to DNS and why. ``withdrawn``: is this key being
    taken out of DNS? It is asked right before a record is written.
    """

    def __init__(
        self, config: Config, log: Log, counters: Counters, withdrawn: Callable[[KeyId], bool] = _none
    ) -> None:
        self._withdrawn = withdrawn
        self._config = config
        self._log = log
        self._counters = counters
        self._authorities = Authorities(config.dns, counters)
        self._zones = OwnZones(config, self._authorities)
        self._silent: set[str] = set()  # servers that did not answer when last asked

    def check(self, keys: Iterable[PublicKey], before: Set[KeyId]) -> Iterator[list[Result]]:
        """Results as they come: the keys of one primary one after the other, primaries beside each other.

        ``before``: the keys that were served, as they are now, when last seen.
        """
        groups: dict[str, list[PublicKey]] = defaultdict(list)
        for key in keys:
            zone = zone_of(key.domain, self._config.dns.zones)
            groups[zone.primary if zone else f"domain {key.domain}"].append(key)
        pool = gevent.pool.Pool(MAX_GROUPS)
        yield from pool.imap_unordered(lambda group: self._group(group, before), groups.values())

    def withdraw(self, key: PublicKey) -> str:
        """Remove the record of a key from DNS. "": no server has it any more; else what is waited for.

        A record that is neither ours nor this key's stays.
        """
        try:
            place = self._zones.find(record_name(key.domain, key.selector))
            if place.zone is not None and self._removable(place, key):
                self._zones.write(place, None)
                what = {"domain": key.domain, "selector": key.selector}
                self._log.event("DKIM record removed", primary=place.zone.primary, **what)
            left = self._authorities.faults(place.name, lambda texts: _still(key.record, texts))
        except (UpdateError, TsigKeyError, DnsError, ValueError) as e:
            return str(e)
        loud = _loud(left)
        if loud and place.zone is None:
            return f"{place.name} is in no zone of ours: remove it there"
        return loud

    def _removable(self, place: Place, key: PublicKey) -> bool:
        texts = place.there.texts
        whose = standing(texts, False, place.marker.texts, self._config.hostname)
        return (
            whose in ("ours", "edited")
            or bool(texts and not difference(key.record, texts))
            or (whose == "free" and bool(place.marker.records))
        )

    def _group(self, group: Sequence[PublicKey], before: Set[KeyId]) -> list[Result]:
        """After a server did not answer, the rest of its keys does not wait for it again."""
        results: list[Result] = []
        down = ""
        for key in group:
            served = key_id(key) in before
            if down:
                results.append(Result(key, served, down, reached=False))
                continue
            try:
                results.append(self._one(key, served))
            except (NotReached, TemporaryFailure) as e:
                down = str(e)
                zone = zone_of(key.domain, self._config.dns.zones)
                self._hear(zone.primary if zone else f"of {key.domain}", down)
                results.append(Result(key, served, down, reached=False))
            except (UpdateError, TsigKeyError, DnsError, ValueError) as e:
                results.append(Result(key, False, str(e)))
        return results

    def _one(self, key: PublicKey, before: bool) -> Result:
        """Raises NotReached, UpdateError, TsigKeyError, DnsError's kinds, ValueError."""
        name = record_name(key.domain, key.selector)
        try:
            place = self._zones.find(name)
        except UpdateError as e:
            if not before or isinstance(e, NotReached):
                raise
            return Result(key, True, str(e), reached=False)  # SERVFAIL and the like say nothing of what was seen
        updated = False
        if place.zone is not None:
            self._hear(place.zone.primary, "")
            if why := difference(key.record, place.there.texts):
                updated, why = self._publish(key, place, place.zone, why, before)
                if not updated:
                    return Result(key, False, why)
        faults = self._authorities.faults(name, lambda texts: difference(key.record, texts))
        for fault in faults:
            if fault.what == "silent":
                self._log.debug("DNS server silent", server=fault.server, reason=fault.why)
            elif before and not updated:
                self._drifted(key, fault.what, str(fault))
        if loud := _loud(faults):
            return Result(key, False, loud, updated=updated, published=place.zone is not None)
        silent = "; ".join(str(fault) for fault in faults[:MAX_FAULTS])
        served = before or not silent
        return Result(key, served, silent, updated=updated, published=served or place.zone is not None)

    def _publish(self, key: PublicKey, place: Place, zone: Zone, found: str, before: bool) -> tuple[bool, str]:
        """Write the record if it is ours to write; was it, and if not, why not."""
        whose = standing(place.there.texts, False, place.marker.texts, self._config.hostname)
        if before:
            self._drifted(key, "changed" if place.there.records else "gone", found)
        if "dkim" not in zone.manage:
            return False, f'{found}; dns.zones of {zone.name} does not have "dkim" in manage'
        if self._withdrawn(key_id(key)):
            return False, "withdrawn"
        if whose == "foreign":
            return False, f"{found}; it is not ours, so it is not replaced"
        self._zones.write(place, key.record.encode("ascii"))
        self._log.event("DKIM record published", domain=key.domain, selector=key.selector, primary=zone.primary)
        return True, ""

    def _drifted(self, key: PublicKey, what: str, found: str) -> None:
        self._counters.count("ptt_dkim_drift_total", key.domain, what)
        self._log.warning("DKIM record drifted", domain=key.domain, selector=key.selector, what=what, found=found)

    def _hear(self, server: str, silent: str) -> None:
        """Log when a server falls silent, and when it answers again."""
        if silent and server not in self._silent:
            self._silent.add(server)
            self._log.warning("DNS primary silent", primary=server, reason=silent)
        elif not silent and server in self._silent:
            self._silent.remove(server)
            self._log.event("DNS primary answers", primary=server)


def _loud(faults: Iterable[Fault]) -> str:
    """What the servers say that do answer, and answer wrongly."""
    return "; ".join([str(fault) for fault in faults if fault.what != "silent"][:MAX_FAULTS])


def _still(record: str, texts: Sequence[bytes]) -> str:
    return "still serves the key" if any(not difference(record, [text]) for text in texts) else ""


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
