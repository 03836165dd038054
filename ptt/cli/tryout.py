"""``make run``: the whole service in the foreground on loopback, its first message, and how to send the next.

Everything lives in the directory ``run`` beside the project's files; removing it starts afresh.
"""

from __future__ import annotations

import email.policy
import pathlib
import signal
import sys
import threading
import time
from email.message import EmailMessage
from typing import Any

import dkim
from rich.console import Console

from ptt.cli.sandbox import DOMAIN, USER, Sandbox, SandboxError

FIRST_MESSAGE_SECONDS = 60.0
RECIPIENT = "you@recipient.example"

console = Console(highlight=False)


def say(text: str = "") -> None:
    console.print(text, soft_wrap=True, markup=False)


def first_message() -> EmailMessage:
    message = EmailMessage()
    message["From"] = f"First User <{USER}>"
    message["To"] = RECIPIENT
    message["Subject"] = "The first message"
    message.set_content("If you can read this, it was accepted, signed and delivered.\n")
    return message


def submit(sandbox: Sandbox) -> str:
    """Send the first message; return its id."""
    client = sandbox.client()
    message = first_message()
    code, text = client.mail(USER)
    code, text = client.rcpt(RECIPIENT)
    code, text = client.data(message.as_bytes(policy=email.policy.SMTP))
    client.quit()
    if code != 250:
        raise SandboxError(f"the first message was refused: {code} {text!r}")
    return text.decode("ascii", "replace").rsplit(" ", 1)[-1]


def follow(sandbox: Sandbox, shown_id: str) -> None:
    """Print the message's journey as the log tells it, until it has arrived or its time is over."""
    deadline = time.monotonic() + FIRST_MESSAGE_SECONDS
    told = 0
    waiting = False
    while time.monotonic() < deadline:
        lines = list(sandbox.log_lines(shown_id))
        for line in lines[told:]:
            waiting = tell(line, waiting)
        told = len(lines)
        if any(line.get("event") == "attempt" and line.get("outcome") == "delivered" for line in lines):
            break
        if name := sandbox.ended():
            raise SandboxError(f"{name} ended; see {sandbox.directory}")
        time.sleep(0.05)
    for entry in sandbox.delivered():
        raw = (sandbox.sunk / entry["file"]).read_bytes()
        if shown_id.encode() in raw:
            good = dkim.verify(raw, dnsfunc=sandbox.txt)
            say(f"  verified   {'the signature verifies' if good else 'THE SIGNATURE DOES NOT VERIFY'}")
            say(f"             {sandbox.sunk / entry['file']}")
            return
    say("  it has not arrived yet; `ptt queue list` says why")


def tell(line: dict[str, Any], waiting: bool) -> bool:
    """One line of the journey. Returns whether we have said that it waits for its signature."""
    event = line.get("event")
    if event == "accepted":
        say(f"  accepted   from {line.get('user')} on {line.get('protocol')}, {line.get('size')} bytes")
    elif event == "waits for its signature" and not waiting:
        say(f"  waits      {line.get('reason')}")
        return True
    elif event == "signed":
        say(f"  signed     for {line.get('domain')} with selector {', '.join(line.get('selectors', []))}")
    elif event == "attempt":
        where = f"{line.get('peer')}, {line.get('tls') or 'no TLS'}"
        say(f"  {line.get('outcome'):<10} to {where}: {line.get('reply')}")
    return waiting


def instructions(sandbox: Sandbox) -> None:
    host, port = sandbox.address("submission", "implicit")
    _, starttls = sandbox.address("submission", "starttls")
    ca = sandbox.config.tls.internal_ca
    secret = sandbox.password
    say()
    say("Send the next one:")
    say(
        f"  swaks --server {host}:{starttls} --tls --auth PLAIN --auth-user {USER} --auth-password {secret} "
        f"--from {USER} --to {RECIPIENT}"
    )
    say(
        f"  printf 'From: {USER}\\r\\nSubject: hello\\r\\n\\r\\nhello\\r\\n' | "
        f"curl -sS --url smtps://{host}:{port} --cacert {ca} --user {USER}:{secret} "
        f"--mail-from {USER} --mail-rcpt {RECIPIENT} -T -"
    )
    say(
        f"  python3 -c \"import smtplib, ssl; s = smtplib.SMTP_SSL('{host}', {port}, "
        f"context=ssl.create_default_context(cafile='{ca}')); s.login('{USER}', '{secret}'); "
        f"s.sendmail('{USER}', ['{RECIPIENT}'], 'From: {USER}\\r\\nSubject: hello\\r\\n\\r\\nhello\\r\\n')\""
    )
    say()
    say("Look:")
    say(
        f"  metrics    http://{sandbox.config.admin.listen}/metrics   health  http://{sandbox.config.admin.listen}/healthz"
    )
    say(f"  arrived    {sandbox.sunk}")
    say(f"  log        {sandbox.log}")
    say(f"  queue      {pathlib.Path(sys.executable).parent / 'ptt'} queue list --config {sandbox.file}")
    say()
    say("Ctrl-C stops everything.")


def main() -> None:
    directory = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "run").resolve()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        with Sandbox(directory, usual_ports=True) as sandbox:
            say(f"PTT: preparing {directory}")
            sandbox.prepare()
            for taken, free in sandbox.replaced:
                say(f"  {taken} is taken, using {free}")
            sandbox.start()
            say(f"ready: mail for {DOMAIN} is signed; every recipient's MX is a sink on this machine")
            if not stop.is_set():
                shown_id = submit(sandbox)
                say(f"The first message, {shown_id}:")
                follow(sandbox, shown_id)
                instructions(sandbox)
            while not stop.wait(0.5):
                if name := sandbox.ended():
                    raise SandboxError(f"{name} ended; see {directory}")
            say("stopping")
    except SandboxError as e:
        say(f"ptt: {e}")
        sys.exit(1)


if __name__ == "__main__":
    main()
