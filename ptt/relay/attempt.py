"""One attempt: a message to the recipients of one transaction, host after host, until all are settled.

The decisions; connections and log lines are the business of the relay that it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ptt.message import Envelope, Recipient
from ptt.relay import hop
from ptt.relay.outcome import Deferred, Failed, Outcome
from ptt.relay.routing import Route, no_target
from ptt.relay.session import Message, Target
from ptt.smtp import MailParams, RcptParams
from ptt.smtp.capabilities import Capabilities
from ptt.smtp.params import NO_RCPT_PARAMS

MAX_CONNECTS = 5  # of one attempt: five dead addresses cost 150 s; Postfix (smtp_mx_address_limit) has five too
MAX_SESSIONS = 2  # of one attempt: hosts that answered and deferred; Postfix (smtp_mx_session_limit) has two too

Wanted = tuple[int, Recipient]
Outcomes = dict[int, Outcome]


class Job(NamedTuple):
    """A message to be delivered. ``content``: chunks with CRLF line ends."""

    id: str  # as shown
    lane: str
    envelope: Envelope
    content: Sequence[bytes]
    size: int
    before_final_dot: Callable[[], None]


class Hands(NamedTuple):
    """What an attempt can do, and what it knows when it has done it."""

    reuse: Callable[[Route, Job, Sequence[Wanted]], tuple[Target, Outcomes] | None]
    """Converse over a kept connection. None: there is none that lives."""

    converse: Callable[[Target, Route, Job, Sequence[Wanted]], tuple[bool, Outcomes]]
    """Connect and converse. The first answer: did the peer talk with us?"""

    targets: Callable[[Route], Iterator[Target | Deferred | Failed]]


def attempt(route: Route, job: Job, recipients: Sequence[Wanted], hands: Hands) -> Outcomes:
    """The outcome of each recipient."""
    outcomes: Outcomes = {}
    connects = sessions = 0
    tried: set[tuple[str, int]] = set()
    if (reused := hands.reuse(route, job, recipients)) is not None:
        target, outcomes = reused
        tried.add((target.ip, target.port))
        sessions = 1
    reasons: list[Deferred | Failed] = []
    targets = hands.targets(route)
    while (left := unsettled(recipients, outcomes)) and connects < MAX_CONNECTS and sessions < MAX_SESSIONS:
        found = next(targets, None)
        if found is None:
            break
        if not isinstance(found, Target):
            reasons.append(found)
        elif (found.ip, found.port) not in tried:
            tried.add((found.ip, found.port))
            connects += 1
            talked, new = hands.converse(found, route, job, left)
            sessions += talked
            merge(outcomes, new)
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
    """What a host said of a recipient tells the operator more than that the next host could not be reached."""
    for item, outcome in new.items():
        before = outcomes.get(item)
        said = isinstance(before, Deferred) and before.reply
        if not (said and isinstance(outcome, Deferred) and not outcome.reply and not outcome.maybe):
            outcomes[item] = outcome


def compose(
    job: Job, wanted: Sequence[Wanted], offered: Capabilities, to_role: bool, peer: str
) -> tuple[Message | None, Outcomes]:
    """The transaction for a peer that offers that much, and the recipients for whom there can be none.

    8-bit content goes out as it is to a peer without 8BITMIME: refusing it would lose mail that every such server
    in use takes. International addresses need SMTPUTF8 (RFC 6531 3.2). To a role of ours nothing goes without its
    envelope, which says who signs.
    """
    envelope = job.envelope
    limit = offered.size
    if limit is not None and job.size > limit:
        text = f"the message has {job.size} octets, {peer} takes {limit} at most"
        return None, _refuse(wanted, Failed(text, "MAIL", peer, "5.3.4"))
    refused: Outcomes = {}
    carried = hop.encode(envelope) if to_role and hop.KEYWORD in offered else ""
    if to_role and not carried:  # the next role would not know which domain signs
        text = f"{peer} does not take the envelope ({hop.KEYWORD})"
        return None, {item: Deferred(text, "EHLO", peer, "4.5.4") for item, _ in wanted}
    if not offered.smtputf8:
        if not envelope.sender.isascii():
            return None, _refuse(wanted, _needs_smtputf8(envelope.sender, peer))
        refused = {i: _needs_smtputf8(r.address, peer) for i, r in wanted if not r.address.isascii()}
        wanted = [(i, r) for i, r in wanted if i not in refused]
    if not wanted:
        return None, refused
    mail = MailParams(
        size=job.size,
        body="8BITMIME" if envelope.eightbit else "",
        smtputf8=envelope.smtputf8,
        ret=envelope.ret,
        envid=envelope.envid,
        extra=((hop.KEYWORD, carried),) if carried else (),
    )
    rcpt = [RcptParams(r.notify, r.orcpt) if r.notify or r.orcpt else NO_RCPT_PARAMS for _, r in wanted]
    message = Message(envelope.sender, [r.address for _, r in wanted], job.content, mail, rcpt, job.size)
    return message, refused


def _needs_smtputf8(address: str, peer: str) -> Failed:
    return Failed(f"{peer} does not support the international address {address}", "MAIL", peer, "5.6.7")


def _refuse(wanted: Sequence[Wanted], outcome: Failed) -> Outcomes:
    return {item: outcome for item, _ in wanted}
