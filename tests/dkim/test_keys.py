"""Names and records of public keys."""

import pytest

from ptt.dkim.keys import BadRecord, parse_record, record_name, record_strings, record_text, same_key, valid_name


@pytest.mark.parametrize(
    "name", ["example.org", "s1", "a-b.example", "xn--bcher-kva.example", "_x.example", "1.2", "a" * 63]
)
def test_good_names(name: str) -> None:
    assert valid_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a..b",
        ".a",
        "a.",
        "../x",
        "a/b",
        "a\\b",
        "A.example",
        "a b",
        "-a",
        "a-",
        "a\n",
        "a\0b",
        "ä.example",
        "a" * 64,
        "a." * 127 + "a",
    ],
)
def test_bad_names(name: str) -> None:
    assert not valid_name(name)


def test_record() -> None:
    text = record_text("rsa", bytes(294))
    assert text.startswith("v=DKIM1; k=rsa; p=AAAA")
    assert parse_record(text) == ("rsa", bytes(294))
    strings = record_strings(text)
    assert "".join(strings) == text
    assert [len(s) for s in strings] == [255, len(text) - 255]
    assert record_name("example.org", "s1") == "s1._domainkey.example.org"


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("v=DKIM1; k=rsa; p=AAAA", "v=DKIM1;p= AA AA ;", True),
        ("v=DKIM1; k=rsa; p=AAAA", "p=AAAA; t=s", True),
        ("v=DKIM1; k=rsa; p=AAAA", "v=DKIM1; k=rsa; p=AAAB", False),
        ("v=DKIM1; k=rsa; p=AAAA", "v=DKIM1; k=ed25519; p=AAAA", False),
        ("v=DKIM1; k=rsa; p=", "v=DKIM1; k=rsa; p=", False),  # revoked
        ("v=DKIM1; k=rsa; p=AAAA", "v=spf1 -all", False),
    ],
)
def test_same_key(left: str, right: str, same: bool) -> None:
    assert same_key(left, right) is same


@pytest.mark.parametrize(
    "text",
    ["", "v=DKIM1", "v=DKIM2; p=AAAA", "k=rsa; v=DKIM1; p=AAAA", "p=AAAA; p=AAAB", "p=*", "k=dsa; p=AAAA", "p=AAAA; x"],
)
def test_bad_records(text: str) -> None:
    with pytest.raises(BadRecord):
        parse_record(text)
