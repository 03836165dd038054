"""What the world does to the service: parts that are away, files that are wrong. Nothing is lost, the rest goes on."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import smtplib
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from peer_programs import wait_until

pytestmark = [pytest.mark.peer, pytest.mark.slow]

RECIPIENT = "someone@other.test"


def mail(token: str, sender: str = "first@example.test") -> bytes:
    return f"From: <{sender}>\r\nTo: <{RECIPIENT}>\r\nSubject: {token}\r\nX-Token: {token}\r\n\r\nhello\r\n".encode()


def processes(service: Any, kind: str) -> list[int]:
    state = json.loads((pathlib.Path(service.config.run) / "supervisor.json").read_text())
    return [p["pid"] for p in state["processes"] if p["kind"] == kind]


def arrived(postfix_mx: Any, token: str) -> bool:
    return any(f"X-Token: {token}".encode() in m for m in postfix_mx.messages())


@pytest.fixture
def service(make_service: Callable[..., Any], peers: Callable[[Any], None]) -> Any:
    return make_service(peers)


def test_mail_waits_for_the_key_process_and_other_domains_go_on(service: Any, postfix_mx: Any) -> None:
    service.ptt("domain", "add", "unsigned.test", "--no-sign")
    service.ptt("user", "add", "u@unsigned.test", "--password-stdin", stdin="pass-word-1\n")
    [key_process] = processes(service, "signer")
    os.kill(key_process, signal.SIGSTOP)  # a stopped one answers nothing, and is not restarted
    try:
        shown = service.submit([RECIPIENT], mail("waits-for-key-process"))
        service.wait_for(
            lambda line: line.get("id") == shown and line["event"] == "waits for its signature", "the wait"
        )
        service.user, service.password = "u@unsigned.test", "pass-word-1"
        service.submit([RECIPIENT], mail("goes-on", "u@unsigned.test"))
        assert postfix_mx.wait(b"X-Token: goes-on")
        assert not arrived(postfix_mx, "waits-for-key-process")
    finally:
        os.kill(key_process, signal.SIGCONT)
    [signed] = postfix_mx.wait(b"X-Token: waits-for-key-process", seconds=40.0)
    assert b"DKIM-Signature:" in signed


def test_dns_server_down_at_start(
    make_service: Callable[..., Any], peers: Any, make_named: Any, postfix_mx: Any
) -> None:
    primary = make_named()

    def change(document: Any) -> None:
        peers(document)
        document["dns"]["zones"][0]["primary"] = primary.address
        document["dns"]["authority_port"] = primary.port
        document["dns"]["resolvers"] = [primary.address]

    service = make_service(change, start=False)
    key = service.directory / "primary.key"
    owner = key.stat()
    key.write_bytes(pathlib.Path(primary.key_file).read_bytes())
    os.chown(key, owner.st_uid, owner.st_gid)
    primary.stop()
    service.start()
    shown = service.submit([RECIPIENT], mail("dns-down"))
    service.wait_for(lambda line: line.get("id") == shown and line["event"] == "waits for its signature", "the wait")
    assert not arrived(postfix_mx, "dns-down")
    primary.start()
    [signed] = postfix_mx.wait(b"X-Token: dns-down", seconds=60.0)
    assert b"DKIM-Signature:" in signed


def test_a_bad_commit_leaves_the_last_good_one_in_force(service: Any, directory: pathlib.Path) -> None:
    clone = directory / "clone"
    home = directory / "home"  # as root: the repository is the control user's, which git must be told to trust
    home.mkdir()
    (home / ".gitconfig").write_text("[safe]\ndirectory = *\n[user]\nname = t\nemail = t@example.test\n")
    env = dict(os.environ, HOME=str(home))

    def git(*words: str) -> None:
        subprocess.run(["git", *words], check=True, env=env)

    git("clone", "-q", service.config.directory.repository, str(clone))
    (clone / "domains" / "broken.toml").write_text("sign = maybe\n")
    git("-C", str(clone), "add", ".")
    git("-C", str(clone), "commit", "-q", "-m", "break it")
    git("-C", str(clone), "push", "-q", "origin", "HEAD")
    bad = service.wait_for(lambda line: line["level"] == "error" and "broken.toml" in json.dumps(line), "the alarm")
    assert (bad["file"], bad["line"]) == ("domains/broken.toml", 1)
    client = service.client()  # the user of the last good commit still logs in
    client.quit()


def test_bad_input_at_the_door(service: Any) -> None:
    client = service.client()
    assert client.mail("somebody.else@example.test")[0] == 553
    assert client.docmd(f"MAIL FROM:<{service.user}> SIZE=99999999999")[0] == 552
    assert client.mail(service.user)[0] == 250
    codes = [client.rcpt(f"r{n}@other.test")[0] for n in range(service.config.smtp.max_recipients + 1)]
    assert codes[-2:] == [250, 452]
    client.rset()
    assert client.mail(service.user)[0] == 250
    assert client.rcpt(RECIPIENT)[0] == 250
    assert client.docmd("DATA")[0] == 354
    client.send(b"Subject: x\r\n\r\nbare\nline\r\n.\r\n")
    assert client.getreply()[0] == 550
    client.quit()
    host, port = service.address("submission", "implicit")
    context = ssl.create_default_context(cafile=service.config.tls.internal_ca)
    for user in (service.user, "nobody@example.test"):
        wrong = smtplib.SMTP_SSL(host, port, timeout=30, context=context)
        with pytest.raises(smtplib.SMTPAuthenticationError) as refused:
            wrong.login(user, "wrong")
        assert refused.value.smtp_code == 535
        wrong.close()


def test_bytes_behind_starttls_are_not_executed(service: Any) -> None:
    with socket.create_connection(service.address("submission", "starttls"), 20) as sock:
        stream = sock.makefile("rb")
        stream.readline()
        sock.sendall(b"EHLO x.example\r\n")
        while stream.readline()[3:4] != b" ":
            pass
        sock.sendall(b"STARTTLS\r\nNOOP\r\n")
        assert stream.readline().startswith((b"554", b"421", b"503"))
        assert stream.readline() == b""  # closed


def test_a_stopped_queue_process_is_replaced(service: Any, postfix_mx: Any) -> None:
    [queue] = processes(service, "queue")
    os.kill(queue, signal.SIGSTOP)
    started = time.monotonic()
    service.submit([RECIPIENT], mail("stopped-queue"))
    assert time.monotonic() - started < 60
    assert postfix_mx.wait(b"X-Token: stopped-queue", seconds=40.0)
    assert processes(service, "queue") != [queue]


@pytest.mark.skipif(os.geteuid() != 0, reason="separate users need root")
def test_only_the_key_process_can_open_a_private_key(service: Any) -> None:
    [key] = (pathlib.Path(service.config.signer.keys) / "example.test").glob("*.pem")
    users = service.config.users
    program = (
        "import os, sys\nuid = int(sys.argv[1])\nos.setgroups([])\nos.setresgid(uid, uid, uid)\n"
        "os.setresuid(uid, uid, uid)\ntry:\n    open(sys.argv[2], 'rb').read(1)\nexcept OSError as e:\n"
        "    sys.exit(3)\n"
    )
    codes = {}
    for kind in ("queue", "worker", "signer", "control"):
        uid = int(getattr(users, kind))
        codes[kind] = subprocess.run([sys.executable, "-c", program, str(uid), str(key)]).returncode
        for pid in processes(service, kind):
            assert os.stat(f"/proc/{pid}").st_uid in (uid, 0)
            status = pathlib.Path(f"/proc/{pid}/status").read_text()
            assert f"\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n" in status
    assert codes == {"queue": 3, "worker": 3, "signer": 0, "control": 3}


def test_the_key_file_readable_by_others_is_refused(service: Any, postfix_mx: Any) -> None:
    [key] = (pathlib.Path(service.config.signer.keys) / "example.test").glob("*.pem")
    key.chmod(0o644)
    [key_process] = processes(service, "signer")
    os.kill(key_process, signal.SIGKILL)
    shown = service.submit([RECIPIENT], mail("readable-key"))
    service.wait_for(lambda line: line.get("id") == shown and line["event"] == "waits for its signature", "the wait")
    assert not arrived(postfix_mx, "readable-key")
    key.chmod(0o600)
    postfix_mx.wait(b"X-Token: readable-key", seconds=60.0)
    wait_until(lambda: arrived(postfix_mx, "readable-key"), "delivery")
