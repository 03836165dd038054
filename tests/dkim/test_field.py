"""The DKIM-Signature field: RFC 8463's example, verification by dkimpy and OpenDKIM, and what is refused."""

import base64
from collections.abc import Callable

import dkim
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa

from ptt.dkim import field, keys
from ptt.dkim.canonical import Canon, body_hash, body_start, header_fields
from ptt.dkim.field import SIGNED, BadSignatureField, Unsigned, choose, signature_tags, unsigned

DOMAIN, SELECTOR, NOW = "example.org", "s1", 1_700_000_000
SIMPLE = b"From: a@example.org\r\nTo: b@example.net\r\nSubject: hello\r\n\r\nbody\r\n"

MESSAGES = {
    "simple": SIMPLE,
    "no body": b"From: a@example.org\r\n\r\n",
    "no empty line": b"From: a@example.org\r\nSubject: only a header\r\n",
    "folded": b"From: a@example.org\r\nSubject: one\r\n\t two \r\n  three\t\r\nTo:\r\n b@example.net\r\n"
    b"\r\nx \t y \r\n\r\n\r\n",
    "8-bit header": b"From: \xc3\xa4@example.org\r\nSubject: Gr\xfc\xdfe\r\n\r\nK\xf6rper\r\n",
    "duplicates": b"To: one\r\nFrom: a@example.org\r\nTo: two\r\nSubject: 1\r\nSubject: 2\r\n\r\nx\r\n",
    "list": SIMPLE.replace(
        b"\r\n\r\n", b"\r\nList-Unsubscribe: <https://x.example/>\r\nList-Unsubscribe-Post: One\r\n\r\n"
    ),
    "white space": b"From:a@example.org\r\nSubject:\t \r\n\r\n \t \r\nx\t\r\n \r\n\t\r\n",
    "long line": b"From: a@example.org\r\n\r\n" + b"x" * 10_000_000 + b"\r\n",
    "signed before": b"DKIM-Signature: v=1; d=example.net; b=abc\r\n" + SIMPLE,
}


@pytest.fixture(scope="module")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture(scope="module")
def record(rsa_key: rsa.RSAPrivateKey) -> str:
    der = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return keys.record_text("rsa", rsa_key.public_key().public_bytes(*der))


def half(message: bytes, header: Canon = "relaxed", body: Canon = "relaxed") -> Unsigned:
    start = body_start(message)
    chosen = choose(header_fields(message[:start], SIGNED, header), header)
    return unsigned(chosen, body_hash(message, start, body), DOMAIN, SELECTOR, "rsa-sha256", NOW, body)


def sign(key: rsa.RSAPrivateKey, message: bytes, header: Canon = "relaxed", body: Canon = "relaxed") -> bytes:
    made = half(message, header, body)
    return made.signed(key.sign(made.data, padding.PKCS1v15(), hashes.SHA256())) + message


def dkimpy_verifies(message: bytes, record: str) -> bool:
    verified: bool = dkim.verify(message, dnsfunc=lambda _name, timeout=5: record.encode())
    return verified


@pytest.mark.slow  # the long line
@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.parametrize("header", ["relaxed", "simple"])
@pytest.mark.parametrize("body", ["relaxed", "simple"])
def test_dkimpy_verifies(rsa_key: rsa.RSAPrivateKey, record: str, name: str, header: Canon, body: Canon) -> None:
    signed = sign(rsa_key, MESSAGES[name], header, body)
    assert dkimpy_verifies(signed, record)
    if name not in ("long line", "no empty line"):  # a verifier that says yes to everything would not be one
        assert not dkimpy_verifies(signed.replace(b"From:", b"From: x"), record)
        assert not dkimpy_verifies(signed + b"more\r\n", record)


def test_dkimpy_verifies_other_peoples_mail(rsa_key: rsa.RSAPrivateKey, record: str, corpus: dict[str, bytes]) -> None:
    verified = 0
    for name, message in corpus.items():
        text = message if message.endswith(b"\r\n") else message + b"\r\n"
        try:
            dkim.rfc822_parse(text)
        except (dkim.MessageFormatError, IndexError):  # no header that dkimpy could verify
            continue
        if not header_fields(text[: body_start(text)], (b"from",)):
            continue
        assert dkimpy_verifies(sign(rsa_key, text), record), name
        verified += 1
    assert verified > 120


@pytest.mark.parametrize(
    "added", [b"From: x@evil.example\r\n", b"Subject: x\r\n", b"Content-Type: text/html\r\n", b"Cc: x\r\n"]
)
def test_nothing_can_be_put_in(rsa_key: rsa.RSAPrivateKey, record: str, added: bytes) -> None:
    signed = sign(rsa_key, SIMPLE)
    end = len(signed) - len(SIMPLE)
    assert not dkimpy_verifies(signed[:end] + added + signed[end:], record)
    below = signed.replace(b"\r\n\r\nbody", b"\r\n" + added + b"\r\nbody")
    assert not dkimpy_verifies(below, record)


def test_a_mailing_list_may_add_its_own(rsa_key: rsa.RSAPrivateKey, record: str) -> None:
    signed = sign(rsa_key, SIMPLE)
    added = b"List-Unsubscribe: <https://list.example/>\r\nSender: list@list.example\r\n"
    assert dkimpy_verifies(signed.replace(b"From: a@", added + b"From: a@"), record)


def test_the_field() -> None:
    made = half(MESSAGES["list"])
    text = made.signed(bytes(256))
    assert text.startswith(b"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; t=1700000000;\r\n")
    assert text.endswith(b"=\r\n")
    assert all(len(line) <= 78 for line in text.split(b"\r\n"))
    tags = signature_tags(made.data)
    assert (tags["d"], tags["s"], tags["t"]) == (DOMAIN, SELECTOR, str(NOW))
    assert "l" not in tags
    names = tags["h"].split(":")
    assert {name: names.count(name) for name in ("from", "to", "cc", "list-unsubscribe-post", "sender")} == {
        "from": 2,
        "to": 2,
        "cc": 1,
        "list-unsubscribe-post": 2,
        "sender": 0,
    }


def test_many_fields_of_one_name_are_bounded(rsa_key: rsa.RSAPrivateKey, record: str) -> None:
    message = b"To: x\r\n" * 5000 + SIMPLE
    names = signature_tags(half(message).data)["h"].split(":")
    assert names.count("to") == field.MAX_INSTANCES + 1
    verified = dkimpy_verifies(sign(rsa_key, message), record)  # not when a verifier finds more of them than we signed
    assert not verified
    assert dkimpy_verifies(sign(rsa_key, b"To: x\r\n" * (field.MAX_INSTANCES - 1) + SIMPLE), record)


# -- what a key process is asked to sign -------------------------------------------------------------------


@pytest.mark.parametrize("canon", ["relaxed", "simple"])
@pytest.mark.parametrize("message", [SIMPLE, b"\r\nno header at all\r\n"])
def test_tags_are_read_back(canon: Canon, message: bytes) -> None:
    tags = signature_tags(half(message, canon).data)
    assert (tags["d"], tags["s"], tags["a"], tags["b"]) == (DOMAIN, SELECTOR, "rsa-sha256", "")


GOOD = b"from:a\r\ndkim-signature:v=1; a=rsa-sha256; d=example.org; s=s1; h=from; bh=x; b="


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"anything else",
        GOOD + b"x",
        GOOD + b"\r\nfrom:evil",
        GOOD + b"\r\n",
        GOOD.replace(b"v=1", b"v=2"),
        GOOD.replace(b"h=from", b"h=to"),
        GOOD.replace(b"h=from", b"h=from; l=5"),
        GOOD.replace(b"s=s1", b"s=s1; d=evil.example"),
        GOOD.replace(b"; b=", b""),
        GOOD.replace(b"bh=x", b"bh=\xff"),
        GOOD.replace(b"dkim-signature:", b"subject: dkim-signature:"),
        b"x" * field.MAX_FIELD + GOOD.replace(b"\r\ndkim", b"  dkim"),
        GOOD.replace(b"bh=x", b"bh=" + b"x" * field.MAX_FIELD),
    ],
)
def test_other_data_is_no_signature_field(data: bytes) -> None:
    assert signature_tags(GOOD)["d"] == "example.org"
    with pytest.raises(BadSignatureField):
        signature_tags(data)


# -- RFC 8463 ----------------------------------------------------------------------------------------------

# Appendix A.2: the private key's seed and the public key.
SEED = "nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A="
PUBLIC = "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="


def test_rfc_8463_example(corpus: dict[str, bytes]) -> None:
    """Appendix A.3 with the RFC's key: the body hash, and the signature over fields that we canonicalise."""
    message = corpus["chasquid_dkim/01-rfc8463.msg"]
    start = body_start(message)
    assert base64.b64encode(body_hash(message, start)) == b"2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8="
    found = header_fields(message[:start], (*SIGNED, b"dkim-signature"))
    own, _, value = found[b"dkim-signature"][0].partition(b"b=/")
    expected = base64.b64decode((b"/" + value).replace(b" ", b""))
    names = (b"from", b"to", b"subject", b"date", b"message-id")
    data = b"".join(found[name][0] + b"\r\n" for name in names) + own + b"b="
    digest = hashes.Hash(hashes.SHA256())
    digest.update(data)
    key = ed25519.Ed25519PrivateKey.from_private_bytes(base64.b64decode(SEED))
    assert key.sign(digest.finalize()) == expected
    raw = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    assert keys.record_text("ed25519", raw) == f"v=DKIM1; k=ed25519; p={PUBLIC}"
    assert signature_tags(data)["a"] == "ed25519-sha256"


# -- OpenDKIM ----------------------------------------------------------------------------------------------


Verify = Callable[[str, bytes], bool]


@pytest.mark.peer
@pytest.mark.slow
@pytest.mark.parametrize("header", ["relaxed", "simple"])
@pytest.mark.parametrize("body", ["relaxed", "simple"])
def test_opendkim_verifies(
    opendkim: Verify, rsa_key: rsa.RSAPrivateKey, record: str, header: Canon, body: Canon
) -> None:
    for name, message in MESSAGES.items():
        if name in ("long line", "signed before", "no empty line"):
            continue
        if header == "simple" and name in ("folded", "white space"):
            continue  # the test mode hands fields on without the white space behind the colon
        signed = sign(rsa_key, message, header, body)
        assert opendkim(record, signed), name
        assert not opendkim(record, signed + b"more\r\n"), name


@pytest.mark.peer
def test_opendkim_verifies_ed25519(opendkim: Verify) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    raw = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    start = body_start(SIMPLE)
    chosen = choose(header_fields(SIMPLE[:start], SIGNED))
    made = unsigned(chosen, body_hash(SIMPLE, start), DOMAIN, SELECTOR, "ed25519-sha256", NOW)
    digest = hashes.Hash(hashes.SHA256())
    digest.update(made.data)
    signed = made.signed(key.sign(digest.finalize())) + SIMPLE
    assert opendkim(keys.record_text("ed25519", raw), signed)
    assert not opendkim(keys.record_text("ed25519", raw), signed + b"more\r\n")
