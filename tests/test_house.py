"""The rules of the house that no linter knows. Each test names the file and line that breaks one."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "herder"
PYTHON = sorted(PACKAGE.rglob("*.py"))
NATIVE = sorted(p for p in (ROOT / "native").rglob("*") if p.suffix in {".cpp", ".h"})
TESTS = sorted((ROOT / "tests").rglob("*.py"))
BENCH = sorted((ROOT / "bench").rglob("*.py"))

MAX_LINES = 400
NETWORK = {
    "aiohttp", "ftplib", "http", "httpx", "huggingface_hub", "requests", "smtplib", "socket", "ssl", "urllib3",
    "urllib.request", "xmlrpc",
}  # fmt: skip
OUTBOUND = {"create_connection", "create_datagram_endpoint", "getaddrinfo", "open_connection", "sock_connect"}
HEAVY = {"huggingface_hub", "jinja2", "numpy", "prompt_toolkit", "rich", "tokenizers", "torch"}


def where(path: Path, line: int | None = None) -> str:
    return str(path.relative_to(ROOT)) + (f":{line}" if line else "")


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """(module, line) of every import in the file, those inside functions too."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def only_a_docstring(path: Path) -> bool:
    return len(tree(path).body) <= 1


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


# Files ---------------------------------------------------------------------------------------------------------------
def test_no_file_is_too_long() -> None:
    lengths = {where(p): len(p.read_text(encoding="utf-8").splitlines()) for p in PYTHON + NATIVE + TESTS + BENCH}
    assert not {p: n for p, n in lengths.items() if n > MAX_LINES}


def test_names_say_what_is_in_them() -> None:
    vague = {"common", "helper", "helpers", "misc", "util", "utils"}
    assert not [where(p) for p in PYTHON + NATIVE + TESTS + BENCH if vague & {*p.relative_to(ROOT).parts, p.stem}]


def test_every_module_says_what_it_is_for() -> None:
    assert not [where(p) for p in PYTHON + BENCH if not ast.get_docstring(tree(p))]


def test_architecture_names_every_file() -> None:
    """docs/architecture.md has one line a file. Several files of one folder and one idea may share a line: {a,b}.py."""
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    named = set()
    for path in re.findall(r"`((?:herder|native|bench)/[^`\s]+)`", page):
        if braces := re.fullmatch(r"(.*)\{(.*)\}(.*)", path):
            named |= {braces[1] + part + braces[3] for part in braces[2].split(",")}
        else:
            named.add(path)
    there = {where(p) for p in PYTHON + NATIVE + BENCH if not (p.name == "__init__.py" and only_a_docstring(p))}
    assert sorted(there - named) == [], "files that docs/architecture.md does not name"
    assert sorted(p for p in named if not (ROOT / p).exists()) == [], "named in docs/architecture.md, but not there"


# What code may reach -------------------------------------------------------------------------------------------------
def test_the_environment_is_read_in_one_place() -> None:
    found = []
    for path in PYTHON:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Attribute | ast.Name):
                name = node.attr if isinstance(node, ast.Attribute) else node.id
                if name in {"environ", "environb", "getenv", "putenv", "unsetenv"}:
                    found.append(where(path, node.lineno))
    found += [where(p) for p in NATIVE if "native/src" in where(p) and "getenv" in p.read_text(encoding="utf-8")]
    assert [f for f in found if not f.startswith("herder/core/machine.py")] == []


def test_the_network_is_reached_from_two_places() -> None:
    """For models, and for images of requests where a server's configuration names hosts. By import or by asyncio."""
    found = [
        (where(path, line), module)
        for path in PYTHON
        for module, line in imports(path)
        if NETWORK & {module, module.partition(".")[0]}
    ]
    found += [
        (where(path, node.lineno), node.attr)
        for path in PYTHON
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and node.attr in OUTBOUND
    ]
    places = {"herder/serve/image_fetch.py", "herder/weights/hub.py"}
    listens = "herder/serve/sockets.py"  # and connects to nothing
    assert [one for one in found if one[0].partition(":")[0] not in {*places, listens}] == []
    named = {node.attr for node in ast.walk(tree(ROOT / listens)) if isinstance(node, ast.Attribute)}
    assert "create_server" in named and not named & {*OUTBOUND - {"getaddrinfo"}, "connect", "connect_ex", "sendto"}


def test_a_server_that_fetches_nothing_does_not_load_what_could() -> None:
    """image_fetch is imported behind the configuration only."""
    code = "import sys, herder.serve.app, herder.serve.lifecycle; print('herder.serve.image_fetch' in sys.modules)"
    assert run("-c", code).stdout == "False\n"


def test_only_the_command_line_imports_the_package_itself() -> None:
    """`import herder` from below would slip past import-linter's arrows: the package's own names are the top layer."""
    packages = {p.name for p in PACKAGE.iterdir() if p.is_dir()}
    found = []
    for path in PYTHON:
        for node in ast.walk(tree(path)):
            whole = isinstance(node, ast.Import) and "herder" in {a.name for a in node.names}
            part = (
                isinstance(node, ast.ImportFrom) and node.module == "herder" and {a.name for a in node.names} - packages
            )
            if whole or part:
                found.append(where(path, node.lineno))
    assert [f for f in found if not f.startswith("herder/cli/")] == []


# Import --------------------------------------------------------------------------------------------------------------
def test_import_herder_loads_nothing_heavy() -> None:
    done = run("-c", "import sys, herder; print(*sorted(m for m in sys.modules if '.' not in m))")
    assert done.returncode == 0, done.stderr
    assert not HEAVY & set(done.stdout.split())


def test_importing_every_module_does_no_work() -> None:
    """No output, no logging set-up, no threads, no torch, whatever is imported."""
    modules = [
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for p in PYTHON
        if p.name != "__main__.py"
        and not ("model" in p.parts[len(ROOT.parts) :] or where(p).startswith("herder/runtime/torch"))
    ]
    code = (
        "import importlib, logging, sys, threading\n"
        f"for m in {modules!r}: importlib.import_module(m)\n"
        "assert not logging.getLogger().handlers, 'logging was set up'\n"
        "assert threading.active_count() == 1, 'a thread was started'\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    done = run("-W", "error::DeprecationWarning", "-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# Promises in the documents -------------------------------------------------------------------------------------------
def test_the_commands_of_the_readme_are_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    for document in ("README.md", "CONTRIBUTING.md"):
        used = set(re.findall(r"\bmake ([a-z]+)", "\n".join(code_of(ROOT / document))))
        assert used, f"{document} shows no make command"
        assert used <= targets, document


def test_ci_runs_the_test_command_of_the_readme() -> None:
    assert "make test" in code_of(ROOT / "README.md")[0]
    assert "exec make test\n" in (ROOT / ".ci/run").read_text()


def test_the_readme_lists_the_verbs() -> None:
    done = run("-m", "herder.cli", "--help")
    assert done.returncode == 0, done.stderr
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = set(re.findall(r"^\| `herder ([a-z]+)", readme, re.M))
    verbs = {v for v in re.findall(r"^[│ ]+([a-z]+) {2,}", done.stdout, re.M) if not v.startswith("-")}
    assert verbs == table


def test_python_in_the_readme_is_python() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    assert blocks
    for block in blocks:
        compile(block, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_links_between_the_documents_lead_somewhere() -> None:
    broken = []
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("bench/*.md"), *ROOT.glob("tests/**/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{where(page)}: {target}")
    assert not broken


def code_of(path: Path) -> list[str]:
    """The fenced blocks and inline code of a Markdown page."""
    text = path.read_text(encoding="utf-8")
    return re.findall(r"```[a-z]*\n(.*?)```", text, re.S) + re.findall(r"`([^`\n]+)`", text)


# Versions ------------------------------------------------------------------------------------------------------------
def requirements() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project["dependencies"] + project["optional-dependencies"]["test"]


@pytest.mark.parametrize("requirement", requirements())
def test_the_tested_versions_are_within_the_declared_ranges(requirement: str) -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (ROOT / "constraints/test.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    wanted = Requirement(requirement)
    assert wanted.specifier.contains(pins[canonicalize_name(wanted.name)])


def test_no_dependency_of_the_base_is_torch() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert not [d for d in project["dependencies"] if re.match(r"torch|transformers|accelerate|safetensors", d)]
