"""Messages that we did not write, with CRLF line ends, as the submission server would have them."""

import pathlib
import re
import subprocess
from collections.abc import Callable

import pytest

CORPORA = pathlib.Path(__file__).parents[2].parent / "shared" / "corpora"
FOLDERS = ("cpython_email", "mail_parser", "ruby_mail", "chasquid_dkim")


@pytest.fixture(scope="session")
def corpus() -> dict[str, bytes]:
    """Name -> message."""
    if not CORPORA.is_dir():
        pytest.skip("../shared/corpora is not here")
    found = {}
    for folder in FOLDERS:
        for path in sorted((CORPORA / folder).rglob("*")):
            if path.is_file() and path.suffix in ("", ".txt", ".eml", ".msg") and path.name != "SOURCE.txt":
                message = re.sub(rb"\r\n|\r|\n", b"\r\n", path.read_bytes())
                found[str(path.relative_to(CORPORA))] = message
    assert len(found) > 150
    return found


@pytest.fixture(scope="session")
def zones(corpus: dict[str, bytes]) -> dict[str, dict[str, str]]:
    """Case of ``chasquid_dkim`` -> its records, by name."""
    found: dict[str, dict[str, str]] = {}
    for path in (CORPORA / "chasquid_dkim").glob("*.dns"):
        lines = path.read_text().replace("\\\n", " ").splitlines()
        pairs = (line.partition(":") for line in lines if ":" in line)
        found[path.stem] = {name.strip(): text.strip() for name, _, text in pairs}
    return found


@pytest.fixture
def opendkim(program: Callable[[str], str], tmp_path: pathlib.Path) -> Callable[..., bool]:
    """A function (record, message, selector, domain): does OpenDKIM's filter verify the signature, in test mode, with
    the record from a file in place of DNS?
    """
    path = program("opendkim")

    def verify(record: str, message: bytes, selector: str = "s1", domain: str = "example.org") -> bool:
        (tmp_path / "zone").write_text(f"{selector}._domainkey.{domain} {record}\n")
        (tmp_path / "conf").write_text(f"Mode v\nTestDNSData file:{tmp_path}/zone\nSyslog no\n")
        (tmp_path / "message").write_bytes(message)
        command = [path, "-x", f"{tmp_path}/conf", "-t", f"{tmp_path}/message", "-vv"]
        run = subprocess.run(command, capture_output=True, timeout=20)
        output = run.stdout + run.stderr
        good = f"verification (s={selector}, d={domain}".encode() in output and b"succeeded" in output
        assert good or b"dkim=fail" in output, output
        return good

    return verify
