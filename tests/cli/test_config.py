"""The configuration: every mistake is said, with its key; nothing wrong gets through; paths are the file's."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptt.config import ConfigError, load, split_address

BAD = sorted((pathlib.Path(__file__).parent.parent / "bad_configs").glob("*.toml"))


@pytest.mark.parametrize("file", BAD, ids=lambda file: file.stem)
def test_mistakes(file: pathlib.Path) -> None:
    """Each line of X.expected is the beginning of a mistake in X.toml, in that order, and there are no others."""
    expected = file.with_suffix(".expected").read_text().splitlines()
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert len(caught.value.mistakes) == len(expected), caught.value.mistakes
    for mistake, beginning in zip(caught.value.mistakes, expected, strict=True):
        assert mistake.startswith(beginning)
    assert str(caught.value).splitlines()[0].startswith(f"{file}: ")


def test_every_bad_one_has_its_expectation() -> None:
    assert len(BAD) >= 10
    assert {file.stem for file in BAD} == {file.stem for file in BAD[0].parent.glob("*.expected")}


@pytest.mark.parametrize("command", [["ptt.service.supervisor"], ["ptt", "check"], ["ptt", "queue", "list"]])
def test_commands_say_all_mistakes_and_exit_with_2(command: list[str]) -> None:
    file = next(file for file in BAD if file.stem == "wrong_types")
    done = subprocess.run([sys.executable, "-m", *command, "--config", str(file)], capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == len(file.with_suffix(".expected").read_text().splitlines())
    assert all(line.startswith(f"{file}: ") for line in done.stderr.splitlines())
    assert done.stdout == ""


def test_a_file_that_is_not_there(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(tmp_path / "none.toml")


def test_not_text(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "ptt.toml"
    file.write_bytes(b"hostname = '\xff'")
    with pytest.raises(ConfigError, match="is not TOML"):
        load(file)


def test_paths_are_relative_to_the_file_and_overrides_win(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "ptt.toml"
    file.write_text(
        'hostname = "mail.example.org"\npool = 4\ndata = "/var/lib/ptt"\n'
        '[[dns.zones]]\nname = "example.org"\nprimary = "192.0.2.1"\nkey_file = "tsig.key"\n'
    )
    monkeypatch.chdir("/")
    config = load(file, role="relay", pool=3)
    assert (config.role, config.workers, config.signs) == ("relay", 3, False)
    assert config.run == str(tmp_path / "run")
    assert config.data == "/var/lib/ptt"
    assert config.tls.public_key == str(tmp_path / "tls/public.key")
    assert config.dns.zones[0].key_file == str(tmp_path / "tsig.key")
    assert config.log.file == ""


def test_an_override_is_checked_too(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "ptt.toml"
    file.write_text('hostname = "mail.example.org"\n')
    with pytest.raises(ConfigError, match=r"relay\.next_hop: role signer needs"):
        load(file, role="signer")


@pytest.mark.parametrize(
    ("text", "default", "found"),
    [
        ("127.0.0.1:25", None, ("127.0.0.1", 25)),
        ("[::1]:25", None, ("::1", 25)),
        ("mx.example.org:2525", 53, ("mx.example.org", 2525)),
        ("192.0.2.1", 53, ("192.0.2.1", 53)),
        ("::1", 53, ("::1", 53)),
        ("[::1]", 53, ("::1", 53)),
    ],
)
def test_split_address(text: str, default: int | None, found: tuple[str, int]) -> None:
    assert split_address(text, default) == found


@pytest.mark.parametrize(
    "text", ["", ":25", "host", "host:", "host:x", "host:-1", "host:65536", "::1", "host:²", "[]:25"]
)
def test_split_address_refuses(text: str) -> None:
    with pytest.raises(ValueError):
        split_address(text)


@given(st.text(max_size=200))
def test_any_text_is_loaded_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.mktemp("any") / "ptt.toml"
    file.write_text(text, encoding="utf-8", errors="replace", newline="")
    with pytest.raises(ConfigError):
        load(file)
