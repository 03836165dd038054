"""``ptt dkim``: keygen, status, publish."""

import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import gevent
import msgspec
import pytest
from click.testing import CliRunner, Result
from gevent import socket

from ptt.cli.dkim import dkim
from ptt.config import Config, load
from ptt.net import rpc
from ptt.net.rpc import RpcError
from ptt.signer import keystore, rotation
from ptt.signer.state import KeyState, PublicKey, public_keys, state_path, write_state


class Shared:
    """What the ``ptt`` command hands on."""

    def __init__(self, base: pathlib.Path, text: str = "") -> None:
        self.file = str(base / "ptt.toml")
        pathlib.Path(self.file).write_text(f'hostname = "mail.example.org"\n{text}')
        (base / "run").mkdir(exist_ok=True)

    @property
    def config(self) -> Config:
        return load(self.file)

    def key(self, selector: str) -> PublicKey:
        signer = self.config.signer
        return keystore.generate(signer.keys, signer.public, "example.org", selector, "ed25519", 1)

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(dkim, arguments, obj=self)


@pytest.fixture
def shared(tmp_path: pathlib.Path) -> Shared:
    return Shared(tmp_path)


@pytest.mark.slow
def test_keygen(shared: Shared) -> None:
    run = shared.run("keygen", "--domain", "Example.ORG")
    assert run.exit_code == 0
    (key,) = public_keys(shared.config.signer.public, "example.org")
    assert key.algorithm == "rsa2048"
    assert key.selector.startswith("s20")
    lines = run.output.splitlines()
    assert lines[0] == f"{key.selector}._domainkey.example.org. IN TXT ("
    assert "".join(part.strip(' ")') for part in lines[1:]).replace(" ", "") == key.record.replace(" ", "")
    run = shared.run("keygen", "--domain", "example.org", "--selector", "e", "--algorithm", "ed25519", "--json")
    found = json.loads(run.output)
    assert (found["name"], found["record"][:21]) == ("e._domainkey.example.org", "v=DKIM1; k=ed25519; p")
    assert shared.run("keygen", "--domain", "example.org", "--selector", "e").exit_code == 1


def test_keygen_only_where_there_is_a_key_process(tmp_path: pathlib.Path) -> None:
    shared = Shared(tmp_path, 'role = "relay"\n')
    run = shared.run("keygen", "--domain", "example.org")
    assert (run.exit_code, "no key process" in run.output) == (1, True)


def test_status(shared: Shared) -> None:
    served, changed, missing = shared.key("served"), shared.key("changed"), shared.key("missing")
    folder = pathlib.Path(shared.config.signer.keys, "example.org")
    (folder / "changed.pem").chmod(0o644)
    (folder / "missing.pem").unlink()
    states = [
        KeyState("example.org", "served", "ed25519", served.record, True, checked=1_700_000_000_000),
        KeyState("example.org", "changed", "ed25519", changed.record, False, "no such name"),
        KeyState("example.org", "missing", "ed25519", served.record, True),
    ]
    write_state(state_path(shared.config), states)
    rows = {row["selector"]: row for row in json.loads(shared.run("status", "--json").output)}
    assert rows["served"] == {
        "domain": "example.org",
        "selector": "served",
        "algorithm": "ed25519",
        "file": "ok",
        "served": True,
        "why": "",
        "checked": 1_700_000_000_000,
        "record": served.record,
        "retired": False,
        "rotation": None,
    }
    assert "has mode 0644, must have 0600" in rows["changed"]["file"]
    assert (rows["changed"]["served"], rows["changed"]["why"]) == (False, "no such name")
    assert rows["missing"]["file"] == "No such file or directory"
    assert (rows["missing"]["served"], rows["missing"]["record"]) == (False, missing.record)
    table = shared.run("status").output
    assert "served" in table
    assert "2023-11-14" in table
    assert json.loads(shared.run("status", "--json", "--domain", "other.example").output) == []


def test_publish_tells_what_is_not_served(tmp_path: pathlib.Path, free_port: Callable[[], int]) -> None:
    shared = Shared(tmp_path, f'[dns]\nresolvers = ["127.0.0.1:{free_port()}"]\ntimeout_seconds = 0.1\n')
    assert shared.run("publish").exit_code == 1  # there is nothing to publish
    shared.key("s1")
    run = shared.run("publish", "--json")
    assert run.exit_code == 1
    ((row),) = json.loads(run.output)
    assert (row["domain"], row["selector"], row["served"]) == ("example.org", "s1", False)
    assert "s1._domainkey.example.org: not served (" in shared.run("publish", "--domain", "Example.org").output


def test_no_command_opens_a_private_key(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    """``status`` looks at the file's status alone: a file that cannot be opened is as good."""
    shared.key("s1")
    opened: list[str] = []
    plain = os.open

    def watched(path: str, *arguments: int, **named: int) -> int:
        opened.append(str(path))
        return plain(path, *arguments, **named)

    monkeypatch.setattr(os, "open", watched)
    assert json.loads(shared.run("status", "--json").output)[0]["file"] == "ok"
    assert not [path for path in opened if path.endswith(".pem")]


def test_rotations_are_shown_with_their_steps(shared: Shared) -> None:
    keys = [shared.key("old")]
    (pathlib.Path(shared.config.data) / "control").mkdir(parents=True)
    made = rotation.begin("example.org", keys, None, 1_700_000_000_000, compromise=True)
    made = rotation.at(made, "publish", 1_700_000_060_000)
    rotation.write_book(
        rotation.book_path(shared.config), rotation.Book((msgspec.structs.replace(made, wait="ns2: lags"),))
    )
    lines = shared.run("status").output.splitlines()
    assert "rotation of example.org (compromise): old -> s20231114221320e" in lines
    assert "  generate  since 2023-11-14 22:13:20Z" in lines
    assert "  publish   since 2023-11-14 22:14:20Z" in lines
    assert "  waits for ns2: lags" in lines
    (row,) = json.loads(shared.run("status", "--json").output)
    assert (row["rotation"]["step"], row["rotation"]["now"]) == ("publish", True)


def test_rotate_asks_the_running_service(shared: Shared) -> None:
    run = shared.run("rotate", "--domain", "example.org")
    assert (run.exit_code, "only a running one rotates keys" in run.output) == (1, True)
    asked: list[Any] = []

    def rotate(argument: Any) -> Any:
        asked.append(argument)
        if argument[0] != "example.org":
            raise RpcError("there is no key")
        return msgspec.to_builtins(rotation.begin("example.org", [key], None, 1_700_000_000_000))

    key = shared.key("old")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(pathlib.Path(shared.config.run) / "control.sock"))
    listener.listen()
    with listener:
        serving = gevent.spawn(rpc.serve, listener, {"rotate": rotate}, frozenset({os.getuid()}))
        run = shared.run("rotate", "--domain", "Example.org", "--now")
        assert run.output.startswith("rotation of example.org: old -> s20231114221320e\n")
        refused = shared.run("rotate", "--domain", "other.example")
        assert (refused.exit_code, refused.output) == (1, "Error: there is no key\n")
        serving.kill()
    assert asked == [["example.org", True], ["other.example", False]]
