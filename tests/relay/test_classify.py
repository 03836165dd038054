"""What a refusal is about."""

import time

import pytest

from ptt.relay.classify import CLASSES, class_of_note, classify, classify_text, compile_rules
from ptt.relay.outcome import MAX_TEXT, Deferred, Delivered, Failed

SAID = [
    ("450 4.2.0 <a@b.example>: Recipient address rejected: Greylisted, see http://postgrey.example/", "greylisting"),
    ("451 4.7.1 Greylisting in action, please come back later", "greylisting"),
    ("450 4.7.1 Please try again in 300 seconds", "greylisting"),
    ("421 4.7.28 Gmail has detected an unusual rate of mail originating from your IP address", "rate"),
    ("452 4.5.3 Too many recipients", "rate"),
    ("421 4.7.0 too many concurrent connections from 192.0.2.1", "rate"),
    ("450 4.7.1 Error: too much mail from 192.0.2.1", "rate"),
    ("554 5.7.1 Service unavailable; Client host [192.0.2.1] blocked using zen.spamhaus.org", "reputation"),
    ("550 5.7.1 Message rejected as spam by Content Filtering.", "reputation"),
    ("550 5.7.1 Our system has detected that this message is likely unsolicited mail", "reputation"),
    ("550-5.7.26 Unauthenticated email from b.example is not accepted due to domain's DMARC policy", "policy"),
    ("550 5.7.1 Relaying denied", "policy"),
    ("552 5.3.4 Message size exceeds fixed limit", "policy"),
    ("550 5.1.8 <a@b.example>: Sender address rejected: Domain not found", "policy"),
    ("550 5.1.1 <a@b.example>: Recipient address rejected: User unknown in virtual mailbox table", "mailbox"),
    ("550-5.1.1 The email account that you tried to reach does not exist", "mailbox"),
    ("550 5.2.1 The email account that you tried to reach is disabled", "mailbox"),
    ("550 No such user here", "mailbox"),
    ("552 5.2.2 The email account that you tried to reach is over quota", "quota"),
    ("452 4.2.2 Mailbox full", "quota"),
    ("451 4.3.0 Error: queue file write error", "system"),
    ("452 4.3.1 Insufficient system storage", "system"),
    ("421 4.3.2 Service shutting down", "system"),
    ("502 5.5.2 Error: command not recognized", "system"),
    ("556 5.1.10 b.example accepts no mail", "network"),
    ("554 5.4.6 Too many hops", "network"),
    ("550 5.1.1 xyzzy", "mailbox"),
    ("550 5.7.1 xyzzy", "policy"),
    ("554 xyzzy", "other"),
    ("", "other"),
]


@pytest.mark.parametrize(("text", "about"), SAID, ids=[text[:30] for text, _ in SAID])
def test_words_and_codes(text: str, about: str) -> None:
    assert classify_text(text) == about
    assert classify_text(text.upper()) == about


def test_every_class_is_reached() -> None:
    assert {about for _, about in SAID} == set(CLASSES)


def test_what_no_peer_said() -> None:
    assert classify(Deferred("no answer", "DNS", "", "4.4.3")) == "network"
    assert classify(Deferred("192.0.2.1:25: timed out", "connect", "", "4.4.1")) == "network"
    assert classify(Deferred("closed the connection", "RCPT", "", "4.4.2")) == "network"
    assert classify(Failed("the message has 9 octets, it takes 8 at most", "MAIL", "", "5.3.4")) == "policy"
    assert classify(Delivered("250 OK user unknown")) == ""
    assert classify(Failed("550 user unknown", "RCPT", "", "5.0.0", reply=True)) == "mailbox"
    assert classify(Deferred("no words", "RCPT", "", "4.2.2", reply=True)) == "quota"


def test_as_the_queue_has_it() -> None:
    assert class_of_note("anything", "connect") == "network"
    assert class_of_note("550 5.1.1 gone", "RCPT") == "mailbox"
    assert class_of_note("not signed: key", "sign") == ""


@pytest.mark.parametrize(
    "rule",
    [
        "class = 'nonsense'\ntext = ['x']",
        "class = 'rate'",
        "class = 'rate'\ntext = ['a*']",
        "class = 'rate'\ntext = ['a+b']",
        "class = 'rate'\ntext = ['a{2,}']",
        "class = 'rate'\ntext = ['(a{0,9}){0,9}']",
        "class = 'rate'\ntext = ['a{0,500}']",
        "class = 'rate'\nnot_text = ['[']\ntext = ['x']",
        "class = 'rate'\ntext = ['x']\nwhat = 1",
    ],
)
def test_rules_that_are_refused(rule: str) -> None:
    with pytest.raises(ValueError):
        compile_rules(f"[[rule]]\n{rule}\n".encode())


@pytest.mark.slow
@pytest.mark.parametrize(
    "piece", ["a mailbox ", "too many ", "sender address ", "user ", "exceed the maximum ", "(a", "é"]
)
def test_a_hostile_reply_costs_little(piece: str) -> None:
    """Bounded: a megabyte costs what MAX_TEXT characters do. A second is 100 times what it takes here."""
    began = time.process_time()
    classify_text("554 " + piece * (1_000_000 // len(piece)))
    assert time.process_time() - began < 1.0
    assert classify_text("x" * MAX_TEXT + " greylisted") == "other"
