"""Aimed at the relay: unsigned messages to many destinations, connections kept and not.

python loadtests/locust_run.py relay --users 20 --time 30s
"""

import random

from locust import constant, task
from smtp_users import SmtpUser

DESTINATIONS = 2000


class Relayed(SmtpUser):
    wait_time = constant(0)

    @task(9)
    def next_one(self) -> None:
        if self.client is None:
            self.relay()
        self.send("bulk@unsigned.example", [f"r@d{random.randrange(DESTINATIONS)}.example"], 4096)

    @task(1)
    def reconnect(self) -> None:
        self.leave()
