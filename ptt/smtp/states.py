"""The states of a server session and every legal step between them. What is not in the table gets 503.

``docs/smtp.md`` shows this table; ``markdown()`` writes it and a test compares the two.
"""

from __future__ import annotations

import enum


class State(enum.IntEnum):
    """Where a server session stands. (IntEnum: hashed by C code, this is looked up for every command.)"""

    START = 0  # greeting sent, no EHLO yet
    READY = 1  # EHLO done, no transaction
    MAIL = 2  # MAIL accepted
    RCPT = 3  # at least one RCPT accepted
    DATA = 4  # 354 sent: octets are content
    COMPLETE = 5  # the final dot was seen, the driver decides
    AUTH = 6  # a SASL exchange: lines are responses
    HANDSHAKE = 7  # 220 to STARTTLS sent: no octet may come but those of TLS
    CLOSED = 8
    CHUNK = 9  # BDAT was read: octets of its chunk are content, or thrown away
    CHUNKED = 10  # a chunk was accepted, the last one not yet


# The members as plain names: on Python 3.11 each State.X costs 0.14 µs, and a session does some forty.
START, READY, MAIL, RCPT, DATA, COMPLETE, AUTH, HANDSHAKE, CLOSED, CHUNK, CHUNKED = State


class Verb(enum.IntEnum):
    """The commands that we know."""

    EHLO = 0
    HELO = 1
    STARTTLS = 2
    AUTH = 3
    MAIL = 4
    RCPT = 5
    DATA = 6
    RSET = 7
    NOOP = 8
    VRFY = 9
    EXPN = 10
    HELP = 11
    QUIT = 12
    BDAT = 13


VERBS = {verb.name.encode(): verb for verb in Verb}

_OPEN = (State.START, State.READY, State.MAIL, State.RCPT, State.CHUNKED)  # the states in which a line is a command

# (state, command) -> state once the command was accepted. A refused command leaves the state as it is.
TRANSITIONS: dict[tuple[State, Verb], State] = {
    (State.READY, Verb.STARTTLS): State.HANDSHAKE,
    (State.READY, Verb.AUTH): State.AUTH,
    (State.READY, Verb.MAIL): State.MAIL,
    (State.MAIL, Verb.RCPT): State.RCPT,
    (State.RCPT, Verb.RCPT): State.RCPT,
    (State.RCPT, Verb.DATA): State.DATA,
    (State.RCPT, Verb.BDAT): State.CHUNKED,
    (State.CHUNKED, Verb.BDAT): State.CHUNKED,  # with LAST: READY
    (State.START, Verb.RSET): State.START,
    (State.READY, Verb.RSET): State.READY,
    (State.MAIL, Verb.RSET): State.READY,
    (State.RCPT, Verb.RSET): State.READY,
    (State.CHUNKED, Verb.RSET): State.READY,
    **{(state, hello): State.READY for state in _OPEN for hello in (Verb.EHLO, Verb.HELO)},
    **{(state, any_time): state for state in _OPEN for any_time in (Verb.NOOP, Verb.VRFY, Verb.EXPN, Verb.HELP)},
    **{(state, Verb.QUIT): State.CLOSED for state in _OPEN},
}

TAKES_PARAMETERS = frozenset({Verb.MAIL, Verb.RCPT, Verb.AUTH})  # their lines may be longer
# if TLS is required
ONLY_UNDER_TLS = frozenset({Verb.MAIL, Verb.RCPT, Verb.DATA, Verb.BDAT, Verb.VRFY, Verb.EXPN, Verb.HELP})

_MISSING = {
    State.START: "Send EHLO first",
    State.READY: "Send MAIL first",
    State.MAIL: "No valid recipients",
}


def out_of_sequence(state: State, verb: Verb) -> str:
    """The text of the 503 for an illegal pair: what is missing, or that it comes too late."""
    if state is State.CHUNKED:
        return "Send the rest by BDAT, or RSET"  # RFC 3030 2: no DATA, MAIL or RCPT between chunks
    if verb in (Verb.DATA, Verb.BDAT, Verb.RCPT) or state is State.START:
        return _MISSING[state]
    return "Not during a mail transaction"


def markdown() -> str:
    """The table as it stands in docs/smtp.md: a row per command, a column per state; "-" is 503."""
    rows = ["| | " + " | ".join(s.name for s in _OPEN) + " |", "|---|" + "---|" * len(_OPEN)]
    for verb in Verb:
        cells = (TRANSITIONS.get((state, verb)) for state in _OPEN)
        rows.append(f"| {verb.name} | " + " | ".join(c.name if c is not None else "-" for c in cells) + " |")
    return "\n".join(rows) + "\n"
