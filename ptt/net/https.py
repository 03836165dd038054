"""One small file over HTTPS: verified, bounded in time and size, without redirects.

Over ``ptt.net.stream``, so that nothing blocks a worker's loop; the standard library parses the response.
"""

from __future__ import annotations

import http.client
import io
import ssl
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from ptt.net.stream import ConnectFailed, Stream, StreamError, connect

MAX_HEADER_BYTES = 64 * 1024  # of a response, beside its body: status, header fields, sizes of chunks
MAX_ADDRESSES = 3  # that are tried; each gets its share of the time
CHUNK = 8192


class HttpsError(Exception):
    """There is no such file, or it cannot be had. The text says why."""


class Answer(NamedTuple):
    """``content_type``: in lower case, without parameters."""

    content_type: str
    body: bytes


def get(
    host: str, ips: Sequence[str], port: int, path: str, context: ssl.SSLContext, timeout: float, most: int
) -> Answer:
    """GET https://HOST/PATH from one of ``ips``, at most ``most`` bytes, in ``timeout`` seconds. Raises HttpsError."""
    deadline = time.monotonic() + timeout
    try:
        stream: Stream = _connect(ips[:MAX_ADDRESSES], port, timeout)
        try:
            stream = stream.start_tls(context, deadline - time.monotonic(), server_side=False, server_hostname=host)
            return _exchange(stream, host, path, deadline, most)
        finally:
            stream.close()
    except (StreamError, http.client.HTTPException, OSError) as e:
        raise HttpsError(f"https://{host}{path}: {str(e) or type(e).__name__}") from e


def _connect(ips: Sequence[str], port: int, timeout: float) -> Stream:
    for n, ip in enumerate(ips, 1):
        try:
            return connect(ip, port, timeout / (len(ips) + 1))
        except ConnectFailed:
            if n == len(ips):
                raise
    raise ConnectFailed("no address")


def _exchange(stream: Stream, host: str, path: str, deadline: float, most: int) -> Answer:
    request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: ptt\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    stream.write(request.encode("ascii"), deadline - time.monotonic())
    response = http.client.HTTPResponse(cast(Any, _Source(stream, deadline, most + MAX_HEADER_BYTES)), method="GET")
    try:
        response.begin()
        if response.status != http.client.OK:  # a redirect too: whoever is elsewhere has no say (RFC 8461 3.3)
            raise HttpsError(f"https://{host}{path}: status {response.status}")
        body = response.read(most + 1)
        if len(body) > most:
            raise HttpsError(f"https://{host}{path}: more than {most} bytes")
        if not response.chunked and (response.getheader("Content-Length") is None or response.length):
            raise HttpsError(f"https://{host}{path}: it was cut off, or nobody says how long it is")
        kind = response.getheader("Content-Type") or ""
        return Answer(kind.partition(";")[0].strip().lower(), body)
    finally:
        response.close()


class _Source(io.RawIOBase):
    """What HTTPResponse takes for a socket and its file: a stream, up to a deadline and a size."""

    def __init__(self, stream: Stream, deadline: float, most: int) -> None:
        self._stream = stream
        self._deadline = deadline
        self._left = most

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self, CHUNK)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(min(len(buffer), CHUNK), self._deadline - time.monotonic())
        self._left -= len(data)
        if self._left < 0:
            raise HttpsError("the response is too long")
        buffer[: len(data)] = data
        return len(data)
