"""A day in a minute: sizes from 1 KiB to some MiB, 1 to 50 recipients, users that come and go, sites that fail.

python loadtests/locust_run.py mixed --users 20 --time 60s
"""

import random

from locust import between, task
from smtp_users import WORLD, SmtpUser

LARGEST = 4 * 1024 * 1024
DOMAINS = 300


class Person(SmtpUser):
    """Writes to few, sometimes with an attachment; one connection a message."""

    weight = 3
    wait_time = between(0.05, 0.5)

    @task
    def write(self) -> None:
        self.submission()
        size = min(LARGEST, int(random.lognormvariate(9.3, 1.4)))  # median 11 KB, 1 % above 280 KB
        self.send(WORLD["user"], [address() for _ in range(random.choice((1, 1, 1, 2, 5)))], size, "person's message")
        self.leave()


class Newsletter(SmtpUser):
    """Sends much over one connection."""

    weight = 1
    wait_time = between(0, 0.05)

    @task
    def write(self) -> None:
        if self.client is None:
            self.submission()
        self.send(WORLD["user"], [address() for _ in range(random.randint(10, 50))], 20_000, "newsletter")


def address() -> str:
    """Some domains have most of the recipients."""
    return f"r{random.getrandbits(20)}@d{min(DOMAINS, int(random.paretovariate(0.6)))}.example"
