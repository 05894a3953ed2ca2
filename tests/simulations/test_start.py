"""Federations that begin from a public start."""

import json
from collections.abc import Callable
from pathlib import Path

from fedfree.host.starts import load_start
from fedfree.settings import merge
from server.storage.run_directory import RunDirectory
from server.storage.store import ACCEPTED
from simulations.config import SimulationConfig
from simulations.reporting.summary import result_lines
from simulations.simulate import simulate

MakeTree = Callable[..., Path]
TINY = {
    "clients": 4,
    "classes_each": 3,
    "partition": "overlapping",
    "training": {"epochs": 1, "min_steps": 3, "threads": 1, "device": "cpu"},
    "server": {
        "iterations": 1,
        "threads": 1,
        "device": "cpu",
        "invert": {"models_per_iteration": 2, "images_per_model": 12, "steps": 1, "generator_width": 4},
        "learn": {"compositions": 4, "relational_tasks": 1, "batch_size": 8},
    },
    "episodes": 6,
    "n_way": 3,
    "n_query": 2,
}


def tiny(start: Path, **changes: object) -> SimulationConfig:
    values = TINY | {"start": str(start), "cache": str(start.parent / "cache")}
    return SimulationConfig.parse(merge(values, changes), origin="test")


def test_a_federation_of_grey_and_coloured_images_from_one_start_is_compared_with_everything(
    make_tree: MakeTree, tmp_path: Path, start: Path
) -> None:
    grey, coloured = make_tree("grey"), make_tree("coloured", side=20, colour=True)
    run = tmp_path / "run"
    result = simulate(run, tiny(start, dataset=f"{grey},{coloured}"), command="fedfree-sim run")

    store = RunDirectory(run).store()
    models = [store.describe(identity) for identity in store.ids(ACCEPTED)]
    loaded = load_start(start)
    assert {each.start for each in models} == {loaded.start.sha256} and len(models) == 4
    assert {(each.input.channels, each.input.height) for each in models} == {(3, 16)}

    assert result == json.loads((run / "result.json").read_text())
    for part in (result, *result["domains"].values()):
        assert list(part["baselines"]) == [
            "public_start",
            "parameter_average",
            "best_single_model",
            "pool_concatenation",
            "pooled_data",
        ]
    assert result["start"]["sha256"] == loaded.start.sha256
    assert "conv4-32-batch at 16 pixels" in "\n".join(result_lines(result))
    page = (run / "report.html").read_text()
    assert "public start, frozen" in page and loaded.start.source in page
    assert len(list((tmp_path / "cache" / "pooled").iterdir())) == 2
