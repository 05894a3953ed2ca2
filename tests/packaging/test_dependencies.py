"""Every import held against what pyproject.toml declares, role by role and in both directions."""

import ast
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
ROOMS = {
    "fedfree": ROOT / "proto" / "fedfree",
    "server": ROOT / "server",
    "client": ROOT / "client",
    "simulations": ROOT / "simulations",
    "tests": ROOT / "tests",
}
EXTRA_OF = {
    "fedfree": "",
    "server": "server",
    "client": "client",
    "simulations": "simulation",
    "tests": "dev",
}
OPTIONAL = {
    "fedfree/flower_records.py": "flower",
    "client/doors/flower_app.py": "flower",
    "client/doors/own_app.py": "flower",
    "client/adapting/export.py": "onnx",
    "client/training/low_rank.py": "adapters",
    "fedfree/host/public_weights.py": "lite0",
    "tests/properties/guided.py": "fuzz",
}
"""Files that need more than their room: what imports them works without, or says what to install."""
NEVER_IMPORTED = {
    "grpcio-tools": "`make proto` and the test of generated code run it",
    "mypy": "`make check` runs it",
    "onnx": "torch.onnx.export writes with it",
    "onnxscript": "torch.onnx.export translates with it",
    "pytest-cov": "`make coverage` runs it",
    "pytest-timeout": "ends a test that hangs",
    "pytest-xdist": "`make test` deals the tests out with it",
    "ruff": "`make check` runs it",
    "types-protobuf": "mypy reads it",
}
DISTRIBUTIONS = metadata.packages_distributions()
Declared = Callable[[str], list[Requirement]]


def imports_of(path: Path) -> Iterator[str]:
    """Top-level names that a file imports, wherever in the file, less the standard library's and ours."""
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [str(node.module)]
        for top in {name.partition(".")[0] for name in names}:
            if top not in sys.stdlib_module_names and top not in ROOMS:
                yield top


def names(requirements: list[Requirement]) -> set[str]:
    return {canonicalize_name(each.name) for each in requirements}


@cache
def imported(room: str) -> dict[str, set[str]]:
    """Each third-party module that a room imports, to the files that do."""
    found: dict[str, set[str]] = {}
    for path in ROOMS[room].rglob("*.py"):
        for module in imports_of(path):
            found.setdefault(module, set()).add(f"{room}/{path.relative_to(ROOMS[room])}")
    return found


def distributions_of(module: str) -> set[str]:
    return {canonicalize_name(name) for name in DISTRIBUTIONS.get(module, [module])}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_nothing_that_its_role_does_not_declare(room: str, declared: Declared) -> None:
    role = names(declared("")) | names(declared(EXTRA_OF[room]))
    for module, files in imported(room).items():
        for file in files:
            allowed = role | (names(declared(OPTIONAL[file])) if file in OPTIONAL else set())
            assert distributions_of(module) & allowed, (
                f"{file} imports {module}: declare it in pyproject.toml, extra {EXTRA_OF[room] or 'none'}"
            )


@pytest.mark.parametrize(
    ("extra", "rooms"),
    [
        ("", ("fedfree",)),
        ("server", ("server", "fedfree")),
        ("client", ("client",)),
        ("flower", ("client", "server")),
        ("adapters", ("client",)),
        ("onnx", ("client",)),
        ("lite0", ("fedfree",)),
        ("simulation", ("server", "client", "simulations", "fedfree")),
        ("dev", tuple(ROOMS)),
    ],
)
def test_everything_that_a_role_declares_is_imported_there(
    extra: str, rooms: tuple[str, ...], declared: Declared
) -> None:
    used = {name for room in rooms for module in imported(room) for name in distributions_of(module)}
    unused = names(declared(extra)) - used - set(NEVER_IMPORTED)
    assert not unused, f"{extra or 'dependencies'} declares {unused}, which {rooms} never import"


def test_what_is_excused_from_being_imported_is_declared_and_indeed_never_imported(
    declared: Declared,
) -> None:
    used = {name for room in ROOMS for module in imported(room) for name in distributions_of(module)}
    assert NEVER_IMPORTED.keys() <= names(declared("dev")) - used


@pytest.mark.parametrize("extra", ["dev", "docs", "audit"])
def test_every_package_that_is_brought_is_pinned(
    extra: str, brought: Callable[..., frozenset[str]], declared: Declared
) -> None:
    installed = {canonicalize_name(each.name) for each in metadata.distributions()}
    if missing := names(declared(extra)) - installed:
        pytest.skip(f"what {extra} brings is known where it is installed, and {missing} is not")
    lines = (ROOT / "constraints.txt").read_text().split()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), "names and versions only"
    pinned = {canonicalize_name(line.partition("==")[0]) for line in lines}
    unpinned = brought(extra) - pinned - {"pip", "setuptools"}  # which come with Python, or first
    assert not unpinned, f"constraints.txt lacks {unpinned}"
