"""Logins in the control process: no reply and no amount of work tells who exists; who tries too often is held off."""

import base64
import pathlib
from collections.abc import Iterator
from typing import Any

import gevent
import pytest

from ptt.directory import passwords
from ptt.directory.authenticator import SALTS_FILE, Authenticator
from ptt.directory.nobody import Nobody, keep_secret
from ptt.directory.passwords import Verifier, scram_verifier
from ptt.directory.throttle import LEAK_SECONDS, MAX_OF_NETWORK, MAX_OF_USER
from ptt.directory.values import argon2_mistake
from ptt.directory.verifiers import USUAL, Parameters, Verifiers
from ptt.log import Log
from ptt.metrics import Counters
from ptt.net.rpc import RpcError
from ptt.smtp import scram

PASSWORD = "secret"
SCRAM = scram_verifier(PASSWORD, b"sixteen bytes ok", 4096)
FAST, SLOW = "$argon2id$v=19$m=8,t=1,p=1", "$argon2id$v=19$m=65536,t=3,p=4"
LIKE = Parameters(((FAST, 1),), (((4096, 16), 1),))
BINDING = bytes(range(32))
HOME, AWAY = "192.0.2.1", "203.0.113.1"


class File:
    """The verifiers in force."""

    def __init__(self, fast_hash: str) -> None:
        self.users = {
            "anna@a.example": Verifiers("v1", False, fast_hash, SCRAM),
            "disabled@a.example": Verifiers("v2", True, fast_hash, SCRAM),
            "plain@a.example": Verifiers("v3", False, fast_hash, ""),
            "empty@a.example": Verifiers("v4", False, "", ""),
        }

    def get(self, user: str) -> Verifiers | None:
        return self.users.get(user)

    def parameters(self) -> Parameters:
        return LIKE


class World:
    def __init__(self, fast_hash: str, root: pathlib.Path) -> None:
        self.now = 1000.0
        self.counters = Counters()
        self.logins = Authenticator(Log("test", "error"), self.counters, lambda: self.now)
        self.logins.start(str(root))
        self.computed: list[str] = []  # the hashes that were computed
        self.logins.verifier.close()
        self.logins.verifier = Verifier(self.logins._found, self.check)
        file: Any = File(fast_hash)
        self.file = file
        self.logins.use(file)

    def check(self, verifier: str, password: str) -> bool:
        self.computed.append(verifier)
        return passwords.check(verifier, password)

    def plain(self, user: str, password: str, client: str = HOME) -> Any:
        return self.logins.rpc_verify([user, password, client])

    def scram(
        self,
        user: str,
        password: str,
        client: str = HOME,
        *,
        plus: bool = False,
        binding: bytes = b"",
        seen: bytes = b"",
    ) -> Any:
        """A whole exchange; ``seen``: the binding as the client sees it."""
        theirs = scram.client_mechanism(user, password, plus=plus, binding=seen or binding, offered=bool(binding))
        first = next(theirs)
        answer = self.logins.rpc_scram_first([client, plus, binding, first])
        if answer[0] != "challenge":
            return answer
        challenge = answer[1]
        assert isinstance(challenge, bytes)
        final = theirs.send(challenge)
        answer = self.logins.rpc_scram_final([client, plus, binding, first, challenge, final])
        if answer[0] == "ok":
            assert theirs.send(answer[3]) == b""  # type: ignore[arg-type]
        return answer


@pytest.fixture
def world(fast_hash: str, tmp_path: pathlib.Path) -> Iterator[World]:
    made = World(fast_hash, tmp_path)
    yield made
    made.logins.close()


NOBODY = ["nobody@a.example", "disabled@a.example", "empty@a.example", "", "x" * 900, "anna@a.example"]


@pytest.mark.parametrize("user", NOBODY)
@pytest.mark.parametrize("password", [PASSWORD, "wrong", "\0"])
def test_nobody_is_told_apart_by_password(world: World, user: str, password: str) -> None:
    """One reply, and one hash of the usual parameters, whatever is wrong."""
    if user == "anna@a.example" and password == PASSWORD:
        password = "wrong too"
    assert world.plain(user, password) == ["bad", 0.0]
    assert len(world.computed) == 1
    assert world.computed[0].startswith(FAST + "$")


def test_a_lock_is_the_same_for_everybody(world: World) -> None:
    """The whole sequence of answers to somebody who tries from many networks, and how many hashes it costs."""
    sequences = []
    for user in ("anna@a.example", "nobody@a.example", "disabled@a.example"):
        world.computed.clear()
        said = [world.plain(user, "wrong", f"10.{n}.0.1") for n in range(MAX_OF_USER + 5)]
        sequences.append((said, len(world.computed)))
        assert said[MAX_OF_USER:] == [["busy"]] * 5
        assert world.plain(user, PASSWORD, AWAY) == ["busy"]
    assert sequences[0] == sequences[1] == sequences[2]
    assert sequences[0][1] == MAX_OF_USER


def test_the_real_user_is_not_locked_out(world: World) -> None:
    assert world.plain("anna@a.example", PASSWORD) == ["ok", "v1"]
    for n in range(MAX_OF_USER):
        world.plain("anna@a.example", "wrong", f"10.{n}.0.1")
    assert world.plain("anna@a.example", PASSWORD, AWAY) == ["busy"]
    assert world.plain("anna@a.example", PASSWORD) == ["ok", "v1"]
    assert world.scram("anna@a.example", PASSWORD)[0] == "ok"
    assert world.scram("anna@a.example", PASSWORD, AWAY) == ["busy"]
    assert world.counters.counters["ptt_auth_throttled_total", ("refused",)] == 2
    world.now += LEAK_SECONDS
    assert world.plain("anna@a.example", PASSWORD, AWAY) == ["ok", "v1"]


def test_a_network_that_tries_too_much_is_not_heard(world: World) -> None:
    for n in range(MAX_OF_NETWORK):
        world.plain(f"u{n}@a.example", "x", AWAY)
    world.computed.clear()
    assert world.plain("anna@a.example", PASSWORD, AWAY) == ["busy"]
    assert world.scram("anna@a.example", PASSWORD, "203.0.113.99") == ["busy"]
    assert world.computed == []
    assert world.plain("anna@a.example", PASSWORD) == ["ok", "v1"]


def test_a_flood_of_logins_from_strangers_leaves_others_served(world: World) -> None:
    """What once made all others get 454."""
    flood = [gevent.spawn(world.plain, f"u{n}@a.example", "x", AWAY) for n in range(200)]
    gevent.sleep(0)
    own = [gevent.spawn(world.plain, "anna@a.example", PASSWORD, f"10.0.{n}.1") for n in range(20)]
    gevent.joinall([*flood, *own], timeout=20, raise_error=True)
    assert [g.value for g in own] == [["ok", "v1"]] * 20
    assert ["busy"] in [g.value for g in flood]


# --- SCRAM --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("user", ["anna@a.example", "ANNA@A.example"])
@pytest.mark.parametrize(("plus", "binding"), [(False, b""), (False, BINDING), (True, BINDING)])
def test_scram(world: World, user: str, plus: bool, binding: bytes) -> None:
    answer = world.scram(user, PASSWORD, plus=plus, binding=binding)
    assert answer[:3] == ["ok", "v1", "anna@a.example"]
    assert world.scram(user, "wrong", plus=plus, binding=binding) == ["bad", 0.0]
    assert world.computed == []  # no argon2


@pytest.mark.parametrize("user", ["nobody@a.example", "disabled@a.example", "plain@a.example", "empty@a.example"])
def test_nobody_is_told_apart_by_scram(world: World, user: str) -> None:
    assert world.scram(user, PASSWORD) == ["bad", 0.0]


def first_answer(world: World, user: str) -> list[str]:
    answer = world.logins.rpc_scram_first([HOME, False, b"", f"n,,n={user},r=abc".encode()])
    assert isinstance(answer[1], bytes)
    return answer[1].decode().split(",")


def test_salts_of_nobody(world: World, tmp_path: pathlib.Path, fast_hash: str) -> None:
    """Always the same for one name, as a user's is; of the usual length and cost; another for each name."""
    real, nobody, other = (first_answer(world, f"{name}@a.example") for name in ("anna", "nobody", "other"))
    assert nobody[1] == first_answer(world, "NOBODY@a.example")[1]
    assert nobody[1] == first_answer(World(fast_hash, tmp_path), "nobody@a.example")[1]  # after a restart
    assert nobody[1] != other[1]
    assert nobody[2] == real[2] == "i=4096"
    assert [len(base64.b64decode(x[1][2:])) for x in (real, nobody)] == [16, 16]
    assert nobody[0] != first_answer(world, "nobody@a.example")[0]  # the nonce is fresh
    assert first_answer(world, "disabled@a.example")[1] == real[1]  # its own: it is what it was before


@pytest.mark.parametrize(
    ("first", "plus", "binding"),
    [
        (b"y,,n=anna@a.example,r=abc", False, BINDING),
        (b"n,,n=anna@a.example,r=abc", True, BINDING),
        (b"p=tls-unique,,n=anna@a.example,r=abc", True, BINDING),
        (b"p=tls-server-end-point,,n=anna@a.example,r=abc", False, BINDING),
        (b"n,a=bob@a.example,n=anna@a.example,r=abc", False, b""),
        (b"", False, b""),
        (b"nonsense", False, b""),
    ],
)
def test_first_messages_that_are_refused(world: World, first: bytes, plus: bool, binding: bytes) -> None:
    assert world.logins.rpc_scram_first([HOME, plus, binding, first]) == ["bad", 0.0]
    final = [HOME, plus, binding, first, b"r=abcd,s=AAAA,i=4096", b"c=biws,r=abcd,p=AAAA"]
    assert world.logins.rpc_scram_final(final) == ["bad", 0.0]


def test_an_authzid_may_be_the_user(world: World) -> None:
    first = b"n,a=anna@a.example,n=anna@a.example,r=abc"
    assert world.logins.rpc_scram_first([HOME, False, b"", first])[0] == "challenge"


def test_somebody_in_the_middle_has_another_channel(world: World) -> None:
    assert world.scram("anna@a.example", PASSWORD, plus=True, binding=BINDING, seen=BINDING[::-1]) == ["bad", 0.0]


def test_a_challenge_that_was_not_ours(world: World) -> None:
    """A worker hands it back: one of other salt or cost, or with a nonce that is the client's alone, proves nothing."""
    for forge in (lambda c: c.replace(b"i=4096", b"i=4097"), lambda c: b"r=abc," + c.partition(b",")[2]):
        theirs = scram.client_mechanism("anna@a.example", PASSWORD, nonce="abc")
        first = next(theirs)
        challenge = forge(world.logins.rpc_scram_first([HOME, False, b"", first])[1])
        salted = scram.derive(PASSWORD.encode(), b"sixteen bytes ok", 4096)
        assert salted
        final = [HOME, False, b"", first, challenge, b"c=biws,r=abc,p=" + base64.b64encode(bytes(32))]
        assert world.logins.rpc_scram_final(final)[0] == "bad"


def test_scram_failures_count_as_others(world: World) -> None:
    for n in range(MAX_OF_USER):
        assert world.scram("anna@a.example", "wrong", f"10.{n}.0.1")[0] == "bad"
    assert world.scram("anna@a.example", PASSWORD, AWAY) == ["busy"]
    assert world.plain("anna@a.example", PASSWORD, AWAY) == ["busy"]


def test_a_commit_between_the_messages_ends_the_exchange(world: World) -> None:
    theirs = scram.client_mechanism("anna@a.example", PASSWORD)
    first = next(theirs)
    challenge = world.logins.rpc_scram_first([HOME, False, b"", first])[1]
    assert isinstance(challenge, bytes)
    final = theirs.send(challenge)
    world.file.users["anna@a.example"] = Verifiers("v9", False, "", scram_verifier(PASSWORD, b"another salt....", 4096))
    assert world.logins.rpc_scram_final([HOME, False, b"", first, challenge, final]) == ["bad", 0.0]


def test_those_who_do_not_exist_are_like_those_who_do(base: Any) -> None:
    """Of the commit in force, and as often."""
    slow = SLOW + "$EDz8tQxFnQaZTRlFffu4Cg$jzJTPR3jRhFlN0f2Dx7tu95efPdPY2Fp+ysY72FJBd8"
    control = base.control()
    like = control.logins._nobody.like
    assert like.argon2 == ((FAST, 1),)
    assert like.scram == USUAL.scram  # nobody has a key ``scram``
    users = {f"users/a.example/u{n}.toml": f'password = "{slow}"\nscram = "{SCRAM}"\n' for n in range(3)}
    base.commit(users)
    assert control.refresh()
    assert control.logins._nobody.like == (((SLOW, 3), (FAST, 1)), (((4096, 16), 3),))
    made_up = [control.logins._found(f"nobody{n}@a.example").dummy for n in range(400)]
    assert 250 < sum(hash.startswith(SLOW + "$") for hash in made_up) < 350
    assert all(hash.startswith((SLOW + "$", FAST + "$")) for hash in made_up)


def test_nobody_is_always_the_same() -> None:
    nobody, again, elsewhere = Nobody(b"a" * 32), Nobody(b"a" * 32), Nobody(b"b" * 32)
    for one in (nobody, again, elsewhere):
        one.like = Parameters(((FAST, 1), (SLOW, 1)), (((4096, 16), 1), ((10_000, 24), 1)))
    names = [f"u{n}@a.example" for n in range(64)]
    for name in names:
        assert nobody.scram(name) == again.scram(name) != elsewhere.scram(name)
        assert nobody.argon2(name) == again.argon2(name) != elsewhere.argon2(name)
        assert argon2_mistake(nobody.argon2(name)) == ""
    found = [nobody.scram(name) for name in names]
    assert {(one.iterations, len(one.salt)) for one in found} == {(4096, 16), (10_000, 24)}
    assert len({one.salt for one in found} | {one.stored_key for one in found}) == 2 * len(names)
    assert not passwords.check(nobody.argon2("x").replace(SLOW, FAST), "x")


def test_a_disabled_user_costs_what_the_own_hash_costs(world: World) -> None:
    world.file.users["slow@a.example"] = Verifiers(
        "v5", True, "$argon2id$v=19$m=16,t=1,p=1$" + "A" * 22 + "$" + "A" * 43, ""
    )
    assert world.plain("slow@a.example", "x") == ["bad", 0.0]
    assert world.computed[0].startswith("$argon2id$v=19$m=16,")


@pytest.mark.parametrize("argument", [None, [], ["a"], ["a", False, b"", "text"], ["a", 1, b"", b""]])
def test_wrong_arguments(world: World, argument: Any) -> None:
    for method in (world.logins.rpc_verify, world.logins.rpc_scram_first, world.logins.rpc_scram_final):
        with pytest.raises(RpcError):
            method(argument)


def test_the_secret_is_kept_and_private(tmp_path: pathlib.Path) -> None:
    path = tmp_path / SALTS_FILE
    first = keep_secret(str(path))
    assert len(first) == 32
    assert keep_secret(str(path)) == first
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(b"torn")
    assert len(keep_secret(str(path))) == 32
