"""A real Prometheus scrapes the service under load: panels have data, an alert fires for its fault."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import smtplib
import ssl
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from peer_programs import Program, need, wait_until

from ptt.cli.sandbox import Sandbox

pytestmark = [pytest.mark.slow, pytest.mark.peer]

GRAFANA = pathlib.Path(__file__).parents[2] / "grafana"
MESSAGES = 80

# What has no value while all is well: these count faults that this test does not make.
QUIET = {"ptt_errors_total", "ptt_dkim_drift_total", "ptt_sign_wait_total", "ptt_dkim_rotations"}

CONFIG = """\
global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}
rule_files: [alerts.yml]
scrape_configs:
  - job_name: ptt
    static_configs:
      - targets: ["{admin}"]
"""


class World:
    """The service with a sink that defers and rejects, and a Prometheus that scrapes it."""

    def __init__(self, directory: pathlib.Path, port: int) -> None:
        self.sandbox = Sandbox(directory / "ptt", pool=1, retry_seconds=600)
        self.sandbox.sink_options = ["--defer", "15", "--reject", "15", "--seed", "7"]
        self.directory = directory
        self.url = f"http://127.0.0.1:{port}/api/v1/"
        command = [
            need("prometheus"),
            f"--config.file={directory}/prometheus.yml",
            f"--storage.tsdb.path={directory}/db",
        ]
        command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
        self.prometheus = Program(command, directory / "prometheus.log", self.answers)

    def start(self) -> None:
        self.sandbox.prepare()
        # The faults of this test last for seconds.
        rules = re.sub(r"\n +for: .*", "", (GRAFANA / "alerts.yml").read_text())
        (self.directory / "alerts.yml").write_text(rules)
        (self.directory / "prometheus.yml").write_text(CONFIG.format(admin=self.sandbox.config.admin.listen))
        self.sandbox.spawn_stand_ins(store=False)
        self.sandbox.start_service()
        self.prometheus.start()

    def get(self, path: str, **words: str) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}?{urllib.parse.urlencode(words)}", timeout=10) as answer:
            found = json.loads(answer.read())
        assert found["status"] == "success"
        return found["data"]

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            return bool(self.get("query", query="vector(1)")["result"])
        return False

    def query(self, expression: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return found

    def value(self, expression: str) -> float:
        return sum(float(one["value"][1]) for one in self.query(expression))

    def firing(self, alert: str) -> bool:
        found = self.get("alerts")["alerts"]
        return any(a["labels"]["alertname"] == alert and a["state"] == "firing" for a in found)

    def load(self) -> None:
        """Messages with what a day brings: refused recipients, a wrong password."""
        with self.sandbox.client() as client:
            for n in range(MESSAGES):
                client.sendmail(self.sandbox.user, [f"r{n}@dest.example"], f"Subject: {n}\r\n\r\nhello\r\n")
            client.docmd("RCPT TO:<early@dest.example>")
        context = ssl.create_default_context(cafile=self.sandbox.config.tls.internal_ca)
        host, port = self.sandbox.address("submission", "implicit")
        with smtplib.SMTP_SSL(host, port, context=context) as client, pytest.raises(smtplib.SMTPAuthenticationError):
            client.login(self.sandbox.user, "wrong")


@pytest.fixture(scope="module")
def world(free_port: Callable[[], int]) -> Iterator[World]:
    directory = pathlib.Path(tempfile.mkdtemp(prefix="ptt-prom-"))
    directory.chmod(0o755)
    one = World(directory, free_port())
    try:
        one.start()
        yield one
    finally:
        one.prometheus.stop()
        one.sandbox.stop()
        shutil.rmtree(directory)


def expressions() -> dict[str, str]:
    """Where it is -> the expression, with the dashboards' variables filled in."""
    found = {}
    for file in sorted(GRAFANA.glob("*.json")):
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel["targets"]:
                text = target["expr"].replace("$instance", ".*").replace("$site", "mx.sink.example")
                found[f"{file.stem}: {panel['title']}: {target['refId']}"] = text
    return found


def without_data(world: World) -> dict[str, str]:
    """Where an expression is that has no value now -> the expression."""
    empty = {}
    for where, text in expressions().items():
        names = set(re.findall(r"\bptt_[a-z_]+", text))
        if not names & QUIET and not world.query(text):
            empty[where] = text
    return empty


def test_every_expression_has_data(world: World) -> None:
    wait_until(lambda: world.value("min(ptt_dkim_key_served)") == 1, "the keys are in DNS")
    world.load()
    wait_until(lambda: world.value("sum(ptt_attempts_total)") >= MESSAGES, "all tried and scraped")
    with contextlib.suppress(AssertionError):  # a rate needs two scrapes after the process has reported
        wait_until(lambda: not without_data(world), "data for every expression")
    assert without_data(world) == {}
    assert world.value('sum(ptt_site_attempts_total{site="mx.sink.example",outcome="delivered"})') > 0


def test_every_rule_is_healthy(world: World) -> None:
    groups = world.get("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) == (GRAFANA / "alerts.yml").read_text().count("- alert:")
    wait_until(lambda: all(r["health"] == "ok" for g in world.get("rules")["groups"] for r in g["rules"]), "rules")


def test_alerts_fire_for_their_faults(world: World) -> None:
    assert not world.firing("PttDown")
    assert not world.firing("PttProcessDown")
    state = json.loads((pathlib.Path(world.sandbox.config.run) / "supervisor.json").read_text())
    worker = next(p["pid"] for p in state["processes"] if p["name"] == "worker.0")
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: world.value("sum(ptt_process_restarts_total)") >= 1, "the restart is scraped")
    control = next(p["pid"] for p in state["processes"] if p["name"] == "control")
    os.kill(control, signal.SIGSTOP)  # the admin port answers nobody
    try:
        wait_until(lambda: world.firing("PttDown"), "PttDown")
    finally:
        os.kill(control, signal.SIGCONT)
    wait_until(lambda: not world.firing("PttDown"), "PttDown ends")
