"""A federation whose coordinator names public images: what was shown is said wherever results are read."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from fedfree.errors import ConfigError
from fedfree.settings import merge
from server.storage.run_directory import RunDirectory
from simulations.config import SimulationConfig
from simulations.reporting.summary import public_words, result_lines
from simulations.simulate import simulate

TINY = {
    "clients": 2,
    "classes_each": 3,
    "pooled": False,
    "training": {"epochs": 1, "min_steps": 3, "threads": 1, "device": "cpu"},
    "server": {
        "iterations": 1,
        "threads": 1,
        "device": "cpu",
        "invert": {"models_per_iteration": 2, "images_per_model": 12, "steps": 1, "generator_width": 4},
        "learn": {"compositions": 4, "relational_tasks": 1, "batch_size": 8, "public_images": 2},
    },
    "episodes": 6,
    "n_way": 3,
    "n_query": 2,
}


def config(start: Path, **changes: object) -> SimulationConfig:
    values = TINY | {"start": str(start), "cache": str(start.parent / "cache")}
    return SimulationConfig.parse(merge(values, changes), origin="test")


def test_result_and_report_say_how_many_were_had_and_shown_and_which(
    make_tree: Callable[..., Path], tmp_path: Path, start: Path
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for shade in range(3):
        Image.new("RGB", (20, 30), (shade, 0, 0)).save(photos / f"{shade}.png")
    run = tmp_path / "run"
    settings = config(start, dataset=str(make_tree("tree")), public_images=str(photos))
    result = simulate(run, settings, command="fedfree-sim run")

    kept = RunDirectory(run).public_images()
    assert kept and result["public_images"] == {"images": 3, "shown": 2, "sha256": kept.sha256}
    assert result == json.loads((run / "result.json").read_text())
    words = f"3 public images (2 of them shown), sha256 {kept.sha256[:12]}…, beside recovered images"
    assert public_words(result["public_images"]) == words
    assert f"{words}." in result_lines(result)
    assert f"<dt>Public images</dt><dd>{words}</dd>" in (run / "report.html").read_text()


def test_a_simulation_that_would_show_them_to_nobody_is_refused(start: Path) -> None:
    with pytest.raises(ConfigError, match=r"learn.relational_tasks is 0"):
        config(start, public_images="photos", server={"learn": {"relational_tasks": 0}})
