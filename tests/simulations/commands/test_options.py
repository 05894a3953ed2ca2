"""The command line that makes a run anew."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from simulations.command_line import run_command
from simulations.commands import main as cli
from simulations.config import SimulationConfig
from tests.programs import RunProgram

EVERYTHING: dict[str, Any] = {
    "dataset": "a.zip,b.zip",
    "clients": 7,
    "classes_each": 3,
    "images_per_class": 20,
    "partition": "disjoint",
    "architectures": "conv4-64-group,resnet10",
    "image_sizes": "16,20",
    "training": {
        "device": "cpu",
        "threads": 1,
        "architecture": "resnet18-group",
        "image_size": 20,
        "horizontal_flip": False,
        "epochs": 2,
        "crop_padding": 2,
        "initial_weights": "public.safetensors",
    },
    "privacy": {"epsilon": 8.0, "delta": 1e-6, "learning_rate": 2.0, "epsilon_budget": 20.0},
    "server": {
        "device": "cpu",
        "threads": 2,
        "preset": "paper",
        "iterations": 30,
        "architecture": "resnet18",
        "recipe": {"steps": 3},
        "invert": {"together": True, "steps": 4},
        "learn": {"compositions": 5},
        "collect": {"deadline_hours": 0.5},
    },
    "episodes": 50,
    "n_way": 4,
    "n_query": 6,
    "pooled": True,
    "dense": {"trained": True, "temperature": [1.0, 4.0]},
    "engine": "flower",
    "seed": 5,
    "cache": "elsewhere",
}


FROM_A_START: dict[str, Any] = {
    "start": "efficientnet-lite0",
    "public_images": "photos",
    "training": {"image_size": 64, "epochs": 3, "trained": "last"},
    "server": {"iterations": 7},
    "pooled": False,
}


SHORTER_THAN_ITS_PRESETS_WARM_UP: dict[str, Any] = {
    "server": {"preset": "paper", "iterations": 1, "warmup_iterations": 0}
}
"""Settings that a part of themselves would contradict."""


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"training": {"horizontal_flip": True}},
        {"server": {"preset": "large"}},
        EVERYTHING,
        FROM_A_START,
        SHORTER_THAN_ITS_PRESETS_WARM_UP,
    ],
)
def test_a_runs_command_gives_its_configuration_back(
    run_program: RunProgram, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]
) -> None:
    config = SimulationConfig.parse(values, origin="test")
    seen: list[tuple[Path, SimulationConfig]] = []

    def simulate(run: Path, config: SimulationConfig, **others: object) -> None:
        seen.append((run, config))
        raise SystemExit

    monkeypatch.setattr(cli, "simulate", simulate)
    _, *words = shlex.split(run_command(Path("runs/a b"), config))
    run_program("simulations", *words)
    assert seen == [(Path("runs/a b"), config)]


def test_every_setting_is_tried() -> None:
    assert EVERYTHING.keys() | FROM_A_START.keys() == SimulationConfig.model_fields.keys()
