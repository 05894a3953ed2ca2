"""Whether the sequential path aligns the tasks' gradients (FREE, Figure 5), and the accuracy that it buys.

FREE's own step: from φ a gradient step of rate α for one task after the other, then Adam on the sum of the
gradients along the way (first order). With α = 0 all of them are taken at φ, and nothing in their sum can
align them; the larger α, the more of it is the gradient of their inner products (Lemma 1). Everything else is
the same to the bit: the first weights, the tasks, and their order.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedfree.episodes import Accuracy, mean_and_ci95
from fedfree.errors import ConfigError
from fedfree.host.compute import use_cpu
from server.learning.meta_learn import recovered_tasks, task_loss
from server.learning.moves import invert
from server.learning.state import State, begin
from server.pipeline import open_pool
from simulations.benchmarks.pools import make_pool
from simulations.benchmarks.validation import few_shot, load_validation
from simulations.config import SimulationConfig
from simulations.federation.prepare import server_config
from simulations.reporting.plots import GREY, OTHER, OURS, new_figure, tidy
from simulations.reporting.record import ACCURACY, Cell, Column, Row, Table
from simulations.reporting.scores import task_label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INNER_RATES = (0.0, 1 / 67, 10 / 67)
"""α: none, what FREE's released code scales φ - φ' by, and ten times as much."""
OUTER_RATE = 1e-3
"""β, of Adam."""
STEPS = 10
"""Outer steps for every meta-batch that was recovered, each on tasks of any of them."""
SMOOTHING = 50
"""Steps over which the plotted cosines are averaged."""
Loss = Callable[[nn.Module], Tensor]
"""Of a network on one task."""


@dataclass(frozen=True)
class Alignment:
    """Learning with one inner rate from one pool, measured."""

    inner_rate: float
    seed: int
    cosines: tuple[float, ...]
    """For each outer step, the mean cosine between the gradients of two of its tasks, at φ."""
    products: tuple[float, ...]
    """Likewise their mean inner product, which is what Lemma 1 says is raised."""
    episodes: dict[str, Tensor]
    """Fractions [episodes] on meta_val after the last step, by name of the episodes."""

    @property
    def path(self) -> str:
        """The rate in words."""
        if not self.inner_rate:
            return "all from the same point"
        return f"one after the other, α = {self.inner_rate:.3f}"

    def accuracy(self, name: str) -> Accuracy:
        """Mean and interval over the episodes."""
        return mean_and_ci95(self.episodes[name])


def measure(out: Path, config: SimulationConfig) -> list[Alignment]:
    """Recover tasks from one pool, and learn from them with every inner rate; nothing of meta_test is
    touched.
    """
    server = server_config(config)
    if server.iterations < 2:
        raise ConfigError("alignment compares two halves of learning: use at least 2 iterations")
    use_cpu(server.threads)
    state = begin(open_pool(make_pool(out, config).store, server), server)
    rng = torch.Generator().manual_seed(config.seed)
    losses: list[Loss] = [
        partial(task_loss, task=task, input=state.input, config=server.learn)
        for iteration in range(server.iterations)
        for task in recovered_tasks(invert(state, iteration), rng=rng)
    ]
    meta_batches = [
        [
            losses[each]
            for each in torch.randperm(len(losses), generator=rng)[: server.invert.models_per_iteration]
        ]
        for _ in range(STEPS * server.iterations)
    ]
    return [_learn(state, config, meta_batches, rate) for rate in INNER_RATES]


def _learn(
    state: State, config: SimulationConfig, meta_batches: Sequence[Sequence[Loss]], rate: float
) -> Alignment:
    meta_learner = copy.deepcopy(state.meta_learner).train()
    optimizer = torch.optim.Adam(meta_learner.parameters(), OUTER_RATE)
    measured = []
    for losses in meta_batches:
        measured.append(alignment(meta_learner, losses))
        outer_step(meta_learner, optimizer, losses, rate)
    cosines, products = zip(*measured, strict=True)
    fractions = few_shot(meta_learner.eval(), state.input, load_validation(config), config)
    return Alignment(rate, config.seed, cosines, products, fractions)


def outer_step(
    network: nn.Module, optimizer: torch.optim.Optimizer, losses: Sequence[Loss], rate: float
) -> None:
    """Walk φ' through the tasks by plain gradient steps, then step from φ along the sum of the gradients."""
    parameters = list(network.parameters())
    began = [parameter.detach().clone() for parameter in parameters]
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    for loss in losses:
        gradients = torch.autograd.grad(loss(network), parameters)
        for parameter, sum_, gradient in zip(parameters, sums, gradients, strict=True):
            sum_ += gradient
            parameter.data.sub_(gradient, alpha=rate)
    for parameter, start, sum_ in zip(parameters, began, sums, strict=True):
        parameter.data.copy_(start)
        parameter.grad = sum_
    optimizer.step()


def alignment(network: nn.Module, losses: Sequence[Loss]) -> tuple[float, float]:
    """Mean cosine and mean inner product of two tasks' gradients at φ, in the parameters before the head."""
    still = copy.deepcopy(network)  # whose statistics may change
    parameters = [each for name, each in still.named_parameters() if not name.startswith("head.")]
    gradients = torch.stack([_flat(torch.autograd.grad(loss(still), parameters)) for loss in losses])
    products, unit = gradients @ gradients.T, F.normalize(gradients)
    first, second = torch.triu_indices(len(losses), len(losses), 1)
    return float((unit @ unit.T)[first, second].mean()), float(products[first, second].mean())


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])  # channels-last, so no view


def table(measured: Sequence[Alignment]) -> Table:
    """One row an inner rate, over the seeds; gains over the same point are paired over the episodes."""
    names = tuple(measured[0].episodes)
    rows: list[Row] = []
    for rate in INNER_RATES:
        own = [each for each in measured if each.inner_rate == rate]
        halves: dict[str, Cell] = {
            "first_half": _mean_of_half(own, 0),
            "second_half": _mean_of_half(own, 1),
            "product": fmean(fmean(each.products[len(each.products) // 2 :]) for each in own),
        }
        accuracies = {name: _cell(mean_and_ci95(_pooled(measured, name, rate))) for name in names}
        rows.append({"path": own[0].path, **halves, **accuracies})
    for rate in INNER_RATES[1:]:
        gains = {
            name: _cell(mean_and_ci95(_pooled(measured, name, rate) - _pooled(measured, name, 0.0)))
            for name in names
        }
        rows.append({"path": f"gain of α = {rate:.3f}", **gains})
    columns = (
        Column(key="path", title="tasks of a step"),
        Column(key="first_half", title="cosine, first half", format="{:.3f}"),
        Column(key="second_half", title="cosine, second half", format="{:.3f}"),
        Column(key="product", title="inner product, second half", format="{:.2g}"),
        *(Column(key=name, title=task_label(name), format=ACCURACY) for name in names),
    )
    notes = (
        f"{len(measured[0].cosines)} outer steps; accuracies on meta_val, nearest class mean, in %",
        "gains are over all from the same point, paired",
    )
    return Table("Alignment of two tasks' gradients, and accuracy", columns, tuple(rows), notes)


def _mean_of_half(own: Sequence[Alignment], half: int) -> float:
    middle = len(own[0].cosines) // 2
    return fmean(fmean(each.cosines[middle:] if half else each.cosines[:middle]) for each in own)


def _cell(accuracy: Accuracy) -> Cell:
    return {"mean": accuracy.mean, "ci95": accuracy.ci95}


def _pooled(measured: Sequence[Alignment], name: str, rate: float) -> Tensor:
    """The episodes of every seed."""
    return torch.cat([each.episodes[name] for each in measured if each.inner_rate == rate])


def values(measured: Sequence[Alignment]) -> list[dict[str, object]]:
    """Everything measured, as numbers."""
    return [
        {
            "path": each.path,
            "seed": each.seed,
            "cosines": [round(cosine, 5) for cosine in each.cosines],
            "products": [round(product, 8) for product in each.products],
            "accuracies": {name: asdict(each.accuracy(name)) for name in each.episodes},
        }
        for each in measured
    ]


def plot(measured: Sequence[Alignment]) -> Figure:
    """The cosine between tasks' gradients by outer step, mean over the seeds, for every inner rate."""
    figure = new_figure(6.5, 4)
    axes = figure.subplots()
    styles = ((OTHER, "--"), (OURS, "-"), (GREY, ":"))
    for rate, (colour, style) in zip(INNER_RATES, styles, strict=True):
        own = [each for each in measured if each.inner_rate == rate]
        means = [fmean(column) for column in zip(*(each.cosines for each in own), strict=True)]
        smooth = [fmean(means[max(0, i + 1 - SMOOTHING) : i + 1]) for i in range(len(means))]
        axes.plot(range(1, len(means) + 1), smooth, color=colour, linestyle=style, label=own[0].path)
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("outer step")
    axes.set_ylabel("mean cosine between two tasks' gradients")
    tidy(axes, grid="y")
    axes.legend(title="tasks of a step", frameon=False)
    return figure
