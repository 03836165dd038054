"""What must hold between files; changes checked alone find what a look at the whole finds."""

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from ptt.directory import rules
from ptt.directory.records import Alias, Domain, Group, User
from ptt.directory.rules import MAX_ALIAS_DEPTH, MAX_EXPANSION, Database, check, check_changes, validate
from ptt.directory.schema import Place

DOMAINS = {"domains/a.example.toml": b"", "domains/s.example.toml": b"subdomains = true\n"}


def mistakes(files: dict[str, bytes]) -> list[str]:
    return [str(m) for m in validate({**DOMAINS, **files})[1]]


def alias(*targets: str) -> bytes:
    return ("targets = [\n" + "".join(f'"{t}",\n' for t in targets) + "]\n").encode()


def test_a_good_database() -> None:
    files = {
        **DOMAINS,
        "users/a.example/anna.toml": b'addresses = ["x@deep.s.example", "*@s.example"]',
        "aliases/a.example/all.toml": alias("anna@a.example", "list@a.example"),
        "aliases/a.example/list.toml": alias("b@x.example"),
    }
    database, found = validate(files)
    assert not found
    assert set(database.domains) == {"a.example", "s.example"}
    assert set(database.users) == {"anna@a.example"}
    assert set(database.aliases) == {"all@a.example", "list@a.example"}


def test_a_user_needs_its_domain() -> None:
    assert mistakes({"users/b.example/u.toml": b""}) == ["users/b.example/u.toml:1: there is no domains/b.example.toml"]


def test_a_parents_subdomains_do_not_make_a_domain_for_users() -> None:
    assert mistakes({"users/x.s.example/u.toml": b""})


def test_an_alias_needs_its_domain() -> None:
    assert mistakes({"aliases/b.example/u.toml": alias("x@a.example")}) == [
        "aliases/b.example/u.toml:1: there is no domains/b.example.toml"
    ]


def test_sender_addresses_are_of_our_domains() -> None:
    found = mistakes({"users/a.example/u.toml": b'addresses = [\n"x@a.example",\n"*@sub.a.example",\n]'})
    assert found == ["users/a.example/u.toml:3: addresses: the domain of '*@sub.a.example' is not in domains/"]


def test_a_name_is_a_user_or_an_alias() -> None:
    files = {"users/a.example/u.toml": b"", "aliases/a.example/u.toml": alias("x@a.example")}
    assert len(mistakes(files)) == 2


def test_cycles_are_found_whatever_the_case() -> None:
    files = {
        "aliases/a.example/x.toml": alias("q@a.example", "Y@a.example"),
        "aliases/a.example/y.toml": alias("x@a.example"),
    }
    assert mistakes(files) == [
        "aliases/a.example/x.toml:3: targets: cycle: x@a.example -> y@a.example -> x@a.example",
        "aliases/a.example/y.toml:2: targets: cycle: y@a.example -> x@a.example -> y@a.example",
    ]
    assert mistakes({"aliases/a.example/x.toml": alias("x@a.example")}) == [
        "aliases/a.example/x.toml:2: targets: cycle: x@a.example -> x@a.example"
    ]


def chain(length: int) -> dict[str, bytes]:
    return {f"aliases/a.example/n{n}.toml": alias(f"n{n + 1}@a.example") for n in range(length)}


def test_depth() -> None:
    assert not mistakes(chain(MAX_ALIAS_DEPTH))
    assert "more than 16 aliases deep" in mistakes(chain(MAX_ALIAS_DEPTH + 1))[0]
    assert mistakes(chain(400))  # and no recursion error


def test_size() -> None:
    half = MAX_EXPANSION // 2
    files = {
        "aliases/a.example/one.toml": alias(*(f"u{n}@x.example" for n in range(half))),
        "aliases/a.example/two.toml": alias(*(f"v{n}@x.example" for n in range(half))),
    }
    assert not mistakes({**files, "aliases/a.example/all.toml": alias("one@a.example", "two@a.example")})
    more = alias("one@a.example", "two@a.example", "w@x.example")
    assert "stands for more than 1000" in mistakes({**files, "aliases/a.example/all.toml": more})[0]


def test_a_bomb_of_aliases_is_measured_in_no_time() -> None:
    """Each alias names all of the next level: 30 to the 16th paths, walked once each."""
    files = {
        f"aliases/a.example/n{level}-{n}.toml": alias(*(f"n{level + 1}-{m}@a.example" for m in range(30)))
        for level in range(MAX_ALIAS_DEPTH)
        for n in range(30)
    }
    assert "stands for more than" in mistakes(files)[0]


def test_groups_are_expanded_with_the_aliases() -> None:
    files = {
        "users/a.example/anna.toml": b"",
        "aliases/a.example/x.toml": alias("y@a.example"),
        "groups/a.example/y.toml": b'\nmembers = [\n"anna@a.example",\n"z@a.example"]',
        "groups/a.example/z.toml": b'members = ["x@a.example"]',
    }
    found = mistakes(files)
    cycle = "y@a.example -> z@a.example -> x@a.example -> y@a.example"
    assert f"groups/a.example/y.toml:4: members: cycle: {cycle}" in found
    assert mistakes({**files, "groups/a.example/z.toml": b'members = ["q@x.example"]'}) == []
    assert "is a user too" in mistakes({**files, "groups/a.example/anna.toml": b'members = ["q@x.example"]'})[-1]
    assert "x@a.example is a group too" in " ".join(
        mistakes({**files, "groups/a.example/x.toml": b'members = ["q@x.example"]'})
    )
    assert mistakes({"groups/c.example/z.toml": b'members = ["q@x.example"]'}) == [
        "groups/c.example/z.toml:1: there is no domains/c.example.toml"
    ]


def test_mistakes_are_bounded() -> None:
    files = {f"users/b.example/u{n}.toml": b"" for n in range(300)}
    assert len(mistakes(files)) == rules.MAX_MISTAKES
    files = {f"users/b.example/u{n}.toml": b"x" for n in range(300)}
    assert len(mistakes(files)) == rules.MAX_MISTAKES


# -- changes against the whole -----------------------------------------------------------------------------------

NAMES = [f"n{i}@a.example" for i in range(5)] + ["n0@b.example"]
ADDRESSES = st.sampled_from([*NAMES, "x@c.example", "y@a.example", "z@sub.b.example", "*@sub.b.example"])
DOMAIN_CHANGES = st.dictionaries(
    st.sampled_from(["a.example", "b.example", "c.example", "sub.b.example"]), st.booleans()
)
USERS = st.dictionaries(st.sampled_from(NAMES), st.lists(ADDRESSES, max_size=2), max_size=3)
ALIASES = st.dictionaries(st.sampled_from(NAMES), st.lists(ADDRESSES, min_size=1, max_size=3), max_size=5)


class BaseOf:
    def __init__(self, database: Database) -> None:
        self.domain, self.has_user, self.alias = database.domain, database.has_user, database.alias
        self.group = database.group
        self._domains = database.domains
        self._aliases, self._groups, self._users = database.aliases, database.groups, database.users

    def aliases(self) -> dict[str, Alias]:
        return dict(self._aliases)

    def groups(self) -> dict[str, Group]:
        return dict(self._groups)

    def senders(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        return ((name, user.addresses) for name, user in self._users.items())

    def signers(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        return ((name, domain.dkim.also) for name, domain in self._domains.items() if domain.dkim)


Lists = dict[str, list[str]]


def build(users: Lists, aliases: Lists, groups: Lists) -> Database:
    return Database(
        {"a.example": Domain(), "b.example": Domain()},
        {n: User(addresses=tuple(a)) for n, a in users.items()},
        {n: Alias(tuple(t)) for n, t in aliases.items()},
        {n: Group(tuple(t)) for n, t in groups.items()},
    )


@given(
    USERS, ALIASES, ALIASES, USERS, ALIASES, ALIASES, st.sets(st.sampled_from(NAMES)), DOMAIN_CHANGES, DOMAIN_CHANGES
)
def test_checking_changes_finds_what_checking_all_finds(
    users: Lists,
    aliases: Lists,
    groups: Lists,
    new_users: Lists,
    new_aliases: Lists,
    new_groups: Lists,
    gone: set[str],
    domains: dict[str, bool],
    new_domains: dict[str, bool],
) -> None:
    before = build(users, aliases, groups)
    before.domains |= {name: Domain(subdomains=below) for name, below in domains.items()}
    for place, *_ in list(check(before, before)):  # leave out what is wrong: the base is good
        {"user": before.users, "alias": before.aliases, "group": before.groups}[place.kind].pop(place.name, None)
    removed = {Place("user", n) for n in gone - set(new_users)} | {Place("alias", n) for n in gone - set(new_aliases)}
    removed |= {Place("group", n) for n in gone - set(new_groups)}
    changes = build(new_users, new_aliases, new_groups)
    changes.domains = {name: Domain(subdomains=True) for name, kept in new_domains.items() if kept}
    changes.domains |= {name: Domain() for name in domains if name not in new_domains}
    lost = {name for name, kept in new_domains.items() if not kept and name in before.domains}
    removed |= {Place("domain", name) for name in lost}
    after = build({}, {}, {})
    after.domains = {n: d for n, d in before.domains.items() if n not in lost} | changes.domains
    after.groups = {n: g for n, g in before.groups.items() if Place("group", n) not in removed} | changes.groups
    after.users = {n: u for n, u in before.users.items() if Place("user", n) not in removed} | changes.users
    after.aliases = {n: a for n, a in before.aliases.items() if Place("alias", n) not in removed} | changes.aliases
    whole = bool(list(check(after, after)))
    assert bool(list(check_changes(BaseOf(before), changes, removed))) == whole
