"""Dashboards and alerts ask for metrics and labels that exist; each alert fires, and is in the run-book."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import re
import subprocess
from typing import Any

import pytest
from peer_programs import need

from ptt.metrics import BY_NAME

ROOT = pathlib.Path(__file__).parent.parent
DASHBOARDS = sorted((ROOT / "grafana").glob("*.json"))
RULES = ROOT / "grafana" / "alerts.yml"
NAME = re.compile(r"\bptt_[a-z_]+")
USE = re.compile(r"\b(ptt_[a-z_]+)(?:\{([^}]*)\})?(?:\[\w+\])?")
BY = re.compile(r"by \(([^)]*)\)")
EVERYWHERE = {"le", "instance"}


def base(name: str) -> str:
    return re.sub(r"_(bucket|sum|count)$", "", name) if name not in BY_NAME else name


def panels() -> list[tuple[str, str, str]]:
    found = []
    for file in DASHBOARDS:
        for panel in json.loads(file.read_text())["panels"]:
            found += [(file.name, t["expr"], t["legendFormat"]) for t in panel["targets"]]
    return found


def alerts() -> dict[str, str]:
    """Alert -> its expression."""
    text = RULES.read_text()
    names, expressions = re.findall(r"- alert: (\w+)", text), re.findall(r"expr: '(.*)'", text)
    return dict(zip(names, expressions, strict=True))


def check(expression: str) -> None:
    """Every metric in it exists, has the labels that are asked for, and is a rate exactly if it counts."""
    uses = USE.findall(expression)
    assert uses
    known: set[str] = set()
    for name, matchers in uses:
        assert base(name) in BY_NAME, f"there is no {name}"
        metric = BY_NAME[base(name)]
        known |= set(metric.labels)
        asked = set(re.findall(r"(\w+)(?:=|!=|=~|!~)\"", matchers)) - EVERYWHERE
        assert asked <= set(metric.labels), f"{name} has no label {asked - set(metric.labels)}"
        rated = re.search(rf"(rate|increase)\({name}\b", expression) is not None
        assert rated == (metric.kind != "gauge"), f"{name} is a {metric.kind}"
    for group in BY.findall(expression):
        asked = {label.strip() for label in group.split(",")} - EVERYWHERE
        assert asked <= known, f"nothing here has the label {asked - known}"


@pytest.mark.parametrize(("file", "expression", "legend"), panels())
def test_panel(file: str, expression: str, legend: str) -> None:
    check(expression)
    labels = {label for name in NAME.findall(expression) for label in BY_NAME[base(name)].labels}
    assert set(re.findall(r"{{(\w+)}}", legend)) <= labels | EVERYWHERE


@pytest.mark.parametrize(("alert", "expression"), alerts().items())
def test_alert(alert: str, expression: str) -> None:
    if not expression.startswith("up{"):
        check(expression)
    assert f"## {alert}\n" in (ROOT / "docs" / "runbook.md").read_text()
    tests = (ROOT / "tests" / "grafana" / "alerts.test.yml").read_text().split("  - interval:")
    about = [one for one in tests if f"alertname: {alert}\n" in one]
    assert any("exp_labels" in one for one in about), "no test makes it fire"
    assert any("exp_alerts: []" in one for one in about), "no test has it silent"


def test_dashboards_are_as_they_are_made() -> None:
    spec = importlib.util.spec_from_file_location("make", ROOT / "grafana" / "make.py")
    assert spec is not None
    assert spec.loader is not None
    make: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    assert {f.stem for f in DASHBOARDS} == set(make.DASHBOARDS)
    for uid, (title, shown) in make.DASHBOARDS.items():
        assert (ROOT / "grafana" / f"{uid}.json").read_text() == make.dashboard(uid, title, shown), "grafana/make.py"


@pytest.mark.peer
def test_alerts_fire() -> None:
    """promtool: each alert fires for its fault, and not before it."""
    for command in (
        ["check", "config", str(ROOT / "grafana" / "prometheus.yml")],
        ["test", "rules", str(ROOT / "tests" / "grafana" / "alerts.test.yml")],
    ):
        done = subprocess.run([need("promtool"), *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
