"""The queue process: ``python -m ptt.service.queue --config FILE --listen-fd N``. One thread, no gevent.

Owns the store under ``[queue] path`` and serves it to the workers, control and the commands over the Unix socket
that the supervisor bound (by hand: ``run/queue.sock``, which it binds itself).
"""

from __future__ import annotations

import os
import socket
import sys
import time

from ptt_queue import files
from ptt_queue.errors import StoreBroken, StoreError
from ptt_queue.pressure import Marks
from ptt_queue.queue import Queue, Settings
from ptt_queue.server import Server
from ptt_queue.store import Store
from ptt_queue.types import GroupLimit

from ptt.config import Config
from ptt.message import Stage, show_id
from ptt.metrics import LATENCY_BUCKETS
from ptt.relay.sites import START
from ptt.service import child

BACKLOG = 128
BROKEN = 1  # exit codes: the store cannot be written, the supervisor starts us again
USAGE = 2


def settings(config: Config, clients: int) -> Settings:
    """The queue's settings. ``clients``: workers that will connect, waited for before they are leased anything."""
    return Settings(
        limited=(Stage.DELIVER,),
        limit=GroupLimit(config.relay.site_in_flight, start=min(START, config.relay.site_in_flight)),
        marks=Marks(
            config.queue.max_bytes or config.queue.map_bytes * 9 // 10,
            config.queue.max_messages,
            config.queue.min_free_bytes,
            config.queue.max_commit_seconds,
            config.queue.resume_percent,
            config.queue.max_body_bytes,
        ),
        clients=clients,
        commit_bounds=LATENCY_BUCKETS,
    )


def bind(path: str) -> socket.socket:
    """A listening socket of our own, for a process that was started by hand. Raises OSError."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    if os.path.exists(path):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    directory = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY)
    try:
        listener.bind(f"/proc/self/fd/{directory}/{os.path.basename(path)}")  # paths over 108 bytes, too
    finally:
        os.close(directory)
    listener.listen(BACKLOG)
    return listener


def main() -> int:
    process = child.start("queue")
    process.enter()
    config, log = process.config, process.log
    try:
        owner = files.take(config.queue.path)  # held until the process ends
        store = Store(config.queue.path, config.queue.map_bytes)
    except StoreError as e:
        log.error("queue cannot be opened", reason=str(e))
        return USAGE
    queue = Queue(
        store,
        settings(config, process.clients),
        int(time.time() * 1000),
        lambda text: log.error("queue request failed", reason=text),
        lambda text: log.warning("queue", reason=text),
    )
    queue.operator.told = lambda act, tasks, messages: log.event(
        "operator", act=act, tasks=tasks, ids=[show_id(id) for id in messages]
    )
    queue.operator.told_suspension = lambda how, what: log.event(
        "suspension", act=how, destination=what.name, site=what.site, until=what.until, reason=what.reason
    )
    descriptors = process.sockets()
    listener = socket.socket(fileno=descriptors[0]) if descriptors else bind(os.path.join(config.run, "queue.sock"))
    server = Server(queue, listener, process.uids, lambda text: log.warning("queue connection", reason=text))
    messages = store.message_count()
    log.event("queue opened", messages=messages, epoch=store.epoch, path=config.queue.path)
    process.ready()
    try:
        server.run()
    except StoreBroken as e:
        log.error("queue broken", reason=str(e))
        return BROKEN
    store.close()
    os.close(owner)
    return 0


if __name__ == "__main__":
    sys.exit(main())
