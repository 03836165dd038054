"""Byte streams with time-outs: the only place where mail touches sockets and TLS.

``Stream`` is what sessions are driven over. ``GeventStream`` is TCP; ``TlsStream`` is TLS over any other
stream, so it works over TCP and over the in-memory pair of ``ptt.net.memory`` alike.

A time-out is an argument, in seconds, of each call, and bounds the whole call: a peer that drips single bytes
of a TLS record gains nothing. What the operating system and OpenSSL raise is mapped here: only ``StreamError``
and its subclasses leave, never OSError or gevent.Timeout.

A stream belongs to one greenlet; another one may only ``close`` it.
"""

from __future__ import annotations

import contextlib
import errno
import ssl
import time
from typing import NamedTuple, Protocol

from gevent import socket

MAX_READ = 64 * 1024
"""Most bytes that a driver asks for at once: four TLS records; more gains no throughput, and costs memory."""

TLS_WRITE_BYTES = 256 * 1024
"""Encrypted at once: bounds the second copy of a large message, costs one system call each."""

_GONE = frozenset({errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED, errno.ESHUTDOWN, errno.ENOTCONN, errno.EBADF})


class StreamError(Exception):
    """Something between us and the peer failed. Raised by streams; the driver of a session ends the session.

    The text is for logs and for the operator.
    """


class ReadTimeout(StreamError):
    """The peer sent nothing (enough) in time. A server answers 421, a client tries later."""


class WriteTimeout(StreamError):
    """The peer took too long to take what we sent. The connection cannot be used any more."""


class ConnectFailed(StreamError):
    """No connection: refused, unreachable, or no answer in time. Nothing was sent."""


class PeerClosed(StreamError):
    """The connection was reset, or closed while we wrote (or by another greenlet of ours)."""


class TlsFailed(StreamError):
    """The handshake failed, the certificate was not accepted, or a record was damaged."""


class TlsInfo(NamedTuple):
    """What was negotiated: "TLSv1.3", "TLS_AES_256_GCM_SHA384", the peer's certificate (DER) or None.

    ``chain``: all certificates that the peer sent, its own first, not verified; () when it sent none, and where Python
    does not tell.
    """

    version: str
    cipher: str
    certificate: bytes | None
    chain: tuple[bytes, ...] = ()


class Stream(Protocol):
    """A connection. Every method but ``tls`` and ``close`` may raise StreamError."""

    peer: str  # "192.0.2.1:2525", "[2001:db8::1]:25"

    def read(self, most: int, timeout: float) -> bytes:
        """At least one and at most ``most`` bytes; ``b""`` at the end of the stream. Raises ReadTimeout, PeerClosed."""

    def write(self, data: bytes, timeout: float) -> None:
        """Hand over all of ``data``. Raises WriteTimeout, PeerClosed."""

    def start_tls(
        self,
        context: ssl.SSLContext,
        timeout: float,
        *,
        server_side: bool,
        server_hostname: str | None = None,
    ) -> Stream:
        """Shake hands and return the stream to be used from now on. This one is closed if that fails.

        Sessions are not resumed: measured, that saves a client nothing in TLS 1.3.
        Raises TlsFailed, ReadTimeout, WriteTimeout, PeerClosed.
        """

    def tls(self) -> TlsInfo | None:
        """What TLS was negotiated, or None in the clear."""

    def close(self) -> None:
        """Close, without waiting. May be called again. A greenlet that waits in ``read`` gets PeerClosed."""


class GeventStream:
    """A connected TCP socket. Owns it."""

    __slots__ = ("_socket", "_timeout", "peer")

    def __init__(self, sock: socket.socket, peer: str) -> None:
        self.peer = peer
        self._socket = sock
        self._timeout = -1.0  # none: set by the first call
        # A reply is one small segment: Nagle's algorithm would hold it back until the last one is acknowledged.
        with contextlib.suppress(OSError):  # not TCP, or gone already: the first read or write says so
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def read(self, most: int, timeout: float) -> bytes:
        if timeout != self._timeout:
            self._set_timeout(timeout)
        try:
            data: bytes = self._socket.recv(most)
        except (TimeoutError, BlockingIOError) as e:
            raise ReadTimeout(f"{self.peer} sent nothing for {timeout:g} s") from e
        except OSError as e:
            raise _mapped(e, self.peer) from e
        return data

    def write(self, data: bytes, timeout: float) -> None:
        if timeout != self._timeout:
            self._set_timeout(timeout)
        try:
            sent = self._socket.send(data)
            if sent != len(data):
                self._socket.sendall(memoryview(data)[sent:])
        except (TimeoutError, BlockingIOError) as e:
            raise WriteTimeout(f"{self.peer} took nothing for {timeout:g} s") from e
        except OSError as e:
            raise _mapped(e, self.peer) from e

    def start_tls(
        self,
        context: ssl.SSLContext,
        timeout: float,
        *,
        server_side: bool,
        server_hostname: str | None = None,
    ) -> Stream:
        return TlsStream(self, context, timeout, server_side, server_hostname)

    def tls(self) -> TlsInfo | None:
        return None

    def close(self) -> None:
        self._socket.close()

    def _set_timeout(self, timeout: float) -> None:
        # Zero means "without waiting" to sockets, which is what a deadline in the past means to us.
        self._socket.settimeout(max(timeout, 0.0))
        self._timeout = timeout


class TlsStream:
    """TLS over another stream, which it owns. The handshake happens in the constructor.

    OpenSSL works on memory buffers here and the bytes go through the stream below: each call has one deadline,
    and a flight of the handshake is one system call.
    """

    __slots__ = ("_below", "_context", "_info", "_object", "_received", "_to_send", "peer")

    def __init__(
        self,
        below: Stream,
        context: ssl.SSLContext,
        timeout: float,
        server_side: bool,
        server_hostname: str | None = None,
    ) -> None:
        self.peer = below.peer
        self._below = below
        self._received = ssl.MemoryBIO()
        self._to_send = ssl.MemoryBIO()
        self._info: TlsInfo | None = None
        try:
            self._object = context.wrap_bio(self._received, self._to_send, server_side, server_hostname)
            self._handshake(time.monotonic() + timeout)
        except (ssl.SSLError, ValueError) as e:  # ValueError: a host name that TLS cannot express
            below.close()
            raise TlsFailed(f"TLS with {self.peer} failed: {_reason(e)}") from e
        except BaseException:
            below.close()
            raise

    def read(self, most: int, timeout: float) -> bytes:
        deadline = 0.0
        while True:
            try:
                data = self._object.read(most)
            except ssl.SSLWantReadError:
                pass
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):  # with close_notify, and without
                return b""
            except ssl.SSLError as e:
                raise TlsFailed(f"TLS with {self.peer} failed: {_reason(e)}") from e
            else:
                if self._to_send.pending:
                    self._flush(timeout)
                return data
            if self._to_send.pending:  # an answer to a key update
                self._flush(timeout)
            now = time.monotonic()
            deadline = deadline or now + timeout
            self._fill(deadline - now)

    def write(self, data: bytes, timeout: float) -> None:
        if len(data) <= TLS_WRITE_BYTES:
            self._write(data, timeout)
            return
        deadline = time.monotonic() + timeout
        view = memoryview(data)
        for start in range(0, len(data), TLS_WRITE_BYTES):
            self._write(view[start : start + TLS_WRITE_BYTES], deadline - time.monotonic())

    def start_tls(
        self,
        context: ssl.SSLContext,
        timeout: float,
        *,
        server_side: bool,
        server_hostname: str | None = None,
    ) -> Stream:
        raise TlsFailed(f"TLS with {self.peer} is already active")

    def tls(self) -> TlsInfo | None:
        if self._info is None:
            cipher = self._object.cipher()
            certificate = self._object.getpeercert(binary_form=True)
            chain = _chain(self._object) if certificate else ()
            self._info = TlsInfo(self._object.version() or "", cipher[0] if cipher else "", certificate, chain)
        return self._info

    def close(self) -> None:
        with contextlib.suppress(ssl.SSLError, ValueError):  # wants the peer's close_notify; nobody waits for it
            self._object.unwrap()
        with contextlib.suppress(StreamError):
            self._flush(0.0)
        self._below.close()

    def _handshake(self, deadline: float) -> None:
        while True:
            try:
                self._object.do_handshake()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError:
                self._send_alert()
                raise
            else:
                self._flush(deadline - time.monotonic())
                return
            self._flush(deadline - time.monotonic())
            self._fill(deadline - time.monotonic())

    def _send_alert(self) -> None:
        """Tell the peer why, without waiting."""
        with contextlib.suppress(StreamError):
            self._flush(0.0)

    def _fill(self, timeout: float) -> None:
        data = self._below.read(MAX_READ, timeout)
        if data:
            self._received.write(data)
        else:
            self._received.write_eof()

    def _flush(self, timeout: float) -> None:
        if self._to_send.pending:
            self._below.write(self._to_send.read(), timeout)

    def _write(self, data: bytes | memoryview, timeout: float) -> None:
        try:
            self._object.write(data)
        except ssl.SSLError as e:
            raise TlsFailed(f"TLS with {self.peer} failed: {_reason(e)}") from e
        self._below.write(self._to_send.read(), timeout)


def connect(host: str, port: int, timeout: float, source: str | None = None) -> GeventStream:
    """Connect to an IP address (no names are resolved here), from the address ``source`` if given.

    Raises ConnectFailed.
    """
    peer = show_address(host, port)
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout)
        if source is not None:
            sock.bind((source, 0))
        sock.connect((host, port))
    except TimeoutError as e:
        sock.close()
        raise ConnectFailed(f"{peer} did not answer in {timeout:g} s") from e
    except (OSError, OverflowError) as e:
        sock.close()
        raise ConnectFailed(f"{peer}: {_reason(e)}") from e
    except BaseException:
        sock.close()
        raise
    return GeventStream(sock, peer)


def connect_unix(path: str, timeout: float) -> GeventStream:
    """Connect to a Unix socket. Raises ConnectFailed."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout)
        sock.connect(path)
    except TimeoutError as e:
        sock.close()
        raise ConnectFailed(f"{path} did not answer in {timeout:g} s") from e
    except OSError as e:
        sock.close()
        raise ConnectFailed(f"{path}: {_reason(e)}") from e
    except BaseException:
        sock.close()
        raise
    return GeventStream(sock, path)


def show_address(host: str, port: int) -> str:
    """``"192.0.2.1:25"``, ``"[2001:db8::1]:25"``."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _chain(connection: ssl.SSLObject) -> tuple[bytes, ...]:
    """The certificates that a peer sent (DER). Python 3.13 has a method for it; before, only the object below has."""
    ask = getattr(connection, "get_unverified_chain", None)
    ask = ask or getattr(getattr(connection, "_sslobj", None), "get_unverified_chain", None)
    found = ask() if ask is not None else None
    return tuple(c if isinstance(c, bytes) else c.public_bytes(_DER) for c in found or ())


_DER = 2  # _ssl.ENCODING_DER, for the objects that Python before 3.13 gives


def _mapped(error: OSError, peer: str) -> StreamError:
    if error.errno in _GONE:
        return PeerClosed(f"{peer} closed the connection")
    return PeerClosed(f"the connection with {peer} broke: {_reason(error)}")


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return (error.reason or error.strerror or "unknown error").replace("_", " ").lower()
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error)
