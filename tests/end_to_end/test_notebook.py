"""docs/tutorial-python.ipynb: committed as it was run, and it can be run again, from anywhere."""

import ast
import importlib.util
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PATH = ROOT / "docs" / "tutorial-python.ipynb"
PAGE = (ROOT / "docs" / "tutorial.md").read_text()
CELLS = [cell for cell in json.loads(PATH.read_text())["cells"] if cell["cell_type"] == "code"]
SILENT = re.compile(r"\A(import|temporary|start) ?")
"""Cells that only prepare begin like this."""


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def values(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """What the dictionaries say that cells end in, by their keys."""
    found: dict[str, Any] = {}
    for output in (output for cell in cells for output in cell["outputs"]):
        text = "".join(output.get("data", {}).get("text/plain", ""))
        if text.startswith("{"):
            found |= ast.literal_eval(text)
    return found


def assert_learned(said: dict[str, Any]) -> None:
    """Better than the public network alone, and able to tell its classes from others."""
    accuracy = {name: float(said[name].split()[0]) for name in ("meta-learner", "public network alone")}
    assert accuracy["meta-learner"] > accuracy["public network alone"] > 25, "four classes"
    assert said["likeliest class is right"] > 0.9
    assert said["other classes, called none of these"] > 2 * said["own classes, called none of these"]


def test_it_is_committed_as_it_was_run_from_the_top() -> None:
    assert [cell["execution_count"] for cell in CELLS] == list(range(1, len(CELLS) + 1))
    assert all(cell["outputs"] or SILENT.match(source(cell)) for cell in CELLS)
    kinds = [output["output_type"] for cell in CELLS for output in cell["outputs"]]
    assert {*kinds} == {"display_data", "execute_result"}, "neither errors nor warnings"
    assert_learned(values(CELLS))


def test_it_is_small_and_names_no_folder_of_the_machine_it_was_run_on() -> None:
    assert PATH.stat().st_size < 400_000
    text = json.dumps([output for cell in CELLS for output in cell["outputs"]])
    assert not re.search(r"/(?:home|root|tmp|work|Users|usr|opt|var)/|site-packages", text)


def imported() -> Iterator[tuple[str, str]]:
    """Each module that its cells import, with a name from it or nothing."""
    for node in ast.walk(ast.parse("\n".join(map(source, CELLS)))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((str(node.module), alias.name) for alias in node.names)


@pytest.mark.parametrize(("module", "name"), list(imported()))
def test_what_it_imports_exists(module: str, name: str) -> None:
    if module.startswith("matplotlib_inline"):
        pytest.importorskip("matplotlib_inline", reason="ipykernel brings it: pip install '.[docs]'")
    found = importlib.import_module(module)
    assert not name or hasattr(found, name) or importlib.util.find_spec(f"{module}.{name}")


def test_it_draws_the_photos_of_the_tutorial() -> None:
    (drawing,) = [source(cell) for cell in CELLS if "KINDS" in source(cell)]
    for wanted in (r"^KINDS = \{.*?^\}", r"^SIZES = .*?$", r"^def photo.*?^    return image$"):
        found = [re.search(wanted, text, re.M | re.S) for text in (drawing, PAGE)]
        assert found[0] and found[1] and found[0].group() == found[1].group()


@pytest.mark.slow
def test_it_runs_from_top_to_bottom_in_an_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbclient = pytest.importorskip("nbclient", reason="to run it takes nbclient: pip install '.[docs]'")
    pytest.importorskip("ipykernel", reason="to run it takes ipykernel: pip install '.[docs]'")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "proto")]))
    notebook = importlib.import_module("nbformat").read(PATH, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3", resources=resources).execute()
    assert_learned(values([cell for cell in notebook.cells if cell.cell_type == "code"]))
    assert not list(tmp_path.iterdir())
