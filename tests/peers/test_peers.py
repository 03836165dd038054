"""The peers themselves: when these fail, nothing is known about the service."""

from __future__ import annotations

import smtplib
import socket
import ssl
from collections.abc import Callable

import gevent.socket
import pytest

pytestmark = pytest.mark.peer


@pytest.mark.slow
def test_mail_that_postfix_takes_over_tls_can_be_read(postfix_mx) -> None:
    with smtplib.SMTP("127.0.0.1", postfix_mx.port, timeout=10) as client:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        client.starttls(context=context)
        client.sendmail("a@example.test", ["b@anywhere.test"], b"Message-ID: <peer-1@test>\r\n\r\n.dot\r\nhello\r\n")
    (message,) = postfix_mx.wait(b"<peer-1@test>")
    assert b"Delivered-To: b@anywhere.test" in message
    assert message.endswith(b"\r\n\r\n.dot\r\nhello\r\n")
    assert b"TLS" in message
    postfix_mx.clear()
    assert postfix_mx.messages() == []


@pytest.mark.slow
def test_postfix_as_client_sends_to_the_smarthost(postfix_client, free_port: Callable[[], int]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as smarthost:
        client = postfix_client(smarthost.getsockname()[1], "u", "p")
        with smtplib.SMTP("127.0.0.1", client.port, timeout=10) as sender:
            sender.sendmail("a@example.test", ["b@other.test"], b"Subject: x\r\n\r\nhello\r\n")
        smarthost.settimeout(10)
        connection, _ = smarthost.accept()
        with connection:
            connection.settimeout(10)
            connection.sendall(b"220 here\r\n")
            assert connection.recv(100).startswith(b"EHLO client.example.test")


def test_tests_reach_only_this_host() -> None:
    for kind in (socket.socket, gevent.socket.socket):
        for address in (("192.0.2.1", 25), ("mail.example.com", 25)):
            with kind(socket.AF_INET, socket.SOCK_DGRAM) as sock, pytest.raises(pytest.fail.Exception):
                sock.connect(address)


def test_free_ports_differ(free_port: Callable[[], int]) -> None:
    assert len({free_port() for _ in range(50)}) == 50


def test_paths_of_unix_sockets_fit(tmp) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp / "a-name-of-some-length.sock"))
