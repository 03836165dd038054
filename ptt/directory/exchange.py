"""SCRAM where the verifiers are: the control process takes a client's messages as they are and says what to answer.

It keeps nothing between the two: a worker hands back what it was told. No worker sees a StoredKey or a ServerKey, and
the ServerSignature only with the right proof. Who does not exist is answered as ``nobody`` says, so that nobody is told
apart: whatever is asked, as much is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ptt.directory import names
from ptt.directory.nobody import Nobody
from ptt.directory.verifiers import Verifiers
from ptt.smtp import scram
from ptt.smtp.scram import First, Verifier


class Channel(NamedTuple):
    """What a worker knows of the connection: is the mechanism -PLUS, and the binding data (b"": none is offered)."""

    plus: bool
    binding: bytes


class Finished(NamedTuple):
    """``user``: folded name. ``answer``: server-final-message, b"" unless ``proved``."""

    user: str
    proved: bool
    answer: bytes


class Exchanges:
    """``lookup``: folded name -> verifiers; ``nobody``: for names that have none."""

    def __init__(self, lookup: Callable[[str], Verifiers | None], nobody: Nobody) -> None:
        self._lookup = lookup
        self._nobody = nobody

    def user(self, message: bytes) -> str:
        """Who a client-first-message says it is, folded. Raises ProtocolError."""
        return names.fold(scram.parse_first(message).user)

    def start(self, message: bytes, channel: Channel) -> bytes | None:
        """client-first-message -> server-first-message; None: refused. Raises ProtocolError."""
        first = scram.parse_first(message)
        _, verifier = self._verifier(names.fold(first.user))
        challenge = scram.server_first(first, scram.new_nonce(), verifier)
        return challenge if _lawful(first, channel) else None

    def finish(self, message: bytes, challenge: bytes, final: bytes, channel: Channel) -> Finished:
        """``message`` and ``challenge`` are those of ``start``. Raises ProtocolError."""
        first = scram.parse_first(message)
        user = names.fold(first.user)
        usable, verifier = self._verifier(user)
        nonce = challenge.partition(b",")[0][2:].decode("ascii", "replace").removeprefix(first.nonce)
        ours = challenge == scram.server_first(first, nonce, verifier)  # not after a commit changed the user
        proved, answer = scram.check_final(first, challenge, final, channel.binding, verifier)
        good = ours and proved and usable and bool(nonce) and _lawful(first, channel)
        return Finished(user, good, answer if good else b"")

    def _verifier(self, user: str) -> tuple[bool, Verifier]:
        """The user's verifier, or one that nothing fits; and whether a right proof lets the user in."""
        found = self._lookup(user)
        made_up = self._nobody.scram(user)
        if found is None or not found.scram:
            return False, made_up
        return not found.disabled, scram.parse_verifier(found.scram)


def _lawful(first: First, channel: Channel) -> bool:
    """Channel binding as RFC 5802 6 has it, and nobody acts as somebody else."""
    fits = scram.binding_fits(first, plus=channel.plus, offered=bool(channel.binding))
    return fits and first.authzid in ("", first.user)
