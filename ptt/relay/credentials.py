"""Logging in at a smarthost (RFC 4954): the name and password are in a file of this host, which a route names.

``NAME.toml`` in the directory ``relay.credentials``, for its owner's eyes only::

    user = "us@example.net"
    password = "..."
"""

from __future__ import annotations

import os
import stat
import tomllib
from typing import NamedTuple

import gevent

from ptt.net.stream import StreamError, TlsFailed
from ptt.relay.outcome import Deferred, of_error
from ptt.relay.session import Connection, NoSession, opening_left
from ptt.smtp import ProtocolError
from ptt.smtp.events import AuthDone, Closed
from ptt.smtp.sasl import MAX_CREDENTIAL, Secret
from ptt.smtp.scram import derive

MAX_FILE_BYTES = 8192  # two values of MAX_CREDENTIAL characters fit


class Login(NamedTuple):
    user: str
    password: Secret


class Unusable(Exception):
    """The file cannot be used. The text says why and quotes nothing of it."""


def read(directory: str, name: str) -> Login:
    """The login in a file. Blocks on the disk. Raises Unusable."""
    path = os.path.join(directory, name + ".toml")
    try:
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise Unusable(f"credentials {name}: is no regular file")
            if mode & 0o077:
                raise Unusable(f"credentials {name}: others may read or write the file, its mode must be 0600")
            table = tomllib.loads(file.read(MAX_FILE_BYTES).decode("utf-8"))
    except OSError as e:
        raise Unusable(f"credentials {name}: {e.strerror}") from e
    except ValueError:
        raise Unusable(f"credentials {name}: is not TOML") from None
    user, password = table.get("user"), table.get("password")
    for value in (user, password):
        if not isinstance(value, str) or not 0 < len(value) <= MAX_CREDENTIAL or "\0" in value:
            raise Unusable(f"credentials {name}: needs user and password, texts of 1 to {MAX_CREDENTIAL} characters")
    return Login(str(user), Secret(str(password)))


def log_in(connection: Connection, directory: str, name: str) -> None:
    """Authenticate over a connection, which must be encrypted. Raises NoSession: the mail waits."""
    peer = connection.target.peer
    pool = gevent.get_hub().threadpool
    try:
        if connection.stream.tls() is None:
            raise TlsFailed(f"{peer}: no password is sent without TLS")
        login = pool.apply(read, (directory, name))
        client = connection.client
        client.auth(login.user, login.password, derive=lambda *given: bytes(pool.apply(derive, given)))
        event = connection.next_event(connection.settings.command_seconds, opening_left(connection))
    except Unusable as e:
        raise NoSession(Deferred(str(e), "AUTH", peer, "4.3.5")) from e
    except ValueError as e:
        raise NoSession(Deferred(f"credentials {name}: {e}", "AUTH", peer, "4.3.5")) from None
    except (StreamError, ProtocolError) as e:
        raise NoSession(of_error(e, "AUTH", peer)) from e
    if isinstance(event, AuthDone) and event.reply.ok:
        return
    reply = event.reply if isinstance(event, AuthDone | Closed) else None
    text = str(reply) if reply is not None else f"{peer} closed the connection"
    raise NoSession(Deferred(text, "AUTH", peer, "4.7.8", reply=reply is not None))
