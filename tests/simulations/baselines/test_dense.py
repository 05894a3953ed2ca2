"""DENSE-style distillation: the ensemble as it is stated, a generator and a student that learn from it."""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedfree.adaptation import Recipe
from fedfree.architectures import Architecture, InputSpec, build
from fedfree.codec import Contribution, MetaLearner, Provenance, decode_contribution, encode_weights
from fedfree.errors import ConfigError
from fedfree.start import LoadedStart
from fedfree.statement import PrivacyStatement
from server.config import ServerConfig
from server.events import Event
from server.learning.invert import kl_divergence
from simulations.baselines import table
from simulations.baselines.dense import (
    Choice,
    Ensemble,
    Training,
    batches,
    begin_training,
    choices,
    disagreement,
    student_steps,
)
from simulations.baselines.table import Available, dense
from simulations.config import DenseConfig, SimulationConfig
from simulations.federation.in_memory import pool_in_memory
from simulations.reporting.summary import printed
from simulations.simulate import simulate

INPUT = InputSpec(channels=1, height=16, width=16)
SERVER = ServerConfig.parse(
    {
        "device": "cpu",
        "threads": 1,
        "precision": "float32",
        "iterations": 5,
        "invert": {"models_per_iteration": 2, "images_per_model": 24, "generator_width": 4},
        "learn": {"relational_tasks": 6, "batch_size": 24, "compositions": 0},
    },
    origin="test",
)
SETTINGS = DenseConfig(trained=True, generator_steps=4, adversarial_weight=0.5)
CHOICE = Choice(batch_norm_weight=0.05, temperature=1.0, learning_rate=2e-3)


def model(seed: int, *, classes: int = 3, louder: float = 1.0) -> Contribution:
    """A network for which random images fall into all classes, or says the same with larger numbers."""
    torch.manual_seed(seed)
    network = build(Architecture(), num_classes=classes, input=INPUT)
    images, head = INPUT.normalise(torch.rand(100, 1, 16, 16)), network.head
    with torch.no_grad():
        head.weight *= louder / network(images).std(0).mean()  # type: ignore[operator]
        head.bias -= network(images).mean(0)  # type: ignore[operator]
    return Contribution(Architecture(), classes, INPUT, PrivacyStatement(), encode_weights(network))


def training(*models: Contribution, seed: int = 0, starts: Sequence[LoadedStart] = ()) -> Training:
    server = SERVER.model_copy(update={"seed": seed, "preset": "start" if starts else "default"})
    pool = pool_in_memory({str(place): each for place, each in enumerate(models)}, starts, server)
    return begin_training(pool, server, SETTINGS, CHOICE)


def held_out(trained: Training, count: int = 8) -> Tensor:
    """Images of latents that nothing was learned from."""
    stream = torch.Generator().manual_seed(99)
    latents = torch.randn(24 * count, trained.generator.latent_size, generator=stream)
    with torch.no_grad():
        return torch.cat([trained.generator(part) for part in latents.split(24)])


@torch.no_grad()
def agreement(trained: Training, images: Tensor) -> float:
    said, answered = trained.ensemble.logits(images), trained.answer(images)
    return float((said.argmax(1) == answered.argmax(1)).float().mean())


def test_the_ensembles_logits_are_each_models_own_centred_at_one_scale_and_side_by_side() -> None:
    ensemble = training(model(0), model(1, classes=4)).ensemble
    images = torch.rand(20, 1, 16, 16)
    logits = ensemble.logits(images)
    assert logits.shape == (20, 7) and ensemble.counts == [each.num_classes for each in ensemble.members]
    blocks = logits.split(ensemble.counts, dim=1)
    for member, factor, block in zip(ensemble.members, ensemble.factors, blocks, strict=True):
        own = member.network(INPUT.normalise(images))
        torch.testing.assert_close(block, factor * (own - own.mean(1, keepdim=True)))


def test_a_model_of_louder_logits_counts_no_more_than_another() -> None:
    images = torch.rand(50, 1, 16, 16)
    quiet, loud = training(model(0), model(1)), training(model(0), model(1, louder=10.0))
    for each in (quiet, loud):
        ensemble = Ensemble.calibrated(each.ensemble.members, images)
        scales = [block.square().mean() for block in ensemble.logits(images).split(3, dim=1)]
        torch.testing.assert_close(scales[0], scales[1])


def test_the_disagreement_is_the_divergence_where_two_name_different_classes() -> None:
    ours, theirs = torch.randn(2, 30, 5, generator=torch.Generator().manual_seed(0))
    apart = ours.argmax(1) != theirs.argmax(1)
    assert 0 < apart.sum() < 30
    expected = kl_divergence(ours, theirs)[apart].sum() / 30
    torch.testing.assert_close(disagreement(ours, theirs), expected)
    assert disagreement(ours, 3 * ours) == 0


def test_the_generator_looks_for_images_on_which_the_student_errs() -> None:
    trained = training(model(0), model(1))
    latents, labels = trained.draw()
    without = replace(trained, settings=SETTINGS.model_copy(update={"adversarial_weight": 0.0}))
    losses = []
    for each in (trained, without):
        each.rng.manual_seed(5)
        losses.append(each.generator_loss(latents, labels))
    assert losses[0] < losses[1]


def test_the_generators_loss_falls() -> None:
    trained = training(model(0), model(1))
    losses = [trained.synthesise() for _ in range(16)]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert len(trained.corpus) == 16 * 24


def test_the_student_agrees_with_the_ensemble_on_images_that_it_never_saw_more_than_at_its_start() -> None:
    trained = training(model(0), model(1))
    begun = copy.deepcopy(trained.student)
    trained.run()
    images = held_out(trained)
    assert agreement(trained, images) > agreement(replace(trained, student=begun), images) + 0.2
    assert len(trained.corpus) == 5 * 2 * 24


def test_the_seed_decides_everything() -> None:
    first, again, other = (training(model(0), model(1), seed=seed) for seed in (0, 0, 1))
    for each in (first, again, other):
        each.run()
    states = [list(each.student.state_dict().values()) for each in (first, again, other)]
    assert all(torch.equal(*pair) for pair in zip(states[0], states[1], strict=True))
    assert not torch.equal(states[0][0], states[2][0])


def test_the_student_takes_as_many_steps_of_as_many_images_as_the_meta_learner() -> None:
    assert (student_steps(SERVER, 5), batches(SERVER, 5), batches(SERVER, 1)) == (6, 2, 1)
    paper = ServerConfig.parse({"preset": "paper"}, origin="test")
    assert student_steps(paper, 24) == paper.invert.models_per_iteration + paper.learn.replay_episodes


def test_from_a_start_the_student_begins_as_the_models_average_with_their_heads_and_keeps_the_statistics(
    make_start: Callable[..., LoadedStart],
    contribute_from: Callable[..., tuple[bytes, bytes]],
) -> None:
    start = make_start()
    trained = training(decode_contribution(*contribute_from(start, 0)), starts=[start])
    images = torch.rand(12, 1, 16, 16)
    torch.testing.assert_close(trained.answer(images), trained.ensemble.logits(images), rtol=1e-4, atol=1e-4)
    trained.run()
    statistics = {name: each for name, each in trained.student.named_buffers() if "running" in name}
    assert statistics and all(torch.equal(each, start.body[name]) for name, each in statistics.items())


def test_every_combination_of_what_is_listed_is_tried() -> None:
    settings = DenseConfig.parse({"temperature": "1,4", "batch_norm_weight": [0, 1]}, origin="test")
    rate = SERVER.learn.inner_learning_rate
    expected = [Choice(weight, temperature, rate) for weight in (0, 1) for temperature in (1, 4)]
    assert choices(settings, SERVER) == expected
    with pytest.raises(ConfigError, match="temperature"):
        DenseConfig.parse({"temperature": ""}, origin="test")


def test_of_several_students_the_best_on_meta_val_is_compared_and_all_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = [Choice(1.0, temperature, 1e-3) for temperature in (1.0, 2.0, 4.0)]
    students = [(each, str(each.temperature), INPUT) for each in tried]
    monkeypatch.setattr(table, "train_students", lambda *_: iter(students))
    monkeypatch.setattr(Available, "measure", lambda _, network, input: network)
    monkeypatch.setattr(table, "on_validation", lambda _: {"1.0": 0.4, "2.0": 0.5, "4.0": 0.45}.get)
    told: list[Event] = []
    config = SimulationConfig(dense=DenseConfig(trained=True))
    learned = MetaLearner(Architecture(), 3, INPUT, Recipe(), Provenance((), "", 0, ""), b"")
    assert dense(Available(config, learned, (), (), on_event=told.append)) == "2.0"
    assert [(each.kind, each.values["on_meta_val"]) for each in told] == [
        ("tuned", 40.0),
        ("tuned", 50.0),
        ("tuned", 45.0),
    ]
    plain = Available(SimulationConfig(), learned, (), ())
    assert dense(plain) is None


def test_its_row_stands_in_the_table_and_in_the_record_where_it_was_asked_for(
    make_tree: Callable[..., Path], tmp_path: Path
) -> None:
    small = {"models_per_iteration": 2, "images_per_model": 12, "generator_width": 4}
    values = {
        "dataset": str(make_tree("tree")),
        "cache": str(tmp_path / "cache"),
        "clients": 2,
        "classes_each": 3,
        "training": {"image_size": 16, "epochs": 1, "min_steps": 5, "threads": 1, "device": "cpu"},
        "server": {"iterations": 1, "threads": 1, "device": "cpu", "invert": small},
        "dense": {"trained": True, "generator_steps": 2, "temperature": [1, 4]},
        "episodes": 6,
        "n_way": 3,
        "n_query": 2,
    }
    run = tmp_path / "run"
    result = simulate(run, SimulationConfig.parse(values, origin="test"), command="fedfree-sim run")
    record = json.loads((run / "result.json").read_text())
    assert record["baselines"]["dense"].keys() == record["few_shot"].keys()
    assert "Zhang" in record["baseline_notes"]["dense"]
    assert [each["temperature"] for each in record["tuned"]] == [1, 4]
    assert "DENSE-style" in printed(result) and "DENSE-style" in (run / "report.html").read_text()
