"""From a MAIL command to the envelope of its message: pure functions."""

from __future__ import annotations

import msgspec

from ptt.config import Config
from ptt.message import AT_ONCE, Envelope, Schedule
from ptt.relay.hop import KEYWORD, decode
from ptt.smtp.errors import ProtocolError
from ptt.smtp.events import MailFrom
from ptt.smtp.params import MailParams
from ptt.smtp.reply import Reply

NOT_SIGNED_HERE = Reply(550, "5.7.1", "this signer does not sign for that domain")
NO_HOP = Reply(550, "5.7.1", f"the parameter {KEYWORD} is missing: it says which domain signs")
BAD_HOP = Reply(501, "5.5.4", "the envelope of the hop cannot be read")


def schedule(params: MailParams, now: float) -> Schedule:
    """What a user asks for by HOLDFOR and HOLDUNTIL (RFC 4865), and MT-PRIORITY (RFC 6710): above 0 is urgent, below
    is bulk. ``now``: seconds since the epoch.
    """
    if params.hold_for is None and params.hold_until is None and not params.priority:
        return AT_ONCE
    release = now + params.hold_for if params.hold_for is not None else params.hold_until or 0
    level = params.priority or 0
    return Schedule(not_before=int(release * 1000), priority=0 if level > 0 else 2 if level else AT_ONCE.priority)


def envelope(event: MailFrom, user: str, client: str, helo: str, now: float) -> Envelope:
    """The envelope as the command and the session have it. ``now``: seconds since the epoch."""
    params = event.params
    return Envelope(
        sender=event.address,
        received=0,
        user=user,
        client=client,
        helo=helo,
        eightbit=params.body == "8BITMIME",
        smtputf8=params.smtputf8,
        ret=params.ret,
        envid=params.envid,
        binary=params.body == "BINARYMIME",
        schedule=schedule(params, now),
    )


def from_role(given: Envelope, event: MailFrom, config: Config) -> tuple[Envelope, Reply | None]:
    """The envelope as the role before us had it, with what its MAIL command says; or the refusal."""
    text = dict(event.params.extra).get(KEYWORD)
    if not text:  # a signer that is not told who signs would let the mail through unsigned
        return given, NO_HOP if config.role == "signer" else None
    try:
        carried = decode(text)
    except ProtocolError:
        return given, BAD_HOP
    allowed = config.signer.domains
    if config.role == "signer" and allowed and carried.signing_domain not in ("", *allowed):
        return given, NOT_SIGNED_HERE
    own = {"sender": given.sender, "helo": given.helo, "client": given.client, "binary": given.binary}
    return msgspec.structs.replace(carried, **own), None
