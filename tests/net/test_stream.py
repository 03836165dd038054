"""What every stream must do, on TCP, on TLS over TCP, in memory, and on TLS over memory."""

from __future__ import annotations

import pathlib
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator

import gevent
import pytest
from gevent import socket

from ptt.net.memory import memory_pair
from ptt.net.stream import (
    ConnectFailed,
    GeventStream,
    PeerClosed,
    ReadTimeout,
    Stream,
    StreamError,
    TlsFailed,
    WriteTimeout,
    connect,
    show_address,
)
from ptt.net.tls import opportunistic_context, server_context, verifying_context

Pair = tuple[Stream, Stream]
SOON = 0.05  # a time-out that is meant to run out
LONG = 5.0  # one that is not


@pytest.fixture(scope="module")
def contexts(certificates: dict[str, pathlib.Path]) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    return server_context(str(certificates["mx"]), str(certificates["mx.key"])), opportunistic_context()


def tcp_pair() -> Pair:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(1)
    client = connect("127.0.0.1", listener.getsockname()[1], LONG)
    accepted, address = listener.accept()
    listener.close()
    return client, GeventStream(accepted, show_address(*address[:2]))


def over_tls(pair: Pair, contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> Pair:
    server = gevent.spawn(pair[1].start_tls, contexts[0], LONG, server_side=True)
    client = pair[0].start_tls(contexts[1], LONG, server_side=False, server_hostname="mx.example.org")
    return client, server.get(timeout=LONG)


@pytest.fixture(params=["tcp", "tcp+tls", "memory", "memory+tls"])
def pair(request: pytest.FixtureRequest, contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> Iterator[Pair]:
    kind = request.param
    ends: Pair = tcp_pair() if kind.startswith("tcp") else memory_pair()
    if kind.endswith("tls"):
        ends = over_tls(ends, contexts)
    yield ends
    for end in ends:
        end.close()


def test_both_directions(pair: Pair) -> None:
    one, other = pair
    one.write(b"there", LONG)
    assert other.read(100, LONG) == b"there"
    other.write(b"back", LONG)
    assert one.read(2, LONG) == b"ba"
    assert one.read(2, LONG) == b"ck"


def test_a_read_that_waits_is_woken(pair: Pair) -> None:
    reader = gevent.spawn(pair[0].read, 10, LONG)
    gevent.idle()
    assert not reader.ready()
    pair[1].write(b"x", LONG)
    assert reader.get(timeout=LONG) == b"x"


def test_large_data_arrives_whole(pair: Pair) -> None:
    data = bytes(range(256)) * 8192  # 2 MiB: more than all buffers
    writer = gevent.spawn(pair[0].write, data, LONG)
    got = bytearray()
    while len(got) < len(data):
        got += pair[1].read(65536, LONG)
    writer.get(timeout=LONG)
    assert bytes(got) == data


def test_end_of_stream(pair: Pair) -> None:
    pair[0].write(b"last", LONG)
    pair[0].close()
    assert pair[1].read(100, LONG) == b"last"
    assert pair[1].read(100, LONG) == b""
    assert pair[1].read(100, LONG) == b""
    pair[0].close()  # again


def test_read_time_out_loses_nothing(pair: Pair) -> None:
    with pytest.raises(ReadTimeout):
        pair[0].read(10, SOON)
    with pytest.raises(ReadTimeout):
        pair[0].read(10, 0.0)
    with pytest.raises(ReadTimeout):
        pair[0].read(10, -1.0)
    pair[1].write(b"late", LONG)
    assert pair[0].read(10, LONG) == b"late"


def test_write_time_out(pair: Pair) -> None:
    with pytest.raises(WriteTimeout):
        pair[0].write(bytes(64 * 1024 * 1024), SOON)


def test_writing_to_a_closed_peer(pair: Pair) -> None:
    pair[1].close()

    def write() -> None:
        for _ in range(100):  # TCP tells at the second write
            pair[0].write(bytes(65536), LONG)
            gevent.idle()

    with pytest.raises(PeerClosed):
        write()


def test_close_by_another_greenlet_ends_a_read(pair: Pair) -> None:
    reader = gevent.spawn(outcome_of, lambda: pair[0].read(10, LONG))
    gevent.idle()
    pair[0].close()
    assert reader.get(timeout=LONG) is PeerClosed


def test_peer_is_named(pair: Pair) -> None:
    assert pair[0].peer.rpartition(":")[2].isdecimal()


def test_tls_says_what_it_is(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    plain = memory_pair()
    assert plain[0].tls() is None
    client, server = over_tls(plain, contexts)
    info, other = client.tls(), server.tls()
    assert info is not None
    assert other is not None
    assert (info.version, info.cipher) == (other.version, other.cipher)
    assert info.version == "TLSv1.3"
    assert info.certificate
    assert other.certificate is None
    with pytest.raises(TlsFailed):
        client.start_tls(contexts[1], LONG, server_side=False)


def test_end_without_close_notify_is_an_end(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    plain = memory_pair()
    client, server = over_tls(plain, contexts)
    server.write(b"x", LONG)
    plain[1].close()
    assert client.read(10, LONG) == b"x"
    assert client.read(10, LONG) == b""


def test_dripping_a_record_gains_no_time(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    plain = memory_pair()
    client, _ = over_tls(plain, contexts)

    def drip() -> None:
        for byte in b"\x17\x03\x03\x40\x00" + bytes(1000):
            plain[1].write(bytes([byte]), LONG)
            gevent.sleep(SOON / 5)

    dripping = gevent.spawn(drip)
    with gevent.Timeout(LONG), pytest.raises(ReadTimeout):
        client.read(10, SOON)
    dripping.kill()


@pytest.mark.parametrize("what", [b"220 not TLS\r\n" * 3, b"\x16\x03\x01\xff\xff", b""])
def test_failed_handshake(what: bytes) -> None:
    client, server = memory_pair()
    server.write(what, LONG)
    server.close()
    with pytest.raises(StreamError):
        client.start_tls(opportunistic_context(), LONG, server_side=False)
    assert outcome_of(lambda: client.read(1, LONG)) is PeerClosed


def test_handshake_time_out() -> None:
    client, _ = memory_pair()
    with pytest.raises(ReadTimeout):
        client.start_tls(opportunistic_context(), SOON, server_side=False)


def test_damaged_record(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    plain = memory_pair()
    client, _ = over_tls(plain, contexts)
    plain[1].write(b"\x17\x03\x03\x00\x20" + bytes(32), LONG)
    with pytest.raises(TlsFailed):
        client.read(10, LONG)


def test_wrong_name_is_refused_and_says_so(certificates: dict[str, pathlib.Path]) -> None:
    client, server = memory_pair()
    context = server_context(str(certificates["mx"]), str(certificates["mx.key"]))
    other = gevent.spawn(outcome_of, lambda: server.start_tls(context, LONG, server_side=True))
    with pytest.raises(TlsFailed, match="certificate not accepted: Hostname mismatch"):
        client.start_tls(
            verifying_context(str(certificates["ca"])), LONG, server_side=False, server_hostname="else.example.org"
        )
    assert other.get(timeout=LONG) is TlsFailed


def test_names_that_tls_cannot_express() -> None:
    client, _ = memory_pair()
    with pytest.raises(TlsFailed):
        client.start_tls(opportunistic_context(), LONG, server_side=False, server_hostname="." * 300)


def test_connect_refused(free_port: Callable[[], int]) -> None:
    with pytest.raises(ConnectFailed, match="refused"):
        connect("127.0.0.1", free_port(), LONG)


def test_connect_time_out() -> None:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    port = listener.getsockname()[1]
    waiting = []

    def fill_backlog() -> None:
        for _ in range(10):
            waiting.append(connect("127.0.0.1", port, SOON))

    with pytest.raises(ConnectFailed, match="did not answer"):
        fill_backlog()
    for stream in waiting:
        stream.close()
    listener.close()


def test_connect_to_nonsense() -> None:
    with pytest.raises(ConnectFailed):
        connect("192.0.2.1", 25, LONG, source="not an address")
    with pytest.raises(ConnectFailed):
        connect("127.0.0.1", 70000, LONG)


def test_a_foreign_time_out_passes_through() -> None:
    client, _ = memory_pair()
    timer = gevent.Timeout.start_new(SOON)
    with pytest.raises(gevent.Timeout) as caught:
        client.read(1, LONG)
    assert caught.value is timer
    timer.close()


@pytest.mark.slow
def test_works_in_a_patched_process(certificates: dict[str, pathlib.Path]) -> None:
    """As the workers run it; and contexts can still be made there."""
    script = (
        "from gevent import monkey; monkey.patch_all()\n"
        "import sys, gevent\n"
        "from ptt.net.memory import memory_pair\n"
        "from ptt.net.tls import server_context, opportunistic_context\n"
        "a, b = memory_pair()\n"
        "context = server_context(sys.argv[1], sys.argv[2])\n"
        "s = gevent.spawn(b.start_tls, context, 5, server_side=True)\n"
        "c = a.start_tls(opportunistic_context(), 5, server_side=False)\n"
        "c.write(b'hello', 5); print(s.get().read(9, 5).decode())\n"
    )
    command = [sys.executable, "-c", script, str(certificates["mx"]), str(certificates["mx.key"])]
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout == "hello\n"


def outcome_of(call: Callable[[], object]) -> type[BaseException] | None:
    try:
        call()
    except StreamError as e:
        return type(e)
    return None
