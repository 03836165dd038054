"""What the key process signs and refuses, without its sockets."""

import os
import pathlib
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from ptt.config import load
from ptt.dkim.field import MAX_DATA
from ptt.dkim.rules import DEFAULT
from ptt.log import Log
from ptt.metrics import Counters, Snapshot
from ptt.signer import keystore, stage
from ptt.signer.handler import MAX_BATCH, Handler
from ptt.signer.keystore import Keystore
from ptt.signer.state import PublicKey

MESSAGE = b"From: a@example.org\r\n\r\nbody\r\n"


class Made:
    def __init__(self, base: pathlib.Path, signer: str = "") -> None:
        (base / "ptt.toml").write_text(f'hostname = "mail.example.org"\n[signer]\n{signer}\n')
        self.config = load(base / "ptt.toml")
        self.log = base / "log"
        self.fd = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.counters = Counters()
        store = Keystore(self.config.signer.keys, os.geteuid())
        self.handler = Handler(self.config, store, Log("signer", "debug", self.fd), self.counters)

    def key(self, domain: str = "example.org", selector: str = "s1") -> PublicKey:
        signer = self.config.signer
        return keystore.generate(signer.keys, signer.public, domain, selector, "ed25519", 1)

    def call(self, method: str, argument: Any) -> Any:
        number, error, result = self.handler.answer([5, method, argument])
        assert number == 5
        if error is not None:
            raise RuntimeError(error)
        return result


@pytest.fixture
def made(tmp_path: pathlib.Path) -> Iterator[Made]:
    found = Made(tmp_path)
    yield found
    os.close(found.fd)


def data_of(key: PublicKey, **changes: str) -> bytes:
    """What a worker sends for this key; ``changes``: of the key as the worker pretends it to be."""
    pretended = msgspec.structs.replace(key, **changes)
    return stage.prepare([(pretended, DEFAULT)], MESSAGE, 1)[0].data


def test_sign(made: Made) -> None:
    key = made.key()
    request = ["id1", "example.org", "s1", data_of(key)]
    (signature, error), again = made.call("sign", [request, request])
    assert error is None
    assert len(signature) == 64
    assert again == [signature, None]
    assert made.counters.counters["ptt_key_requests_total", ("signed",)] == 2
    line = msgspec.json.decode(made.log.read_bytes().splitlines()[0])
    assert (line["event"], line["level"]) == ("signatures made", "info")
    assert line["signatures"] == ["id1 example.org s1", "id1 example.org s1"]  # one line for the batch


@pytest.mark.parametrize(
    "changes",
    [{"domain": "other.example"}, {"selector": "s2"}, {"algorithm": "rsa2048"}, {"domain": "sub.example.org"}],
)
def test_signs_only_the_field_of_that_key(made: Made, changes: dict[str, str]) -> None:
    key = made.key()
    ((signature, error),) = made.call("sign", [["id1", "example.org", "s1", data_of(key, **changes)]])
    assert signature is None
    assert error == "d=, s= or a= is not that of the key asked for"


@pytest.mark.parametrize("data", [b"", b"TLS 1.3, server CertificateVerify", b"from:a\r\ndkim-signature:v=1; b="])
def test_signs_nothing_else(made: Made, data: bytes) -> None:
    made.key()
    ((signature, error),) = made.call("sign", [["id1", "example.org", "s1", data]])
    assert signature is None
    assert error


def test_one_refusal_spoils_no_batch(made: Made) -> None:
    good = ["id1", "example.org", "s1", data_of(made.key())]
    answers = made.call("sign", [good, ["id2", "missing.example", "s1", b""], good])
    assert [error is None for _, error in answers] == [True, False, True]
    assert "cannot be opened: No such file" in answers[1][1]
    assert made.counters.counters["ptt_key_requests_total", ("refused",)] == 1
    refused = [line for line in made.log.read_text().splitlines() if "signature refused" in line]
    assert len(refused) == 1
    assert '"id":"id2"' in refused[0]


@pytest.mark.parametrize(
    "item", [None, 7, "text", [], [1, 2, 3], ["id", b"example.org", "s1", b""], ["id", "example.org", "s1", "text"], {}]
)
def test_malformed_items_are_answered(made: Made, item: Any) -> None:
    assert made.call("sign", [item]) == [[None, "not a request for a signature"]]


@pytest.mark.parametrize(
    ("method", "argument"),
    [
        ("sign", None),
        ("sign", [[]] * (MAX_BATCH + 1)),
        ("nothing", 1),
        (7, 1),
        ("keygen", ["a"]),
        ("keygen", [1, 2, 3]),
    ],
)
def test_malformed_requests_are_answered(made: Made, method: Any, argument: Any) -> None:
    with pytest.raises(RuntimeError):
        made.call(method, argument)


@pytest.mark.parametrize("request_", [None, [], [1, 2], "text", {"a": 1}, [1, 2, 3, 4]])
def test_what_is_no_request_ends_the_connection(made: Made, request_: Any) -> None:
    with pytest.raises(ValueError, match="not a request"):
        made.handler.answer(request_)


def test_too_large(made: Made) -> None:
    made.key()
    ((_, error),) = made.call("sign", [["id1", "example.org", "s1", bytes(MAX_DATA + 1)]])
    assert f"{MAX_DATA} are allowed" in error


def test_only_allowed_domains(tmp_path: pathlib.Path) -> None:
    made = Made(tmp_path, 'domains = ["example.org"]')
    keys = [made.key("example.org"), made.key("other.example")]
    answers = made.call("sign", [["id", key.domain, "s1", data_of(key)] for key in keys])
    assert answers[0][1] is None
    assert answers[1] == [None, "'other.example' is not among signer.domains"]
    os.close(made.fd)


def test_keygen_public_stats(made: Made) -> None:
    record = made.call("keygen", ["example.org", "s1", "ed25519"])
    assert record.startswith("v=DKIM1; k=ed25519; p=")
    assert [key["record"] for key in made.call("public", "example.org")] == [record]
    assert made.call("public", "") == made.call("public", "example.org")
    assert made.call("public", "other.example") == []
    with pytest.raises(RuntimeError, match="exists already"):
        made.call("keygen", ["example.org", "s1", "ed25519"])
    name, pid, _ = made.call("who", None)
    assert (name, pid) == ("signer", os.getpid())
    stats = msgspec.convert(made.call("stats", None), Snapshot)
    assert ("ptt_process_cpu_seconds_total", ("signer",)) in {(n, ls) for n, ls, _ in stats.counters}


def test_no_private_key_leaves(made: Made) -> None:
    key = made.key()
    pem = pathlib.Path(made.config.signer.keys, "example.org", "s1.pem")
    secret = pem.read_text().splitlines()[1]
    pem.write_text(pem.read_text().replace("BEGIN", "BEGUN"))
    answers = [
        made.handler.answer([1, "sign", [["id", "example.org", "s1", data_of(key)]]]),
        made.handler.answer([1, "keygen", ["example.org", "s2", "ed25519"]]),
        made.handler.answer([1, "public", ""]),
    ]
    second = pem.with_name("s2.pem").read_text().splitlines()[1]
    for text in (secret[16:], second[16:], "PRIVATE"):
        assert text not in repr(answers)
        assert text not in made.log.read_text()


def test_a_fault_of_ours_is_answered_and_logged(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("detail")

    monkeypatch.setattr(made.handler._store, "get", broken)
    with pytest.raises(RuntimeError, match=r"^RuntimeError$"):
        made.call("sign", [["id", "example.org", "s1", b""]])
    assert "detail" in made.log.read_text()
    assert made.counters.counters["ptt_errors_total", ("signer",)] == 1


def test_keys_are_made_and_removed_for_control_alone(tmp_path: pathlib.Path) -> None:
    made = Made(tmp_path)
    made.handler._makers = frozenset({7})
    for method, argument in (
        ("keygen", ["example.org", "s1", "ed25519"]),
        ("ensure", ["example.org", "s1", "ed25519"]),
        ("remove", ["example.org", "s1"]),
    ):
        _, error, _ = made.handler.answer([1, method, argument], 8)
        assert error == "user 8 may not make or remove keys"
        assert made.handler.answer([1, method, argument], 7)[1] is None
    assert "key method refused" in made.log.read_text()


def test_ensure_makes_a_key_once_and_remove_removes_it(made: Made) -> None:
    names = ["example.org", "s9", "ed25519"]
    record = made.call("ensure", names)
    assert made.call("ensure", names) == record
    public = pathlib.Path(made.config.signer.public, "example.org", "s9.pub")
    public.unlink()  # as after a crash between the two files
    assert made.call("ensure", names) == record
    assert record in public.read_text()
    with pytest.raises(RuntimeError, match="is another"):
        made.call("ensure", ["example.org", "s9", "rsa2048"])
    for _ in range(2):
        assert made.call("remove", ["example.org", "s9"]) is None
    assert not public.exists()
    assert not pathlib.Path(made.config.signer.keys, "example.org", "s9.pem").exists()
    for method, argument in (("ensure", ["example.org", "s9"]), ("remove", "x"), ("remove", ["..", "s9"])):
        with pytest.raises(RuntimeError):
            made.call(method, argument)
    with pytest.raises(RuntimeError, match="unknown algorithm"):
        made.call("ensure", ["example.org", "s9", "dsa"])
