"""Whether the sequential path aligns the tasks' gradients (FREE, Figure 5), and the accuracy that it buys.

Two ways to learn from the same models with the same number of gradients: one path through the tasks of
an iteration, one after the other; or every task from the same point, their steps added up. The cosine
between the tasks' gradients where an iteration starts is measured for both.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from fedfree.adaptation import Recipe
from fedfree.architectures import Classifier
from fedfree.episodes import Accuracy, mean_and_ci95
from fedfree.errors import ConfigError
from fedfree.host.compute import use_cpu
from server.config import ServerConfig
from server.learning.meta_learn import DistillationTask, recovered_tasks, task_loss
from server.learning.moves import invert, meta_learn
from server.learning.state import State, begin
from server.pipeline import open_pool
from server.storage.store import Store
from simulations.benchmarks.pools import make_pool
from simulations.benchmarks.validation import few_shot, load_validation
from simulations.config import SimulationConfig
from simulations.federation.prepare import server_config
from simulations.reporting.plots import OTHER, OURS, new_figure, tidy
from simulations.reporting.record import ACCURACY, Cell, Column, Row, Table
from simulations.reporting.scores import task_label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEQUENTIAL, PARALLEL = "one after the other", "all from the same point"
SMOOTHING = 10
"""Iterations over which the plotted cosines are averaged."""


@dataclass(frozen=True)
class Alignment:
    """One way of learning from one pool, measured."""

    path: str
    seed: int
    cosines: tuple[float, ...]
    """For each iteration, the mean cosine between the gradients of two of its tasks."""
    episodes: dict[str, Tensor]
    """Fractions [episodes] on meta_val after the last iteration, by name of the episodes."""

    def accuracy(self, name: str) -> Accuracy:
        """Mean and interval over the episodes."""
        return mean_and_ci95(self.episodes[name])


def measure(out: Path, config: SimulationConfig) -> list[Alignment]:
    """Learn both ways from one pool with one seed; nothing of meta_test is touched."""
    if config.server.iterations < 2:
        raise ConfigError("alignment compares two halves of learning: use at least 2 iterations")
    use_cpu(config.server.threads)
    store = make_pool(out, config).store
    tasks = min(config.clients, server_config(config).invert.models_per_iteration)
    return [
        _learn(store, config, _own_tasks(config, paths=paths), name)
        for name, paths in ((SEQUENTIAL, 1), (PARALLEL, tasks))
    ]


def _own_tasks(config: SimulationConfig, *, paths: int) -> ServerConfig:
    """One task a model, taught by that model alone; ends of several paths are added, not averaged."""
    server = server_config(config)
    changes = {"own_tasks": True, "relational_tasks": 0, "replay_episodes": 0}
    learn = server.learn.model_copy(update=changes | {"paths": paths, "outer_rate": float(paths)})
    return server.model_copy(update={"learn": learn, "recipe": Recipe()})


def _learn(store: Store, config: SimulationConfig, server: ServerConfig, path: str) -> Alignment:
    state, cosines = begin(open_pool(store, server), server), []
    rng = torch.Generator().manual_seed(config.seed)
    for iteration in range(server.iterations):
        recovered = invert(state, iteration)
        tasks = recovered_tasks(recovered, rng=rng)
        cosines.append(gradient_cosine(state, tasks))
        meta_learn(state, recovered, iteration)
    return Alignment(path, config.seed, tuple(cosines), _accuracies(state, config))


def gradient_cosine(state: State, tasks: Sequence[DistillationTask]) -> float:
    """Mean cosine between the gradients of two tasks, in the parameters before the head."""
    gradients = torch.stack([_gradient(state, task) for task in tasks])
    cosines = [F.cosine_similarity(*pair, dim=0) for pair in itertools.combinations(gradients, 2)]
    return float(torch.stack(cosines).mean())


def _gradient(state: State, task: DistillationTask) -> Tensor:
    meta_learner: Classifier = copy.deepcopy(state.meta_learner).train()
    loss = task_loss(meta_learner, task, state.input, state.config.learn)
    parameters = [value for name, value in meta_learner.named_parameters() if not name.startswith("head.")]
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, parameters)])


def _accuracies(state: State, config: SimulationConfig) -> dict[str, Tensor]:
    meta_learner = copy.deepcopy(state.meta_learner)
    return few_shot(meta_learner, state.input, load_validation(config), config)


def table(measured: Sequence[Alignment]) -> Table:
    """One row a way of learning, over the seeds; gains are paired over the episodes."""
    names = tuple(measured[0].episodes)
    rows: list[Row] = []
    for path in (SEQUENTIAL, PARALLEL):
        own = [each for each in measured if each.path == path]
        half = len(own[0].cosines) // 2
        halves = {
            "first_half": fmean(fmean(each.cosines[:half]) for each in own),
            "second_half": fmean(fmean(each.cosines[half:]) for each in own),
        }
        rows.append({"path": path, **halves, **{name: _cell(_pooled(own, name)) for name in names}})
    gains = {name: _cell(_gain(measured, name)) for name in names}
    rows.append({"path": "gain of one after the other", **gains})
    columns = (
        Column(key="path", title="tasks of an iteration"),
        Column(key="first_half", title="cosine, first half", format="{:.3f}"),
        Column(key="second_half", title="cosine, second half", format="{:.3f}"),
        *(Column(key=name, title=task_label(name), format=ACCURACY) for name in names),
    )
    notes = ("accuracies on meta_val, nearest class mean, in %",)
    return Table("Cosine between two tasks' gradients, and accuracy", columns, tuple(rows), notes)


def _cell(accuracy: Accuracy) -> Cell:
    return {"mean": accuracy.mean, "ci95": accuracy.ci95}


def _pooled(own: Sequence[Alignment], name: str) -> Accuracy:
    return mean_and_ci95(torch.cat([each.episodes[name] for each in own]))


def _gain(measured: Sequence[Alignment], name: str) -> Accuracy:
    """Mean paired difference between the two ways, over the episodes of every seed."""
    by_path = {
        path: torch.cat([each.episodes[name] for each in measured if each.path == path])
        for path in (SEQUENTIAL, PARALLEL)
    }
    return mean_and_ci95(by_path[SEQUENTIAL] - by_path[PARALLEL])


def values(measured: Sequence[Alignment]) -> list[dict[str, object]]:
    """Everything measured, as numbers."""
    return [
        {
            "path": each.path,
            "seed": each.seed,
            "cosines": [round(cosine, 5) for cosine in each.cosines],
            "accuracies": {name: asdict(each.accuracy(name)) for name in each.episodes},
        }
        for each in measured
    ]


def plot(measured: Sequence[Alignment]) -> Figure:
    """The cosine between tasks' gradients by iteration, mean over the seeds, for both ways."""
    figure = new_figure(6.5, 4)
    axes = figure.subplots()
    for path, colour, style in ((SEQUENTIAL, OURS, "-"), (PARALLEL, OTHER, "--")):
        curves = [each.cosines for each in measured if each.path == path]
        means = [fmean(column) for column in zip(*curves, strict=True)]
        axes.plot(range(1, len(means) + 1), means, color=colour, alpha=0.25, linewidth=0.8)
        smooth = [fmean(means[max(0, i + 1 - SMOOTHING) : i + 1]) for i in range(len(means))]
        axes.plot(range(1, len(means) + 1), smooth, color=colour, linestyle=style, label=path)
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("iteration")
    axes.set_ylabel("mean cosine between two tasks' gradients")
    tidy(axes, grid="y")
    axes.legend(title="tasks of an iteration", frameon=False)
    return figure
