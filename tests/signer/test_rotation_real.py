"""A rotation of the running service: its control process, key process and DNS server, each the real one."""

from __future__ import annotations

import json
import pathlib
import tempfile
from collections.abc import Callable

import pytest

from ptt.cli.sandbox import Sandbox
from ptt.signer.state import public_keys

pytestmark = pytest.mark.slow


def test_a_compromise_of_a_running_service(until: Callable[[Callable[[], object]], None]) -> None:
    with tempfile.TemporaryDirectory(prefix="ptt") as directory:
        base = pathlib.Path(directory)
        base.chmod(0o755)
        with Sandbox(base / "service") as sandbox:
            sandbox.prepare()
            sandbox.start()

            def keys() -> list[str]:
                return [key.selector for key in public_keys(sandbox.config.signer.public, sandbox.domain)]

            def signing() -> list[str]:
                rows = json.loads(sandbox.ptt("dkim", "status", "--json"))
                return [row["selector"] for row in rows if row["served"] and not row["retired"]]

            (old,) = keys()
            until(lambda: signing() == [old])
            begun = json.loads(sandbox.ptt("dkim", "rotate", "--domain", sandbox.domain, "--now", "--json"))
            assert (begun["old"], begun["now"]) == ([old], True)
            new = begun["new"][0]["selector"]
            until(lambda: keys() == signing() == [new])
            assert not (pathlib.Path(sandbox.config.signer.keys) / sandbox.domain / f"{old}.pem").exists()
