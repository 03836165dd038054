"""The pages say what is there: links lead somewhere, and the events of the log are those of the code."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/*.md"), *ROOT.glob("queue/*.md")]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`]+)`")
LEVELS = ("event", "debug", "warning", "error", "exception")  # methods of ptt.log.Log
SET_BY_LOG = {"level", "error", "traceback"}  # not given by the caller


def anchors(page: pathlib.Path) -> set[str]:
    """The anchors of a page's headings, as web pages name them."""
    headings = re.findall(r"(?m)^#+ (.+)$", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: pathlib.Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        found = (page.parent / file).resolve() if file else page
        assert found.exists(), f"{target}: no such file"
        assert not anchor or anchor in anchors(found), f"{target}: no such heading"


def test_every_page_can_be_found_from_the_readme() -> None:
    reached = {ROOT / "README.md"}
    todo = list(reached)
    while todo:
        page = todo.pop()
        for target in LINK.findall(page.read_text(encoding="utf-8")):
            found = (page.parent / target.partition("#")[0]).resolve()
            if found.suffix == ".md" and found.exists() and found not in reached:
                reached.add(found)
                todo.append(found)
    assert not [str(page) for page in ROOT.glob("docs/*.md") if page.resolve() not in reached]


def logged(tree: ast.AST) -> list[tuple[str, set[str]]]:
    """(event, names of its fields) of each call of a log in a module whose event is written out."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr not in LEVELS:
            continue
        owner = node.func.value
        name = owner.attr if isinstance(owner, ast.Attribute) else owner.id if isinstance(owner, ast.Name) else ""
        if name in ("log", "_log") and node.args and isinstance(node.args[0], ast.Constant):
            found.append((str(node.args[0].value), {k.arg for k in node.keywords if k.arg} - SET_BY_LOG - {"id"}))
    return found


def documented() -> dict[str, set[str]]:
    """Event -> names of its fields, of the tables in docs/logs.md."""
    found = {}
    for line in (ROOT / "docs/logs.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            _, events, _level, fields, *_ = line.split("|")
            found.update({event: set(CODE.findall(fields)) for event in CODE.findall(events)})
    return found


def test_events_of_the_log() -> None:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "ptt").rglob("*.py")]
    calls = [call for tree in trees for call in logged(tree)]
    table = documented()
    assert len(calls) > 50  # the search finds them
    for event, fields in calls:
        assert event in table, f"docs/logs.md lacks the event {event!r}"
        assert fields <= table[event], f"docs/logs.md lacks fields of {event!r}: {fields - table[event]}"
    texts = {node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert not set(table) - texts, "docs/logs.md names events that nobody logs"
