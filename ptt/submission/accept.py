"""The moment of the 250: trace fields, aliases, the queue's record, the commit.

Nothing is acknowledged before ``Pipeline.accept`` has returned, which is after the commit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec
from ptt_queue.types import PutResult, Refusal

from ptt.config import Config
from ptt.log import Log
from ptt.message import Envelope, Recipient, domain_of, new_id, show_id
from ptt.metrics import Counters
from ptt.smtp.reply import Reply
from ptt.spool import SpoolUnavailable
from ptt.submission import headers, hygiene, policy
from ptt.submission.recipients import Lookup, Recipients

MAX_LOGGED_RECIPIENTS = 20  # of one message, so that a line of the log stays short
MAX_EXPANDED = 10_000  # recipients of one message behind its aliases: the queue takes them in one request of 8 MiB
MAX_HEADER_BYTES = 256 * 1024  # Postfix's header_size_limit is 100 KiB; a header above this cannot be signed

FULL = Reply(452, "4.3.1", "the queue is full, try again later")
NOT_STORED = Reply(451, "4.3.0", "the message could not be stored, try again later")
NO_RECIPIENT = Reply(550, "5.1.1", "the alias has no address left")
TOO_MANY = Reply(552, "5.5.3", f"the aliases stand for more than {MAX_EXPANDED} addresses, name fewer at once")
HEADER_TOO_LARGE = Reply(552, "5.3.4", f"the header is larger than {MAX_HEADER_BYTES} bytes")
_REFUSED = {Refusal.FULL: FULL}


class Queueing(Protocol):
    """What is asked of ``ptt.pipeline.Pipeline``."""

    def accept(self, id: bytes, envelope: Envelope, recipients: Sequence[Recipient], body: bytes) -> PutResult: ...


class Offer(msgspec.Struct):
    """A message that a client has handed over, with what the session knows of it."""

    envelope: Envelope
    recipients: list[Recipient]
    chunks: list[bytes]
    service: str  # "submission" or "relay"
    protocol: str  # for Received: "ESMTPSA"
    tls: str  # "TLSv1.3 TLS_AES_256_GCM_SHA384", or ""


class Accept:
    """``offer`` is called once for each message. ``clock``: seconds since the epoch. ``lookup``: None: DNS is not asked
    about the recipients of users.
    """

    def __init__(
        self,
        config: Config,
        queueing: Queueing,
        directory: policy.Directory,
        log: Log,
        counters: Counters,
        clock: Callable[[], float] = time.time,
        lookup: Lookup | None = None,
    ) -> None:
        self.recipients = Recipients(directory, lookup)
        self.config = config
        self.queueing = queueing
        self.directory = directory
        self.log = log
        self.counters = counters
        self.clock = clock

    def offer(self, offer: Offer) -> Reply:
        """Store the message; the reply to the final dot. A reply 250 means that it is on stable storage."""
        began = self.clock()
        start = _start(offer.chunks)
        header = headers.read(start)
        if len(header.text) > MAX_HEADER_BYTES:
            return self._refuse(offer, HEADER_TOO_LARGE, "header")
        if headers.hops(header) > headers.MAX_HOPS:
            return self._refuse(offer, policy.LOOP, "loop")
        addresses = headers.addresses(headers.field(header, b"from"))
        if offer.service == "submission":
            if refusal := hygiene.fault(header, offer.envelope.smtputf8) or hygiene.separator(start):
                return self._refuse(offer, refusal, "header")
            if refusal := policy.authors(self.directory, offer.envelope.user, header, addresses):
                return self._refuse(offer, refusal, "from")
            addresses = addresses or [_author(offer.envelope)]
        recipients = self._expand(offer.recipients)
        if not recipients:
            return self._refuse(offer, NO_RECIPIENT, "alias")
        if len(recipients) > MAX_EXPANDED:
            return self._refuse(offer, TOO_MANY, "alias")
        id = new_id(int(began * 1000))
        envelope = self._complete(offer, addresses, int(began * 1000))
        body = self._body(offer, header, show_id(id), began)
        return self._store(id, envelope, recipients, body, offer, began)

    def _store(
        self, id: bytes, envelope: Envelope, recipients: list[Recipient], body: bytes, offer: Offer, began: float
    ) -> Reply:
        try:
            result = self.queueing.accept(id, envelope, recipients, body)
        except SpoolUnavailable:
            return self._refuse(offer, NOT_STORED, "queue")
        if result.refused is not None:
            return self._refuse(offer, _REFUSED.get(result.refused, NOT_STORED), str(result.refused))
        shown = show_id(id)
        self.counters.count("ptt_accepted_total", offer.service)
        self.counters.count("ptt_accepted_bytes_total", offer.service, by=len(body))
        self.counters.observe("ptt_accept_seconds", self.clock() - began)
        self.log.event(
            "accepted",
            id=shown,
            sender=envelope.sender,
            user=envelope.user,
            client=envelope.client,
            protocol=offer.protocol,
            size=len(body),
            recipients=len(recipients),
            to=[recipient.address for recipient in recipients[:MAX_LOGGED_RECIPIENTS]],
            signing_domain=envelope.signing_domain,
            commit=envelope.commit[:12],
        )
        return Reply(250, "2.0.0", f"queued as {shown}")

    def _refuse(self, offer: Offer, reply: Reply, reason: str) -> Reply:
        self.counters.count("ptt_refused_total", str(reply.code), reason)
        envelope = offer.envelope
        who = {"client": envelope.client, "user": envelope.user, "sender": envelope.sender}
        self.log.warning("message refused", **who, recipients=len(offer.recipients), reply=str(reply))
        return reply

    def _expand(self, recipients: list[Recipient]) -> list[Recipient]:
        """Aliases of ours replaced by what they stand for; every address once. Stops above MAX_EXPANDED."""
        found: dict[tuple[str, str], Recipient] = {}
        for given in recipients:
            targets = self.directory.expand(given.address)
            several = [given] if targets is None else [Recipient(t, given.notify, given.orcpt) for t in targets]
            for one in several:
                found.setdefault((one.address.rpartition("@")[0], domain_of(one.address)), one)
            if len(found) > MAX_EXPANDED:
                break
        return list(found.values())

    def _complete(self, offer: Offer, header_from: list[str], now: int) -> Envelope:
        """The envelope with who signs. What another role has decided is kept."""
        envelope = offer.envelope
        domain = envelope.signing_domain
        if not domain and self.config.role in ("all", "submission"):
            domain = policy.signing_domain(self.directory, header_from, envelope.sender)
        commit = envelope.commit or self.directory.commit
        return msgspec.structs.replace(envelope, received=now, signing_domain=domain, commit=commit)

    def _body(self, offer: Offer, header: headers.Header, shown_id: str, now: float) -> bytes:
        """The content with our trace field in front, and what submission has to complete."""
        only = offer.recipients[0].address if len(offer.recipients) == 1 else ""
        envelope = offer.envelope
        added = headers.received(
            helo=envelope.helo,
            client="" if self.config.smtp.hide_client else envelope.client,
            hostname=self.config.hostname,
            protocol=offer.protocol,
            tls=offer.tls,
            shown_id=shown_id,
            recipient=only,
            now=now,
        )
        if offer.service == "submission":
            added += headers.completion(header, _author(envelope), self.config.hostname, shown_id, now)
        if header.bare:
            added += b"\r\n"
        kept = hygiene.without(header) if offer.service == "submission" else header
        if kept is header:
            return b"".join([added, *offer.chunks])
        return b"".join([added, kept.raw, b"".join(offer.chunks)[len(header.raw) :]])


def _author(envelope: Envelope) -> str:
    """Who is named in From when the message names nobody."""
    return envelope.sender or envelope.user


def _start(chunks: list[bytes]) -> bytes:
    """The header of a message in pieces and some of what follows; longer than MAX_HEADER_BYTES if it is too long."""
    start = b""
    for chunk in chunks:
        start += chunk
        if b"\r\n\r\n" in start or start.startswith(b"\r\n") or len(start) > MAX_HEADER_BYTES:
            break
    return start
