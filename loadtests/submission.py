"""Submission over TLS with AUTH: half of the users keep their connection, half connect for each message.

python loadtests/locust_run.py submission --users 20 --time 30s
"""

import random

from locust import constant, task
from smtp_users import WORLD, SmtpUser

SIZE = 4096


class KeptOpen(SmtpUser):
    wait_time = constant(0)

    @task
    def submit(self) -> None:
        if self.client is None:
            self.submission()
        self.send(WORLD["user"], [f"r@dest{random.randrange(50)}.example"], SIZE, "message, kept open")


class OneEach(SmtpUser):
    wait_time = constant(0)

    @task
    def submit(self) -> None:
        self.submission()
        self.send(WORLD["user"], [f"r@dest{random.randrange(50)}.example"], SIZE, "message, one a connection")
        self.leave()
