"""Each role works with what its extra brings: here every other package of this environment is hidden."""

import os
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"}
FLOWER = ("fedfree.flower_records", "client.doors.flower_app", "client.doors.own_app")
"""Imported by Flower's processes alone."""
HIDE = """
import sys
from importlib.machinery import PathFinder

class WithoutHidden(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in hidden else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutHidden
"""
Brought = Callable[..., frozenset[str]]


def run_hiding(code: str, allowed: frozenset[str]) -> "subprocess.CompletedProcess[str]":
    """Run Python with no installed packages but these."""
    hidden = {
        module
        for module, names in metadata.packages_distributions().items()
        if not {canonicalize_name(name) for name in names} & allowed
    } - {"fedfree", "client", "server", "simulations"}
    program = f"hidden = {hidden!r}\n{HIDE}\n{code}"
    return subprocess.run(
        [sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )


def modules(room: Path) -> list[str]:
    found = (path.relative_to(room.parent).with_suffix("").parts for path in sorted(room.rglob("*.py")))
    return [".".join(part for part in parts if part != "__init__") for parts in found]


@pytest.mark.parametrize(
    ("role", "others"),
    [("client", {"server", "simulations"}), ("server", {"client", "simulations", "opacus"})],
)
def test_every_module_of_a_role_is_imported_with_its_extra_alone_and_loads_no_other_role(
    role: str, others: set[str], brought: Brought
) -> None:
    names = set(modules(ROOT / role)) | set(modules(ROOT / "proto" / "fedfree"))
    loaded = f"import sys; print(*sorted({{m.partition('.')[0] for m in sys.modules}} & {others!r}))"
    finished = run_hiding(f"import {', '.join(sorted(names - set(FLOWER)))}\n{loaded}", brought(role))
    assert (finished.returncode, finished.stdout) == (0, "\n"), finished.stdout + finished.stderr


def test_an_organisation_gets_no_flower_and_a_coordinator_no_opacus(brought: Brought) -> None:
    assert not {"flwr", "ray", "prometheus-client", "matplotlib"} & brought("client")
    assert not {"opacus", "ray", "matplotlib"} & brought("server")


@pytest.mark.parametrize(
    ("package", "program", "extra"),
    [
        ("client", "fedfree-client", "client"),
        ("server", "fedfree-server", "server"),
        ("simulations", "fedfree-sim", "simulation"),
    ],
)
def test_a_program_whose_extra_is_not_installed_names_it_in_one_line(
    package: str, program: str, extra: str
) -> None:
    finished = run_hiding(f"from {package}.__main__ import main; main()", frozenset())
    assert finished.returncode == 2
    (line,) = finished.stderr.splitlines()
    assert line.startswith(f"error: {program} needs fedfree[{extra}], and its package ")
    assert line.endswith(f"pip install 'fedfree[{extra}]'")
