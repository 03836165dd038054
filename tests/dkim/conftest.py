"""Messages that we did not write, with CRLF line ends, as the submission server would have them."""

import os
import pathlib
import re

import pytest

CORPORA = pathlib.Path(__file__).parents[2].parent / "shared" / "corpora"
FOLDERS = ("cpython_email", "mail_parser", "ruby_mail", "chasquid_dkim")


@pytest.fixture(scope="session")
def corpus() -> dict[str, bytes]:
    """Name -> message."""
    if not CORPORA.is_dir():
        if os.environ.get("CI") == "true":
            pytest.fail("../shared/corpora is missing")
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
