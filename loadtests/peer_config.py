"""Set up PTT for one run of the side-by-side harness: a directory with a configuration and the given DKIM key.

    python loadtests/peer_config.py DIR --port P --sink-port P --dns-port P --scenario S --key PEM \
        --domain D --selector S

The service listens without TLS for loopback, as the peers do there, and hands everything to the sink.
"""

import argparse
import base64
import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import tomlkit
from cryptography.hazmat.primitives import serialization

from ptt.config import load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=pathlib.Path)
    for name in ("port", "sink-port", "dns-port"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("scenario", "key", "domain", "selector"):
        parser.add_argument(f"--{name}", required=True)
    o = parser.parse_args()
    init = [sys.executable, "-m", "ptt", "init", str(o.directory), "--domain", o.domain]
    subprocess.run([*init, "--hostname", "relay.peer.example"], check=True, stdout=subprocess.DEVNULL)
    file = o.directory / "ptt.toml"
    document: Any = tomlkit.parse(file.read_text(encoding="utf-8"))
    document["listen"] = [
        {"address": f"127.0.0.1:{o.port}", "service": "relay", "tls": "none", "trusted": ["127.0.0.0/8"]}
    ]
    document["admin"] = {"listen": "127.0.0.1:0"}
    document["relay"] = {
        "smarthost": f"127.0.0.1:{o.sink_port}",
        "tls": "none",
        "allow_private": True,
        "site_in_flight": int(os.environ.get("PTT_IN_FLIGHT", "50")),
    }
    document["dns"] = {
        "resolvers": [f"127.0.0.1:{o.dns_port}"],
        "retry_seconds": 0.2,
        "authority_port": o.dns_port,
        "zones": [{"name": o.domain, "primary": f"127.0.0.1:{o.dns_port}", "key_file": "tsig.key"}],
    }
    file.write_text(tomlkit.dumps(document), encoding="utf-8")
    config = load(file)
    install_key(config.signer.keys, config.signer.public, o)
    if o.scenario != "relay-dkim":  # no signature: the domain is not ours
        subprocess.run(
            [sys.executable, "-m", "ptt", "domain", "remove", o.domain, "--config", str(file)],
            check=True,
            stdout=subprocess.DEVNULL,
        )


def install_key(keys: str, public: str, o: argparse.Namespace) -> None:
    """Put the harness's key where the key process looks, in place of the one that init made."""
    private = pathlib.Path(keys) / o.domain
    record = pathlib.Path(public) / o.domain
    owner = os.stat(private)
    shown = os.stat(record)
    for directory in (private, record):
        for old in directory.iterdir():
            old.unlink()
    target = private / f"{o.selector}.pem"
    shutil.copyfile(o.key, target)
    target.chmod(0o600)
    key = serialization.load_pem_private_key(target.read_bytes(), None)
    der = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    text = f"v=DKIM1; k=rsa; p={base64.b64encode(der).decode()}"
    entry = {"domain": o.domain, "selector": o.selector, "algorithm": "rsa2048", "record": text}
    (record / f"{o.selector}.pub").write_text(json.dumps(entry))
    (record / f"{o.selector}.pub").chmod(0o644)
    if os.geteuid() == 0:
        os.chown(target, owner.st_uid, owner.st_gid)
        os.chown(record / f"{o.selector}.pub", shown.st_uid, shown.st_gid)


if __name__ == "__main__":
    main()
