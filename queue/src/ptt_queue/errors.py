"""What can go wrong, one class for each meaning."""

from __future__ import annotations


class QueueError(Exception):
    """Base of all errors of the queue."""


class StoreError(QueueError):
    """The store cannot be opened or used here (its directory, its file system, its schema); the text says why."""


class StoreBusy(StoreError):
    """Another process owns the store. Use its socket."""


class StoreBroken(QueueError):
    """The store could not be written and its environment is unusable: the owner ends, and is started again.

    Raised by the queue to its server; clients see a closed connection, and repeat what was not answered.
    """


class ProtocolError(QueueError):
    """The peer sent what is no frame or no request. The connection is closed; nothing of it was executed."""


class Unavailable(QueueError):
    """The queue process did not answer in time. What was asked may have been executed, unless it is repeated."""


class RequestFailed(QueueError):
    """The queue process could not execute a request that changes nothing when it fails (its text says why)."""
