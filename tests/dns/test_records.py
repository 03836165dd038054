"""``ptt dns plan|apply|check`` against BIND and Knot: what it writes, and what it never touches."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ptt import config as configuration
from ptt.cli.dns import dns
from ptt.config import Config
from ptt.dns.records import DMARC, dmarc_mistake, part_of, spf_mistake
from ptt.dns.update import Change, TsigKey, look, txt, update_txt

ZONE = "example.test"
RECORD = "v=DKIM1; k=rsa; p=" + "MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8A" * 12
SPF = "v=spf1 a:mail.example.test ~all"


class Shared:
    """What the ``ptt`` command hands on: a configuration with one key, over a fleet's zone."""

    def __init__(self, base: pathlib.Path, fleet, manage: str) -> None:
        self.fleet = fleet
        text = f'hostname = "mail.{ZONE}"\n[dns]\ntimeout_seconds = 2.0\nresolvers = ["{fleet.primary}"]\n'
        text += f'authority_port = {fleet.port}\n[[dns.zones]]\nname = "{ZONE}"\nprimary = "{fleet.primary}"\n'
        (base / "ptt.toml").write_text(f'{text}key_file = "{fleet.key_file}"\nttl = 1\nmanage = {manage}\n')
        self.config: Config = configuration.load(base / "ptt.toml")
        folder = base / "public" / ZONE
        folder.mkdir(parents=True)
        key = {"domain": ZONE, "selector": "cli", "algorithm": "rsa2048", "record": RECORD, "created": 1}
        (folder / "cli.pub").write_text(json.dumps(key))

    def run(self, *words: str) -> Result:
        return CliRunner().invoke(dns, words, obj=self)

    def actions(self, command: str) -> dict[str, str]:
        rows: list[dict[str, Any]] = json.loads(self.run(command, "--json").output)
        return {row["kind"]: row["action"] for row in rows}

    def texts(self, name: str) -> list[bytes]:
        return sorted(look(self.fleet.primary, name, 2).texts)

    def put(self, name: str, *texts: bytes) -> None:
        change = Change(name, look(self.fleet.primary, name, 2).records, [txt(text) for text in texts])
        update_txt(self.fleet.primary, ZONE, TsigKey.load(self.fleet.key_file), [change], 1, 2)

    def clean(self) -> None:
        for name in (f"cli._domainkey.{ZONE}", f"_dmarc.{ZONE}"):
            self.put(name)
            self.put(f"_ptt.{name}")
        self.put(f"_ptt.{ZONE}")
        self.put(ZONE, b"other=1", b"other=2")
        self.fleet.transfer()


@pytest.fixture
def shared(tmp_path: pathlib.Path, fleet) -> Shared:
    made = Shared(tmp_path, fleet, '["dkim", "spf", "dmarc"]')
    made.clean()
    return made


@pytest.mark.peer
@pytest.mark.slow
class TestCommands:
    def test_plan_apply_check(self, shared: Shared, fleet) -> None:
        before = fleet.serial("127.0.0.1")
        plan = shared.run("plan")
        assert plan.exit_code == 0
        assert plan.output.splitlines()[-1] == "0 right, 3 to write: ptt dns apply, 0 left to you (!)"
        assert f'+ {ZONE} TXT "{SPF}"' in plan.output.splitlines()
        assert f'+ _dmarc.{ZONE} TXT "{DMARC}"' in plan.output.splitlines()
        assert fleet.serial("127.0.0.1") == before  # nothing was written
        check = shared.run("check")
        assert check.exit_code == 1
        assert "ns2.example.test (127.0.0.2): no DMARC record" in check.output
        assert shared.actions("apply") == {"dkim": "add", "spf": "add", "dmarc": "add"}
        assert shared.texts(ZONE) == [b"other=1", b"other=2", SPF.encode()]
        assert shared.texts(f"_dmarc.{ZONE}") == [DMARC.encode()]
        assert shared.texts(f"cli._domainkey.{ZONE}") == [RECORD.encode()]
        assert shared.run("check").exit_code == 1  # the secondary lags
        fleet.transfer()
        check = shared.run("check", "--json")
        assert check.exit_code == 0, check.output
        levels = {row["what"]: row["level"] for row in json.loads(check.output)}
        assert [levels[kind] for kind in ("dkim", "spf", "dmarc", "resolver")] == ["ok"] * 4
        assert levels["PTR"] == "warn"
        serial = fleet.serial("127.0.0.1")
        assert shared.actions("apply") == {"dkim": "none", "spf": "none", "dmarc": "none"}
        assert fleet.serial("127.0.0.1") == serial

    def test_what_others_wrote_or_edited_is_reported_and_left(self, shared: Shared) -> None:
        shared.put(ZONE, b"v=spf1 mx -all", b"other=1")
        shared.put(f"_dmarc.{ZONE}", b"v=DMARC1; rua=mailto:a@example.test")
        assert shared.actions("apply") == {"dkim": "add", "spf": "foreign", "dmarc": "foreign"}
        assert shared.texts(ZONE) == [b"other=1", b"v=spf1 mx -all"]
        plan = shared.run("plan").output
        assert "(somebody else wrote what is there, so it stays)" in plan
        assert "put it there yourself" not in plan  # a second policy would void theirs
        shared.put(f"_dmarc.{ZONE}")
        assert shared.actions("apply")["dmarc"] == "add"
        shared.put(f"_dmarc.{ZONE}", b"v=DMARC1; p=broken")  # ours, edited
        assert shared.actions("apply")["dmarc"] == "foreign"
        shared.put(f"_dmarc.{ZONE}", b"v=DMARC1; p=reject")
        assert shared.actions("plan")["dmarc"] == "none"

    def test_only_what_is_in_manage(self, tmp_path: pathlib.Path, fleet, shared: Shared) -> None:
        (tmp_path / "b").mkdir()
        careful = Shared(tmp_path / "b", fleet, '["dkim"]')
        assert careful.actions("apply") == {"dkim": "add", "spf": "not ours", "dmarc": "not ours"}
        assert careful.texts(ZONE) == [b"other=1", b"other=2"]
        lines = careful.run("plan").output.splitlines()
        assert f'! {ZONE} TXT: no SPF record (dns.zones of {ZONE} has no "spf" in manage)' in lines
        assert f'  put it there yourself: {ZONE}. TXT "{SPF}"' in lines
        assert lines[-1] == "1 right, 0 to write: ptt dns apply, 2 left to you (!)"

    def test_a_primary_that_refuses(self, tmp_path: pathlib.Path, fleet, shared: Shared) -> None:
        key = pathlib.Path(fleet.key_file).read_text().replace("ptt-hmac-sha256", "unknown")
        (tmp_path / "unknown.key").write_text(key)
        (tmp_path / "unknown.key").chmod(0o600)
        text = (tmp_path / "ptt.toml").read_text().replace(fleet.key_file, "unknown.key")
        (tmp_path / "ptt.toml").write_text(text)
        shared.config = configuration.load(tmp_path / "ptt.toml")
        run = shared.run("apply")
        assert run.exit_code == 1
        assert "BADKEY" in run.output
        assert run.output.splitlines()[-1] == "0 right, 0 written, 0 left to you (!), 3 not known: see why"


@pytest.mark.parametrize(
    ("texts", "wrong"),
    [
        ([], "no SPF record"),
        ([b"v=spf1 a:h.test -all"], ""),
        ([b"v=spf1 +A:h.test ?all"], ""),
        ([b"v=spf1 -a:h.test"], "it does not say a:h.test"),
        ([b"v=spf1 a:h.test", b"v=spf1"], "2 SPF records"),
    ],
)
def test_spf(texts: list[bytes], wrong: str) -> None:
    found = spf_mistake(texts, "h.test")
    assert found.startswith(wrong)
    assert bool(found) == bool(wrong)


def test_dmarc() -> None:
    assert dmarc_mistake([b"v=DMARC1;p=quarantine"]) == ""
    assert "no policy" in dmarc_mistake([b"v=DMARC1; p=x"])
    assert "no DMARC" in dmarc_mistake([])


def test_parts_of_a_set() -> None:
    assert part_of("spf")(b"V=SPF1 -all")
    assert not part_of("spf")(b"v=spf10 -all")
    assert part_of("dmarc")(b"v=DMARC1;p=none")
    assert not part_of("dmarc")(b"v=spf1")
