"""Aimed at the signer: small messages of a signing domain over kept connections, one destination.

python loadtests/locust_run.py signing --users 20 --time 30s
"""

from locust import constant, task
from smtp_users import WORLD, SmtpUser


class Signed(SmtpUser):
    wait_time = constant(0)

    @task
    def submit(self) -> None:
        if self.client is None:
            self.relay()
        self.send(f"news@{WORLD['domain']}", ["r@dest.example"], 600, "message to sign")
