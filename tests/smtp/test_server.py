"""ServerSession: limits, budgets, and the contract with its driver. The dialogs hold the ordinary."""

import base64
import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import pytest

from ptt.smtp import (
    NEED_DATA,
    Closed,
    Hello,
    MailFrom,
    MailParams,
    MessageComplete,
    MessageStart,
    RcptParams,
    RcptTo,
    Reply,
    ServerConfig,
    ServerSession,
    states,
)
from ptt.smtp.conduct import MAX_IDLE_COMMANDS
from ptt.smtp.config import FutureRelease
from ptt.smtp.handlers import MAX_LINE
from ptt.smtp.replies import SHUTTING_DOWN
from ptt.smtp.server import MAX_AUTH_LINE, MAX_PARAMETER_LINE

MESSAGE = b"EHLO c\r\nMAIL FROM:<a@b.org>\r\nRCPT TO:<c@d.org>\r\nDATA\r\nSubject: x\r\n\r\n..x\r\n.\r\nQUIT\r\n"


def codes(output: bytes) -> list[str]:
    """The codes of the replies, with the enhanced ones."""
    return re.findall(r"(?m)^(\d{3} \d\.\d\.\d+|\d{3}(?= ))", output.decode("ascii"))


def test_a_message(feed_all_ways: Callable[..., Any]) -> None:
    served = feed_all_ways(MESSAGE)
    assert served.events == [
        Hello("c", True),
        MailFrom("a@b.org", MailParams()),
        RcptTo("c@d.org", RcptParams()),
        MessageStart(),
        b"Subject: x\r\n\r\n.x\r\n",
        Closed("QUIT"),
    ]
    assert codes(served.output) == ["220", "250", "250 2.1.0", "250 2.1.5", "354", "250 2.0.0", "221 2.0.0"]


def test_a_pipelined_group_is_answered_in_one_write(config: ServerConfig) -> None:
    session = ServerSession(config)
    session.data_to_send()
    session.receive_data(b"EHLO c\r\nMAIL FROM:<a@b.org>\r\nRCPT TO:<c@d.org>\r\nDATA\r\n")
    while session.next_event() is not NEED_DATA:
        session.accept()
    assert codes(session.data_to_send()) == ["250", "250 2.1.0", "250 2.1.5", "354"]
    assert session.data_to_send() == b""


@pytest.mark.parametrize(
    ("line", "limit", "fine"),
    [
        (b"NOOP ", MAX_LINE, "250 2.0.0"),
        (b"MAIL FROM:<a@b.org> ", MAX_PARAMETER_LINE, "555 5.5.4"),  # taken as a whole, then the parameter is unknown
    ],
)
def test_line_length_at_the_limit(line: bytes, limit: int, fine: str, feed_all_ways: Callable[..., Any]) -> None:
    at_limit = line + b"x" * (limit - len(line))
    served = feed_all_ways(b"EHLO c\r\n" + at_limit + b"\r\n" + at_limit + b"x\r\nQUIT\r\n")
    assert codes(served.output)[2:] == [fine, "500 5.5.2", "221 2.0.0"]


def test_sasl_response_at_the_limit(feed_all_ways: Callable[..., Any]) -> None:
    at_limit = b"A" * MAX_AUTH_LINE
    served = feed_all_ways(
        b"EHLO c\r\nAUTH PLAIN\r\n" + at_limit + b"\r\nAUTH PLAIN\r\n" + at_limit + b"A\r\n*\r\n", tls=True
    )
    assert codes(served.output)[2:] == ["334", "501 5.5.2", "334", "500 5.5.2", "501 5.7.0"]


def test_an_endless_line_is_not_kept(config: ServerConfig) -> None:
    session = ServerSession(config)
    for _ in range(100):
        session.receive_data(b"x" * 10_000)
        assert session.next_event() is NEED_DATA
        assert len(session._in.buffer) <= MAX_PARAMETER_LINE + 1
    session.receive_data(b"\r\nNOOP\r\n")
    assert session.next_event() is NEED_DATA
    assert codes(session.data_to_send()) == ["220", "500 5.5.2", "250 2.0.0"]


def test_sessions_share_no_state(config: ServerConfig, serve: Callable[..., Any]) -> None:
    first = ServerSession(config)
    serve([MESSAGE])
    first.receive_data(b"MAIL FROM:<a@b.org>\r\n")
    assert first.next_event() is NEED_DATA
    assert codes(first.data_to_send()) == ["220", "503 5.5.1"]


def test_refused_recipients_do_not_count_as_errors(serve: Callable[..., Any]) -> None:
    wire = b"EHLO c\r\nMAIL FROM:<a@b.org>\r\n" + b"RCPT TO:<unknown@d.org>\r\n" * 100 + b"DATA\r\nQUIT\r\n"
    assert codes(serve([wire]).output)[3:] == ["550 5.1.1"] * 100 + ["503 5.5.1", "221 2.0.0"]


def test_idle_commands_are_counted(serve: Callable[..., Any]) -> None:
    served = serve([b"NOOP\r\n" * (MAX_IDLE_COMMANDS + 5)])
    assert codes(served.output) == ["220"] + ["250 2.0.0"] * MAX_IDLE_COMMANDS + ["421 4.7.0"]
    assert served.events == [Closed("too many idle commands")]


@pytest.mark.parametrize("command", [b"RSET\r\n", b"EHLO c\r\n", b"HELO c\r\n"])
def test_starting_over_and_over_is_idle_too(serve: Callable[..., Any], command: bytes) -> None:
    served = serve([command * (MAX_IDLE_COMMANDS + 5)])
    assert codes(served.output)[-1] == "421 4.7.0"
    assert served.output.count(b"\r\n250 ") == MAX_IDLE_COMMANDS
    assert served.events[-1] == Closed("too many idle commands")


def test_a_message_starts_the_counts_anew(serve: Callable[..., Any]) -> None:
    config = ServerConfig("mx.example.org", max_recipients=2)
    message = b"MAIL FROM:<a@b.org>\r\n" + b"RCPT TO:<c@d.org>\r\n" * 2 + b"DATA\r\nx\r\n.\r\n"
    wire = b"EHLO c\r\n" + (message + b"NOOP\r\n" * MAX_IDLE_COMMANDS) * 2 + b"QUIT\r\n"
    replies = codes(serve([wire], config).output)
    assert replies.count("250 2.1.5") == 4
    assert replies[-1] == "221 2.0.0"


@pytest.mark.parametrize("response", [b"\0u", b"\0u\0p\0x", b"\0\0p", b"\0u\0", b"\0u\0\xff", b"\0u\0" + b"p" * 1025])
def test_what_is_no_plain_response(response: bytes, feed_all_ways: Callable[..., Any]) -> None:
    wire = b"EHLO c\r\nAUTH PLAIN " + base64.b64encode(response)[:1900] + b"\r\n"
    assert codes(feed_all_ways(wire, tls=True).output)[-1] == "501 5.5.2"


def test_failed_authentications_end_the_session(serve: Callable[..., Any]) -> None:
    wrong = b"AUTH PLAIN " + base64.b64encode(b"\0u\0wrong") + b"\r\n"
    served = serve([b"EHLO c\r\n" + wrong * 10], tls=True)
    assert codes(served.output)[2:] == ["535 5.7.8"] * 8 + ["421 4.7.0"]


def test_a_cancelled_authentication_counts(serve: Callable[..., Any]) -> None:
    served = serve([b"EHLO c\r\n" + b"AUTH LOGIN\r\n*\r\n" * 10], tls=True)
    assert codes(served.output)[-2:] == ["501 5.7.0", "421 4.7.0"]
    assert served.events[-1] == Closed("too many failed authentications")


def test_auth_event_shows_no_password(config: ServerConfig) -> None:
    session = ServerSession(config, tls=True)
    session.receive_data(b"EHLO c\r\nAUTH PLAIN " + base64.b64encode(b"boss\0user\0hunter2") + b"\r\n")
    session.next_event()
    session.accept()
    event: Any = session.next_event()
    assert (event.authcid, event.authzid, event.password.reveal()) == ("user", "boss", "hunter2")
    assert "hunter2" not in repr(event)
    assert "hunter2" not in f"{event.password}"


def test_everything_is_forgotten_after_tls(config: ServerConfig) -> None:
    session = ServerSession(config)
    session.receive_data(b"EHLO c\r\nSTARTTLS\r\n")
    session.next_event()
    session.accept()
    session.next_event()
    assert session.data_to_send().endswith(b"220 2.0.0 Ready to start TLS\r\n")
    session.tls_started()
    session.receive_data(b"MAIL FROM:<a@b.org>\r\nEHLO c\r\n")
    assert session.next_event() == Hello("c", True)
    session.accept()
    output = session.data_to_send()
    assert output.startswith(b"503 5.5.1")
    assert b"STARTTLS" not in output
    assert output.endswith(b"250 AUTH PLAIN LOGIN\r\n")


def test_only_what_is_offered_is_understood(serve: Callable[..., Any]) -> None:
    bare = ServerConfig("mx.example.org", pipelining=False, size=False, eightbitmime=False, enhancedstatuscodes=False)
    mail = b"MAIL FROM:<a@b.org> "
    wire = (
        b"EHLO c\r\nSTARTTLS\r\nAUTH PLAIN\r\n"
        + mail
        + b"SIZE=1\r\n"
        + mail
        + b"BODY=8BITMIME\r\n"
        + mail
        + b"RET=HDRS\r\n"
    )
    served = serve([wire], bare)
    assert served.output.split(b"\r\n")[1] == b"250 mx.example.org"
    assert codes(served.output)[2:] == ["502 5.5.1", "502 5.5.1", "555 5.5.4", "555 5.5.4", "555 5.5.4"]


def test_parameters_of_extensions(feed_all_ways: Callable[..., Any], config: ServerConfig) -> None:
    full = dataclasses.replace(
        config, smtputf8=True, dsn=True, mail_parameters=frozenset({"XPRIO"}), extra_ehlo=("XPRIO",)
    )
    wire = (
        "EHLO c\r\nMAIL FROM:<µ@exämple.org> size=12 body=8bitmime SMTPUTF8 RET=hdrs ENVID=QQ+2B1 AUTH=<> XPRIO=3\r\n"
        "RCPT TO:<δ@d.org> NOTIFY=success,failure ORCPT=rfc822;bob+40d.org\r\nRCPT TO:<x@d.org> NOTIFY=NEVER,DELAY\r\n"
    ).encode()
    served = feed_all_ways(wire, full)
    assert b"250-SMTPUTF8\r\n250-DSN\r\n" in served.output
    assert b"XPRIO" in served.output
    assert served.events[1:] == [
        MailFrom("µ@exämple.org", MailParams(12, "8BITMIME", True, "HDRS", "QQ+1", "<>", (("XPRIO", "3"),))),
        RcptTo("δ@d.org", RcptParams("SUCCESS,FAILURE", "rfc822;bob@d.org")),
    ]
    assert codes(served.output)[-1] == "501 5.5.4"


def test_smtputf8_does_not_outlive_its_transaction(serve: Callable[..., Any], config: ServerConfig) -> None:
    full = dataclasses.replace(config, smtputf8=True)
    wire = "EHLO c\r\nMAIL FROM:<a@b.org> SMTPUTF8\r\nRSET\r\nMAIL FROM:<a@b.org>\r\nRCPT TO:<δ@d.org>\r\n"
    assert codes(serve([wire.encode()], full).output)[-1] == "553 5.6.7"


def test_the_drivers_replies_are_used_and_harmless(config: ServerConfig) -> None:
    session = ServerSession(config)
    session.receive_data(b"EHLO c\r\nMAIL FROM:<a@b.org>\r\n")
    session.next_event()
    session.refuse(Reply(550, "5.7.1", "no\nreally\r\n250 not\x1b[31m é"))
    session.shutdown(SHUTTING_DOWN)
    output = session.data_to_send()
    assert b"550-5.7.1 no\r\n550-5.7.1 really?\r\n550 5.7.1 250 not?[31m ?\r\n421 4.3.2" in output
    assert session.next_event() == Closed("shut down")


@pytest.mark.parametrize("at", [Hello, MailFrom, RcptTo, MessageStart, MessageComplete])
@pytest.mark.parametrize(
    ("reply", "ends"), [(Reply(421, "4.3.0", "away"), True), (Reply(451, "4.3.0", "later"), False)]
)
def test_refusal_at_every_decision(config: ServerConfig, at: type, reply: Reply, ends: bool) -> None:
    session = ServerSession(config)
    wire = MESSAGE.removesuffix(b"QUIT\r\n")
    if at is MessageStart:
        wire = wire.partition(b"Subject")[0]  # a client that was told 451 sends no content
    session.receive_data(wire)
    while (event := session.next_event()) is not NEED_DATA and not isinstance(event, Closed):
        if isinstance(event, at):
            session.refuse(reply)
        else:
            session.accept()
    assert isinstance(event, Closed) is ends
    assert reply.encode() in session.data_to_send()
    assert not states.MAIL <= session.state <= states.COMPLETE or at is RcptTo


def test_driver_mistakes_are_told(config: ServerConfig) -> None:
    session = ServerSession(config)
    with pytest.raises(RuntimeError):
        session.accept()
    with pytest.raises(RuntimeError):
        session.tls_started()
    session.receive_data(b"EHLO c\r\n")
    session.next_event()
    with pytest.raises(RuntimeError):
        session.next_event()
    with pytest.raises(ValueError, match="GSSAPI"):
        ServerConfig("mx", auth=("GSSAPI",))


def test_end_of_stream(config: ServerConfig) -> None:
    session = ServerSession(config)
    session.receive_data(b"EHLO c\r\nNOOP\r\nMAI")
    session.receive_data(b"")
    assert isinstance(session.next_event(), Hello)
    session.accept()
    assert session.next_event() == Closed("client closed the connection")
    assert codes(session.data_to_send()) == ["220", "250", "250 2.0.0"]
    session.receive_data(b"NOOP\r\n")
    assert isinstance(session.next_event(), Closed)
    assert session.data_to_send() == b""


def test_postmaster_needs_no_domain(serve: Callable[..., Any]) -> None:
    served = serve([b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<Postmaster>\r\n"])
    assert served.events[1:] == [MailFrom("", MailParams()), RcptTo("Postmaster", RcptParams())]


def test_twenty_mebibytes(config: ServerConfig) -> None:
    session = ServerSession(config)
    session.receive_data(MESSAGE.partition(b"Subject")[0])
    while session.next_event() is not NEED_DATA:
        session.accept()
    block = (b".." + b"x" * 60 + b"\r\n") * 1024
    for _ in range(320):
        session.receive_data(block)
        assert session.next_event() is NEED_DATA
    session.receive_data(b".\r\n")
    event = session.next_event()
    assert isinstance(event, MessageComplete)
    assert event.size == 63 * 1024 * 320


def transaction(serve: Callable[..., Any], config: ServerConfig, *lines: str) -> list[str]:
    """The codes that are said to some commands after EHLO."""
    wire = "".join(line + "\r\n" for line in ("EHLO c", *lines)).encode()
    replies = serve([wire], config, tls=True).output.decode().split("\r\n")[:-1]
    return [" ".join(r.split()[:2]) for r in replies[-len(lines) :]]


def test_future_release(serve: Callable[..., Any]) -> None:
    config = ServerConfig("mx.example.org", future_release=FutureRelease(3600, lambda: 1_893_456_000.5))
    run = functools.partial(transaction, serve, config)
    assert b"250-FUTURERELEASE 3600 2030-01-01T01:00:00Z\r\n" in serve([b"EHLO c\r\n"], config).output
    for good in ("HOLDFOR=3600", "HOLDFOR=0", "HOLDUNTIL=2030-01-01T01:00:00Z", "HOLDUNTIL=1999-01-01T00:00:00Z"):
        assert run(f"MAIL FROM:<a@b.org> {good}") == ["250 2.1.0"]
    for bad in ("HOLDFOR=3601", "HOLDUNTIL=2030-01-01T01:00:01Z"):
        assert run(f"MAIL FROM:<a@b.org> {bad}") == ["501 5.5.4"]


@pytest.mark.parametrize("parameter", ["HOLDFOR=1", "MT-PRIORITY=1", "BODY=BINARYMIME", "SMTPUTF8", "RET=FULL"])
def test_what_is_not_switched_on_is_refused(parameter: str, serve: Callable[..., Any]) -> None:
    config = ServerConfig("mx.example.org")
    assert transaction(serve, config, f"MAIL FROM:<a@b.org> {parameter}")[0][:3] in ("555", "501")
    for keyword in ("FUTURERELEASE", "MT-PRIORITY", "BINARYMIME", "CHUNKING", "SMTPUTF8", "DSN", "LIMITS"):
        assert keyword not in "\n".join(config.ehlo_lines(tls=True, authenticated=True))


INTERNATIONAL = ServerConfig("mx.example.org", smtputf8=True)


@pytest.mark.parametrize(
    ("lines", "codes"),
    [
        (["MAIL FROM:<ü@b.org>"], ["553 5.6.7"]),
        (["MAIL FROM:<u@bü.org>"], ["553 5.6.7"]),
        (["MAIL FROM:<u@b.org>", "RCPT TO:<ü@b.org>"], ["250 2.1.0", "553 5.6.7"]),
        (["MAIL FROM:<u@b.org> SMTPUTF8", "RCPT TO:<ü@bü.org>"], ["250 2.1.0", "250 2.1.5"]),
        (["MAIL FROM:<ü@bü.org> SMTPUTF8", "RCPT TO:<u@b.org>"], ["250 2.1.0", "250 2.1.5"]),
        (["MAIL FROM:<u@xn--b-xga.org>"], ["250 2.1.0"]),
        (["MAIL FROM:<ü@\u2028.org> SMTPUTF8"], ["501 5.1.7"]),
        (["MAIL FROM:<u@b.org> SMTPUTF8", "RCPT TO:<u@\u0640\ufffd.org>"], ["250 2.1.0", "501 5.1.3"]),
        (["MAIL FROM:<u@" + "ü" * 60 + ".org> SMTPUTF8"], ["501 5.1.7"]),
        (["VRFY ü"], ["553 5.6.7"]),
        (["VRFY ü SMTPUTF8"], ["252 2.1.5"]),
        (["VRFY u smtputf8"], ["252 2.1.5"]),
        (["VRFY u"], ["252 2.1.5"]),
    ],
)
def test_international_addresses(lines: list[str], codes: list[str], serve: Callable[..., Any]) -> None:
    assert transaction(serve, INTERNATIONAL, *lines) == codes
