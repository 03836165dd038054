"""The dashboards ask for metrics that exist, with labels that they have."""

import json
import pathlib
import re

import pytest

from ptt.metrics import BY_NAME

DASHBOARDS = sorted((pathlib.Path(__file__).parent.parent / "grafana").glob("*.json"))
NAME = re.compile(r"\bptt_[a-z_]+")
LABELS = re.compile(r"by \(([^)]*)\)")


def base(name: str) -> str:
    return re.sub(r"_(bucket|sum|count)$", "", name) if name not in BY_NAME else name


def expressions() -> list[tuple[str, str, str]]:
    found = []
    for file in DASHBOARDS:
        for panel in json.loads(file.read_text())["panels"]:
            found += [(file.name, t["expr"], t["legendFormat"]) for t in panel["targets"]]
    return found


@pytest.mark.parametrize(("file", "expression", "legend"), expressions())
def test_expression(file: str, expression: str, legend: str) -> None:
    names = {base(n) for n in NAME.findall(expression)}
    assert names
    assert names <= set(BY_NAME), f"{file}: {names - set(BY_NAME)}"
    [name] = names
    metric = BY_NAME[name]
    asked = {label.strip() for group in LABELS.findall(expression) for label in group.split(",")} - {"le"}
    asked |= set(re.findall(r"{{(\w+)}}", legend)) | set(re.findall(r"[{,](\w+)=", expression))
    assert asked <= set(metric.labels), f"{name} has no label {asked - set(metric.labels)}"
    assert ("rate(" in expression or "increase(" in expression) == (metric.kind != "gauge")


def test_there_is_a_dashboard() -> None:
    assert len(expressions()) > 10
