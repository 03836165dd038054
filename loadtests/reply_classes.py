"""How often the rules of ``ptt/relay/replies.toml`` agree with Sisimai on real bounces.

    python loadtests/reply_classes.py CORPUS [--half a|b] [--wrong]

CORPUS: the folder of Sisimai's set of bounces with ``expected.json`` and ``eml/``. The bounces are halved by a hash of
their names: the rules were written with half a in sight, half b is measured only. Prints the confusion table.
"""

from __future__ import annotations

import argparse
import email
import email.policy
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

from ptt.relay.classify import CLASSES, classify_text

OURS = {
    "mailbox": "userunknown filtered hasmoved suspend",
    "quota": "mailboxfull",
    "network": "expired networkerror hostunknown notaccept",
    "policy": "rejected authfailure policyviolation requireptr securityerror norelaying contenterror virusdetected "
    "notcompliantrfc mesgtoobig exceedlimit",
    "reputation": "blocked badreputation spamdetected",
    "rate": "toomanyconn speeding ratelimited",
    "system": "systemerror systemfull mailererror syntaxerror",
    "other": "onhold undefined",
}
"""Sisimai's reasons in each of our classes. Feedback (ARF) is no bounce and left out. Sisimai has no greylisting."""
CLASS_OF = {reason: ours for ours, reasons in OURS.items() for reason in reasons.split()}

_REPLY = re.compile(r"\b[45]\d\d[ -](?:[45]\.\d{1,3}\.\d{1,3})?|\b[45]\.\d{1,3}\.\d{1,3}\b")
_ORIGINAL = re.compile(
    r"^(?:received:|return-path:|-{2,}.{0,40}(?:copy of|original|unsent|undelivered message|header).*)", re.I | re.M
)
PIECE = 500  # characters, as of a reply


def half_of(name: str) -> str:
    return "ab"[hashlib.sha256(name.encode()).digest()[0] & 1]


def said(message: Message) -> Iterator[str]:
    """What the bounce quotes of the refusing server, the best place first."""
    for part in message.walk():
        if part.get_content_type() in ("message/delivery-status", "message/global-delivery-status"):
            for block in part.get_payload():
                if isinstance(block, Message) and ("status" in block or "diagnostic-code" in block):
                    diagnostic = re.sub(r"^[\w-]+ *; *", "", str(block.get("diagnostic-code", "")).strip())
                    yield " ".join(f"{diagnostic} {'' if diagnostic else block.get('status', '')}".split())
    text = next((_text(p) for p in message.walk() if p.get_content_maintype() == "text"), "")
    if found := _ORIGINAL.search(text, 1):
        text = text[: found.start()]
    text = " ".join(text.split())
    if reply := _REPLY.search(text):
        yield text[reply.start() : reply.start() + PIECE]
    for start in range(0, min(len(text), 10 * PIECE), PIECE):
        yield text[start : start + PIECE]


def _text(part: Message) -> str:
    data = part.get_payload(decode=True)
    return data.decode(part.get_content_charset("utf-8"), "replace") if isinstance(data, bytes) else ""


def classified(path: Path) -> tuple[str, str]:
    """The class of a bounce, and the text that it was taken from."""
    pieces = [p for p in said(email.message_from_bytes(path.read_bytes())) if p]
    for piece in pieces:
        if (found := classify_text(piece)) != "other":
            return found, piece
    return "other", pieces[0] if pieces else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--half", choices=("a", "b"), default="a")
    parser.add_argument("--wrong", action="store_true", help="print those that differ")
    options = parser.parse_args()
    table: Counter[tuple[str, str]] = Counter()
    for name, verdicts in sorted(json.loads((options.corpus / "expected.json").read_text()).items()):
        if half_of(name) != options.half or not verdicts or verdicts[0]["reason"] not in CLASS_OF:
            continue
        wanted = CLASS_OF[verdicts[0]["reason"]]
        found, text = classified(options.corpus / "eml" / name)
        table[wanted, found] += 1
        if options.wrong and wanted != found:
            print(f"{name}: {verdicts[0]['reason']} = {wanted}, found {found}: {text[:300]}")
    print("Sisimai \\ ours".ljust(14) + "".join(c[:8].rjust(9) for c in CLASSES))
    for wanted in OURS:
        print(wanted.ljust(14) + "".join(str(table[wanted, found] or ".").rjust(9) for found in CLASSES))
    right = sum(n for (wanted, found), n in table.items() if wanted == found)
    print(f"{right} of {table.total()} alike: {right / table.total():.1%}")


if __name__ == "__main__":
    main()
