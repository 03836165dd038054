"""Every form of our signatures, verified by dkimpy, rspamd, OpenDKIM and Perl's Mail::DKIM."""

import base64
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import dkim
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa

from ptt.dkim import keys
from ptt.dkim.canonical import body_hash, body_start, header_fields
from ptt.dkim.rules import Rules
from ptt.signer.keystore import PrivateKey
from ptt.signer.stage import prepare
from ptt.signer.state import PublicKey

NOW = int(time.time())
SIMPLE = b"From: a@news.example.org\r\nTo: b@example.net\r\nSubject: hello\r\n\r\nbody\r\n"
MESSAGES = {
    "simple": SIMPLE,
    "no body": b"From: a@example.org\r\nTo: b@example.net\r\n\r\n",
    "folded": b"From: a@example.org\r\nSubject: one\r\n\t two \r\n  three\t\r\nTo:\r\n b@example.net\r\n\r\n"
    b"x \t y \r\n\r\n",
    "8-bit header": b"From: \xc3\xa4@example.org\r\nSubject: Gr\xfc\xdfe\r\n\r\nK\xf6rper\r\n",
    "twice": b"To: one\r\nFrom: a@example.org\r\nTo: two\r\nSubject: 1\r\nSubject: 2\r\nX-A: 1\r\nX-A: 2\r\n\r\nx\r\n",
    "others twice": b"References: 1\r\nFrom: a@example.org\r\nReferences: 2\r\nX-A: 1\r\nX-A: 2\r\n\r\nx\r\n",
    "white space": b"From:a@example.org\r\nSubject:\t x \r\n\r\n \t \r\nx\t\r\n\ty  z\t \r\n \r\n\t\r\n\r\n",
    "NUL-free binary": b"From: a@example.org\r\n\r\n" + bytes(range(1, 10)) + bytes(range(14, 256)) + b"\r\n",
    "long line": b"From: a@example.org\r\n\r\n" + b"x" * (10 << 20) + b"\r\n",
}
FORMS = {
    "default": Rules(),
    "relaxed/simple": Rules(canonicalization="relaxed/simple"),
    "simple/relaxed": Rules(canonicalization="simple/relaxed"),
    "simple/simple": Rules(canonicalization="simple/simple"),
    "expires": Rules(expires_seconds=86400),
    "identity": Rules(identity="author"),
    "oversign": Rules(oversign=("x-a", "x-b")),
}


class Keys(NamedTuple):
    private: dict[str, PrivateKey]
    public: dict[str, PublicKey]
    records: dict[str, str]

    def sign(self, message: bytes, rules: Rules, *selectors: str) -> bytes:
        signers = [(self.public[selector], rules) for selector in selectors]
        halves = prepare(signers, message, NOW)
        made = [h.signed(self.private[s].sign(h.data)) for h, s in zip(halves, selectors, strict=True)]
        return b"".join(made) + message

    def dns(self, name: bytes, timeout: float = 5) -> bytes:
        return self.records[name.decode().rstrip(".")].encode()


@pytest.fixture(scope="module")
def signer() -> Keys:
    """RSA of 2048, 3072 and 4096 bits and Ed25519 of one domain, RSA of another."""
    kinds: dict[str, Any] = {"r2": 2048, "r3": 3072, "r4": 4096, "e1": 0, "p1": 2048}
    found = Keys({}, {}, {})
    for selector, bits in kinds.items():
        key = PrivateKey(rsa.generate_private_key(65537, bits) if bits else ed25519.Ed25519PrivateKey.generate())
        domain = "esp.example" if selector == "p1" else "example.org"
        algorithm: Any = f"rsa{bits}" if bits else "ed25519"
        found.private[selector] = key
        found.public[selector] = PublicKey(domain, selector, algorithm, key.record)
        found.records[keys.record_name(domain, selector)] = key.record
    return found


@pytest.fixture(scope="module")
def perl(mail_dkim: Callable[[dict[str, str]], Any], signer: Keys) -> Any:
    return mail_dkim(signer.records)


@pytest.fixture(scope="module")
def scanner(rspamd: Callable[[dict[str, str]], Any], signer: Keys) -> Any:
    return rspamd(signer.records)


def changed(signed: bytes) -> bytes:
    return signed + b"more\r\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "form"),
    [(n, f) for n in MESSAGES for f in FORMS if n != "long line" or f in ("default", "simple/simple")],
)
def test_dkimpy(signer: Keys, name: str, form: str) -> None:
    signed = signer.sign(MESSAGES[name], FORMS[form], "r2", "p1")
    for number in (0, 1):
        assert dkim.DKIM(signed).verify(number, dnsfunc=signer.dns)
    if name != "long line":
        assert not dkim.verify(changed(signed), dnsfunc=signer.dns)


@pytest.mark.peer
@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_mail_dkim(perl: Any, signer: Keys, form: str) -> None:
    for name, message in MESSAGES.items():
        if name == "long line" and form != "default":
            continue
        signed = signer.sign(message, FORMS[form], "r2", "r4", "p1")
        both = [("example.org", "r2"), ("example.org", "r4"), ("esp.example", "p1")]
        assert perl.dkim(signed) == [(d, s, "rsa-sha256", "pass") for d, s in both], name
    assert {result for *_, result in perl.dkim(changed(signer.sign(SIMPLE, FORMS[form], "r2")))} == {"fail"}


@pytest.mark.peer
@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_rspamd(scanner: Any, signer: Keys, form: str) -> None:
    for name, message in MESSAGES.items():
        if (name == "long line" and form != "default") or name == "twice":
            continue  # twice: where RFC 5322 allows one field, rspamd takes another one than RFC 6376, 5.4.2 says
        all_three = [("esp.example:s=p1", True), ("example.org:s=e1", True), ("example.org:s=r2", True)]
        assert scanner.dkim(signer.sign(message, FORMS[form], "r2", "e1", "p1")) == all_three, name
    neither = [("example.org:s=e1", False), ("example.org:s=r2", False)]
    assert scanner.dkim(changed(signer.sign(SIMPLE, FORMS[form], "r2", "e1"))) == neither


@pytest.mark.peer
@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("selector", ["r2", "e1"])
def test_opendkim(opendkim: Callable[..., bool], signer: Keys, form: str, selector: str) -> None:
    """Its test mode hands fields on without the white space behind the colon: test_field has the other messages."""
    signed = signer.sign(SIMPLE, FORMS[form], selector)
    assert opendkim(signer.public[selector].record, signed, selector)
    assert not opendkim(signer.public[selector].record, changed(signed), selector)


@pytest.mark.slow
def test_sizes_of_rsa(signer: Keys) -> None:
    for selector in ("r2", "r3", "r4"):
        assert dkim.verify(signer.sign(SIMPLE, Rules(), selector), dnsfunc=signer.dns)


# -- RFC 6376, appendix A ----------------------------------------------------------------------------------

BRISBANE = (
    "v=DKIM1; p="
    "MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDwIRP/UC3SBsEmGqZ9ZJW3/DkMoGeLnQg1fWn7/zYtIxN2SnFCjxOCKG9v3b4jYfcTNh5ijSsq"
    "631uBItLa7od+v/RtdC2UzJ1lWT947qR+Rcac2gbto/NMqJ0fzfVjH4OuKhitdY9tf6mcwGjaNBcWToIMmPSPDdQPNUYckcQ2QIDAQAB"
)
A2 = b"""DKIM-Signature: v=1; a=rsa-sha256; s=brisbane; d=example.com;
      c=simple/simple; q=dns/txt; i=joe@football.example.com;
      h=Received : From : To : Subject : Date : Message-ID;
      bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;
      b=AuUoFEfDxTDkHlLXSZEpZj79LICEps6eda7W3deTVFOk4yAUoqOB
      4nujc7YopdG5dWLSdNg6xNAZpOPr+kHxt1IrE+NahM6L/LbvaHut
      KVdkLLkpVaVVQPzeRDI009SO2Il5Lu7rDNH6mZckBdrIx0orEtZV
      4bmp/YzhwvcubU4=;
Received: from client1.football.example.com  [192.0.2.1]
      by submitserver.example.com with SUBMISSION;
      Fri, 11 Jul 2003 21:01:54 -0700 (PDT)
From: Joe SixPack <joe@football.example.com>
To: Suzie Q <suzie@shopping.example.net>
Subject: Is dinner ready?
Date: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)
Message-ID: <20030712040037.46341.5F8J@football.example.com>

Hi.

We lost the game. Are you hungry yet?

Joe.
""".replace(b"\n", b"\r\n")


def test_rfc_6376_example_verifies_over_our_canonical_forms() -> None:
    assert verifies(A2, 0, lambda _name: BRISBANE)
    assert not verifies(A2.replace(b"lost", b"won"), 0, lambda _name: BRISBANE)
    assert not verifies(A2.replace(b"Suzie Q", b"Suzie  Q"), 0, lambda _name: BRISBANE)


@pytest.mark.parametrize(
    ("case", "number", "good"),
    [("01-rfc8463", n, True) for n in (0, 1)]
    + [("08-our_signature", n, True) for n in (0, 1, 2)]
    + [("10-strict_domain_check_pass", n, True) for n in (0, 1)]
    + [("09-limited_body", 0, False), ("09-limited_body", 1, True), ("11-strict_domain_check_fail", 0, True)],
)
def test_signatures_of_others_verify_over_our_canonical_forms(
    corpus: dict[str, bytes], zones: dict[str, dict[str, str]], case: str, number: int, good: bool
) -> None:
    """09: signed with l=, which we do not read. 11: good but for the record's t=s, which is not about the forms."""
    assert verifies(corpus[f"chasquid_dkim/{case}.msg"], number, zones[case].__getitem__) is good


def verifies(message: bytes, number: int, zone: Callable[[str], str]) -> bool:
    """Does a signature of the message fit what ``ptt.dkim`` makes of header and body?"""
    start = body_start(message)
    whole = header_fields(message[:start], (b"dkim-signature",), "simple")[b"dkim-signature"][number]
    text = re.sub(rb"\s", b"", whole.partition(b":")[2]).decode()
    tags = dict(part.partition("=")[::2] for part in text.rstrip(";").split(";"))
    header, body = tags["c"].split("/")
    if base64.b64encode(body_hash(message, start, body)).decode() != tags["bh"]:  # type: ignore[arg-type]
        return False
    names = [name.lower().encode() for name in tags["h"].split(":")]
    fields = header_fields(message[:start], {*names, b"dkim-signature"}, header)  # type: ignore[arg-type]
    own = fields.pop(b"dkim-signature")[number]
    data = b"".join(fields[name].pop() + b"\r\n" for name in names if fields.get(name))
    data += re.sub(rb"([;\s]b=)[^;]*", rb"\1", own)
    signature = base64.b64decode(tags["b"])
    record = keys.parse_record(zone(keys.record_name(tags["d"], tags["s"])))
    digest = hashes.Hash(hashes.SHA256())
    digest.update(data)
    try:
        if record.kind == "ed25519":
            ed25519.Ed25519PublicKey.from_public_bytes(record.key).verify(signature, digest.finalize())
        else:
            key: Any = serialization.load_der_public_key(record.key)
            key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
    except InvalidSignature:
        return False
    return True
