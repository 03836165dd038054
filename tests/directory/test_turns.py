"""Turns for password checks: round robin over networks, bounded, known ones in a line of their own."""

import gevent
import pytest

from ptt.directory import turns
from ptt.directory.turns import MAX_OF_NETWORK, MAX_WAITING, Turns


class World:
    def __init__(self) -> None:
        self.turns = Turns(1)
        assert self.turns.enter("holder", False)
        self.order: list[str] = []
        self.asking: list[gevent.Greenlet] = []

    def ask(self, network: str, known: bool = False) -> gevent.Greenlet:
        def one() -> bool:
            if not self.turns.enter(network, known):
                return False
            try:
                self.order.append(network)
                gevent.sleep(0)
            finally:
                self.turns.leave()
            return True

        self.asking.append(gevent.spawn(one))
        gevent.sleep(0)
        return self.asking[-1]

    def go(self) -> list[str]:
        self.turns.leave()
        gevent.joinall(self.asking, timeout=5, raise_error=True)
        return self.order


@pytest.fixture
def world() -> World:
    return World()


def test_a_flood_from_one_network_delays_only_itself(world: World) -> None:
    flood = [world.ask("flood") for _ in range(70)]
    for network in ("a", "b"):
        world.ask(network)
    order = world.go()
    assert order[:3] == ["flood", "a", "b"]
    assert [g.value for g in flood].count(False) == 70 - MAX_OF_NETWORK
    assert len(order) == MAX_OF_NETWORK + 2


def test_known_ones_have_every_other_turn(world: World) -> None:
    """An attack from everywhere fills its own line; who is known is served, and strangers are not starved."""
    crowd = [world.ask(f"n{n}") for n in range(MAX_WAITING + 50)]
    assert sum(g.ready() and g.value is False for g in crowd) == 50
    for n in range(3):
        world.ask(f"home{n}", known=True)
    assert world.go()[:6] == ["home0", "n0", "home1", "n1", "home2", "n2"]


def test_places_are_given_back(world: World) -> None:
    world.turns.leave()
    for _ in range(3):
        assert world.turns.enter("x", False)
        world.turns.leave()


def test_who_goes_away_leaves_no_gap(world: World) -> None:
    first, second, third = (world.ask("n") for _ in range(3))
    second.kill()
    assert world.turns._strangers._length == 2
    world.turns.leave()  # the first has the turn, and goes away before it takes it
    first.kill()
    gevent.joinall([third], timeout=5, raise_error=True)
    assert third.value is True
    assert world.turns._free == 1
    assert not world.turns._strangers._waiting


def test_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "MAX_WAITING", 0)
    two = Turns(2)
    assert [two.enter("n", False) for _ in range(3)] == [True, True, False]
