"""Certificates for the tests of streams and TLS."""

from __future__ import annotations

import datetime
import pathlib

import pytest

from ptt.service.certificates import issue, make_ca


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    """PEM files: "ca", "relay" and "submission" (internal), "mx" (no role), "stranger" (of another CA); "NAME.key"."""
    directory = tmp_path_factory.mktemp("certificates")
    now = datetime.datetime.now(datetime.UTC)
    ca, other = make_ca("Test CA", now), make_ca("Other CA", now)
    files = {"ca": directory / "ca.pem"}
    files["ca"].write_bytes(ca.certificate_pem())
    for name, authority, roles in (
        ("relay", ca, ["relay"]),
        ("submission", ca, ["submission"]),
        ("mx", ca, []),
        ("stranger", other, ["relay"]),
    ):
        pair = issue(authority, ["mx.example.org", "127.0.0.1"], roles, now, 30)
        files[name], files[f"{name}.key"] = directory / f"{name}.pem", directory / f"{name}.key"
        files[name].write_bytes(pair.certificate_pem())
        files[f"{name}.key"].write_bytes(pair.key_pem())
    return files
