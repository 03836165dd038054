"""Paths, mailboxes, parameters, xtext; addresses that we did not write."""

import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptt.smtp import MailParams, ProtocolError, RcptParams
from ptt.smtp.encodings import utf8_xtext_decode, utf8_xtext_encode, xtext_decode, xtext_encode
from ptt.smtp.grammar import parse_forward_path, parse_mailbox, parse_reverse_path
from ptt.smtp.params import (
    format_mail_params,
    format_rcpt_params,
    parse_mail_params,
    parse_rcpt_params,
)

MAILBOXES = [
    ("joe@example.org", "joe@example.org"),
    ("Joe.O'Neil+tag@Example.ORG", "Joe.O'Neil+tag@Example.ORG"),
    ('"joe"@example.org', "joe@example.org"),
    (r'"j\oe"@example.org', "joe@example.org"),
    ('"joe blogs"@example.org', '"joe blogs"@example.org'),
    (r'"a\"b"@example.org', r'"a\"b"@example.org'),
    (r'"a\\b"@example.org', r'"a\\b"@example.org'),
    ('"a@b"@example.org', '"a@b"@example.org'),
    ('"a..b"@example.org', '"a..b"@example.org'),
    ("a@[192.0.2.1]", "a@[192.0.2.1]"),
    ("a@[IPv6:2001:db8::1]", "a@[IPv6:2001:db8::1]"),
    ("a@xn--bcher-kva.example", "a@xn--bcher-kva.example"),
    ("bücher@bücher.example", "bücher@bücher.example"),
    ("a@b", "a@b"),
    ("a@1.2", "a@1.2"),
    (f"{'x' * 64}@example.org", f"{'x' * 64}@example.org"),
    (f"a@{'x' * 63}.org", f"a@{'x' * 63}.org"),
    (f"{'x' * 65}@example.org", None),
    (f"a@{'x' * 64}.org", None),
    (f"{'ü' * 33}@example.org", None),
    (f"a@{'.'.join(['x' * 50] * 5)}", None),
    ('""@example.org', None),
    ('"a@example.org', None),
    ('"a"b"@example.org', None),
    ('"a\tb"@example.org', None),
    ("a@", None),
    ("@b", None),
    ("a", None),
    ("", None),
    ("a b@example.org", None),
    ("a..b@example.org", None),
    (".a@example.org", None),
    ("a.@example.org", None),
    ("a@-b.org", None),
    ("a@b-.org", None),
    ("a@b..org", None),
    ("a@b.org.", None),
    ("a@b_c.org", None),
    ("a@[192.0.2.256]", None),
    ("a@[IPv6:2001:db8::g]", None),
    ("a@[tag:content]", None),
    ("a@b.org\n", None),
    ("a@b.org>", None),
    ("a\x80@b.org", None),
]


@pytest.mark.parametrize(("text", "address"), MAILBOXES)
def test_mailboxes(text: str, address: str | None) -> None:
    assert parse_mailbox(text) == address
    for parse in (parse_forward_path, parse_reverse_path):
        assert parse(f"<{text}> X=1") == (None if address is None or not text else (address, " X=1")) or not text


@pytest.mark.parametrize(
    ("text", "forward", "reverse"),
    [
        ("<>", None, ("", "")),
        (" <a@b.org>", ("a@b.org", ""), ("a@b.org", "")),
        ("<a@b.org> A=b c", ("a@b.org", " A=b c"), ("a@b.org", " A=b c")),
        ("<@x.org,@y.org:a@b.org>", ("a@b.org", ""), ("a@b.org", "")),
        ("<postmaster>", ("postmaster", ""), None),
        ("<POSTMASTER> X", ("POSTMASTER", " X"), None),
        ("a@b.org", None, None),
        ("<a@b.org", None, None),
        ("<a@b.org>X", None, None),
        ("<<a@b.org>>", None, None),
        ("<@x.org:>", None, None),
        ("", None, None),
    ],
)
def test_paths(text: str, forward: object, reverse: object) -> None:
    assert parse_forward_path(text) == forward
    assert parse_reverse_path(text) == reverse


def lines(path: pathlib.Path) -> list[str]:
    """The addresses of a list: without comments and empty lines; "{10}" notation and trailing remarks removed."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        address = line.split("    ")[0].rstrip()
        if address and not (address.startswith("#") and not address.startswith("#" * 2)):
            found.append(address)
    return found


# Valid by that list, but no Mailbox of RFC 5321 for the reason given.
NOT_IN_ENVELOPES = {
    "bob@under_scope": "Let-dig and Ldh-str have no underscore",
    'Bill Gates <"billy"@retired.Micr!osoft99.com>': "display name",
    "Steve Jobs <steve@apple.com>": "display name",
    'Matt "The Matt" Mickiewicz <matt.Mickiewicz@99designs.com>': "display name",
    '"<john@smith.com>" <john@smith.com>': "display name",
    "(this is a comment) test@example.com": "comment",
    "(this is a comment)test@example.com": "comment",
    "test@example.com(this is a comment)": "comment",
    "test@example.com (this is a comment)": "comment",
}
# Invalid by that list, which follows RFC 5322 or a policy, but a Mailbox of RFC 5321.
GOOD_IN_ENVELOPES = {"test@xn--example.com": "the syntax of a label; that it is no valid A-label is not our question"}


def test_flanker_valid(corpora: pathlib.Path) -> None:
    addresses = lines(corpora / "flanker" / "mailbox_valid.txt")
    assert len(addresses) > 30
    assert [a for a in addresses if parse_mailbox(a) is None] == list(NOT_IN_ENVELOPES)


def test_flanker_invalid(corpora: pathlib.Path) -> None:
    addresses = lines(corpora / "flanker" / "mailbox_invalid.txt")
    assert len(addresses) > 60
    assert [a for a in addresses if parse_mailbox(a) is not None] == list(GOOD_IN_ENVELOPES)


@given(st.text(max_size=80))
def test_whatever_is_parsed_parses_again_to_itself(text: str) -> None:
    for candidate in (text, f"{text}@example.org", f'"{text}"@example.org'):
        parsed = parse_mailbox(candidate)
        if parsed is not None:
            assert parse_mailbox(parsed) == parsed
            assert parse_forward_path(f"<{parsed}>") == (parsed, "")
            assert "\r" not in parsed
            assert "\n" not in parsed


@given(st.text(max_size=40))
def test_xtext_round_trip(text: str) -> None:
    encoded = xtext_encode(text)
    assert encoded.isascii()
    assert " " not in encoded
    assert xtext_decode(encoded) == text


@given(st.text(st.characters(min_codepoint=0x20, exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40))
def test_utf8_xtext_round_trip(text: str) -> None:
    encoded = utf8_xtext_encode(text)
    assert encoded.isascii()
    assert not set(encoded) & set(" +=")
    assert utf8_xtext_decode(encoded) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a+b",
        "a b",
        "a=b",
        "\\",
        "\\x{}",
        "\\x{5C",
        "\\x{0FC}",
        "\\x{61}",
        "\\x{D800}",
        "\\x{110000}",
        "\\x{fcg}",
        "\x85",
    ],
)
def test_what_is_not_utf8_xtext(text: str) -> None:
    assert utf8_xtext_decode(text) is None


def test_both_forms_of_an_international_orcpt() -> None:
    for wire in ("utf-8;\\x{FC}ser\\x{2B}x@b\\x{FC}cher.de", "UTF-8;üser\\x{2B}x@bücher.de"):
        params = parse_rcpt_params(" ORCPT=" + wire, ALL)
        assert params.orcpt.partition(";")[2] == "üser+x@bücher.de"
        assert format_rcpt_params(params, ALL).lower() == " orcpt=utf-8;\\x{fc}ser\\x{2b}x@b\\x{fc}cher.de"


@pytest.mark.parametrize("text", ["a+2", "a+2g", "a b", "a=b", "+ff", "+FF", "ü", "a\n"])
def test_what_is_not_xtext(text: str) -> None:
    assert xtext_decode(text) is None


ALL = frozenset({"SIZE", "BODY", "SMTPUTF8", "RET", "ENVID", "AUTH", "NOTIFY", "ORCPT", "XTRA"}) | {
    "HOLDFOR",
    "HOLDUNTIL",
    "MT-PRIORITY",
}


@pytest.mark.parametrize(
    "params",
    [
        MailParams(),
        MailParams(1, "7BIT", True, "FULL", "Q=+ 1", extra=(("XTRA", "1"),)),
        MailParams(extra=(("XTRA", ""),)),
        MailParams(body="BINARYMIME", hold_for=0, priority=-9),
        MailParams(hold_until=1_800_000_000, priority=9),
    ],
)
def test_mail_params_round_trip(params: MailParams) -> None:
    assert parse_mail_params(format_mail_params(params, ALL), ALL) == params


@pytest.mark.parametrize("params", [RcptParams(), RcptParams("SUCCESS,DELAY", "rfc822;a b+c@d", (("XTRA", "1"),))])
def test_rcpt_params_round_trip(params: RcptParams) -> None:
    assert parse_rcpt_params(format_rcpt_params(params, ALL), ALL) == params


@pytest.mark.parametrize(
    "text",
    [
        "SIZE",
        "SIZE=-1",
        "SIZE=" + "1" * 21,
        "SIZE=²",
        "BODY",
        "SMTPUTF8=1",
        "RET=ALL",
        "ENVID=a+2",
        "ENVID=" + "x" * 101,
        "ENVID=+0D+0A",
        "AUTH=+0A",
        "XTRA=1 XTRA=2",
        "=1",
        "-A=1",
        "A==1",
        "SIZE=1=2",
        "RET=FULL RET=FULL",
        "HOLDFOR",
        "HOLDFOR=",
        "HOLDFOR=-1",
        "HOLDFOR=1000000000",
        "HOLDFOR=1 HOLDUNTIL=2030-01-01T00:00:00Z",
        "HOLDUNTIL=2030-01-01",
        "HOLDUNTIL=2030-02-30T00:00:00Z",
        "HOLDUNTIL=2030-01-01T00:00:00",
        "HOLDUNTIL=2030-W01-1T00:00:00Z",
        "MT-PRIORITY=10",
        "MT-PRIORITY=-0",
        "MT-PRIORITY=+1",
        "MT-PRIORITY",
    ],
)
def test_bad_mail_params(text: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        parse_mail_params(" " + text, ALL | {"A"})
    assert caught.value.reply is not None
    assert caught.value.reply.code == 501


@pytest.mark.parametrize(
    "text",
    [
        "NOTIFY=",
        "NOTIFY=NEVER,SUCCESS",
        "NOTIFY=SUCCESS,SUCCESS",
        "ORCPT=x",
        "ORCPT=;x",
        "ORCPT=rfc822;+0A",
        "ORCPT=utf-8;\\x{0A}",
        "ORCPT=utf-8;+2B",
        "ORCPT=utf-8;",
        "ORCPT=rfc822;" + "x" * 500,
    ],
)
def test_bad_rcpt_params(text: str) -> None:
    with pytest.raises(ProtocolError):
        parse_rcpt_params(" " + text, ALL)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2030-01-01T00:00:00Z", 1_893_456_000),
        ("2030-01-01t01:00:00.5+01:00", 1_893_456_000),
        ("2029-12-31T23:00:00-01:00", 1_893_456_000),
        ("0001-01-01T00:00:00+23:59", 0),
    ],
)
def test_hold_until(text: str, seconds: int) -> None:
    assert parse_mail_params(f" HOLDUNTIL={text}", ALL).hold_until == seconds
