"""Random messages, mutated from those of others: canonical forms, signatures and cuts against dkimpy.

``PTT_FUZZ_SECONDS=600 pytest tests/dkim/test_fuzz.py`` goes on for so long; the seed is printed by each run.
"""

import os
import random
import re
import time

import dkim
import pytest
from dkim.canonicalization import Relaxed, Simple

from ptt.dkim.canonical import Body, Canon, body_hash, body_start, canonical_body, header_fields, squeeze

SECONDS = float(os.environ.get("PTT_FUZZ_SECONDS", "2"))
REFERENCE = {"relaxed": Relaxed, "simple": Simple}
FORMS: tuple[Canon, ...] = ("relaxed", "simple")
SPICES = (
    *(b" ", b"  ", b"\t", b" \t", b"\r\n", b"\r\n\r\n", b" \r\n", b"\t\r\n", b"\r\n ", b"\r\n\t", b" \r\n\t \r\n"),
    *(b"\0", b"\0 \0", b"\x0b", b"\x0c", b"\x1c", b"\x85", b"\xa0", b"\xc2\xa0", b"\xff", b":", b";", b"."),
    *(b" " * 63, b"\t" * 100, b"\r\n" * 50, b" \r\n" * 30, b"x" * 1000),
)
WANTED = (b"from", b"to", b"subject", b"date", b"x-a")
SIZES = (0, 1, 2, 100, 5000, 65_535, 65_536, 65_537, 140_000)  # around the pieces of 64 KiB


def clean(text: bytes) -> bytes:
    """Without bare CR and LF, which never reach the signer."""
    return re.sub(rb"\r(?!\n)|(?<!\r)\n", b"-", text)


def mutated(rng: random.Random, text: bytes) -> bytes:
    for _ in range(rng.randrange(12)):
        at, end = sorted((rng.randrange(len(text) + 1), rng.randrange(len(text) + 1)))
        kind = rng.randrange(4)
        if kind == 0:
            text = text[:at] + rng.choice(SPICES) + text[at:]
        elif kind == 1:
            text = text[:at] + text[min(end, at + 20) :]
        elif kind == 2:
            text = text[:at] + rng.choice(SPICES) + text[min(end, at + 3) :]
        else:
            text = text[:end] + text[at : at + 500] + text[end:]
    if rng.random() < 0.3:
        text += rng.choice(SPICES) * rng.randrange(4)
    return clean(text)


def made(rng: random.Random, corpus: list[bytes]) -> bytes:
    message = rng.choice(corpus)
    start = body_start(message)
    body = message[start:]
    if rng.random() < 0.2 and body:
        body = (body * (rng.choice(SIZES) // len(body) + 1))[: rng.choice(SIZES)]
    fields = b"".join(
        rng.choice((b"From", b"to ", b"SUBJECT", b"X-A", b"Date\t")) + b":" + mutated(rng, b"a b\r\n c")[:300] + b"\r\n"
        for _ in range(rng.randrange(4))
    )
    head = message[:start].removesuffix(b"\r\n") if rng.random() < 0.7 else b""
    return clean(fields + head + b"\r\n" + mutated(rng, body))


def reference_fields(head: bytes, canon: Canon) -> dict[bytes, list[bytes]] | None:
    """As dkimpy has them; None where it refuses the header."""
    try:
        headers, _ = dkim.rfc822_parse(head)
    except (dkim.MessageFormatError, IndexError):
        return None
    found: dict[bytes, list[bytes]] = {}
    for name, value in REFERENCE[canon].canonicalize_headers(headers):
        if name.strip().lower() in WANTED:
            found.setdefault(name.strip().lower(), []).append(name + b":" + value.removesuffix(b"\r\n"))
    return found


def compare(rng: random.Random, message: bytes) -> None:
    start = body_start(message)
    body = message[start:]
    ended = body if not body or body.endswith(b"\r\n") else body + b"\r\n"
    for canon in FORMS:
        expected = REFERENCE[canon].canonicalize_body(ended)
        assert canonical_body(body, canon) == expected
        out: list[bytes] = []
        stream = Body(canon, out.append)
        cuts = sorted(rng.randrange(len(body) + 1) for _ in range(rng.randrange(5)))
        for begin, end in zip([0, *cuts], [*cuts, len(body)], strict=True):
            stream.update(body[begin:end])
        stream.finish()
        assert b"".join(out) == expected
        assert body_hash(message, start, canon) == body_hash(ended, 0, canon)
        wanted = reference_fields(message[:start], canon)
        if wanted is None or re.search(rb"[\x0b\x0c]|^[^\r\n: \t]+[ \t]+:", message[:start], re.M):
            continue  # where dkimpy departs from RFC 6376: ptt.dkim.canonical
        assert header_fields(message[:start], WANTED, canon) == wanted
    assert squeeze(body) == re.sub(rb"[ \t]+", b" ", body)


@pytest.mark.slow
def test_canonical_forms_are_dkimpys(rng: random.Random, corpus: dict[str, bytes]) -> None:
    messages = list(corpus.values())
    end = time.monotonic() + SECONDS
    rounds = 0
    while rounds < 100 or time.monotonic() < end:
        message = made(rng, messages)
        try:
            compare(rng, message)
        except AssertionError as e:
            raise AssertionError(f"message {message[:4000]!r}: {e}") from e
        rounds += 1
    print(f"{rounds} messages")
