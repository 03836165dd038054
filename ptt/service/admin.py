"""The admin port: /metrics for Prometheus, /healthz for load balancers and people. HTTP/1.1, one request a connection.

Meant for loopback or a management network; it shows no mail and changes nothing. With ``[directory] hook_secret`` it
takes the forge's web hook too (``ptt.service.githook``), which only starts a fetch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from http import HTTPStatus

import gevent
import gevent.pool
import msgspec
from gevent import socket

from ptt.log import Log
from ptt.metrics import Counters
from ptt.net.rpc import accept
from ptt.service import githook
from ptt.service.githook import GitHook

MAX_REQUEST = 16 * 1024  # of request line and header fields
MAX_CONNECTIONS = 64  # beyond, they wait in the backlog
REQUEST_SECONDS = 10.0  # for the whole exchange
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Metrics = Callable[[], bytes]


class Health(msgspec.Struct):
    """The answer of /healthz. ``status``: ok; degraded (mail flows, something needs a person); failed."""

    status: str
    reasons: list[str]
    version: str
    processes: dict[str, str]


def health(failures: list[str], warnings: list[str], version: str, processes: dict[str, str]) -> Health:
    """``failures``: why mail does not flow; ``warnings``: what needs a person."""
    status = "failed" if failures else "degraded" if warnings else "ok"
    return Health(status, failures + warnings, version, processes)


class Admin:
    """Serves one listening socket. ``metrics`` and ``check`` make the two answers; ``hook``: None if there is none."""

    def __init__(
        self, metrics: Metrics, check: Callable[[], Health], log: Log, counters: Counters, hook: GitHook | None = None
    ) -> None:
        self._hook = hook
        self._metrics = metrics
        self._check = check
        self._log = log
        self._counters = counters
        self._pool = gevent.pool.Pool(MAX_CONNECTIONS)

    def serve(self, listener: socket.socket) -> None:
        """Accept for ever (run it in a greenlet)."""
        while True:
            self._pool.wait_available()
            sock = accept(listener)
            self._pool.spawn(self._one, sock)

    def _one(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError), sock, gevent.Timeout(REQUEST_SECONDS, False):
            received = b""
            while b"\r\n\r\n" not in received and len(received) < MAX_REQUEST:
                data = sock.recv(4096)
                if not data:
                    break
                received += data
            sock.sendall(self._respond(received, sock))
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(4096):  # until the client has taken it: closing earlier could reset the connection
                pass

    def _respond(self, received: bytes, sock: socket.socket) -> bytes:
        try:
            if self._hook is not None and received.startswith(f"POST {githook.PATH} ".encode()):
                return self._hooked(self._hook, received, sock)
            return self._route(received)
        except (OSError, EOFError):
            return response(HTTPStatus.BAD_REQUEST, b"the body is cut short\n")
        except Exception as e:
            self._counters.count("ptt_errors_total", "admin")
            self._log.exception("admin request failed unexpectedly", e)
            return response(HTTPStatus.INTERNAL_SERVER_ERROR, b"see the log\n")

    def _hooked(self, hook: GitHook, received: bytes, sock: socket.socket) -> bytes:
        head, end, rest = received.partition(b"\r\n\r\n")
        if not end:
            return response(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, b"\n")
        status = hook.answer(sock.getpeername()[0], fields_of(head), lambda length: _body(rest, length, sock))
        return response(status, status.phrase.encode() + b"\n")

    def _route(self, received: bytes) -> bytes:
        asked = parse(received)
        if isinstance(asked, HTTPStatus):
            return response(asked, asked.phrase.encode() + b"\n")
        method, path = asked
        if path == "/metrics":
            return response(HTTPStatus.OK, self._metrics(), METRICS_TYPE, head=method == "HEAD")
        if path == "/healthz":
            found = self._check()
            status = HTTPStatus.SERVICE_UNAVAILABLE if found.status == "failed" else HTTPStatus.OK
            body = msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n"
            return response(status, body, "application/json", head=method == "HEAD")
        return response(HTTPStatus.NOT_FOUND, b"/metrics and /healthz are here\n")


def fields_of(head: bytes) -> dict[str, str]:
    """The header fields of a request's head: name in lower case -> value, or both (RFC 9110 5.3)."""
    fields: dict[str, str] = {}
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.decode("utf-8", "surrogateescape").partition(":")
        key = name.lower()
        fields[key] = f"{fields[key]}, {value.strip()}" if key in fields else value.strip()
    return fields


def _body(begun: bytes, length: int, sock: socket.socket) -> Iterator[bytes]:
    """The body of a request, as it arrives. Raises OSError, EOFError when less than ``length`` arrives."""
    yield begun[:length]
    left = length - len(begun)
    while left > 0:
        data = sock.recv(min(left, 65_536))
        if not data:
            raise EOFError
        left -= len(data)
        yield data


def parse(received: bytes) -> tuple[str, str] | HTTPStatus:
    """A request's head -> (method, path), or the status that answers it (RFC 9112)."""
    head, end, _ = received.partition(b"\r\n\r\n")
    if not end:
        too_long = len(received) >= MAX_REQUEST
        return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE if too_long else HTTPStatus.BAD_REQUEST
    words = head.split(b"\r\n", 1)[0].split(b" ")
    if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
        return HTTPStatus.BAD_REQUEST
    if words[0] not in (b"GET", b"HEAD"):
        return HTTPStatus.METHOD_NOT_ALLOWED
    return words[0].decode(), words[1].partition(b"?")[0].decode("ascii", "replace")


def response(status: HTTPStatus, body: bytes, kind: str = "text/plain; charset=utf-8", *, head: bool = False) -> bytes:
    """A complete response; ``head``: without its body."""
    fields = f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        fields += "Allow: GET, HEAD\r\n"
    return (fields + "Cache-Control: no-store\r\nConnection: close\r\n\r\n").encode() + (b"" if head else body)
