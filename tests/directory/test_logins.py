"""The worker's memory of verified logins: what it keeps, and what ends it."""

from collections.abc import Callable
from typing import Any

import gevent
import gevent.event
import pytest

from ptt.directory import logins
from ptt.directory.logins import TTL_SECONDS, Logins
from ptt.directory.reader import UserView
from ptt.net.rpc import RpcError, RpcUnavailable

CLIENT = "192.0.2.1"


class World:
    """Control, snapshot and clock. Control knows ``password``; ``view`` is what this worker's snapshot has."""

    def __init__(self) -> None:
        self.view: UserView | None = UserView("anna@a.example", "v1", False, ())
        self.newer: UserView | None = None  # what a refresh would bring
        self.password = "secret"
        self.version = "v1"
        self.asked: list[Any] = []
        self.answer: Any = None
        self.now = 1000.0
        self.slept: list[float] = []
        self.logins = Logins(self, self, lambda: self.now, self.slept.append)

    def user(self, name: str) -> UserView | None:
        return self.view if self.view is not None and name == self.view.name else None

    def refresh(self) -> bool:
        self.view, self.newer = self.newer or self.view, None
        return True

    def call(self, method: str, argument: Any = None, timeout: float | None = None) -> Any:
        self.asked.append((method, argument))
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer is not None:
            return self.answer
        return ["ok", self.version] if argument == ["anna@a.example", self.password, CLIENT] else ["bad", 0.0]

    def verify(self, password: str = "secret", user: str = "anna@a.example") -> str:
        return self.logins.verify(user, password, CLIENT)


@pytest.fixture
def world() -> World:
    return World()


def test_a_verified_login_is_remembered_for_a_while(world: World) -> None:
    assert [world.verify(), world.verify(), world.verify(user="ANNA@A.example")] == ["ok"] * 3
    assert world.asked == [("verify", ["anna@a.example", "secret", CLIENT])]
    world.now += TTL_SECONDS - 0.1
    assert world.verify() == "ok"
    assert len(world.asked) == 1
    world.now += 0.1
    assert world.verify() == "ok"
    assert len(world.asked) == 2


def test_a_wrong_password_is_asked_every_time_and_ends_nothing(world: World) -> None:
    assert world.verify() == "ok"
    assert [world.verify("wrong"), world.verify("wrong")] == ["bad", "bad"]
    assert len(world.asked) == 3
    assert world.verify() == "ok"
    assert len(world.asked) == 3


def test_unknown_users_are_asked_too(world: World) -> None:
    assert world.verify(user="nobody@a.example") == "bad"
    assert len(world.asked) == 1


def test_a_new_password_ends_what_was_remembered(world: World) -> None:
    assert world.verify() == "ok"
    world.password, world.version = "new", "v2"
    world.view = UserView("anna@a.example", "v2", False, ())
    assert world.verify() == "bad"
    assert world.verify("new") == "ok"
    assert len(world.asked) == 3


@pytest.mark.parametrize("view", [None, UserView("anna@a.example", "v2", True, ())])
def test_a_disabled_or_removed_user_is_not_remembered(world: World, view: UserView | None) -> None:
    assert world.verify() == "ok"
    world.view = view
    world.password = "nothing fits"
    assert world.verify() == "bad"


def test_a_disabled_user_is_bad_even_if_control_is_behind(world: World) -> None:
    world.view = UserView("anna@a.example", "v1", True, ())
    assert world.verify() == "bad"


def test_a_commit_that_control_has_and_we_do_not_yet(world: World) -> None:
    world.version = "v2"
    assert world.verify() == "unavailable"
    world.newer = UserView("anna@a.example", "v2", False, ())
    assert world.verify() == "ok"
    assert world.verify() == "ok"
    assert len(world.asked) == 2


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (RpcUnavailable("away"), "unavailable"),
        (RpcError("broken"), "unavailable"),
        (["busy"], "busy"),
        (["bad", 0.0], "bad"),
        (["bad", 2.5], "bad"),
        (["bad"], "unavailable"),
        (["disabled"], "unavailable"),
        (["ok"], "unavailable"),
        (True, "unavailable"),
        ([], "unavailable"),
    ],
)
def test_answers_of_control(world: World, answer: Any, result: str) -> None:
    world.answer = answer
    assert world.verify() == result
    world.answer = None
    assert world.verify() == "ok"
    assert len(world.asked) == 2  # nothing of it was remembered


@pytest.mark.parametrize(
    ("user", "password"), [("anna@a.example", ""), ("anna@a.example", "x" * 1025), ("x" * 1025, "x")]
)
def test_what_cannot_be_right_is_not_asked(world: World, user: str, password: str) -> None:
    assert world.verify(password, user) == "bad"
    assert not world.asked


def test_one_check_for_many_connections_of_one_login(
    world: World, until: Callable[[Callable[[], object]], float]
) -> None:
    go = gevent.event.Event()
    plain = world.call

    def slow(method: str, argument: Any = None, timeout: float | None = None) -> Any:
        answer = plain(method, argument)
        go.wait(10)
        return answer

    world.call = slow  # type: ignore[method-assign]
    right = [gevent.spawn(world.verify) for _ in range(20)]
    wrong = [gevent.spawn(world.verify, "wrong") for _ in range(5)]
    until(lambda: len(world.asked) == 2)
    go.set()
    gevent.joinall(right + wrong, timeout=10, raise_error=True)
    assert {g.value for g in right} == {"ok"}
    assert {g.value for g in wrong} == {"bad"}
    assert len(world.asked) == 2


def test_the_memory_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logins, "MAX_ENTRIES", 3)
    for n in range(5):
        world.view = UserView(f"u{n}@a.example", "v1", False, ())
        world.answer = ["ok", "v1"]
        assert world.verify(user=f"u{n}@a.example") == "ok"
    assert len(world.logins._verified) == 3
    assert world.verify(user="u4@a.example") == "ok"
    assert len(world.asked) == 5


def test_no_password_is_kept(world: World) -> None:
    world.password = "a very particular password"
    assert world.verify("a very particular password") == "ok"
    assert "particular" not in repr(vars(world.logins))


def test_names_that_only_look_alike_have_different_marks(world: World) -> None:
    marks = {world.logins._mark(*x) for x in (("ab", "c", "d"), ("a", "bc", "d"), ("a", "b", "cd"), ("abc", "", "d"))}
    assert len(marks) == 4


def test_an_answer_may_have_to_wait(world: World) -> None:
    world.answer = ["bad", 2.5]
    assert world.verify("wrong") == "bad"
    assert world.slept == [2.5]
    world.answer = ["bad", 0.0]
    assert world.verify("wrong") == "bad"
    assert world.slept == [2.5]


CHANNEL = logins.Channel(CLIENT, plus=False, binding=b"")


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (["challenge", b"x"], b"x"),
        (["challenge", "x"], "unavailable"),
        (["bad", 1.0], "bad"),
        (["busy"], "busy"),
        (RpcUnavailable("away"), "unavailable"),
        (["ok", "v1"], "unavailable"),
    ],
)
def test_the_first_answer_of_scram(world: World, answer: Any, result: Any) -> None:
    world.answer = answer
    assert world.logins.scram_first(CHANNEL, b"first") == result
    assert world.asked == [("scram_first", [CLIENT, False, b"", b"first"])]


@pytest.mark.parametrize(
    ("answer", "proof"),
    [
        (["ok", "v1", "anna@a.example", b"v="], ("ok", "anna@a.example", b"v=")),
        (["ok", "v2", "anna@a.example", b"v="], ("unavailable", "", b"")),  # a commit that is not here yet
        (["ok", "v1", "nobody@a.example", b"v="], ("unavailable", "", b"")),
        (["ok", "v1"], ("unavailable", "", b"")),
        (["bad", 0.0], ("bad", "", b"")),
        (["busy"], ("busy", "", b"")),
        (RpcError("broken"), ("unavailable", "", b"")),
    ],
)
def test_the_last_answer_of_scram(world: World, answer: Any, proof: Any) -> None:
    world.answer = answer
    assert world.logins.scram_final(CHANNEL, b"first", b"challenge", b"final") == proof
    assert world.asked == [("scram_final", [CLIENT, False, b"", b"first", b"challenge", b"final"])]


def test_a_disabled_user_has_no_proof(world: World) -> None:
    world.view = UserView("anna@a.example", "v1", True, ())
    world.answer = ["ok", "v1", "anna@a.example", b"v="]
    assert world.logins.scram_final(CHANNEL, b"", b"", b"").result == "bad"


@pytest.mark.parametrize(
    ("mailboxes", "authzid", "result"),
    [
        (["anna@a.example"], "", "ok"),
        (["ANNA@A.example"], "", "ok"),
        (["anna@a.example", "Anna@a.example"], "", "ok"),
        (["anna@a.example"], "Anna@a.example", "ok"),
        (["anna@a.example", "bob@a.example"], "", "bad"),
        (["anna@a.example", "bob@a.example"], "anna@a.example", "ok"),
        (["anna@a.example"], "bob@a.example", "bad"),
        (["bob@a.example"], "", "bad"),
        ([], "", "bad"),
        ([], "anna@a.example", "bad"),
    ],
)
def test_whom_a_certificate_names(world: World, mailboxes: list[str], authzid: str, result: str) -> None:
    expected = (result, "anna@a.example" if result == "ok" else "")
    assert world.logins.external(mailboxes, authzid) == expected
    world.view = UserView("anna@a.example", "v1", True, ())
    assert world.logins.external(mailboxes, authzid) == ("bad", "")
    assert world.asked == []
