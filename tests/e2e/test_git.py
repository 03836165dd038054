"""The git database end to end: a route that a push brings, and the commit under which a message was accepted."""

from __future__ import annotations

import os
import pathlib
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

RECIPIENT = "someone@other.test"


@pytest.fixture
def service(make_service: Callable[..., Any], peers: Callable[[Any], None]) -> Any:
    return make_service(peers)


def test_a_pushed_route_and_the_commit_of_a_message(service: Any, directory: pathlib.Path) -> None:
    clone, home = directory / "clone", directory / "home"
    home.mkdir()
    (home / ".gitconfig").write_text("[safe]\ndirectory = *\n[user]\nname = t\nemail = t@example.test\n")
    env = dict(os.environ, HOME=str(home))

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], check=True, env=env, capture_output=True, text=True)
        return done.stdout.strip()

    git("clone", "-q", service.config.directory.repository, str(clone))
    (clone / "routes").mkdir()
    (clone / "routes" / "other.test.toml").write_text('via = "smarthost"\nhost = "127.0.0.1:1"\n')
    git("-C", str(clone), "add", ".")
    git("-C", str(clone), "commit", "-q", "-m", "a smarthost that is away")
    git("-C", str(clone), "push", "-q", "origin", "HEAD")
    commit = git("-C", str(clone), "rev-parse", "HEAD")
    service.wait_for(lambda line: line["event"] == "directory in force" and line["commit"] == commit, "the commit")

    def accepted_under(line: dict[str, Any]) -> bool:
        return line["event"] == "accepted" and line.get("commit") == commit[:12]

    shown = ""
    for _ in range(20):  # workers look every 0.25 s
        shown = service.submit([RECIPIENT], b"Subject: x\r\nFrom: first@example.test\r\n\r\nx\r\n")
        if any(accepted_under(line) for line in service.log_lines() if line.get("id") == shown):
            break
    # Any of them: once nobody has answered at the smarthost, the others wait for a probe.
    service.wait_for(
        lambda line: line["event"] == "attempt" and str(line.get("peer")).endswith("127.0.0.1]:1"), "the attempt"
    )
    assert commit[:12] in service.ptt("queue", "show", shown)
