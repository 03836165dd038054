"""A connection before its session: whom it comes from, and whether it waits for the greeting.

The socket is looked at with MSG_PEEK, so that not an octet of the client's is taken away from the session.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from gevent import socket

from ptt.net.proxy import MAX_V2, HeaderReader, ProxyError, Source

PROXY_SECONDS = 5.0  # for the header of a proxy, which comes with the connection: it is sent at once


class Visitor(NamedTuple):
    """Whom a connection comes from, through a proxy or not."""

    address: str
    port: int
    known: bool = True  # False: a proxy forwards somebody and does not say whom; the address is the proxy's
    local: bool = False  # the proxy itself, which looks whether we are alive


def announced(sock: socket.socket, proxy: str, port: int) -> Visitor:
    """Read the PROXY header of a connection from a proxy. Raises ProxyError; also when it does not come in time."""
    try:
        source = _read_header(sock, time.monotonic() + PROXY_SECONDS)
    except TimeoutError as e:
        raise ProxyError("no header came in time") from e
    except OSError as e:
        raise ProxyError("the connection broke before its header") from e
    if source.address:
        return Visitor(source.address, source.port)
    return Visitor(proxy, port, known=source.local, local=source.local)


def _read_header(sock: socket.socket, deadline: float) -> Source:
    reader = HeaderReader()
    while reader.source is None:
        sock.settimeout(max(0.0, deadline - time.monotonic()))
        try:
            seen = sock.recv(MAX_V2, socket.MSG_PEEK)
        except BlockingIOError as e:
            raise TimeoutError from e
        if not seen:
            raise ProxyError("the connection was closed before its header")
        sock.recv(reader.feed(seen))
    return reader.source


def talks_early(sock: socket.socket, delay: float) -> bool:
    """Wait ``delay`` seconds before the greeting. Does the client talk, or close, meanwhile? (RFC 5321 3.1, 4.3.1)"""
    sock.settimeout(delay)
    try:
        sock.recv(1, socket.MSG_PEEK)
    except (TimeoutError, BlockingIOError):
        return False
    except OSError:
        return True
    return True
