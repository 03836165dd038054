"""``ptt queue``: the mail that waits, for the operator.

==============  ================================================================================================
``rows``        what a task looks like: a row of a listing, all its fields, its timeline
``selection``   which tasks: the options that select, and what they match
``looking``     list, show, why
``acting``      hold, release, retry, delete
``bouncing``    bounce
``counting``    stats
``metering``    meters
``moving``      export, import
``rerouting``   requeue
``suspending``  suspend, resume, suspended
``upkeep``      compact, quarantine
==============  ================================================================================================
"""

from ptt.cli.queue import acting, bouncing, counting, looking, metering, moving, rerouting, suspending, upkeep
from ptt.cli.queue.group import queue

__all__ = [
    "acting",
    "bouncing",
    "counting",
    "looking",
    "metering",
    "moving",
    "queue",
    "rerouting",
    "suspending",
    "upkeep",
]
