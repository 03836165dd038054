"""The conformance suite: ``CHECKS`` are functions of a ``Subject``; ``check_queue(make)`` runs each on a fresh one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from ptt_queue import testing, testing_limits
from ptt_queue.testing import Subject

CHECKS: tuple[Callable[[Subject], None], ...] = tuple(
    f for module in (testing, testing_limits) for name, f in vars(module).items() if name.startswith("check_")
)


def check_queue(make: Callable[[], contextlib.AbstractContextManager[Subject]]) -> None:
    """Run the whole suite; ``make`` gives a fresh, empty queue for each check. Raises AssertionError."""
    for check in CHECKS:
        with make() as subject:
            check(subject)
