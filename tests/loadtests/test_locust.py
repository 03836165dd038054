"""Each load test runs against the whole service for a moment, and its report says what happened."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

pytestmark = pytest.mark.slow

LOADTESTS = pathlib.Path(__file__).parents[2] / "loadtests"


def script(name: str) -> Any:
    """A script of loadtests/, as a module."""
    spec = importlib.util.spec_from_file_location(f"loadtests_{name}", LOADTESTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def service() -> Iterator[Any]:
    directory = pathlib.Path(tempfile.mkdtemp(prefix="ptt-load-"))
    directory.chmod(0o755)
    one = script("locust_run").LoadService(directory / "ptt", pool=1)
    try:
        one.prepare()
        one.spawn_stand_ins(store=False)
        one.start_service()
        one.wait_for_keys()
        yield one
    finally:
        one.stop()
        shutil.rmtree(directory)


@pytest.mark.parametrize("load", ["submission", "signing", "relay", "mixed"])
def test_a_short_run(service: Any, load: str, tmp_path: pathlib.Path) -> None:
    before = service.total("ptt_accepted_total")
    found = script("locust_run").run(service, load, 2, "1s", tmp_path)
    assert found == json.loads((tmp_path / f"{load}.json").read_text())
    assert "<html" in (tmp_path / f"{load}.html").read_text()
    assert (found["failures"], found["errors"], found["restarts"]) == (0, 0, 0)
    sent = sum(step["requests"] for step in found["steps"] if "message" in step["name"] or step["name"] == "newsletter")
    assert 0 < sent == found["accepted"] - before
