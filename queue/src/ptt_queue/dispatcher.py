"""Who may be leased next: lanes, groups, tokens, and time. All in memory, no I/O; the clock is an argument (ms).

A lane that has waiting tasks is here in one of three places: *active* (has or may have a ready task; served in
turn), *parked* (its group has no token; costs nothing until one is freed), *asleep* (its next task is due later).
A lane says only where in the index to look (``cursors``, one for each class); what is ready is found there. So
memory holds lanes and not tasks, and at most MAX_LANES of them: when one more does not fit, ``overflow`` is set
and the owner finds it again by skipping through the index.

A group that is suspended has no tokens. A lane that is suspended is meanwhile in such a group of its own.

A *token* is permission to work on one task of a group. It belongs to a lease and is freed with it.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict, deque
from collections.abc import Sequence

from ptt_queue import keys
from ptt_queue.group import ACTIVE, ASLEEP, GONE, MAX_PAUSE_MS, PARKED, RATE_SLACK_MS, Group, Lane
from ptt_queue.types import GroupLimit, Trouble

MAX_LANES = 100_000  # about 60 MiB
MAX_LANES_OF_GROUP = 10_000  # once half of MAX_LANES is taken: a blocked group does not crowd out the others
MAX_ASSIGNED = 200_000  # lanes whose group was told
MAX_GROUPS = 400_000
QUANTUM = 4  # tasks of one lane in one turn, where nothing limits it
MAX_QUANTUM = 8

_SUSPENDED = "\1"  # what the name of a suspended lane's group begins with


class Dispatcher:
    """``limited``: stages whose leases need a token. ``limit``: of lanes that are in no group."""

    def __init__(self, limited: Sequence[int], limit: GroupLimit, max_lanes: int = MAX_LANES) -> None:
        self.limited = frozenset(limited)
        self.limit = limit
        self.max_lanes = max_lanes
        self.lanes: dict[bytes, Lane] = {}
        self.overflow = False  # a lane with waiting tasks is not here
        self._active: dict[int, deque[Lane]] = {}
        self._asleep: OrderedDict[bytes, Lane] = OrderedDict()
        self._timers: list[tuple[float, int, Lane | Group]] = []
        self._sequence = 0
        self._groups: dict[str, Group] = {}
        self._assigned: OrderedDict[str, tuple[str, GroupLimit]] = OrderedDict()
        self._suspended: dict[str, int] = {}  # lanes, and until when (ms; 0: until resumed)
        self._suspended_groups: dict[str, int] = {}
        self._lapse_at = math.inf  # when the first of them lapses
        self.lapsed = False  # some have: the owner is to forget them, too

    # -- lanes ---------------------------------------------------------------------------------------------------

    def note(self, key: bytes, due: int, now: int) -> bool:
        """A task waits under this key of the index. False: its lane has no room here, ``overflow`` is set."""
        prefix = keys.lane_of_key(key)
        lane = self.lanes.get(prefix)
        if lane is None:
            lane = self._enter(prefix, due <= now)
            if lane is None:
                self.overflow = True
                return False
        priority = key[len(prefix)]
        known = lane.cursors[priority]
        if known is None or key < known:
            lane.cursors[priority] = key
        if due <= now:
            if lane.place in (ASLEEP, GONE):
                self._activate(lane)
        elif lane.place == GONE or (lane.place == ASLEEP and due < lane.wake):
            self._sleep(lane, due)
        return True

    def _enter(self, prefix: bytes, ready: bool) -> Lane | None:
        """A place for a lane, if there is room: a ready one takes that of one asleep."""
        group = self.group_of(prefix[2:-1].decode("utf-8")) if prefix[0] in self.limited else None
        count = len(self.lanes)
        if group and count >= self.max_lanes // 2 and group.lanes >= min(MAX_LANES_OF_GROUP, self.max_lanes // 4):
            return None
        if count >= self.max_lanes:
            if not ready or not self._asleep:
                return None
            self.overflow = True
            self._forget(next(reversed(self._asleep.values())))
        lane = self.lanes[prefix] = Lane(prefix, group)
        if group:
            group.lanes += 1
        return lane

    def quantum(self, lane: Lane) -> int:
        """Tasks of a lane in one turn: weighted by what it may send, its part of the tokens of its group."""
        group = lane.group
        if group is None or not group.limit.in_flight:
            return QUANTUM
        return min(MAX_QUANTUM, max(1, group.limit.in_flight // max(1, group.lanes)))

    def next_lane(self, stage: int, now: int) -> Lane | None:
        """The lane whose turn it is, taken out; give it back with ``again``, ``rest`` or ``park``."""
        active = self._active.get(stage)
        while active:
            lane = active.popleft()
            if lane.place != ACTIVE:
                continue
            if lane.group is None or lane.group.free_at(now) == now:
                lane.place = GONE
                return lane
            self._park(lane, now)
        return None

    def again(self, lane: Lane) -> None:
        """It may have more that is ready: behind the others."""
        self._activate(lane)

    def rest(self, lane: Lane, wake: int | None, now: int) -> None:
        """It has nothing ready until ``wake``; None: nothing at all that is not leased."""
        group = lane.group
        if wake is None:
            self._forget(lane)
        else:
            self._sleep(lane, wake)
        if group and group.parked:  # the token that it had its turn for is another's
            self._unpark(group, now)

    def _activate(self, lane: Lane) -> None:
        if lane.place == ACTIVE:
            return
        self._asleep.pop(lane.prefix, None)
        lane.place = ACTIVE
        self._active.setdefault(lane.prefix[0], deque()).append(lane)

    def _sleep(self, lane: Lane, wake: int) -> None:
        lane.place, lane.wake = ASLEEP, wake
        self._asleep[lane.prefix] = lane
        self._timer(wake, lane)

    def _park(self, lane: Lane, now: int) -> None:
        group = lane.group
        assert group is not None  # noqa: S101  (only limited lanes are parked)
        lane.place = PARKED
        group.parked[lane.prefix] = lane
        at = group.free_at(now)
        if at is not None and not group.timed:
            group.timed = True
            self._timer(at, group)

    def _forget(self, lane: Lane) -> None:
        lane.place = GONE
        self._asleep.pop(lane.prefix, None)
        del self.lanes[lane.prefix]
        if lane.group:
            lane.group.lanes -= 1
            self._purge(lane.group)

    def full(self) -> bool:
        """Is there no room for a lane, not even in place of one asleep?"""
        return len(self.lanes) >= self.max_lanes and not self._asleep

    # -- time ----------------------------------------------------------------------------------------------------

    def _timer(self, at: float, what: Lane | Group) -> None:
        self._sequence += 1
        heapq.heappush(self._timers, (at, self._sequence, what))
        if len(self._timers) > 4 * self.max_lanes:  # most of them are void
            self._timers = [t for t in self._timers if self._valid(t)]
            heapq.heapify(self._timers)

    @staticmethod
    def _valid(timer: tuple[float, int, Lane | Group]) -> bool:
        at, _, what = timer
        return isinstance(what, Group) or (what.place == ASLEEP and what.wake == at)

    def wake(self, now: int) -> None:
        """Move what has fallen due to the active ones."""
        if self._lapse_at <= now:
            self._lapse(now)
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)
            what = timer[2]
            if isinstance(what, Group):
                what.timed = False
                self._unpark(what, now)
            elif self._valid(timer):
                self._activate(what)

    def next_wake(self) -> float | None:
        """When ``wake`` is to be called next; None: not before something else happens."""
        while self._timers and not self._valid(self._timers[0]):
            heapq.heappop(self._timers)
        at = min(self._timers[0][0], self._lapse_at) if self._timers else self._lapse_at
        return at if at < math.inf else None

    def ready(self, stages: Sequence[int]) -> bool:
        """Is a lane active in one of these stages?"""
        return any(self._active.get(stage) for stage in stages)

    # -- tokens --------------------------------------------------------------------------------------------------

    def group_of(self, lane: str) -> Group:
        """The lane's group; a group of its own if it was not assigned to one, or is suspended."""
        if lane in self._suspended:
            return self._group(_SUSPENDED + lane, self.limit)
        return self._home(lane)

    def _home(self, lane: str) -> Group:
        """The lane's group when it is not suspended."""
        name, limit = self._assigned.get(lane) or ("\0" + lane, self.limit)
        return self._group(name, limit)

    def _group(self, name: str, limit: GroupLimit) -> Group:
        group = self._groups.get(name)
        if group is None:
            if len(self._groups) >= MAX_GROUPS:  # those with a rate are kept until here
                self._groups = {n: g for n, g in self._groups.items() if g.in_flight or g.lanes}
            group = self._groups[name] = Group(name, limit)
            group.suspended = name in self._suspended_groups or name.startswith(_SUSPENDED)
        return group

    def shares(self, lane: str, group: Group) -> bool:
        """Is the lane one of several in this group?"""
        return self._assigned.get(lane, ("", None))[0] == group.name and lane not in self._suspended

    def _purge(self, group: Group) -> None:
        if group.idle():
            self._groups.pop(group.name, None)

    def take(self, group: Group) -> None:
        """Take a token whatever the limits: for a lease that is held already."""
        group.in_flight += 1

    def acquire(self, group: Group, now: int, *, fresh: bool = False) -> bool:
        """Take a token. ``fresh``: for a task that has not waited, which does not overtake those that have."""
        if group.free_at(now) != now or (fresh and group.parked):
            return False
        group.in_flight += 1
        if group.limit.per_second > 0:
            group.next_at = max(group.next_at, now) + 1000.0 / group.limit.per_second
        return True

    def report(self, group: Group, trouble: Trouble, pause: int, now: int) -> None:
        """A client has met with trouble: less at a time, and nothing more for ``pause`` ms."""
        while group.moved is not None:
            group = group.moved
        if trouble is Trouble.DEAD:
            pause *= group.width.close()
        elif trouble is Trouble.SOME:
            group.width.shrink(now)
        group.next_at = max(group.next_at, now + min(max(pause, 0), MAX_PAUSE_MS))

    def free(self, group: Group, now: int, *, well: bool = False) -> None:
        """Give a token back: a lane that waited for it is active again. ``well``: what it was for has gone well."""
        while group.moved is not None:
            group = group.moved
        group.in_flight -= 1
        if well and group.width.most < group.limit.in_flight:
            group.width.grow(group.limit.in_flight)
        if group.parked:
            self._unpark(group, now)
        self._purge(group)

    def _unpark(self, group: Group, now: int) -> None:
        """As many lanes as there may be tokens."""
        at = group.free_at(now)
        if at is None or not group.parked:
            return
        if at > now:
            if not group.timed:
                group.timed = True
                self._timer(at, group)
            return
        room = len(group.parked)
        if group.width.most:
            room = min(room, group.width.most - group.in_flight)
        if group.limit.per_second:
            room = min(room, 1 + int(group.limit.per_second * RATE_SLACK_MS / 1000))
        for _ in range(room):
            self._activate(group.parked.popitem(last=False)[1])

    def assign(self, lane: str, name: str, limit: GroupLimit, now: int) -> None:
        """Put a lane into a group; the last limit told is the group's. What it has in flight alone moves with it."""
        old = self._home(lane)
        alone = old.name == "\0" + lane
        self._assigned[lane] = (name, limit)
        self._assigned.move_to_end(lane)
        if len(self._assigned) > MAX_ASSIGNED:
            self._assigned.popitem(last=False)
        new = self._home(lane)
        new.set_limit(limit)
        if new is not old:
            for stage in self.limited:
                self._regroup(self.lanes.get(keys.lane_prefix(stage, 0, lane)), old, new)
            if alone:
                new.in_flight += old.in_flight
                new.next_at = max(new.next_at, old.next_at)
                old.moved = new
                self._groups.pop(old.name, None)
        self._unpark(new, now)

    def _regroup(self, lane: Lane | None, old: Group, new: Group) -> None:
        if lane is None or lane.group is not old:
            return
        lane.group = new
        old.lanes -= 1
        new.lanes += 1
        if old.parked.pop(lane.prefix, None):
            self._activate(lane)

    # -- suspensions -----------------------------------------------------------------------------------------------

    def suspend(self, name: str, site: bool, until: int) -> None:
        """Give no tokens to a lane, or to a group, until then (ms; 0: until ``resume``). What is in flight goes on."""
        if site:
            self._suspended_groups[name] = until
            if group := self._groups.get(name):
                group.suspended = True
        else:
            self._suspended[name] = until
            old = self._home(name)
            for stage in self.limited:
                self._regroup(self.lanes.get(keys.lane_prefix(stage, 0, name)), old, self.group_of(name))
        self._lapse_at = min(self._lapse_at, until or math.inf)

    def resume(self, name: str, site: bool, now: int) -> None:
        if site and self._suspended_groups.pop(name, None) is not None:
            if group := self._groups.get(name):
                group.suspended = False
                self._unpark(group, now)
        elif not site and name in self._suspended:
            old = self.group_of(name)
            del self._suspended[name]
            for stage in self.limited:
                self._regroup(self.lanes.get(keys.lane_prefix(stage, 0, name)), old, self._home(name))
            self._groups.pop(old.name, None)

    def _lapse(self, now: int) -> None:
        """Resume what was suspended until now."""
        for known, site in ((self._suspended, False), (self._suspended_groups, True)):
            for name in [n for n, until in known.items() if 0 < until <= now]:
                self.resume(name, site, now)
                self.lapsed = True
        left = (u for known in (self._suspended, self._suspended_groups) for u in known.values() if u)
        self._lapse_at = min(left, default=math.inf)
