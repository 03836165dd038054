"""What the key process answers. No sockets here: a request comes in as it was decoded, its answer goes out.

========  ===========================================================  ========================================
method    argument                                                     result
========  ===========================================================  ========================================
sign      [[shown message id, domain, selector, data], ...]            [[signature or None, error or None], ...]
keygen    [domain, selector, algorithm]                                the public record's text
ensure    the same; takes a key of that name that is there             the public record's text
remove    [domain, selector]                                           None
public    domain, "" for all                                           [``PublicKey`` as a table, ...]
who       (any)                                                        [process name, pid, start in ms]
stats     (any)                                                        ``ptt.metrics.Snapshot`` as built-in types
========  ===========================================================  ========================================

``data`` is what ``ptt.dkim`` made: it is signed only if it ends in a DKIM-Signature or ARC field for that domain,
selector and kind of key, so nobody can have anything else signed. ``keygen``, ``ensure`` and ``remove`` are for the
users in ``makers`` alone. No answer and no log line holds a private key.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from typing import Any, cast, get_args

import msgspec

from ptt.config import Config
from ptt.dkim.field import MAX_DATA, BadSignatureField, signature_tags
from ptt.log import Log
from ptt.metrics import Counters
from ptt.signer import keystore
from ptt.signer.keystore import KeyRefused, Keystore
from ptt.signer.state import KeyAlgorithm, all_public_keys, public_keys

MAX_BATCH = 256  # signatures in one request: a fifth of a second of work for which others wait

MAKING = frozenset({"keygen", "ensure", "remove"})  # for the control process, and for the operator's commands

Answer = list[Any]  # [number, error or None, result]


class Handler:
    """Answers requests with the keys of one store. ``clock``: seconds since the epoch."""

    def __init__(
        self,
        config: Config,
        store: Keystore,
        log: Log,
        counters: Counters,
        name: str = "signer",
        clock: Callable[[], float] = time.time,
        makers: frozenset[int] | None = None,
    ) -> None:
        """``makers``: the users who may make and remove keys; None: whoever may call."""
        self._makers = makers
        self._config = config
        self._domains = frozenset(config.signer.domains)
        self._store = store
        self._log = log
        self._counters = counters
        self._clock = clock
        self._who = [name, os.getpid(), int(clock() * 1000)]
        self._methods: dict[str, Callable[[Any], Any]] = {
            "sign": self._sign,
            "keygen": self._keygen,
            "ensure": self._ensure,
            "remove": self._remove,
            "public": self._public,
            "who": lambda _: self._who,
            "stats": lambda _: self._stats(),
        }

    def answer(self, request: Any, uid: int = 0) -> Answer:
        """The answer to one decoded frame of the user ``uid``.

        Raises ValueError for what is not a request: its sender is cut off.
        """
        if not isinstance(request, list) or len(request) != 3:
            raise ValueError("not a request")
        number, method, argument = request
        try:
            if not isinstance(method, str) or method not in self._methods:
                raise KeyRefused("no such method")
            if method in MAKING and self._makers is not None and uid not in self._makers:
                self._log.warning("key method refused", method=method, user=uid)
                raise KeyRefused(f"user {uid} may not make or remove keys")
            return [number, None, self._methods[method](argument)]
        except KeyRefused as e:
            return [number, str(e), None]
        except Exception as e:  # a fault of ours: its class alone goes out, all of it into the log
            self._counters.count("ptt_errors_total", "signer")
            self._log.exception("signer request failed unexpectedly", e, method=str(method)[:40])
            return [number, type(e).__name__, None]

    def _sign(self, batch: Any) -> list[list[bytes | str | None]]:
        if not isinstance(batch, list) or len(batch) > MAX_BATCH:
            raise KeyRefused(f"a batch is a list of at most {MAX_BATCH}")
        made: list[str] = []
        answers = [self._sign_one(item, made) for item in batch]
        if made:  # one line for all: a line for each costs a twentieth of an Ed25519 signature's path
            self._counters.count("ptt_key_requests_total", "signed", by=len(made))
            self._log.event("signatures made", signatures=made)
        return answers

    def _sign_one(self, item: Any, made: list[str]) -> list[bytes | str | None]:
        try:
            message, domain, selector, data = item
            if not (isinstance(domain, str) and isinstance(selector, str) and isinstance(data, bytes)):
                raise KeyRefused("not a request for a signature")
        except (TypeError, ValueError):
            return [None, "not a request for a signature"]
        except KeyRefused as e:
            return [None, str(e)]
        try:
            if self._domains and domain not in self._domains:
                raise KeyRefused(f"{domain[:255]!r} is not among signer.domains")
            if len(data) > MAX_DATA:
                raise KeyRefused(f"{len(data)} bytes to sign, {MAX_DATA} are allowed")
            key = self._store.get(domain, selector)
            tags = signature_tags(data)
            if (tags.get("d"), tags.get("s"), tags.get("a")) != (domain, selector, key.algorithm):
                raise BadSignatureField("d=, s= or a= is not that of the key asked for")
            signature = key.sign(data)
        except (KeyRefused, BadSignatureField) as e:
            self._counters.count("ptt_key_requests_total", "refused")
            self._log.warning("signature refused", id=message, domain=domain, selector=selector, reason=str(e))
            return [None, str(e)]
        made.append(f"{message} {domain} {selector}")
        return [signature, None]

    def _keygen(self, argument: Any) -> str:
        domain, selector, algorithm = _names(argument, 3, "keygen takes domain, selector, algorithm")
        signer = self._config.signer
        now = int(self._clock() * 1000)
        found = keystore.generate(signer.keys, signer.public, domain, selector, _algorithm(algorithm), now)
        self._log.event("key made", domain=domain, selector=selector, algorithm=algorithm)
        return found.record

    def _ensure(self, argument: Any) -> str:
        domain, selector, algorithm = _names(argument, 3, "ensure takes domain, selector, algorithm")
        signer = self._config.signer
        now = int(self._clock() * 1000)
        uid = os.geteuid()
        found = keystore.ensure(signer.keys, signer.public, uid, domain, selector, _algorithm(algorithm), now)
        if found.created == now:
            self._log.event("key made", domain=domain, selector=selector, algorithm=algorithm)
        return found.record

    def _remove(self, argument: Any) -> None:
        domain, selector = _names(argument, 2, "remove takes domain, selector")
        keystore.remove(self._config.signer.keys, self._config.signer.public, domain, selector)
        self._log.event("key removed", domain=domain, selector=selector)

    def _public(self, domain: Any) -> list[Any]:
        public = self._config.signer.public
        keys = public_keys(public, domain) if isinstance(domain, str) and domain else all_public_keys(public)
        return [msgspec.to_builtins(key) for key in keys]

    def _stats(self) -> Any:
        self._counters.counters["ptt_process_cpu_seconds_total", ("signer",)] = time.process_time()
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self._counters.gauge("ptt_process_resident_bytes", "signer", value=resident)
        return msgspec.to_builtins(self._counters.snapshot())


def _names(argument: Any, number: int, otherwise: str) -> list[str]:
    if not isinstance(argument, list) or len(argument) != number or not all(isinstance(x, str) for x in argument):
        raise KeyRefused(otherwise)
    return argument


def _algorithm(name: str) -> KeyAlgorithm:
    if name not in get_args(KeyAlgorithm):
        raise KeyRefused(f"unknown algorithm {name[:40]!r}; known: {', '.join(get_args(KeyAlgorithm))}")
    return cast(KeyAlgorithm, name)
