"""What a change of one record means, in words for the people whom it concerns. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from ptt.directory.records import DEFAULT_ROUTE, Alias, Domain, Group, Limits, Record, Route, User
from ptt.directory.schema import Place
from ptt.dkim import rules

MAX_NAMED = 5  # addresses in one sentence; the others are counted


class Change(msgspec.Struct, frozen=True):
    """One sentence about one record. ``name``: a domain or an address."""

    kind: str
    name: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}: {self.what}"


def describe(place: Place, before: Record | None, after: Record | None) -> list[Change]:
    """What changes when a record becomes another. None: there is none. Empty when nothing changes for anybody."""
    if before == after:
        return []
    return [Change(place.kind, place.name, what) for what in _sentences(place.name, before, after)]


def _sentences(name: str, before: Record | None, after: Record | None) -> Iterator[str]:
    old, new = type(before), type(after)
    if User in (old, new):
        yield from _user(before if isinstance(before, User) else None, after if isinstance(after, User) else None)
    elif Domain in (old, new):
        kept = isinstance(before, Domain), isinstance(after, Domain)
        yield from _domain(name, before if kept[0] else None, after if kept[1] else None)  # type: ignore[arg-type]
    elif Route in (old, new):
        yield _route(name, after if isinstance(after, Route) else None)
    else:
        yield from _list(before, after)


def _user(before: User | None, after: User | None) -> Iterator[str]:
    if after is None:
        yield "is removed: can log in and send no more"
        return
    if before is None:
        yield f"is added, {_login(after)}"
        before = User()
    else:
        if after.disabled != before.disabled:
            yield "is disabled: can send no more" if after.disabled else "is enabled again"
        yield from _verifier("password", before.password, after.password)
        yield from _verifier("SCRAM verifier", before.scram, after.scram)
    yield from _set("may send as {} too", "may no longer send as {}", before.addresses, after.addresses)
    yield from _limits(before.limits, after.limits)


def _login(user: User) -> str:
    if user.disabled:
        return "disabled"
    return "can log in" if user.password or user.scram else "cannot log in: has no password"


def _verifier(what: str, before: str, after: str) -> Iterator[str]:
    if before and after and before != after:
        yield f"the {what} changes"
    elif bool(before) != bool(after):
        yield f"gets a {what}" if after else f"loses the {what}"


def _domain(name: str, before: Domain | None, after: Domain | None) -> Iterator[str]:
    if after is None:
        yield "is removed: it is ours no more"
        return
    if before is None:
        yield f"is added, its mail is {_signed(after)}"
        before = Domain(sign=after.sign)
    if after.sign != before.sign:
        yield f"its mail is {_signed(after)}"
    if after.subdomains != before.subdomains:
        yield "its subdomains are ours too" if after.subdomains else "its subdomains are ours no more"
    if after.postmaster != before.postmaster:
        yield f"its postmaster is {after.postmaster or f'postmaster@{name}'}"
    yield from _dkim(before.dkim or rules.DEFAULT, after.dkim or rules.DEFAULT)
    yield from _limits(before.limits, after.limits)


def _dkim(before: rules.Rules, after: rules.Rules) -> Iterator[str]:
    if (after.selectors, after.algorithms) != (before.selectors, before.algorithms):
        if after.selectors:
            yield f"signs with the keys {_named(after.selectors)}, as far as DNS serves them, and no others"
        else:
            yield f"signs with its newest key of each kind: {_named(after.algorithms)}"
    yield from _set("its mail is signed by {} too", "its mail is no longer signed by {}", before.also, after.also)
    if after.canonicalization != before.canonicalization:
        yield f"its signatures are c={after.canonicalization} (header/body)"
    yield from _set(
        "{} may not be added or changed on the way", "{} is no longer over-signed", before.oversign, after.oversign
    )
    if after.expires_seconds != before.expires_seconds:
        end = f"{after.expires_seconds} s after signing" if after.expires_seconds else "never"
        yield f"its signatures expire {end}"
    if after.arc != before.arc:
        what = {"no": "gets no ARC set", "beside": "gets an ARC set too", "instead": "gets an ARC set in place of DKIM"}
        yield f"its mail {what[after.arc]}"
    if after.authserv_id != before.authserv_id:
        yield f"its ARC sets take over Authentication-Results of {after.authserv_id or 'this host'}"
    if after.identity != before.identity:
        whom = "the subdomain of From" if after.identity == "author" else "the domain alone"
        yield f"its signatures name {whom} (i=)"


def _signed(domain: Domain) -> str:
    return "signed with DKIM" if domain.sign else "sent without a DKIM signature"


def _list(before: Record | None, after: Record | None) -> Iterator[str]:
    """An alias or a group."""
    if after is None:
        yield "is removed: mail for it is no longer sent on by it"
        return
    if before is None:
        yield f"is added, leads to {_named(_members(after))}"
    else:
        yield from _set("leads to {} too", "no longer leads to {}", _members(before), _members(after))
    if isinstance(after, Group):
        old = before if isinstance(before, Group) else Group(())
        if after.post != old.post:
            yield f"{after.post} may post"
        yield from _set("{} may post", "{} may no longer post as listed", old.posters, after.posters)
        yield from _set("{} owns it", "{} owns it no more", old.owners, after.owners)


def _members(record: Record) -> tuple[str, ...]:
    return record.targets if isinstance(record, Alias) else record.members if isinstance(record, Group) else ()


def _route(name: str, after: Route | None) -> str:
    whose = "of all destinations without a route of their own" if name == DEFAULT_ROUTE else f"for {name}"
    if after is not None and after.subdomains:
        whose += " and its subdomains"
    if after is None:
        return f"mail {whose} takes the usual way again"
    if after.via == "discard":
        return f"mail {whose} is discarded"
    where = {"mx": "its MX hosts", "lmtp": f"{after.host} by LMTP", "smarthost": after.host}
    more = [f"{word} {value}" for word, value in _route_more(after) if value]
    return f"mail {whose} goes to {', '.join([where[after.via], *more])}"


def _route_more(route: Route) -> list[tuple[str, str]]:
    login, source, fallback = (
        ("logged in as", route.credentials),
        ("from", route.source),
        ("or else to", route.fallback),
    )
    return [("TLS:", route.tls), login, source, fallback]


def _limits(before: Limits | None, after: Limits | None) -> Iterator[str]:
    old, new = before or Limits(), after or Limits()
    for key in Limits.__struct_fields__:
        was, now = getattr(old, key), getattr(new, key)
        if was != now:
            yield f"limit {key.replace('_', ' ')}: {_limit(was)} -> {_limit(now)}"


def _limit(value: object) -> str:
    return "none" if value is None else str(value)


def _set(more: str, less: str, before: Sequence[str], after: Sequence[str]) -> Iterator[str]:
    if lost := [x for x in before if x not in set(after)]:
        yield less.format(_named(lost))
    if gained := [x for x in after if x not in set(before)]:
        yield more.format(_named(gained))


def _named(values: Sequence[str]) -> str:
    rest = len(values) - MAX_NAMED
    return ", ".join(values[:MAX_NAMED]) + (f" and {rest} more" if rest > 0 else "")
