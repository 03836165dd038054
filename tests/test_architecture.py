"""Who may import whom, and that the folder ``queue/`` never shadows the standard library's ``queue``."""

import ast
import pathlib
import queue
import subprocess
import sys
import sysconfig

import pytest

ROOT = pathlib.Path(__file__).parent.parent

# package or module -> what it may not import. The longest matching prefix of a module's name decides.
FORBIDDEN = {
    "ptt_queue": ("ptt", "gevent", "prometheus_client", "dns", "dkim"),
    "ptt.smtp": (
        "ptt_queue",
        "gevent",
        "socket",
        "ssl",
        "time",
        "os",
        "ptt.net",
        "ptt.dkim",
        "ptt.submission",
        "ptt.relay",
    ),
    "ptt.dkim": (
        "ptt_queue",
        "gevent",
        "socket",
        "ssl",
        "time",
        "os",
        "ptt.net",
        "ptt.smtp",
        "ptt.submission",
        "ptt.relay",
    ),
    "ptt.message": ("gevent", "ptt_queue", "ptt.net", "ptt.smtp"),
    "ptt.config": ("gevent", "ptt_queue", "ptt.net", "ptt.smtp"),
    "ptt.plan": ("gevent", "socket", "ssl"),
    "ptt.net": ("ptt_queue", "ptt.submission", "ptt.relay", "ptt.signer", "ptt.directory", "ptt.service", "ptt.cli"),
    "ptt.dns": ("ptt_queue", "ptt.submission", "ptt.relay", "ptt.directory", "ptt.service", "ptt.cli"),
    "ptt.directory": ("ptt_queue", "ptt.submission", "ptt.relay", "ptt.signer", "ptt.service", "ptt.cli"),
    "ptt.signer": ("ptt_queue", "ptt.submission", "ptt.relay", "ptt.directory", "ptt.cli"),
    "ptt.signer.keyprocess": ("ptt_queue", "gevent", "ptt.submission", "ptt.relay", "ptt.directory", "ptt.cli"),
    "ptt.submission": ("ptt.cli", "ptt.signer", "ptt.relay.delivery"),
    "ptt.relay": ("ptt_queue", "ptt.submission", "ptt.signer", "ptt.directory", "ptt.service", "ptt.cli"),
    "ptt.service": ("ptt.cli",),
}
ONLY_THESE_KNOW_THE_QUEUE = (
    "ptt.spool",
    "ptt.plan",
    "ptt.pipeline",
    "ptt.submission.accept",
    "ptt.submission.quotas",
    "ptt.service",
    "ptt.cli.queue",
    "ptt.cli.queue_access",
    "ptt.cli.check_files",
)


def modules() -> dict[str, pathlib.Path]:
    found = {}
    for base in (ROOT, ROOT / "queue" / "src"):
        for package in ("ptt", "ptt_queue"):
            for path in (base / package).rglob("*.py"):
                parts = path.relative_to(base).with_suffix("").parts
                found[".".join(p for p in parts if p != "__init__")] = path
    return found


def imports(path: pathlib.Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update(f"{node.module}.{a.name}" for a in node.names)
            names.add(node.module)
    return names


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


MODULES = modules()


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_only_what_it_may(module: str) -> None:
    rules = [r for r in FORBIDDEN if within(module, r)]
    forbidden = FORBIDDEN[max(rules, key=len)] if rules else ()
    used = imports(MODULES[module])
    assert not [u for u in used for f in forbidden if within(u, f)]
    if not within(module, "ptt_queue") and any(within(u, "ptt_queue") for u in used):
        assert any(within(module, k) for k in ONLY_THESE_KNOW_THE_QUEUE), f"{module} must not know ptt_queue"


def test_all_packages_were_looked_at() -> None:
    for package in FORBIDDEN:
        assert any(within(m, package) for m in MODULES), f"no module in {package}: a rule that cannot fail"


def test_monkey_patching_happens_only_in_entry_points() -> None:
    patching = {m for m, p in MODULES.items() if "patch_all()" in p.read_text(encoding="utf-8")}
    assert patching <= {"ptt.service.worker", "ptt.service.control", "ptt.dns.server", "ptt.cli.sinkprocess"}
    assert "ptt.service.worker" in patching


def test_no_python_file_in_queue() -> None:
    assert not list((ROOT / "queue").glob("*.py"))
    assert not (ROOT / "queue" / "tests").exists()


def test_queue_is_the_standard_librarys() -> None:
    stdlib = pathlib.Path(sysconfig.get_path("stdlib")).resolve()
    assert pathlib.Path(queue.__file__).resolve().is_relative_to(stdlib)
    code = "import queue, gevent.monkey; gevent.monkey.patch_all(); import gevent.queue; print(queue.__file__)"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert pathlib.Path(out.stdout.strip()).resolve().is_relative_to(stdlib)


def test_sizes() -> None:
    """A module has one subject and a function fits on a screen (400 and 60 lines)."""
    large = []
    for module, path in MODULES.items():
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > 400:
            large.append(f"{module}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= 60:
                large.append(f"{module}.{node.name}")
    assert not large
