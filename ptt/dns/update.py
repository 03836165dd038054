"""Dynamic update of TXT records (RFC 2136) in a primary server, signed with TSIG (RFC 8945), and their reading back.

Called by the publisher and the ``ptt dns`` commands. Only the named TXT record sets are ever touched, and only if they
still are what they were when they were read.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdataset
import dns.rdatatype
import dns.tsig
import dns.update
import msgspec
from dns.rdtypes.ANY.TXT import TXT

from ptt.dns.exchange import BadAnswer, NoAnswer, Server, ask_tcp, question

STRING_OCTETS = 255  # of one string in a TXT record (RFC 1035 3.3)
MAX_TEXT = 8192  # octets of one record; an RSA-4096 key takes 740 octets; ten times that is no DKIM key
MAX_KEY_FILE = 65_536
ALGORITHMS = ("hmac-sha256", "hmac-sha384", "hmac-sha512")

_COMMENT = re.compile(r'("[^"\n]*")|/\*.*?\*/|//[^\n]*|#[^\n]*', re.DOTALL)  # or a string, which may look like one
_KEY = re.compile(
    r"""key \s+ "?(?P<name>[^\s"{;]+)"? \s* \{ \s*
        (?: algorithm \s+ "?(?P<algorithm>[\w-]+)"? \s* ; \s*
          | secret \s+ "?(?P<secret>[A-Za-z0-9+/=]+)"? \s* ; \s* ){2}
        \} \s* ;""",
    re.VERBOSE,
)


class TsigKeyError(Exception):
    """The file of a TSIG key cannot be used. The text names the file and what is wrong, never what is in it."""


class UpdateError(Exception):
    """The primary did not do what was asked. ``rcode``: what it answered, as DNS writes it ("REFUSED"; "" when it did
    not answer); ``reason``: what that means here, for people.
    """

    def __init__(self, rcode: str, reason: str) -> None:
        self.rcode = rcode
        self.reason = reason
        super().__init__(f"{rcode}: {reason}" if rcode else reason)


class ChangedMeanwhile(UpdateError):
    """A record set is no longer what it was when it was read; nothing was written."""


class NotReached(UpdateError):
    """The primary did not answer at all: nothing is known about what it serves."""

    def __init__(self, reason: str) -> None:
        super().__init__("", reason)


class TsigKey(msgspec.Struct, frozen=True):
    """A TSIG key. Its representation does not show the secret."""

    name: str
    algorithm: str  # one of ALGORITHMS
    secret: bytes

    def __repr__(self) -> str:
        return f"TsigKey({self.name!r}, {self.algorithm!r})"

    def for_dnspython(self) -> dns.tsig.Key:
        return dns.tsig.Key(self.name, self.secret, self.algorithm)

    @classmethod
    def load(cls, path: str) -> TsigKey:
        """Read the file that BIND's tsig-keygen prints. Raises TsigKeyError; also when others may read the file."""
        try:
            with open(path, "rb") as file:
                if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & stat.S_IRWXO:
                    raise TsigKeyError(f"{path}: others may read it; chmod o= {path}")
                text = file.read(MAX_KEY_FILE).decode("ascii")
        except OSError as e:
            raise TsigKeyError(f"{path}: cannot be read: {e.strerror}") from e
        except UnicodeDecodeError as e:
            raise TsigKeyError(f"{path}: is not text") from e
        return cls.parse(text, path)

    @classmethod
    def parse(cls, text: str, path: str = "key") -> TsigKey:
        """``key "NAME" { algorithm ALGORITHM; secret "BASE64"; };`` -> the key. Raises TsigKeyError."""
        found = _KEY.search(_COMMENT.sub(lambda found: found[1] or " ", text))
        if found is None or not found["algorithm"] or not found["secret"]:
            raise TsigKeyError(f"{path}: is not a key as tsig-keygen prints it")
        algorithm = found["algorithm"].lower()
        if algorithm not in ALGORITHMS:
            raise TsigKeyError(f"{path}: algorithm {algorithm}; known here: {', '.join(ALGORITHMS)}")
        try:
            secret = base64.b64decode(found["secret"], validate=True)
            dns.name.from_text(found["name"])
        except (binascii.Error, dns.exception.DNSException) as e:
            raise TsigKeyError(f"{path}: is damaged ({type(e).__name__})") from e
        return cls(found["name"], algorithm, secret)


class Change(NamedTuple):
    """One TXT record set: what it was when it was read, and what it shall be. Records are ``look``'s, or ``txt``'s."""

    name: str
    before: Sequence[TXT]
    after: Sequence[TXT]


class Look(NamedTuple):
    """What an authoritative server says of a name: its TXT records, or the name that it is an alias of."""

    records: tuple[TXT, ...]
    alias: str = ""

    @property
    def texts(self) -> list[bytes]:
        """Each record with its strings joined."""
        return [text_of(record) for record in self.records]


def txt(text: bytes) -> TXT:
    """A TXT record, cut into strings of 255 octets. Raises ValueError for what one cannot hold."""
    if not 0 < len(text) <= MAX_TEXT:
        raise ValueError(f"{len(text)} octets do not fit a TXT record here")
    strings = [text[n : n + STRING_OCTETS] for n in range(0, len(text), STRING_OCTETS)]
    return TXT(dns.rdataclass.IN, dns.rdatatype.TXT, strings)


def text_of(record: TXT) -> bytes:
    """The strings of a record, joined."""
    return b"".join(record.strings)


def update_txt(primary: str, zone: str, key: TsigKey, changes: Sequence[Change], ttl: int, timeout: float) -> None:
    """Make all ``changes`` in one transaction, if each set still is what it was ``before`` (RFC 2136 2.4): else none.

    ``primary``: "HOST:PORT"; ``zone`` holds the names; ``ttl`` and ``timeout`` in seconds.
    Raises ChangedMeanwhile, UpdateError, NotReached, ValueError (a name that DNS cannot hold).
    """
    message = dns.update.UpdateMessage(_name(zone), keyring=key.for_dnspython(), keyalgorithm=key.algorithm)
    for change in changes:
        name = _name(change.name)
        if change.before:
            message.present(name, dns.rdataset.from_rdata_list(0, list(change.before)))
        else:
            message.absent(name, "TXT")
        for record in change.before:
            if record not in change.after:
                message.delete(name, record)
        for record in change.after:
            if record not in change.before:
                message.add(name, ttl, record)
    answer = _exchange(message, primary, timeout)
    if answer.rcode() in (dns.rcode.YXRRSET, dns.rcode.NXRRSET, dns.rcode.YXDOMAIN, dns.rcode.NXDOMAIN):
        raise ChangedMeanwhile(dns.rcode.to_text(answer.rcode()), f"{primary}: somebody changed the record meanwhile")
    if answer.rcode() != dns.rcode.NOERROR:
        raise _error(answer.rcode(), primary)


def look(server: str, name: str, timeout: float) -> Look:
    """The TXT records at ``name`` as the authoritative ``server`` ("HOST:PORT") serves them, or the alias there.

    Asked over TCP, which nobody answers from beside the path.
    Raises NotReached, UpdateError (not authoritative, SERVFAIL), ValueError.
    """
    wanted = _name(name)
    query = question(wanted, dns.rdatatype.TXT, recursive=False)
    answer = _exchange(query, server, timeout)
    if answer.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        raise _error(answer.rcode(), server)
    if not answer.flags & dns.flags.AA:
        raise UpdateError(dns.rcode.to_text(answer.rcode()), f"{server} is not authoritative for {name}")
    for rrset in answer.answer:
        if rrset.name == wanted and rrset.rdtype == dns.rdatatype.CNAME:
            return Look((), cast(Any, rrset[0]).target.to_text().lower().removesuffix("."))
        if rrset.name == wanted and rrset.rdtype == dns.rdatatype.TXT:
            return Look(tuple(cast(Any, rrset)))
    return Look(())


def _exchange(query: dns.message.Message, primary: str, timeout: float) -> dns.message.Message:
    try:
        server = Server.at(primary)
    except ValueError as e:
        raise NotReached(str(e)) from e
    try:
        return ask_tcp(query, server, timeout)
    except NoAnswer as e:
        raise NotReached(str(e)) from e
    except BadAnswer as e:
        raise UpdateError(e.rcode, str(e)) from e


_REASONS = {
    dns.rcode.REFUSED: "refuses: the key may not change this name (update-policy), or the zone takes no updates",
    dns.rcode.NOTAUTH: "is not the primary of this zone, or does not accept the key",
    dns.rcode.NOTZONE: "says that the name is not in the zone",
    dns.rcode.SERVFAIL: "failed; its log says why",
    dns.rcode.NOTIMP: "knows no dynamic updates",
    dns.rcode.FORMERR: "did not understand the request",
}


def _error(rcode: dns.rcode.Rcode, primary: str) -> UpdateError:
    return UpdateError(dns.rcode.to_text(rcode), f"{primary} {_REASONS.get(rcode, 'did not do it')}")


def _name(text: str) -> dns.name.Name:
    try:
        return dns.name.from_text(text)
    except dns.exception.DNSException as e:
        raise ValueError(f"{text[:80]!r} is not a domain name") from e
