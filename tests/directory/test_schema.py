"""One file of the database: what is in it, and every mistake with its line."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptt.directory import names
from ptt.directory.records import Alias, Domain, User
from ptt.directory.schema import (
    MAX_FILE_BYTES,
    MAX_OF_FILE,
    Mistake,
    Place,
    dump,
    parse,
    path_of,
    place_of,
)
from ptt.directory.values import argon2_mistake, scram_mistake

SCRAM = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$" + ":".join(["WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY="] * 2)


def mistakes(path: str, data: bytes) -> list[tuple[int, str]]:
    found = parse(path, data)
    assert isinstance(found, list)
    assert all(m.path == path for m in found)
    return [(m.line, m.text) for m in found]


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("domains/a.example.toml", Place("domain", "a.example")),
        ("users/a.example/anna.b.toml", Place("user", "anna.b@a.example")),
        ("users/a.example/jürgen.toml", Place("user", "jürgen@a.example")),
        ("aliases/xn--bcher-kva.example/all+x.toml", Place("alias", "all+x@xn--bcher-kva.example")),
    ],
)
def test_path_and_place_are_inverse(path: str, place: Place) -> None:
    assert place_of(path) == place
    assert path_of(place) == path


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("notes.txt", "does not belong here"),
        ("lists/x.toml", "does not belong here"),
        ("domains", "does not belong here"),
        ("domains/a/b.toml", "must be domains/DOMAIN.toml"),
        ("users/anna.toml", "must be users/DOMAIN/NAME.toml"),
        ("users/a.example/x/anna.toml", "must be users/DOMAIN/NAME.toml"),
        ("users/a.example/anna.json", "must be users/DOMAIN/NAME.toml"),
        ("domains/A.example.toml", "must be in lower case"),
        ("domains/bücher.example.toml", "ASCII form"),
        ("domains/-a.example.toml", "is not a domain"),
        ("domains/..toml", "is not a domain"),
        ("domains/" + "a." * 130 + "b.toml", "longer than 253"),
        ("users/a.example/Anna.toml", "must be in lower case"),
        ("users/a.example/anna+x.toml", "may not contain +"),
        ("users/a.example/.x.toml", "a dot at an end"),
        ("users/a.example/a..b.toml", "two dots"),
        ("users/a.example/a b.toml", "needs quoting"),
        ("users/a.example/a*b.toml", "may not contain *"),
        ("users/a.example/u\u0308.toml", "normalisation form C"),
        ("users/a.example/a\u2028b.toml", "control character or a space"),
        ("users/a.example/" + "x" * 65 + ".toml", "longer than 64"),
        ("users/a.example/" + "ü" * 33 + ".toml", "longer than 64"),
    ],
)
def test_bad_paths(path: str, reason: str) -> None:
    found = place_of(path)
    assert isinstance(found, Mistake)
    assert reason in found.text


def test_longest_local_part_is_accepted() -> None:
    assert isinstance(place_of("users/a.example/" + "x" * 64 + ".toml"), Place)


U = "users/a.example/u.toml"
D = "domains/a.example.toml"
A = "aliases/a.example/n.toml"


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        (D, "sign = 1\n", [(1, "sign: Expected `bool`, got `int`")]),
        (D, "# x\n\nsign = true\nsing = false\n", [(4, "unknown key 'sing'")]),
        (D, 'postmaster = "nobody"\n', [(1, "postmaster: 'nobody' is not an address")]),
        (D, "sign = \n", [(1, "is not TOML")]),
        (D, "a = 1\nb = 2\nb = 3\n", [(3, "is not TOML")]),
        (D, "[sign]\nx = 1\n", [(1, "sign: Expected `bool`, got `object`")]),
        (U, 'password = "secret"\n', [(1, "password: is not an argon2id hash")]),
        (U, '\nscram = "SCRAM-SHA-256$1"\n', [(2, "scram: is not of the form")]),
        (
            U,
            'disabled = "yes"\naddresses = [1]\n',
            [(1, "disabled: Expected `bool`"), (2, "addresses: Expected `str`")],
        ),
        (U, 'addresses = [\n "ok@a.example",\n "bad",\n]\n', [(3, "addresses: 'bad' is not an address")]),
        (U, 'addresses = ["*@"]\n', [(1, "addresses: '' is not a domain")]),
        (U, 'addresses = [\n "x@a.example",\n "x@a.example" ]\n', [(2, "is named twice")]),
        (U, 'addresses = ["X@a.example"]', [(1, "must be in lower case")]),
        (A, "", [(1, "targets: is missing")]),
        (A, "targets = []\n", [(1, "targets: must name at least one")]),
        (A, 'targets = ["a@b@c"]\n', [(1, "needs quoting")]),
        (A, 'targets = ["a@b.example"]\nx = ' + "[" * 5000, [(1, "is nested too deeply")]),
        (A, "targets = " + "9" * 5000, [(1, "is not TOML")]),
        (A, "targets = [" + ",".join(f'"u{n}@a.example"' for n in range(1001)) + "]", [(1, "targets: more than 1000")]),
    ],
)
def test_mistakes_name_the_line(path: str, text: str, expected: list[tuple[int, str]]) -> None:
    found = mistakes(path, text.encode())
    assert len(found) == len(expected)
    for (line, reason), (expected_line, part) in zip(found, expected, strict=True):
        assert line == expected_line
        assert part in reason


def test_not_utf8_names_the_line() -> None:
    assert mistakes(D, b"sign = true\n# caf\xe9\n") == [(2, "is not UTF-8")]


def test_a_file_of_the_largest_size() -> None:
    assert not isinstance(parse(D, b"#" * MAX_FILE_BYTES), list)
    assert "is larger than" in mistakes(D, b"#" * (MAX_FILE_BYTES + 1))[0][1]


def test_secrets_are_never_quoted() -> None:
    text = 'password = "hunter2-of-anna"\nscram = "hunter2-too"\n'
    assert "hunter2" not in str(mistakes(U, text.encode()))


@pytest.mark.parametrize(
    "text",
    [
        "$argon2i$v=19$m=8,t=1,p=1$RXI5SUpybXdxR0lYM1M3ag$8HvBTbYf1QtK6FSCYIuNkWeqQCYwHVVyPJ0gA5xZMcg",
        "$argon2id$v=16$m=8,t=1,p=1$RXI5SUpybXdxR0lYM1M3ag$8HvBTbYf1QtK6FSCYIuNkWeqQCYwHVVyPJ0gA5xZMcg",
        "$argon2id$v=19$m=262145,t=1,p=1$RXI5SUpybXdxR0lYM1M3ag$8HvBTbYf1QtK6FSCYIuNkWeqQCYwHVVyPJ0gA5xZMcg",
        "$argon2id$v=19$m=8,t=11,p=1$RXI5SUpybXdxR0lYM1M3ag$8HvBTbYf1QtK6FSCYIuNkWeqQCYwHVVyPJ0gA5xZMcg",
        "$argon2id$v=19$m=15,t=1,p=2$RXI5SUpybXdxR0lYM1M3ag$8HvBTbYf1QtK6FSCYIuNkWeqQCYwHVVyPJ0gA5xZMcg",
        "$argon2id$v=19$m=8,t=1,p=1$RXI5SUpybXdxR0lYM1M3ag$8HvBTbYf1QtK6FSCYIuNkWeqQCYwHVVyPJ0gA5xZMcg\n",
    ],
)
def test_argon2_hashes_that_are_refused(text: str) -> None:
    assert argon2_mistake(text)


def test_verifiers_that_are_accepted(fast_hash: str) -> None:
    assert argon2_mistake(fast_hash) == ""
    assert scram_mistake(SCRAM) == ""


@pytest.mark.parametrize(
    "text", [SCRAM.replace("4096", "4095"), SCRAM.replace("W22Z", "W2Z"), SCRAM[:-5] + "=", "SCRAM-SHA-1" + SCRAM[13:]]
)
def test_scram_verifiers_that_are_refused(text: str) -> None:
    assert scram_mistake(text)


@pytest.mark.parametrize(
    ("path", "record"),
    [
        (D, Domain()),
        (D, Domain(False, True, "x@a.example")),
        (U, User("", SCRAM, True, ("*@a.example", 'q"x@a.example'.replace('"', "'")))),
        (A, Alias(("a@b.example", "Jürgen@b.example"))),
    ],
)
def test_what_is_written_is_read_back(path: str, record: Domain | User | Alias) -> None:
    assert parse(path, dump(record)) == (place_of(path), record)


@given(st.sampled_from([D, U, A]), st.binary(max_size=200))
def test_no_exception_leaves_the_parser(path: str, data: bytes) -> None:
    parse(path, data)


@given(st.text(max_size=80))
def test_no_exception_leaves_names(text: str) -> None:
    folded = names.fold(text)
    assert names.fold(folded) == folded or not text.isascii()
    names.without_detail(text)
    place_of(text)


@given(st.text(max_size=80).map(lambda t: "users/a.example/" + t + ".toml"))
def test_a_place_leads_back_to_its_path(path: str) -> None:
    place = place_of(path)
    if isinstance(place, Place):
        assert path_of(place) == path
        assert names.fold(place.name) == place.name


@pytest.mark.parametrize(
    "data",
    [
        b"a." * 32_000 + b"a = 1",
        b"[" + b"a ." * 21_000 + b"a]",
        b'"a".' * 16_000 + b"a = 1",
        b"a = {" + b"'a'." * 16_000 + b"a = 1}",
        b'x = {a = """\n""", ' + b"b." * 30_000 + b'b = ""}',
        b"\n".join(b"k%d=1" % n for n in range(7_000)),
        b"addresses = [" + b'"",' * 999 + b"]",
    ],
)
def test_no_file_takes_long(data: bytes) -> None:
    """Each of these took up to 17 s, at which the control process answers no login in time."""
    began = time.process_time()
    found = parse("users/a.example/x.toml", data)
    assert isinstance(found, list)
    assert len(found) <= MAX_OF_FILE
    assert "larger" not in found[0].text
    assert time.process_time() - began < 0.25


def test_dots_in_strings_are_no_depth() -> None:
    line = ", ".join(f'"u{n}@mail.dept.a.example"' for n in range(60))
    found = parse("users/a.example/x.toml", f"addresses = [{line}]\n".encode())
    assert isinstance(found, tuple)
    escaped = parse("users/a.example/x.toml", b'password = "\\"' + b"." * 200 + b'"\n')
    assert isinstance(escaped, list)
    assert "argon2id" in escaped[0].text  # read as one string, and then no verifier
