"""What a user's MAIL command asks for."""

import pytest

from ptt.message import AT_ONCE, Schedule
from ptt.smtp.events import MailFrom
from ptt.smtp.params import MailParams
from ptt.submission import transaction

NOW = 1_800_000_000.0
NOW_MS = 1_800_000_000_000


@pytest.mark.parametrize(
    ("params", "schedule"),
    [
        (MailParams(), AT_ONCE),
        (MailParams(priority=0), AT_ONCE),
        (MailParams(hold_for=60), Schedule(not_before=NOW_MS + 60_000)),
        (MailParams(hold_for=0), Schedule(not_before=NOW_MS)),
        (MailParams(hold_until=1_800_000_100), Schedule(not_before=NOW_MS + 100_000)),
        (MailParams(priority=4), Schedule(priority=0)),
        (MailParams(priority=-1), Schedule(priority=2)),
        (MailParams(priority=9, hold_for=1), Schedule(not_before=NOW_MS + 1000, priority=0)),
    ],
)
def test_schedule(params: MailParams, schedule: Schedule) -> None:
    assert transaction.schedule(params, NOW) == schedule
    made = transaction.envelope(MailFrom("a@b.test", params), "a@b.test", "192.0.2.1", "pc", NOW)
    assert made.schedule == schedule
