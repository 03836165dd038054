"""What the Locust files share: a client that submits over ``smtplib``, and how each step is told to Locust.

``locust_run.py`` starts the service and gives its addresses in PTT_LOAD, a JSON object.
"""

import contextlib
import json
import os
import random
import smtplib
import ssl
import time
from collections.abc import Iterator
from typing import Any

from locust import User

TIMEOUT = 60.0
LINE = "The quick brown fox jumps over the lazy dog, and again and again.\r\n"

WORLD: dict[str, Any] = json.loads(os.environ.get("PTT_LOAD", "{}"))


def message(sender: str, recipient: str, size: int) -> bytes:
    """A message of about ``size`` octets."""
    head = f"From: <{sender}>\r\nTo: <{recipient}>\r\nSubject: load\r\nDate: Sun, 22 Nov 2026 12:00:00 +0000\r\n"
    head += f"Message-ID: <{random.getrandbits(64):x}@load.example>\r\n\r\n"
    return (head + LINE * max(1, (size - len(head)) // len(LINE))).encode()


class SmtpUser(User):
    """A user with a connection of his own. ``step`` times one step; a refusal or a broken connection is a failure."""

    abstract = True
    client: smtplib.SMTP | None = None

    @contextlib.contextmanager
    def step(self, name: str, size: int = 0) -> Iterator[None]:
        began = time.perf_counter()
        error: Exception | None = None
        try:
            yield
        except (smtplib.SMTPException, OSError) as e:
            error = e
            self.drop()
        took = (time.perf_counter() - began) * 1000
        self.environment.events.request.fire(
            request_type="SMTP", name=name, response_time=took, response_length=size, exception=error, context={}
        )

    def submission(self) -> None:
        """Connect to the submission port with implicit TLS, and log in."""
        with self.step("connect, TLS"):
            context = ssl.create_default_context(cafile=WORLD["ca"])
            self.client = smtplib.SMTP_SSL(*WORLD["submission"], timeout=TIMEOUT, context=context)
            self.client.ehlo("load.example")
        if self.client is not None:
            with self.step("AUTH"):
                self.client.login(WORLD["user"], WORLD["password"])

    def relay(self) -> None:
        """Connect to the relay port, which trusts loopback."""
        with self.step("connect"):
            self.client = smtplib.SMTP(*WORLD["relay"], timeout=TIMEOUT)
            self.client.ehlo("load.example")

    def send(self, sender: str, recipients: list[str], size: int, name: str = "message") -> None:
        """One transaction on the open connection; nothing when there is none."""
        if self.client is None:
            return
        content = message(sender, recipients[0], size)
        with self.step(name, len(content)):
            self.client.sendmail(sender, recipients, content)

    def drop(self) -> None:
        if self.client is not None:
            self.client.close()
            self.client = None

    def leave(self) -> None:
        """QUIT."""
        if self.client is not None:
            with contextlib.suppress(smtplib.SMTPException, OSError):
                self.client.quit()
            self.drop()

    def on_stop(self) -> None:
        self.leave()
