"""One attempt: a message to the recipients of one transaction, host after host, until all are settled.

The decisions; connections and log lines are the business of the relay that it is given.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from ptt import mime
from ptt.message import Envelope, Recipient
from ptt.relay import hop, mx
from ptt.relay.bounce import encode_address
from ptt.relay.gate import NoSlot
from ptt.relay.outcome import Deferred, Failed, Outcome
from ptt.relay.routing import Route, no_target
from ptt.relay.session import Message, Target
from ptt.smtp import MailParams, RcptParams
from ptt.smtp.capabilities import Capabilities
from ptt.smtp.grammar import MAX_LOCAL
from ptt.smtp.params import NO_RCPT_PARAMS

MAX_CONNECTS = 5  # of one attempt: five dead addresses cost 150 s; Postfix (smtp_mx_address_limit) has five too
TALK_SECONDS = 900.0
"""That one attempt may last before a final dot, with all hosts: three commands of RFC 5321 4.5.3.2 that take their 5
minutes each. A peer that answers each just in time holds a place among the deliveries for so long and no longer."""

MAX_SESSIONS = 2  # of one attempt: hosts that answered and deferred; Postfix (smtp_mx_session_limit) has two too

Wanted = tuple[int, Recipient]
Outcomes = dict[int, Outcome]


class Job(NamedTuple):
    """A message to be delivered. ``content``: chunks with CRLF line ends; before the last one only header fields."""

    id: str  # as shown
    lane: str
    envelope: Envelope
    content: Sequence[bytes]
    size: int
    before_final_dot: Callable[[], None]
    until: float = math.inf  # when the last envelope must be through, in seconds of time.monotonic()


class Tried(NamedTuple):
    """What became of a target. ``ips``: the addresses that were tried; the last one is the peer, if it ``talked``."""

    talked: bool
    outcomes: Outcomes
    ips: Sequence[str]


class Hands(NamedTuple):
    """What an attempt can do, and what it knows when it has done it."""

    reuse: Callable[[Route, Job, Sequence[Wanted]], tuple[Target, Outcomes] | None]
    """Converse over a kept connection. None: there is none that lives."""

    converse: Callable[[Target, Route, Job, Sequence[Wanted]], Tried]
    """Connect and converse."""

    targets: Callable[[Route], Iterator[Target | Deferred | Failed]]


def attempt(route: Route, job: Job, recipients: Sequence[Wanted], hands: Hands) -> Outcomes:
    """The outcome of each recipient."""
    outcomes: Outcomes = {}
    job = job._replace(until=time.monotonic() + TALK_SECONDS)
    connects = sessions = 0
    tried: set[tuple[str, int]] = set()
    if (reused := hands.reuse(route, job, recipients)) is not None:
        target, outcomes = reused
        tried.add((target.ip, target.port))
        sessions = 1
    reasons: list[Deferred | Failed] = []
    targets = (t._replace(until=job.until) if isinstance(t, Target) else t for t in hands.targets(route))
    while (left := unsettled(recipients, outcomes)) and connects < MAX_CONNECTS and sessions < MAX_SESSIONS:
        found = next(targets, None)
        if found is None or (connects and time.monotonic() >= job.until):
            break
        if not isinstance(found, Target):
            reasons.append(found)
        elif (found.ip, found.port) not in tried:
            fresh = [ip for ip in found.behind if (ip, found.port) not in tried][: MAX_CONNECTS - connects - 1]
            try:
                new = hands.converse(found._replace(behind=tuple(fresh)), route, job, left)
            except NoSlot:
                if not outcomes:
                    raise
                break
            tried.update((ip, found.port) for ip in new.ips)
            connects += len(new.ips)
            sessions += new.talked
            merge(outcomes, new.outcomes)
    missing = [item for item, _ in recipients if item not in outcomes]
    if missing:
        outcomes.update(dict.fromkeys(missing, no_target(job.lane, reasons)))
    return outcomes


def unsettled(recipients: Sequence[Wanted], outcomes: Outcomes) -> list[Wanted]:
    """Those for whom another host may be tried: not after "maybe delivered", that would invite a duplicate."""
    if not outcomes:
        return list(recipients)
    return [
        (item, recipient)
        for item, recipient in recipients
        if (o := outcomes.get(item)) is None or (isinstance(o, Deferred) and not o.maybe)
    ]


def merge(outcomes: Outcomes, new: Outcomes) -> None:
    """What a host said of a recipient tells the operator more than that the next host could not be reached.

    A host that would take the message converted counts for more than one that defers it.
    """
    for item, outcome in new.items():
        before = outcomes.get(item)
        later = isinstance(outcome, Deferred) and not outcome.maybe
        told = isinstance(before, Deferred) and (
            before.seven_bit or (before.reply and not (isinstance(outcome, Deferred) and outcome.reply))
        )
        if not (told and later):
            outcomes[item] = outcome


def compose(
    job: Job, wanted: Sequence[Wanted], offered: Capabilities, to_role: bool, peer: str
) -> tuple[Message | None, Outcomes]:
    """The transaction for a peer that offers that much, and the recipients for whom there can be none.

    To a role of ours nothing goes without its envelope, which says who signs.
    """
    envelope = job.envelope
    carried = hop.encode(envelope) if to_role and hop.KEYWORD in offered else ""
    if to_role and not carried:  # the next role would not know which domain signs
        text = f"{peer} does not take the envelope ({hop.KEYWORD})"
        return None, {item: Deferred(text, "EHLO", peer, "4.5.4") for item, _ in wanted}
    if envelope.return_path and not to_role:  # reports of our own still go to the sender himself
        envelope = msgspec.structs.replace(envelope, sender=envelope.return_path)
        job = job._replace(envelope=envelope)
    if envelope.verp and not to_role and len(wanted) == 1:
        envelope = msgspec.structs.replace(envelope, sender=verp(envelope.sender, wanted[0][1].address))
        job = job._replace(envelope=envelope)
    if (never := _unfit(job, offered, peer)) is not None:
        return None, {item: never for item, _ in wanted}
    sender, addressed, refused, international = _addresses(job, wanted, offered.smtputf8, peer)
    if not addressed:
        return None, refused
    mail = MailParams(
        size=job.size,
        body="8BITMIME" if envelope.eightbit else "",
        smtputf8=international,
        ret=envelope.ret,
        envid=envelope.envid,
        extra=((hop.KEYWORD, carried),) if carried else (),
    )
    rcpt = [RcptParams(r.notify, encode_address(r.orcpt)) if r.notify or r.orcpt else NO_RCPT_PARAMS for r in addressed]
    return Message(sender, [r.address for r in addressed], job.content, mail, rcpt, job.size), refused


def verp(sender: str, recipient: str) -> str:
    """The variable envelope return path (D. J. Bernstein, 1997): anna@ours.example to bob@example.org is
    anna+bob=example.org@ours.example. The sender himself where that is no address, or too long (RFC 5321 4.5.3.1.1).
    """
    local, at, domain = sender.rpartition("@")
    made = f"{local}+{recipient.replace('@', '=')}"
    fits = at and made.isascii() and '"' not in made and "[" not in made and len(made) <= MAX_LOCAL
    return f"{made}@{domain}" if fits else sender


def _unfit(job: Job, offered: Capabilities, peer: str) -> Deferred | Failed | None:
    """Why the peer cannot have this message, whoever it is for."""
    if offered.size is not None and job.size > offered.size:
        text = f"the message has {job.size} octets, {peer} takes {offered.size} at most"
        return Failed(text, "MAIL", peer, "5.3.4")
    if offered.eightbitmime or job.envelope.sevenbit or not mime.eight_bit_body(job.content[-1]):
        return None
    return Deferred(f"{peer} takes 7 bits only: to be converted", "MAIL", peer, "4.6.3", seven_bit=True)


def _addresses(
    job: Job, wanted: Sequence[Wanted], smtputf8: bool, peer: str
) -> tuple[str, list[Recipient], Outcomes, bool]:
    """The sender, the recipients as the peer can have them, the others, and whether SMTPUTF8 is said (RFC 6531 3.1).

    Without SMTPUTF8 a domain goes as A-labels; a local part and a header have no other form.
    """
    envelope = job.envelope
    header = envelope.smtputf8 and mime.international(job.content[-1])
    if smtputf8 or (not header and envelope.sender.isascii() and all(r.address.isascii() for _, r in wanted)):
        recipients = [r for _, r in wanted]
        return envelope.sender, recipients, {}, header or not _all_ascii(envelope.sender, recipients)
    sender = mx.ascii_address(envelope.sender)
    if header or not sender.isascii():
        text = f"{peer} does not support " + ("the international header" if header else f"the sender {sender}")
        never = Failed(text, "MAIL", peer, "5.6.9" if header else "5.6.7")
        return sender, [], {item: never for item, _ in wanted}, False
    refused: Outcomes = {}
    recipients = []
    for item, recipient in wanted:
        address = mx.ascii_address(recipient.address)
        if address.isascii():
            recipients.append(msgspec.structs.replace(recipient, address=address))
        else:
            text = f"{peer} does not support the international address {address}"
            refused[item] = Failed(text, "RCPT", peer, "5.6.7")
    return sender, recipients, refused, False


def _all_ascii(sender: str, recipients: Sequence[Recipient]) -> bool:
    return sender.isascii() and all(r.address.isascii() for r in recipients)
