"""SCRAM: the RFC's example, both our ends against each other and against ``scramp``, and what is refused."""

import base64
import hashlib
import pathlib
import random
from typing import Any

import pytest
import scramp
from hypothesis import given
from hypothesis import strategies as st

from ptt.directory.passwords import scram_verifier
from ptt.smtp import NEED_DATA, AuthDone, AuthStep, Closed, ProtocolError, ServerConfig, ServerSession, scram
from ptt.smtp.client import ClientSession
from ptt.smtp.replies import AUTH_FAILED
from ptt.smtp.sasl import EXTERNAL, SCRAM, SCRAM_PLUS, Secret

BINDING = bytes(range(32))
TEXT = scram_verifier("pencil", base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ=="), 4096)
VERIFIER = scram.parse_verifier(TEXT)
FIRST = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO"
NONCE = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
CHALLENGE = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
FINAL = b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
ANSWER = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="


def test_the_example_of_rfc_7677() -> None:
    first = scram.parse_first(FIRST)
    assert (first.user, first.authzid, first.flag) == ("user", "", "n")
    assert scram.server_first(first, NONCE, VERIFIER) == CHALLENGE
    assert scram.check_final(first, CHALLENGE, FINAL, b"", VERIFIER) == (True, ANSWER)
    client = scram.client_mechanism("user", "pencil", nonce="rOprNGfwEbeRWgbNEkqO")
    assert next(client) == FIRST
    assert client.send(CHALLENGE) == FINAL
    assert client.send(ANSWER) == b""


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("user", ["user", "an,na=x@a.example", "ünï@a.example"])
def test_scramp_as_client(plus: bool, user: str) -> None:
    binding = ("tls-server-end-point", BINDING) if plus else None
    theirs = scramp.ScramClient([SCRAM_PLUS if plus else SCRAM], user, "pencil", channel_binding=binding)
    first = scram.parse_first(theirs.get_client_first().encode())
    assert first.user == user
    assert scram.binding_fits(first, plus=plus, offered=plus)
    challenge = scram.server_first(first, scram.new_nonce(), VERIFIER)
    theirs.set_server_first(challenge.decode())
    proved, answer = scram.check_final(first, challenge, theirs.get_client_final().encode(), BINDING, VERIFIER)
    assert proved
    theirs.set_server_final(answer.decode())


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("password", ["pencil", "pencils"])
def test_scramp_as_server(plus: bool, password: str) -> None:
    theirs = scramp.ScramMechanism(SCRAM_PLUS if plus else SCRAM).make_server(
        lambda _user: (VERIFIER.salt, VERIFIER.stored_key, VERIFIER.server_key, VERIFIER.iterations),
        channel_binding=("tls-server-end-point", BINDING) if plus else None,
    )
    client = scram.client_mechanism("u,=", password, plus=plus, binding=BINDING if plus else b"", offered=plus)
    theirs.set_client_first(next(client).decode())
    final = client.send(theirs.get_server_first().encode())
    if password == "pencil":
        theirs.set_client_final(final.decode())
        assert client.send(theirs.get_server_final().encode()) == b""
    else:
        with pytest.raises(scramp.ScramException):
            theirs.set_client_final(final.decode())


@pytest.mark.parametrize(
    ("header", "plus", "offered", "fits"),
    [
        ("n,,", False, False, True),
        ("n,,", False, True, True),
        ("y,,", False, False, True),
        ("y,,", False, True, False),  # somebody took -PLUS out of our offer
        ("p=tls-server-end-point,,", False, True, False),
        ("p=tls-server-end-point,,", True, True, True),
        ("p=tls-unique,,", True, True, False),
        ("p=tls-exporter,,", True, True, False),
        ("n,,", True, True, False),
        ("y,,", True, True, False),
    ],
)
def test_what_a_client_may_say_of_binding(header: str, plus: bool, offered: bool, fits: bool) -> None:
    first = scram.parse_first(f"{header}n=u,r=abc".encode())
    assert scram.binding_fits(first, plus=plus, offered=offered) is fits


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"n",
        b"n,",
        b"n,,",
        b"x,,n=u,r=a",
        b"n=,,n=u,r=a",
        b"y=x,,n=u,r=a",
        b"p,,n=u,r=a",
        b"p=,,n=u,r=a",
        b"n,u,n=u,r=a",
        b"n,,n=,r=a",
        b"n,,n=u,r=",
        b"n,,r=a,n=u",
        b"n,,n=u",
        b"n,,m=x,n=u,r=a",  # a mandatory extension
        b"n,,n=u=2c,r=a",
        b"n,,n=u=,r=a",
        b"n,,n=u,r=a b",
        b"n,,n=u,r=\xc3\xa4",
        b"n,,n=\xff,r=a",
        b"n,,n=\0,r=a",
        b"n,,n=" + b"u" * 2000 + b",r=a",
        b"n,,n=u,r=" + b"a" * 5000,
    ],
)
def test_first_messages_that_cannot_be_read(message: bytes) -> None:
    with pytest.raises(ProtocolError):
        scram.parse_first(message)


def test_an_extension_is_carried_along() -> None:
    first = scram.parse_first(b"n,a=me=2C,n=u,r=a,x=1")
    assert (first.authzid, first.bare, first.header) == ("me,", "n=u,r=a,x=1", b"n,a=me=2C,")


def wrong_finals() -> list[bytes]:
    return [
        FINAL.replace(b"p=dH", b"p=dI"),
        FINAL.replace(b"c=biws", b"c=eSws"),
        FINAL.replace(b"$k0,", b"$k1,"),
        FINAL[: FINAL.index(b",p=")] + b",p=",
        FINAL[: FINAL.index(b",p=")] + b",p=AAAA",
    ]


@pytest.mark.parametrize("final", wrong_finals())
def test_finals_that_prove_nothing(final: bytes) -> None:
    assert scram.check_final(scram.parse_first(FIRST), CHALLENGE, final, b"", VERIFIER)[0] is False


@pytest.mark.parametrize(
    "final", [b"", b"c=biws", b"c=biws,r=x", b"r=x,c=biws,p=AAAA", b"c=%,r=x,p=AAAA", b"c=biws,r=x,p=%", b"\xff,p="]
)
def test_finals_that_cannot_be_read(final: bytes) -> None:
    with pytest.raises(ProtocolError):
        scram.check_final(scram.parse_first(FIRST), CHALLENGE, final, b"", VERIFIER)


def test_a_proof_is_bound_to_its_channel() -> None:
    client = scram.client_mechanism("user", "pencil", plus=True, binding=BINDING, offered=True)
    first = scram.parse_first(next(client))
    challenge = scram.server_first(first, NONCE, VERIFIER)
    final = client.send(challenge)
    assert scram.check_final(first, challenge, final, BINDING, VERIFIER)[0]
    assert not scram.check_final(first, challenge, final, BINDING[::-1], VERIFIER)[0]


@pytest.mark.parametrize(
    "challenge",
    [
        b"",
        b"r=abc,s=AAAA,i=4096",  # the nonce is ours and no more
        b"r=xyz1,s=AAAA,i=4096",
        b"r=abc1,s=AAAA,i=4095",
        b"r=abc1,s=AAAA,i=2000001",
        b"r=abc1,s=AAAA,i=99999999999999999999",
        b"r=abc1,s=AAAA,i=\xd9\xa1\xd9\xa1\xd9\xa1\xd9\xa1",
        b"r=abc1,s=%,i=4096",
        b"m=x,r=abc1,s=AAAA,i=4096",
    ],
)
def test_challenges_that_our_client_refuses(challenge: bytes) -> None:
    client = scram.client_mechanism("user", "pencil", nonce="abc")
    next(client)
    with pytest.raises(ProtocolError):
        client.send(challenge)


def test_a_server_that_does_not_know_the_password_is_refused() -> None:
    client = scram.client_mechanism("user", "pencil", nonce="rOprNGfwEbeRWgbNEkqO")
    next(client)
    client.send(CHALLENGE)
    with pytest.raises(ProtocolError):
        client.send(b"v=" + base64.b64encode(bytes(32)))


# --- in a session -------------------------------------------------------------------------------------------


class Server:
    """The driver of a server session that knows one user, and one certificate's user for EXTERNAL."""

    def __init__(self, *offered: str) -> None:
        self.session = ServerSession(ServerConfig("mx.example.org", auth=offered), tls=True)
        self.first: scram.First | None = None
        self.challenge = b""
        self.proved = False

    def turn(self, data: bytes) -> bytes:
        if data:
            self.session.receive_data(data)
        while (event := self.session.next_event()) is not NEED_DATA and not isinstance(event, Closed):
            if isinstance(event, AuthStep):
                self.step(event)
            else:
                self.session.accept()
        return self.session.data_to_send()

    def step(self, event: AuthStep) -> None:
        try:
            self.answer(event)
        except ProtocolError:
            self.session.refuse(AUTH_FAILED)

    def answer(self, event: AuthStep) -> None:
        session = self.session
        if event.mechanism == EXTERNAL:
            session.accept() if event.response in (b"", b"user") else session.refuse(AUTH_FAILED)
        elif self.proved:
            session.accept() if event.response == b"" else session.refuse(AUTH_FAILED)
        elif self.first is None:
            self.first = scram.parse_first(event.response)
            self.challenge = scram.server_first(self.first, NONCE, VERIFIER)
            session.challenge(self.challenge)
        else:
            self.proved, answer = scram.check_final(self.first, self.challenge, event.response, BINDING, VERIFIER)
            session.challenge(answer) if self.proved else session.refuse(AUTH_FAILED)


def log_in(server: Server, password: str = "pencil", binding: bytes = b"") -> Any:
    """Our client against the server, until AUTH is answered."""
    client = ClientSession("client.example", tls=True)
    asked = False
    for _ in range(20):
        event = client.next_event()
        if isinstance(event, AuthDone):
            return event.reply
        if event is not NEED_DATA and not asked:
            asked = True
            client.auth("user", Secret(password), binding=binding)
        client.receive_data(server.turn(client.data_to_send()))
    raise AssertionError("AUTH came to no end")


@pytest.mark.parametrize(
    ("offered", "binding"),
    [((SCRAM,), b""), ((SCRAM_PLUS, SCRAM), b""), ((SCRAM_PLUS, SCRAM), BINDING), ((SCRAM,), BINDING)],
)
def test_our_client_and_our_server(offered: tuple[str, ...], binding: bytes) -> None:
    server = Server(*offered)
    assert log_in(server, binding=binding).code == 235
    assert server.session.authenticated
    assert server.first is not None
    plus = SCRAM_PLUS in offered
    assert server.first.flag == ("p" if binding and plus else "y" if binding else "n")
    wrong = Server(*offered)
    assert log_in(wrong, "pencils", binding).code == 535
    assert not wrong.session.authenticated


def test_a_server_that_says_yes_too_early_is_refused_by_our_client() -> None:
    for early in ("334 " + base64.b64encode(CHALLENGE).decode(), ""):
        client = ClientSession("client.example", tls=True)
        client.receive_data(b"220 x\r\n250-x\r\n250 AUTH SCRAM-SHA-256\r\n")
        client.next_event()
        client.auth("user", Secret("pencil"))
        client.receive_data(f"{early}\r\n235 ok\r\n".lstrip().encode())
        with pytest.raises(ProtocolError):
            client.next_event()


@pytest.mark.parametrize(
    ("lines", "last"),
    [
        (b"AUTH EXTERNAL =\r\n", b"235 2.7.0 "),
        (b"AUTH EXTERNAL dXNlcg==\r\n", b"235 2.7.0 "),
        (b"AUTH EXTERNAL\r\n\r\n", b"235 2.7.0 "),
        (b"AUTH EXTERNAL Ym9i\r\n", b"535 5.7.8 "),
        (b"AUTH EXTERNAL\r\n*\r\n", b"501 5.7.0 "),
        (b"AUTH EXTERNAL %\r\n", b"501 5.5.2 "),
        (b"AUTH SCRAM-SHA-256\r\n*\r\n", b"501 5.7.0 "),
        (b"AUTH SCRAM-SHA-256 " + base64.b64encode(FIRST) + b"\r\n*\r\n", b"501 5.7.0 "),
        (b"AUTH SCRAM-SHA-256 " + base64.b64encode(FIRST) + b"\r\nbiws\r\n", b"535 5.7.8 "),
    ],
)
def test_mechanisms_of_the_driver(lines: bytes, last: bytes) -> None:
    server = Server(EXTERNAL, SCRAM)
    said = server.turn(b"EHLO c.example\r\n") + server.turn(lines)
    assert said.splitlines()[-1].startswith(last)
    assert server.session.authenticated is last.startswith(b"235")
    if not server.session.authenticated:
        assert server.turn(b"AUTH EXTERNAL =\r\n").startswith(b"235 ")  # the next attempt is a fresh one


def test_challenge_answers_an_auth_step_and_nothing_else() -> None:
    session = ServerSession(ServerConfig("mx.example.org"), tls=True)
    session.receive_data(b"EHLO c.example\r\n")
    session.next_event()
    with pytest.raises(RuntimeError):
        session.challenge(b"")


# --- noise --------------------------------------------------------------------------------------------------

CORPUS = [path.read_bytes() for path in sorted((pathlib.Path(__file__).parent / "sasl_corpus").iterdir())]


def mutated(rng: random.Random, sample: bytes) -> bytes:
    data = bytearray(sample)
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(data) + 1)
        piece = rng.choice([b",", b"=", b"m=", b"\0", b"\xff", b"r=", b"p=", b"=2C", bytes([rng.randrange(256)])])
        data[at : at + rng.randrange(3)] = piece
    return bytes(data)


@pytest.mark.slow
def test_fuzz_exchanges() -> None:
    """No exception but ProtocolError leaves a parser, and nobody gets in without the proof."""
    rng = random.Random(20_261_122)
    for _ in range(4000):
        server = Server(SCRAM_PLUS, SCRAM, "PLAIN", "LOGIN")
        server.turn(b"EHLO c.example\r\n")
        mechanism = rng.choice([SCRAM, SCRAM_PLUS, "PLAIN", "LOGIN"])
        command = b"AUTH " + mechanism.encode()
        lines = [mutated(rng, rng.choice(CORPUS)) for _ in range(rng.randrange(4))]
        genuine = FINAL in lines and FIRST in lines
        wire = command + b"\r\n" + b"".join(base64.b64encode(x) + b"\r\n" for x in lines)
        server.turn(mutated(rng, wire) if rng.random() < 0.2 else wire)
        assert genuine or mechanism in ("PLAIN", "LOGIN") or not server.session.authenticated
        client = scram.client_mechanism("user", "x", derive=lambda *_: hashlib.sha256().digest())
        next(client)
        try:
            for line in lines:
                client.send(line)
        except (ProtocolError, StopIteration):
            pass


@given(st.binary(max_size=200))
def test_hypothesis_first(message: bytes) -> None:
    try:
        first = scram.parse_first(message)
    except ProtocolError:
        return
    assert first.header + first.bare.encode() == message
