"""What a server said that it can do, in its reply to EHLO (RFC 5321 4.1.1.1)."""

from __future__ import annotations

import functools
from typing import NamedTuple

from ptt.smtp.reply import Reply

MAX_LIMIT_DIGITS = 6  # RFC 9422 3


class Limits(NamedTuple):
    """What the server takes at most (RFC 9422 4); None: it did not say."""

    mailmax: int | None = None  # messages on a connection
    rcptmax: int | None = None  # recipients of a message
    rcptdomainmax: int | None = None  # different domains among them


class Capabilities:
    """The keywords of an EHLO reply with what follows them, and the questions that a client has about them.

    A value that several sessions share: not to be changed.
    """

    __slots__ = ("keywords", "mail", "pipelining", "rcpt")

    def __init__(self, reply: Reply | None = None) -> None:
        """``reply``: to EHLO; None after HELO or before either: nothing is offered."""
        self.keywords: dict[str, str] = {}
        for line in reply.lines[1:] if reply is not None else ():
            keyword, _, value = line.strip().partition(" ")
            if keyword.upper().startswith("AUTH="):  # what servers of the last century sent
                keyword, value = "AUTH", keyword[5:] + " " + value
            keyword = keyword.upper()
            earlier = self.keywords.get(keyword)
            self.keywords[keyword] = f"{earlier} {value}" if earlier and keyword == "AUTH" else value
        self.pipelining = "PIPELINING" in self.keywords
        further = self.keywords.keys() - _MAIL_NEEDS.keys()  # MailParams.extra: parameters named like their keyword
        self.mail = frozenset(k for k, needs in _MAIL_NEEDS.items() if needs in self.keywords) | further
        self.rcpt = frozenset(k for k, needs in _RCPT_NEEDS.items() if needs in self.keywords)

    def __contains__(self, keyword: str) -> bool:
        return keyword in self.keywords

    @property
    def starttls(self) -> bool:
        return "STARTTLS" in self.keywords

    @property
    def eightbitmime(self) -> bool:
        return "8BITMIME" in self.keywords

    @property
    def smtputf8(self) -> bool:
        return "SMTPUTF8" in self.keywords

    @property
    def dsn(self) -> bool:
        return "DSN" in self.keywords

    @property
    def size(self) -> int | None:
        """The fixed maximum in octets; None when there is none or it was not said (RFC 1870 4: "0" means none)."""
        value = self.keywords.get("SIZE", "")
        return int(value) or None if len(value) <= 20 and value.isascii() and value.isdecimal() else None

    @property
    def chunking(self) -> bool:
        return "CHUNKING" in self.keywords

    @property
    def binarymime(self) -> bool:
        """BODY=BINARYMIME may be sent; it goes by BDAT only (RFC 3030 3)."""
        return self.chunking and "BINARYMIME" in self.keywords

    @property
    def limits(self) -> Limits:
        return _limits(self.keywords.get("LIMITS", ""))

    @property
    def auth(self) -> frozenset[str]:
        return frozenset(self.keywords.get("AUTH", "").upper().split())

    def __repr__(self) -> str:
        return f"Capabilities({self.keywords!r})"


@functools.lru_cache(maxsize=64)  # at most 64 replies of MAX_REPLY_BYTES: the servers that we speak to most
def capabilities_of(reply: Reply) -> Capabilities:
    """As ``Capabilities(reply)``: a server says the same to each connection, so it is read once."""
    return Capabilities(reply)


_MAIL_NEEDS = {
    "SIZE": "SIZE",
    "BODY": "8BITMIME",
    "SMTPUTF8": "SMTPUTF8",
    "RET": "DSN",
    "ENVID": "DSN",
    "HOLDFOR": "FUTURERELEASE",
    "HOLDUNTIL": "FUTURERELEASE",
    "MT-PRIORITY": "MT-PRIORITY",
}
_RCPT_NEEDS = {"NOTIFY": "DSN", "ORCPT": "DSN"}


def _limits(value: str) -> Limits:
    """``name=number`` separated by spaces. What is not of that form, or not known, is passed over (RFC 9422 3)."""
    found: dict[str, int] = {}
    for word in value.split():
        name, _, number = word.partition("=")
        good = number.isascii() and number.isdecimal() and len(number) <= MAX_LIMIT_DIGITS and number[0] != "0"
        if good and name.lower() in Limits._fields:
            found[name.lower()] = int(number)
    return Limits(**found)


NOTHING_OFFERED = Capabilities()
