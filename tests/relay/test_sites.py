"""The limits of sites, and what a relay that has none left does."""

import msgspec
import pytest

from ptt.config import Config
from ptt.relay.gate import WANTED_SECONDS, Gate, NoSlot
from ptt.relay.sites import START, Group, Sites, Slots, presets


def sites(**relay: object) -> Sites:
    return Sites(msgspec.convert({"hostname": "mail.example.org", "relay": relay}, Config), 100)


def test_every_preset_says_where_it_is_from() -> None:
    assert len(presets()) >= 8
    for preset in presets():
        assert preset.source.startswith(("https://", "conservative", "KumoMTA"))
        assert all(pattern.startswith("*.") for pattern in preset.match)


def test_presets_fit_by_all_hosts_of_the_site() -> None:
    known = sites()
    google = "alt1.aspmx.l.google.com,aspmx.l.google.com"
    assert known.limits(google).messages_per_connection == 50
    assert known.group(google) == Group(5, 0.0, 5)
    assert known.limits("mta5.am0.yahoodns.net,mta6.am0.yahoodns.net").messages_per_connection == 20
    for other in ("aspmx.l.google.com,mx.example.net", "mx.example.net", "google.com.evil.example", "smarthost:x:25"):
        assert known.limits(other) == (50, 0, 0.0, 0.0, 100, 100)


def test_the_operator_comes_first_and_may_leave_the_rest_to_the_preset() -> None:
    given = {"match": ["*.google.com"], "connections_per_source": 2, "messages_per_second": 1.5, "recipients": 7}
    known = sites(limits=[given, {"match": ["*"], "connections": 9}])
    assert known.limits("aspmx.l.google.com") == (50, 2, 0.0, 1.5, 50, 7)
    assert known.limits("mx.example.net").connections == 9


def test_each_source_may_have_its_own() -> None:
    sources = [{"name": "one", "address": "192.0.2.1"}, {"name": "two", "address": "192.0.2.2"}]
    known = sites(sources=sources)
    assert known.group("aspmx.l.google.com") == Group(10, 0.0, START)
    assert known.slots("mx", "one") == [Slots("mx", 50)]
    assert known.slots("aspmx.l.google.com", "one")[1] == Slots("one@aspmx.l.google.com", 5)


class FakeSpool:
    def __init__(self, granted: bool = True) -> None:
        self.granted = granted
        self.assigned: list[tuple[str, str]] = []
        self.closed: list[str] = []

    def assign(self, lane: str, group: str, limit: Group) -> None:
        self.assigned.append((lane, group))

    def open_slots(self, slots: list[Slots], wait: float) -> bool:
        return self.granted

    def close_slots(self, names: list[str]) -> None:
        self.closed += names


def test_a_slot_is_given_back_once() -> None:
    spool = FakeSpool()
    gate = Gate(sites(), spool)  # type: ignore[arg-type]
    for _ in range(2):
        gate.enter("lane", "mx")
    assert spool.assigned == [("lane", "mx")]
    slot = gate.take("mx", "")
    for _ in range(2):
        slot.release()
    assert spool.closed == ["mx"]
    with pytest.raises(NoSlot):
        Gate(sites(), FakeSpool(granted=False)).take("mx", "")  # type: ignore[arg-type]
    Gate(sites()).take("mx", "").release()


def test_what_is_wanted_elsewhere_is_not_kept() -> None:
    now = [100.0]
    gate = Gate(sites(), None, lambda: now[0])
    assert not gate.is_wanted("mx", "a")
    gate.want(["mx", "b@other"])
    assert gate.is_wanted("mx", "a")
    assert gate.is_wanted("other", "b")
    assert not gate.is_wanted("other", "a")
    now[0] += WANTED_SECONDS
    assert not gate.is_wanted("mx", "a")
