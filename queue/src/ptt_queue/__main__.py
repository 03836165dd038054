"""The queue process without a mail service around it: ``python -m ptt_queue DIRECTORY SOCKET``."""

from __future__ import annotations

import argparse
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


def main() -> int:
    parser = argparse.ArgumentParser(prog="ptt_queue", description=__doc__)
    parser.add_argument("directory")
    parser.add_argument("socket", help="path of the Unix socket")
    parser.add_argument("--map-bytes", type=int, default=1 << 40)
    parser.add_argument("--limited", type=int, nargs="*", default=[], help="stages whose leases need a token")
    parser.add_argument("--in-flight", type=int, default=0, help="limit of each lane in those stages; 0: none")
    parser.add_argument("--clients", type=int, default=0, help="clients that will lease, waited for after a start")
    options = parser.parse_args()

    def log(text: str) -> None:
        sys.stderr.write(f"ptt_queue: {text}\n")

    try:
        lock = files.take(options.directory)
        store = Store(options.directory, options.map_bytes)
    except StoreError as e:
        log(str(e))
        return 2
    marks = Marks(options.map_bytes * 9 // 10)  # a settle needs pages, too: a map without any is stuck
    settings = Settings(tuple(options.limited), GroupLimit(options.in_flight), marks, options.clients)
    queue = Queue(store, settings, int(time.time() * 1000), log)
    with socket.socket(socket.AF_UNIX) as listener:
        if os.path.exists(options.socket):
            os.unlink(options.socket)
        listener.bind(options.socket)
        listener.listen(128)
        try:
            Server(queue, listener, frozenset({0, os.getuid()}), log).run()
        except StoreBroken as e:
            log(str(e))
            return 1
    store.close()
    os.close(lock)
    return 0


if __name__ == "__main__":
    sys.exit(main())
