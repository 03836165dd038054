"""Who may ask the control process to rotate keys, and what it answers."""

from __future__ import annotations

import itertools
import os
import pathlib
from typing import Any

import gevent
import msgspec
import pytest
from gevent import socket

from ptt.config import load
from ptt.directory.records import Domain
from ptt.directory.rules import Database
from ptt.directory.snapshot import Changes, Store
from ptt.dkim.rules import Rules
from ptt.log import Log
from ptt.metrics import Counters
from ptt.net import rpc
from ptt.net.rpc import RpcClient, RpcError
from ptt.service.keycare import KeyCare
from ptt.signer import keystore
from ptt.signer.state import KeyState, KeyView, write_state


def care(base: pathlib.Path, text: str = "") -> KeyCare:
    (base / "ptt.toml").write_text(f'hostname = "mail.example.org"\n{text}')
    for name in ("run", "data/control"):
        (base / name).mkdir(parents=True, exist_ok=True)
    return KeyCare(load(base / "ptt.toml"), Log("test", "error"), Counters())


def test_workers_with_a_user_of_their_own_may_not(tmp_path: pathlib.Path) -> None:
    users = "[users]\nqueue = 1\nworker = 60802\nsigner = 3\ncontrol = 4\n"
    assert care(tmp_path, users).may_rotate(frozenset({0, 60802})) == {0}
    assert care(tmp_path).may_rotate(frozenset({0, os.getuid()})) == {0, os.getuid()}


def test_a_method_for_few_is_unknown_to_the_others(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "s")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen()
    methods: dict[str, Any] = {"all": lambda _: 1, "few": lambda _: 2}
    with listener:
        restricted = {"few": frozenset({os.getuid() + 1})}
        serving = gevent.spawn(rpc.serve, listener, methods, frozenset({os.getuid()}), restricted)
        client = RpcClient(path)
        assert client.call("all") == 1
        with pytest.raises(RpcError, match="no method 'few'"):
            client.call("few")
        client.close()
        serving.kill()


def test_rotate(tmp_path: pathlib.Path) -> None:
    keys = care(tmp_path)
    for wrong in (None, ["example.org"], ["example.org", "yes"]):
        with pytest.raises(RpcError, match="rotate takes"):
            keys.rotate(wrong)
    with pytest.raises(RpcError, match=r"no key of example\.org"):
        keys.rotate(["example.org", False])
    base = str(tmp_path)
    keystore.generate(f"{base}/keys", f"{base}/public", "example.org", "s1", "ed25519", 1)
    answer = keys.rotate(["example.org", True])
    assert (answer["old"], answer["step"], answer["now"]) == (("s1",), "generate", True)
    assert msgspec.json.encode(answer)
    assert keys.warnings() == ["example.org has no key since a compromise; step generate: just begun"]
    keys.rotator.close()


def test_a_compromised_key_is_out_of_use_when_rotate_answers(tmp_path: pathlib.Path) -> None:
    """Control may be killed right after: the workers know already."""
    base = str(tmp_path)
    key = keystore.generate(f"{base}/keys", f"{base}/public", "example.org", "s1", "ed25519", 1)
    (tmp_path / "run").mkdir()
    write_state(f"{base}/run/dkim.json", [KeyState(key.domain, key.selector, key.algorithm, key.record, True)])
    keys = care(tmp_path)
    view = KeyView(load(tmp_path / "ptt.toml"), itertools.count().__next__)
    assert view.active("example.org").signing == (key,)
    keys.rotate(["example.org", True])
    assert view.active("example.org").signing == ()
    assert view.revoked() == {("example.org", "s1")}
    keys.rotator.close()


def test_keys_that_the_git_database_names_are_not_replaced_by_age(tmp_path: pathlib.Path) -> None:
    zone = '[[dns.zones]]\nname = "example.org"\nprimary = "127.0.0.1:53"\nkey_file = "key"\n'
    (tmp_path / "key").write_text('key "k" { algorithm hmac-sha256; secret "AAAAAAAAAAAAAAAAAAAAAA=="; };\n')
    keys = care(tmp_path, zone)
    config = load(tmp_path / "ptt.toml")
    store = Store(config.directory.snapshots, os.path.join(config.data, "control"))
    store.prepare()
    assert keys._ours("example.org")
    for number, (rules, ours) in enumerate([(Rules(selectors=("s1",)), False), (None, True)]):
        records = Database(domains={"example.org": Domain(dkim=rules)})
        store.point(store.write(f"{number}" * 40, Changes(records, set()), None))
        assert keys._ours("example.org") is ours
    assert not keys._ours("other.example")
