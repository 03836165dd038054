"""The relay: one message to the recipients of one lane, and what became of each.

``Relay.deliver`` finds the route, goes through the hosts until every recipient is settled or nothing is left to try,
and answers with one outcome per recipient. It never raises for what a peer or the network does; an exception that
leaves it is a fault of our own.
"""

from __future__ import annotations

import random
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

import gevent
import msgspec

from ptt.config import Config
from ptt.log import Log
from ptt.message import Envelope
from ptt.metrics import Counters
from ptt.net.stream import ConnectFailed, Stream, connect, connect_unix
from ptt.relay import lmtp
from ptt.relay.attempt import Hands, Job, Outcomes, Tried, Wanted, attempt, compose
from ptt.relay.classify import classify
from ptt.relay.connections import IdleConnections, Key
from ptt.relay.credentials import log_in
from ptt.relay.encryption import Encryption, Lookup
from ptt.relay.eyeballs import DeadAddresses, Raced, race
from ptt.relay.gate import Gate, NoSlot, Slot, Slots
from ptt.relay.outcome import Deferred, Delivered, Failed, Outcome, of_error
from ptt.relay.routing import UNIX, Overrides, Route, Router, Source
from ptt.relay.session import Connection, NoSession, Target, TlsUse, open_connection
from ptt.relay.sites import Sites
from ptt.smtp.errors import UnsendableAddress

MAX_RECIPIENTS = 100  # of one transaction: what every server must take (RFC 5321 4.5.3.1.8)
KNOWN_SITES = 50_000  # lanes whose site is remembered: a name each, some 10 MB


class Relay:
    """The relay of one worker. ``rng``: for the order among equal MX hosts. ``clock``: monotonic seconds.
    ``overrides``: the operator's route for a destination, if there is one. ``slots``: who holds the limits of sites
    over all workers; None: nobody, and there are none.

    Raises OSError when a certificate or key cannot be read.
    """

    def __init__(
        self,
        config: Config,
        lookup: Lookup,
        log: Log,
        counters: Counters,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
        overrides: Overrides = lambda _: None,
        slots: Slots | None = None,
    ) -> None:
        self.config = config
        self.log = log
        self.counters = counters
        self.clock = clock
        rng = rng or random.Random()  # noqa: S311  (load sharing, not a secret)
        self.dead = DeadAddresses()
        self.encryption = Encryption(config, lookup, log, counters, clock)
        self.router = Router(config, lookup, rng, overrides, lambda ip: self.dead.is_dead(ip, self.clock()))
        self.idle: IdleConnections[Connection] = IdleConnections(config.relay.idle_seconds)
        self.gate = Gate(Sites(config, MAX_RECIPIENTS), slots, clock)
        self._hands = Hands(self._reuse, self._connect_and_converse, self.router.targets)
        self._sites: OrderedDict[str, str] = OrderedDict()
        self._reaper: gevent.Greenlet | None = None

    def deliver(
        self,
        lane: str,
        envelope: Envelope,
        shown_id: str,
        recipients: Sequence[Wanted],
        content: Sequence[bytes],
        before_final_dot: Callable[[], None],
    ) -> Outcomes:
        """Try to deliver. ``recipients``: (item id, recipient), all of the lane. ``content``: the message in chunks
        with CRLF line ends; before the last one there are only header fields that were put in front.

        ``before_final_dot`` is called right before the bytes leave after which the peer may have the message (once
        for each transaction). Returns the outcome of each item. Raises NoSlot: nothing was tried, as the limits of the
        site allow no further connection now.
        """
        job = Job(shown_id, lane, envelope, content, sum(map(len, content)), before_final_dot)
        route = self.router.route(lane)
        if not isinstance(route, Route):
            self._log_attempt(job, [route], None, 0.0)
            return {item: route for item, _ in recipients}
        self._remember(lane, route.site)
        self.gate.enter(lane, route.site)
        if route.via == "discard":
            gone = Delivered(f"discarded by the route of {lane}", "discard")
            self._log_attempt(job, [gone], None, 0.0)
            return {item: gone for item, _ in recipients}
        route = self._completed(route)
        outcomes: Outcomes = {}
        most = 1 if envelope.verp and not route.policy.internal else self.gate.sites.limits(route.site).recipients
        for start in range(0, len(recipients), most):
            portion = recipients[start : start + most]
            try:
                outcomes.update(attempt(route, job, portion, self._hands))
            except NoSlot as e:
                if not outcomes:
                    raise
                outcomes.update((item, Deferred(str(e), "limit")) for item, _ in portion)
            if route.fallback and (left := unreached_by(portion, outcomes)):
                outcomes.update(attempt(self._completed(self.router.fallback(route)), job, left, self._hands))
        if unreached := [o for o in outcomes.values() if o.phase == "DNS"]:  # no host was even tried
            self._log_attempt(job, unreached, None, 0.0)
        return outcomes

    def _completed(self, route: Route) -> Route:
        """The route with what its destination demands of TLS. May wait for DNS and HTTPS."""
        policy = self.encryption.completed(route.policy, route.lane, route.configured)
        return route if policy is route.policy else route._replace(policy=policy)

    def site_of(self, lane: str) -> str | None:
        """The site that the lane was found to belong to at its last delivery, None if that is not known."""
        return self._sites.get(lane)

    def give_up(self, names: Sequence[str]) -> None:
        """Other workers want connections to these sites, or from this address to it: those that are idle are closed."""
        self.gate.want(names)
        for connection in self.idle.drop(lambda key: self.gate.is_wanted(key.site, key.source)):
            connection.close()

    def reload(self) -> None:
        """Read certificates and keys again. Raises OSError, and leaves what was in force."""
        self.encryption.reload()
        self._close_idle()

    def close(self) -> None:
        """Close the idle connections."""
        if self._reaper is not None:
            self._reaper.kill(block=False)
            self._reaper = None
        self._close_idle()

    # -- what an attempt can do ------------------------------------------------------------------------------

    def _reuse(self, route: Route, job: Job, wanted: Sequence[Wanted]) -> tuple[Target, Outcomes] | None:
        key = self._key(route)
        while (connection := self.idle.take(key, self.clock())) is not None:
            outcomes = self._converse(connection, key, route, job, wanted)
            if outcomes is not None:
                return connection.target, outcomes
        return None

    def _connect_and_converse(self, target: Target, route: Route, job: Job, wanted: Sequence[Wanted]) -> Tried:
        if route.via == "lmtp":
            return self._lmtp(target, job, wanted)
        began = self.clock()
        uses = self.encryption.uses(route.policy, target)
        if isinstance(uses, Deferred):
            return Tried(False, self._no_session(uses, job, wanted, began), [target.ip])
        slot = self.gate.take(route.site, route.source.name if route.source is not None else "")
        try:
            return self._anew(target, route, uses, job, wanted, slot)
        except BaseException:
            slot.release()
            raise

    def _anew(
        self, target: Target, route: Route, uses: Sequence[TlsUse], job: Job, wanted: Sequence[Wanted], slot: Slot
    ) -> Tried:
        """Over a new connection, which keeps the slot until it is closed."""
        began = self.clock()
        raced = self._dial(target, route.source)
        tried = [ip for ip, _ in raced.failures]
        outcomes: Outcomes = {}
        for ip, error in raced.failures:
            failed = of_error(error, "connect", target._replace(ip=ip).peer)
            outcomes = self._no_session(failed, job, wanted, began)
        if raced.stream is None:
            slot.release()
            return Tried(False, outcomes, tried)
        tried.append(raced.ip)
        try:
            connection = self._open(target._replace(ip=raced.ip, behind=()), route, uses, raced.stream)
        except NoSession as e:
            slot.release()
            return Tried(False, self._no_session(e.outcome, job, wanted, began), tried)
        connection.released = slot.release
        connection.most_messages = self.gate.sites.limits(route.site).messages_per_connection
        self.counters.count("ptt_connections_total", connection.tls_name.partition(" ")[0] or "none")
        return Tried(True, self._converse(connection, self._key(route), route, job, wanted) or {}, tried)

    def _no_session(self, outcome: Deferred, job: Job, wanted: Sequence[Wanted], began: float) -> Outcomes:
        self.counters.count("ptt_connections_total", "failed")
        self._log_attempt(job, [outcome] * len(wanted), None, self.clock() - began)
        return {item: outcome for item, _ in wanted}

    def _dial(self, target: Target, source: Source | None) -> Raced:
        """Connect to the first address of the host that answers; remember those that do not."""
        chosen = source.towards if source is not None else _any_source
        raced = race([target.ip, *target.behind], target.port, self.config.relay.connect_seconds, chosen)
        for ip, error in raced.failures:
            self.dead.failed(ip, error, self.clock())
        if raced.stream is not None:
            self.dead.answered(raced.ip)
        return raced

    def _open(self, target: Target, route: Route, uses: Sequence[TlsUse], stream: Stream) -> Connection:
        """A new connection, logged in. Raises NoSession."""
        connection = self._secured(target, uses, route.source, stream)
        if route.credentials:
            try:
                log_in(connection, self.config.relay.credentials, route.credentials)
            except BaseException:
                connection.stream.close()
                raise
        return connection

    def _secured(
        self, target: Target, uses: Sequence[TlsUse], source: Source | None, stream: Stream | None
    ) -> Connection:
        """A session with the first of ``uses`` that succeeds, over ``stream``; for each after the first over a new
        connection. Raises NoSession.
        """
        ehlo, own = (source.ehlo, source.towards(target.ip)) if source is not None else (self.config.ehlo, None)
        failed = ""
        for weaker, use in enumerate(uses, 1):
            try:
                connection = open_connection(target, use, ehlo, self.config.relay, own, stream)
            except NoSession as e:
                if not e.tls_failed or weaker == len(uses):
                    self.encryption.failed(e.tls_failed)
                    raise
                failed, stream = f"in clear: {e.outcome.text}"[:200], None
                event = "TLS failed, going on without" if uses[weaker].context is None else "MTA-STS testing failed"
                self.log.warning(event, peer=target.peer, reason=e.outcome.text)
            else:
                break
        connection.tls_why = connection.tls_why or ("" if connection.tls_name else failed)
        self.encryption.opened(connection.tls_mode, target, bool(connection.tls_name))
        return connection

    def _lmtp(self, target: Target, job: Job, wanted: Sequence[Wanted]) -> Tried:
        began, settings = self.clock(), self.config.relay
        try:
            if target.ip.startswith(UNIX):
                stream = connect_unix(target.ip.removeprefix(UNIX), settings.connect_seconds)
            else:
                stream = connect(target.ip, target.port, settings.connect_seconds)
        except ConnectFailed as e:
            failed = of_error(e, "connect", target.peer)
            return Tried(False, self._no_session(failed, job, wanted, began), [target.ip])
        self.counters.count("ptt_connections_total", "none")
        outcomes = lmtp.deliver(stream, target.peer, job, wanted, self.config.ehlo, settings)
        self._log_attempt(job, list(outcomes.values()), None, self.clock() - began)
        return Tried(True, outcomes, [target.ip])

    def _converse(
        self, connection: Connection, key: Key, route: Route, job: Job, wanted: Sequence[Wanted]
    ) -> Outcomes | None:
        """Send the message; then keep or close the connection. None: it was dead, and nothing has happened.

        A peer that takes fewer recipients at a time (RFC 9422) gets several transactions, as long as it takes those.
        """
        began = self.clock()
        outcomes: Outcomes = {}
        most = connection.most_recipients or len(wanted)
        for start in range(0, len(wanted), most):
            portion = wanted[start : start + most]
            if start and not connection.reusable:
                text = f"the peer takes {most} recipients at a time, and no more messages on this connection"
                rest = Deferred(text, "MAIL", connection.target.peer, "4.5.3")
                outcomes.update((item, rest) for item, _ in portion)
                continue
            new, untouched = self._transaction(connection, route, job, portion)
            if untouched and not start:
                self._keep(key, connection)
                return None
            outcomes.update(new)
        self._keep(key, connection)
        self._log_attempt(job, list(outcomes.values()), connection, self.clock() - began)
        return outcomes

    def _transaction(
        self, connection: Connection, route: Route, job: Job, wanted: Sequence[Wanted]
    ) -> tuple[Outcomes, bool]:
        """One transaction. The second answer: was the connection dead, and nothing has happened?"""
        peer = connection.target.peer
        try:
            message, outcomes = compose(job, wanted, connection.client.capabilities, route.policy.internal, peer)
            sent = None if message is None else connection.send(message, job.before_final_dot, job.until)
        except UnsendableAddress as e:
            connection.close()
            return {item: Failed(str(e), "MAIL", peer, "5.1.3") for item, _ in wanted}, False
        except BaseException:  # a fault of our own, or the end of this greenlet
            connection.drop()
            raise
        if sent is None:
            return outcomes, False
        items = [item for item, _ in wanted if item not in outcomes]
        outcomes.update(zip(items, _over(connection, sent.outcomes), strict=True))
        return outcomes, sent.untouched

    # -- idle connections ------------------------------------------------------------------------------------

    def _key(self, route: Route) -> Key:
        return Key(
            route.site, route.policy.key, route.source.name if route.source is not None else "", route.credentials
        )

    def _keep(self, key: Key, connection: Connection) -> None:
        """Keep the connection for the next message if it is good for one, else close it."""
        if not connection.reusable or self.gate.is_wanted(key.site, key.source):
            connection.close()
            return
        for surplus in self.idle.give(key, connection, self.clock()):
            surplus.close()
        if self._reaper is None:
            self._reaper = gevent.spawn_later(self.config.relay.idle_seconds, self._reap)

    def _reap(self) -> None:
        for connection in self.idle.expired(self.clock()):
            connection.close()
        due = self.idle.next_expiry()
        self._reaper = None if due is None else gevent.spawn_later(max(0.01, due - self.clock()), self._reap)

    def _close_idle(self) -> None:
        for connection in self.idle.clear():
            connection.close()

    # -- what is remembered and said -------------------------------------------------------------------------

    def _remember(self, lane: str, site: str) -> None:
        if self._sites.get(lane) != site:
            self._sites[lane] = site
            if len(self._sites) > KNOWN_SITES:
                self._sites.popitem(last=False)

    def _log_attempt(
        self, job: Job, outcomes: Sequence[Outcome], connection: Connection | None, seconds: float
    ) -> None:
        """One line for each conversation, each host that could not be reached, each lane without a route."""
        shown = next((o for o in outcomes if not isinstance(o, Delivered)), outcomes[0])
        tls, mode, why, reused = "", "", "", False
        if connection is not None:
            tls, mode, why = connection.tls_name, connection.tls_mode, connection.tls_why
            reused = connection.messages > 1
        self.log.event(
            "attempt",
            id=job.id,
            lane=job.lane,
            outcome=type(shown).__name__.lower(),
            peer=shown.peer,
            tls=tls,
            tls_mode=mode,
            tls_why=why,
            reused=reused,
            recipients=len(outcomes),
            delivered=sum(isinstance(o, Delivered) for o in outcomes),
            phase=shown.phase,
            reply=shown.text,
            reply_class=classify(shown),
            seconds=round(seconds, 4),
        )


def unreached_by(wanted: Sequence[Wanted], outcomes: Outcomes) -> list[Wanted]:
    """The recipients about whom no host has said a word: these a fall-back relay may have at once."""
    return [
        (item, recipient)
        for item, recipient in wanted
        if isinstance(o := outcomes[item], Deferred) and not (o.reply or o.maybe or o.seven_bit)
    ]


def _any_source(_: str) -> None:
    """The operating system chooses the address that we connect from."""


def _over(connection: Connection, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes with the TLS of their connection, where the operator will ask for it."""
    tls = f"{connection.tls_name} ({connection.tls_mode})" if connection.tls_name else connection.tls_why
    return [o if isinstance(o, Delivered) or not tls else msgspec.structs.replace(o, tls=tls) for o in outcomes]
