"""A dry run: what would happen is read off settings and disk, how long it takes off a rehearsal."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from client.training.fit import course
from client.training.pretrain import pretrain
from fedfree.errors import ConfigError, DataError
from simulations.config import DenseConfig, SimulationConfig
from simulations.federation.prepare import prepare, read_organisations
from simulations.planning.estimate import Estimate, estimate
from simulations.planning.plan import LOOK_SECONDS, Plan, make_plan
from simulations.planning.rehearsal import Pace, rehearse
from simulations.planning.words import dry_run_lines, estimate_lines, plan_lines

MakeTree = Callable[..., Path]
TINY = {
    "clients": 3,
    "classes_each": 3,
    "training": {"image_size": 16, "epochs": 1, "min_steps": 5, "threads": 1, "device": "cpu"},
    "server": {"iterations": 4, "threads": 1, "device": "cpu"},
    "episodes": 6,
    "n_way": 3,
    "n_query": 2,
}
PACE = Pace(
    step={("conv4-32-batch", 16): 2.0},
    invert=3.0,
    ask=0.01,
    distil=0.5,
    embed=0.0,
    episodes={"3way1shot": 0.0, "3way5shot": 0.0},
    wide_episodes={"3way1shot": 0.0, "3way5shot": 0.0},
    model_bytes=1000,
    feature_size=32,
)


@pytest.fixture
def config(make_tree: MakeTree, tmp_path: Path) -> SimulationConfig:
    return tiny(make_tree("images"), tmp_path)


def tiny(source: object, tmp_path: Path, **changes: Any) -> SimulationConfig:
    values = TINY | {"dataset": str(source), "cache": str(tmp_path / "cache")} | changes
    return SimulationConfig.parse(values, origin="test")


def everything_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_a_dry_run_tells_everything_and_writes_nothing(config: SimulationConfig, tmp_path: Path) -> None:
    before = everything_in(tmp_path)
    with torch.random.fork_rng():
        lines = list(dry_run_lines(tmp_path / "run", config))
    assert everything_in(tmp_path) == before
    text = "\n".join(lines)
    for words in (
        "nothing is trained",
        "40 in meta_train, 40 in meta_val, 40 in meta_test",
        "3 organisations of 3 classes and 24 images each train conv4-32-batch at 16 pixels",
        "from random weights",
        "5 steps each: 0 are in the cache already, 3 to be trained",
        "preset default, meta-learner conv4-32-batch",
        "for 4 iterations",
        "6 episodes each of 3-way 1-shot and 3-way 5-shot with 4 baselines",
        "an estimate, right to a factor of about two",
        "of memory and",
    ):
        assert words in text, text


def test_models_that_were_trained_before_are_counted(config: SimulationConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    prepare(run, config)
    first, *_ = read_organisations(run, config)
    pretrain(first)
    plan = make_plan(run, config)
    assert [model.is_cached for model in plan.models] == [True, False, False]
    assert "1 are in the cache already, 2 to be trained" in "\n".join(plan_lines(plan))


def test_what_takes_too_long_to_look_up_is_said(config: SimulationConfig, tmp_path: Path) -> None:
    (config.cache / "models").mkdir(parents=True)
    ticks = itertools.count(step=LOOK_SECONDS * 0.6)
    plan = make_plan(tmp_path / "run", config, clock=lambda: next(ticks))
    assert [model.is_cached for model in plan.models] == [False, None, None]
    assert "0 are in the cache already, 1 to be trained, 2 not looked up" in "\n".join(plan_lines(plan))


def test_data_that_is_not_there_yet_is_neither_made_nor_downloaded(tmp_path: Path) -> None:
    glyphs = make_plan(tmp_path / "run", tiny("glyphs", tmp_path, images_per_class=20))
    assert [data.is_there for data in glyphs.datasets] == [False]
    assert "draw glyphs into" in plan_lines(glyphs)[1]
    assert [model.images for model in glyphs.models] == [60, 60, 60]
    elsewhere = make_plan(tmp_path / "run", tiny("cifar-fs", tmp_path))
    assert "download cifar-fs to" in plan_lines(elsewhere)[1]
    lines = estimate_lines(elsewhere, estimate(elsewhere, PACE), 1.0)
    assert any("not counted" in line for line in lines)
    assert everything_in(tmp_path) == []


def test_what_a_run_would_refuse_is_refused_at_once(config: SimulationConfig, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such data set or path"):
        make_plan(tmp_path / "run", tiny(tmp_path / "nowhere", tmp_path))
    with pytest.raises(DataError, match="9-way episodes need 9 classes"):
        make_plan(tmp_path / "run", config.model_copy(update={"n_way": 9}))
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for run in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / "link"):
        with pytest.raises(ConfigError, match=r"(file|link) is no folder: choose another --out"):
            make_plan(run, config)
    prepare(tmp_path / "run", config)
    with pytest.raises(ConfigError, match="holds another federation"):
        make_plan(tmp_path / "run", config.model_copy(update={"seed": 5}))


def test_a_run_that_was_begun_is_gone_on_with(config: SimulationConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    prepare(run, config)
    assert not any("go on with" in line for line in plan_lines(make_plan(run, config)))
    (run / "error.txt").write_text("too few\n")
    assert "go on with what" in plan_lines(make_plan(run, config))[1]


def test_the_times_of_a_plan_are_its_counts_times_the_pace(config: SimulationConfig, tmp_path: Path) -> None:
    estimated = estimate(make_plan(tmp_path / "run", config), PACE)
    steps = course(24 - 2, config.training).steps
    assert estimated.seconds["train"] == pytest.approx(3 * steps * 2.0)
    asked = 3 * config.server.invert.images_per_model + config.server.learn.compositions
    iteration = 3 * 3.0 + asked * 0.01 + config.server.learn.relational_tasks * 0.5
    assert estimated.seconds["learn"] == pytest.approx(4 * iteration)
    assert (estimated.pooled_seconds, estimated.is_complete) == (0.0, True)


def test_the_reference_on_everybodys_images_is_told_apart(make_tree: MakeTree, tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "run", tiny(make_tree("images"), tmp_path, pooled=True))
    estimated = estimate(plan, PACE)
    assert estimated.pooled_seconds > 0
    assert any("of that" in line for line in estimate_lines(plan, estimated, 1.0))


def test_dense_distillation_is_counted_once_for_each_combination_of_settings(
    config: SimulationConfig, tmp_path: Path
) -> None:
    dense = DenseConfig.parse({"trained": True, "generator_steps": 6, "temperature": "1,4"}, origin="test")
    with_it = config.model_copy(update={"dense": dense})
    plain, more = (estimate(make_plan(tmp_path / "run", each), PACE) for each in (config, with_it))
    step = 3 * PACE.invert / (config.server.invert.steps + 1)
    drawn = 3 * 6 * step
    student = config.server.learn.relational_tasks * PACE.distil
    expected = 2 * config.server.iterations * (drawn + student)
    assert more.seconds["evaluate"] - plain.seconds["evaluate"] == pytest.approx(expected)
    assert "with 5 baselines" in "\n".join(plan_lines(make_plan(tmp_path / "run", with_it)))


def test_private_training_is_not_timed_and_that_is_said(make_tree: MakeTree, tmp_path: Path) -> None:
    values = {"privacy": {"epsilon": 8.0}, "training": {"image_size": 16, "threads": 1, "device": "cpu"}}
    plan = make_plan(tmp_path / "run", tiny(make_tree("images"), tmp_path, **values))
    estimated = estimate(plan, Pace(**(vars(PACE) | {"step": {}})))
    assert not estimated.is_complete
    assert any("differential privacy was not timed" in line for line in estimate_lines(plan, estimated, 1.0))
    assert "ε = 8" in "\n".join(plan_lines(plan))


def test_a_disk_without_room_is_named(config: SimulationConfig, tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "run", config)
    needs = Estimate({"learn": 1.0}, 0.0, True, 2**20, 2**60)
    *_, last = estimate_lines(plan, needs, 1.0)
    assert "free" in last


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_every_preset_can_be_rehearsed(make_tree: MakeTree, tmp_path: Path, preset: str) -> None:
    values = {"server": {"preset": preset, "iterations": 30, "threads": 1, "device": "cpu"}}
    pace = rehearse(make_plan(tmp_path / "run", tiny(make_tree("images"), tmp_path, **values)))
    assert pace.invert > 0 and pace.embed > 0 and all(each > 0 for each in pace.episodes.values())


def test_a_federation_from_a_start_is_rehearsed_with_its_architecture(
    make_tree: MakeTree, tmp_path: Path, start: Path
) -> None:
    values = {
        "start": str(start),
        "training": {"epochs": 1, "min_steps": 5, "threads": 1, "device": "cpu"},
        "server": {"iterations": 2, "threads": 1, "device": "cpu"},
    }
    plan: Plan = make_plan(tmp_path / "run", tiny(make_tree("images"), tmp_path, **values))
    assert plan.config.has_pooled
    pace = rehearse(plan)
    assert list(pace.step) == [("conv4-32-batch", 16)]
    assert estimate(plan, pace).seconds["train"] > 0
