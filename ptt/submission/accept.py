"""The moment of the 250: trace fields, aliases, the queue's record, the commit.

Nothing is acknowledged before ``Pipeline.accept`` has returned, which is after the commit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import gevent
import msgspec
from ptt_queue.types import Over, PutResult, Refusal

from ptt import mime
from ptt.config import Config
from ptt.log import Log
from ptt.message import Envelope, Recipient, domain_of, new_id, show_id
from ptt.metrics import Counters
from ptt.plan import UNCONDITIONAL, Conditions
from ptt.relay.srs import Srs, is_srs
from ptt.smtp.reply import Reply
from ptt.spool import SpoolUnavailable
from ptt.submission import headers, hygiene, policy, quotas
from ptt.submission.recipients import Lookup, Recipients

MAX_LOGGED_RECIPIENTS = 20  # of one message, so that a line of the log stays short
MAX_EXPANDED = 10_000  # recipients of one message behind its aliases: the queue takes them in one request of 8 MiB
MAX_HEADER_BYTES = 256 * 1024  # Postfix's header_size_limit is 100 KiB; a header above this cannot be signed
ONCE_MS = 86_400_000  # for so long a submission key stands for its first message: clients repeat within minutes

NOT_STORED = Reply(451, "4.3.0", "the message could not be stored, try again later")
NO_RECIPIENT = Reply(550, "5.1.1", "the alias has no address left")
TOO_MANY = Reply(552, "5.5.3", f"the aliases stand for more than {MAX_EXPANDED} addresses, name fewer at once")
HEADER_TOO_LARGE = Reply(552, "5.3.4", f"the header is larger than {MAX_HEADER_BYTES} bytes")
_REFUSED = {Refusal.FULL: policy.FULL}


class Queueing(Protocol):
    """What is asked of ``ptt.pipeline.Pipeline``."""

    def accept(
        self,
        id: bytes,
        envelope: Envelope,
        recipients: Sequence[Recipient],
        body: bytes,
        *,
        conditions: Conditions = ...,
    ) -> PutResult: ...


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
    about the recipients of users. ``srs``: None: forwarded mail keeps its sender.
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
        srs: Srs | None = None,
    ) -> None:
        self.srs = srs
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
        if offer.envelope.binary and (refusal := _as_lines(offer)):
            return self._refuse(offer, refusal, "binary")
        start = _start(offer.chunks)
        header = headers.read(start)
        if len(header.text) > MAX_HEADER_BYTES:
            return self._refuse(offer, HEADER_TOO_LARGE, "header")
        if headers.hops(header) > headers.MAX_HOPS:
            return self._refuse(offer, policy.LOOP, "loop")
        addresses = headers.addresses(headers.field(header, b"from"))
        if offer.service == "submission":
            if refusal := hygiene.fault(header, offer.envelope) or hygiene.separator(start) or hygiene.wish(header):
                return self._refuse(offer, refusal, "header")
            if refusal := policy.authors(self.directory, offer.envelope.user, header, addresses):
                return self._refuse(offer, refusal, "from")
            addresses = addresses or [_author(offer.envelope)]
        recipients = self._expand(offer.recipients)
        if not recipients:
            return self._refuse(offer, NO_RECIPIENT, "alias")
        if len(recipients) > MAX_EXPANDED:
            return self._refuse(offer, TOO_MANY, "alias")
        id, now = new_id(int(began * 1000)), int(began * 1000)
        envelope = self._complete(offer, header, addresses, now)
        if return_path := self._return_path(offer, recipients):
            envelope = msgspec.structs.replace(envelope, return_path=return_path)
        body = self._body(offer, header, show_id(id), began)
        conditions = UNCONDITIONAL
        if offer.service == "submission":
            found = self._conditions(offer.envelope.user, header, len(recipients), len(body), now)
            if isinstance(found, Reply):
                return self._refuse(offer, found, "quota")
            conditions = found
        return self._store(id, envelope, recipients, body, offer, began, conditions)

    def _conditions(
        self, user: str, header: headers.Header, recipients: int, size: int, now: int
    ) -> Conditions | Reply:
        """What the queue is to look at before it stores a user's message; or the refusal. Nothing for most."""
        key = headers.field(header, hygiene.KEY)
        limits = self.directory.limits(user)
        if key is None and limits is None:
            return UNCONDITIONAL
        if key is not None and not 0 < len(key) <= hygiene.MAX_KEY:
            return hygiene.BAD_KEY
        once = f"{user}\0".encode() + key if key is not None else b""
        until = now + ONCE_MS if once else 0
        if limits is None:
            return Conditions(once, until)
        meters, over = quotas.meters(limits, user, recipients, size, now)
        refusal = quotas.fits(limits, 0, size) or (quotas.never(meters) if over is Over.REFUSE else None)
        return refusal or Conditions(once, until, meters, over)

    def _store(
        self,
        id: bytes,
        envelope: Envelope,
        recipients: list[Recipient],
        body: bytes,
        offer: Offer,
        began: float,
        conditions: Conditions,
    ) -> Reply:
        try:
            if conditions is UNCONDITIONAL:
                result = self.queueing.accept(id, envelope, recipients, body)
            else:
                result = self.queueing.accept(id, envelope, recipients, body, conditions=conditions)
        except SpoolUnavailable:
            return self._refuse(offer, NOT_STORED, "queue")
        if result.refused is Refusal.METER:
            self.counters.count("ptt_over_quota_total", "refused")
            return self._refuse(offer, quotas.used_up(conditions.meters, result.meter, result.until)[0], "quota")
        if result.refused is not None:
            return self._refuse(offer, _REFUSED.get(result.refused, NOT_STORED), str(result.refused))
        if result.first:
            return self._repeated(offer, show_id(result.first))
        shown = show_id(id)
        self._tell_accepted(shown, envelope, recipients, len(body), offer)
        self.counters.observe("ptt_accept_seconds", self.clock() - began)
        if result.meter:
            self.counters.count("ptt_over_quota_total", "held")
            words = quotas.used_up(conditions.meters, result.meter, result.until)[1]
            self.log.warning("held", id=shown, reason=f"quota of {words} is used up")
            return Reply(250, "2.0.0", f"over quota, held for the operator, queued as {shown}")
        return Reply(250, "2.0.0", f"queued as {shown}")

    def _repeated(self, offer: Offer, first: str) -> Reply:
        """The same submission again: its first message stands."""
        self.counters.count("ptt_repeated_total")
        self.log.event("repeated", id=first, user=offer.envelope.user, client=offer.envelope.client)
        return Reply(250, "2.0.0", f"queued as {first}")

    def _tell_accepted(
        self, shown: str, envelope: Envelope, recipients: list[Recipient], size: int, offer: Offer
    ) -> None:
        self.counters.count("ptt_accepted_total", offer.service)
        self.counters.count("ptt_accepted_bytes_total", offer.service, by=size)
        self.log.event(
            "accepted",
            id=shown,
            sender=envelope.sender,
            user=envelope.user,
            client=envelope.client,
            protocol=offer.protocol,
            size=size,
            recipients=len(recipients),
            to=[recipient.address for recipient in recipients[:MAX_LOGGED_RECIPIENTS]],
            signing_domain=envelope.signing_domain,
            commit=envelope.commit[:12],
        )

    def _refuse(self, offer: Offer, reply: Reply, reason: str) -> Reply:
        self.counters.count("ptt_refused_total", str(reply.code), reason)
        envelope = offer.envelope
        who = {"client": envelope.client, "user": envelope.user, "sender": envelope.sender}
        self.log.warning("message refused", **who, recipients=len(offer.recipients), reply=str(reply))
        return reply

    def _expand(self, recipients: list[Recipient]) -> list[Recipient]:
        """Aliases of ours replaced by what they stand for; every address once. Stops above MAX_EXPANDED.

        A bounce to a sender that we rewrote goes to that sender.
        """
        found: dict[tuple[str, str], Recipient] = {}
        for named in recipients:
            given = named
            if self.srs is not None and is_srs(named.address) and (first := self.srs.reverse(named.address)):
                given = Recipient(first, named.notify, named.orcpt)
            targets = self.directory.expand(given.address)
            several = [given] if targets is None else [Recipient(t, given.notify, given.orcpt) for t in targets]
            for one in several:
                found.setdefault((one.address.rpartition("@")[0], domain_of(one.address)), one)
            if len(found) > MAX_EXPANDED:
                break
        return list(found.values())

    def _return_path(self, offer: Offer, recipients: list[Recipient]) -> str:
        """The sender that strangers are told of forwarded mail: a foreign one that an alias sends out of our domains.

        "" for all other mail. The address is one of the alias's domain: its MX is where bounces are to come.
        """
        sender, given = offer.envelope.sender, {r.address for r in offer.recipients}
        if self.srs is None or not sender or self._ours(sender):
            return ""
        if all(r.address in given or self._ours(r.address) for r in recipients):
            return ""
        alias = next((a for a in given if self._ours(a) and self.directory.expand(a) is not None), "")
        return self.srs.forward(sender, domain_of(alias)) if alias else ""

    def _ours(self, address: str) -> bool:
        return self.directory.our_domain(domain_of(address)) is not None

    def _complete(self, offer: Offer, header: headers.Header, header_from: list[str], now: int) -> Envelope:
        """The envelope with who signs. What another role has decided is kept."""
        envelope = offer.envelope
        domain = envelope.signing_domain
        if not domain and self.config.role in ("all", "submission"):
            domain = policy.signing_domain(self.directory, header_from, header, envelope.sender)
        commit = envelope.commit or self.directory.commit
        verp = envelope.verp or (offer.service == "submission" and hygiene.VERP in header.names)
        return msgspec.structs.replace(envelope, received=now, signing_domain=domain, commit=commit, verp=verp)

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


def _as_lines(offer: Offer) -> Reply | None:
    """BODY=BINARYMIME becomes ordinary mail before it is signed: few servers would take it on. Or the refusal."""
    try:
        content = mime.to_transportable(b"".join(offer.chunks), lambda: gevent.sleep(0))
    except mime.Unconvertible as e:
        return Reply(554, "5.6.3", f"the message cannot be converted: {e}")
    offer.chunks = [content]
    offer.envelope = msgspec.structs.replace(offer.envelope, binary=False, eightbit=not content.isascii())
    return None


def _start(chunks: list[bytes]) -> bytes:
    """The header of a message in pieces and some of what follows; longer than MAX_HEADER_BYTES if it is too long."""
    start = bytearray()
    for chunk in chunks:
        seen = max(0, len(start) - 3)
        start += chunk
        if start.find(b"\r\n\r\n", seen) >= 0 or start.startswith(b"\r\n") or len(start) > MAX_HEADER_BYTES:
            break
    return bytes(start)
