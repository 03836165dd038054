"""Who may use which reverse-path: the decision alone."""

from __future__ import annotations

from typing import Any

import pytest

from ptt.submission import policy

ANNA = "anna@ours.test"


class Directory:
    """``users``: who may send, and as whom."""

    def __init__(self, **users: tuple[str, ...]) -> None:
        self.users = {f"{name}@ours.test": (f"{name}@ours.test", *more) for name, more in users.items()}

    def may_send_as(self, user: str, address: str) -> bool:
        return address in self.users.get(user, ())


@pytest.mark.parametrize(
    ("directory", "address", "code"),
    [
        (Directory(anna=()), ANNA, 0),
        (Directory(anna=("shop@ours.test",)), "shop@ours.test", 0),
        (Directory(anna=()), "", 0),
        (Directory(anna=()), "bob@ours.test", 553),
        (Directory(bob=()), ANNA, 550),  # disabled since the login: the connection is still open
        (Directory(bob=()), "", 550),  # the null sender is nobody's then
    ],
)
def test_the_sender(directory: Any, address: str, code: int) -> None:
    refusal = policy.sender(directory, ANNA, address)
    assert (refusal.code if refusal else 0) == code
