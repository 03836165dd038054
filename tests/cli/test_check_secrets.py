"""``ptt check`` on the relay's secret files."""

from __future__ import annotations

import pathlib

from ptt.cli.check_secrets import secrets
from ptt.config import Config, Relay


def levels(directory: pathlib.Path, srs: str = "") -> dict[str, str]:
    relay = Relay(credentials=str(directory), srs_secret=srs)
    return {pathlib.Path(f.what).name: f.level for f in secrets(Config(hostname="mail.example", relay=relay))}


def put(file: pathlib.Path, text: str, mode: int = 0o600) -> None:
    file.write_text(text)
    file.chmod(mode)


def test_each_file_is_looked_at(tmp_path: pathlib.Path) -> None:
    put(tmp_path / "good.toml", 'user = "a"\npassword = "b"\n')
    put(tmp_path / "open.toml", 'user = "a"\npassword = "b"\n', 0o644)
    put(tmp_path / "half.toml", 'user = "a"\n')
    put(tmp_path / "other.txt", "x")
    assert levels(tmp_path) == {"good.toml": "ok", "open.toml": "fail", "half.toml": "fail", "other.txt": "fail"}
    assert levels(tmp_path / "missing") == {}


def test_the_secret_of_rewritten_senders(tmp_path: pathlib.Path) -> None:
    put(tmp_path / "srs", "x" * 32)
    nothing = tmp_path / "none"
    assert levels(nothing, str(tmp_path / "srs")) == {"srs": "ok"}
    (tmp_path / "srs").chmod(0o640)
    assert levels(nothing, str(tmp_path / "srs")) == {"relay.srs_secret": "fail"}
    assert levels(nothing, str(tmp_path / "away")) == {"relay.srs_secret": "fail"}
