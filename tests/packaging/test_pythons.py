"""Every Python that is promised compiles all sources, and its standard library has what they import."""

import os
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLASSIFIERS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
VERSIONS = [each.rpartition(" ")[2] for each in CLASSIFIERS if each.startswith("Programming Language")]
CHECK = """
import ast, importlib, sys
from pathlib import Path

sys.dont_write_bytecode = True
for path in sys.stdin.read().splitlines():
    tree = ast.parse(Path(path).read_text(), path)
    compile(tree, path, "exec")
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            wanted = [(alias.name, "__name__") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            wanted = [(node.module, alias.name) for alias in node.names]
        else:
            continue
        for module, name in wanted:
            if module.partition(".")[0] in sys.stdlib_module_names:
                if not hasattr(importlib.import_module(module), name):
                    importlib.import_module(f"{module}.{name}")
"""


def interpreters(version: str) -> Iterator[str]:
    """On the path, where pyenv may have left a stand-in for a Python that is not chosen, and in pyenv."""
    if found := shutil.which(f"python{version}"):
        yield found
    home = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from map(str, sorted(home.glob(f"versions/{version}.*/bin/python{version}")))


def works(interpreter: str) -> bool:
    return subprocess.run([interpreter, "-c", ""], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("version", VERSIONS)
def test_all_sources_compile_and_find_what_they_import_from_the_standard_library(version: str) -> None:
    interpreter = next(filter(works, interpreters(version)), None)
    if interpreter is None:
        pytest.skip(f"there is no Python {version} here")
    folders = ("proto", "server", "client", "simulations", "tests")
    sources = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    finished = subprocess.run(
        [interpreter, "-I", "-W", "error", "-c", CHECK],
        input="\n".join(map(str, sources)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
