"""The cases of ``bench quality`` as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from simulations.baselines.table import BASELINES
from simulations.benchmarks.quality import growth
from simulations.reporting.plots import GREY, LIGHT_GREY, OTHER, OURS, new_figure, tidy
from simulations.reporting.scores import Score, task_label
from simulations.series import Measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OTHERS = {
    "random_init": {"marker": "x", "color": LIGHT_GREY},
    "public_start": {"marker": "v", "color": LIGHT_GREY},
    "best_single_model": {"marker": "s", "color": GREY},
    "parameter_average": {"marker": "^", "color": GREY, "markerfacecolor": "none"},
    "dense": {"marker": "P", "color": GREY, "markerfacecolor": "none"},
    "pool_concatenation": {"marker": "D", "color": OTHER, "markerfacecolor": "none"},
    "pooled_data": {"marker": "*", "color": OTHER, "markerfacecolor": "none"},
}
"""Baselines that are drawn, each told apart by its shape too."""


def plots(measured: Sequence[Measured]) -> dict[str, Figure]:
    """Every picture the measured cases allow, by file name."""
    figures = {"quality": case_plot(measured)}
    if len(growth(measured)) > 1:
        figures["quality-growth"] = growth_plot(growth(measured))
    return figures


def case_plot(measured: Sequence[Measured]) -> Figure:
    """One row a case, one panel a kind of episode: means with 95 % intervals, and a dot for each seed."""
    tasks = measured[0].tasks
    figure = new_figure(5.5 * len(tasks), 1.6 + 0.45 * len(measured))
    panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for axes, task in zip(panels, tasks, strict=True):
        _prepare(axes, task, "x")
        for row, each in enumerate(measured):
            seeds = each.accuracies(task)
            axes.plot(seeds, [row - 0.22] * len(seeds), ".", color=OURS, alpha=0.5, markersize=5)
            _interval(axes, "meta-learner", each.score(task), row)
            for name, style in OTHERS.items():
                score = each.baseline(name, task)
                if score is not None:
                    axes.plot(score.mean, row, linestyle="", label=BASELINES[name].label, **style)
        axes.set_xlabel("accuracy in %")
    panels[0].set_yticks(range(len(measured)), [f"{each.case} ({each.models():g})" for each in measured])
    panels[0].set_ylim(len(measured) - 0.5, -0.6)
    _legend(figure, panels[0])
    return figure


def growth_plot(curve: Sequence[Measured]) -> Figure:
    """Accuracy by the number of models, one panel a kind of episode, with 95 % intervals."""
    tasks = curve[0].tasks
    models = [each.models() for each in curve]
    figure = new_figure(5.5 * len(tasks), 4.2)
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    for axes, task in zip(panels, tasks, strict=True):
        _prepare(axes, task, "y")
        scores = [each.score(task) for each in curve]
        axes.errorbar(
            models,
            [score.mean for score in scores],
            yerr=[score.ci95 for score in scores],
            marker="o",
            color=OURS,
            capsize=3,
            label="meta-learner",
        )
        for name, style in OTHERS.items():
            others = [each.baseline(name, task) for each in curve]
            drawn = [(count, each.mean) for count, each in zip(models, others, strict=True) if each]
            if drawn:
                axes.plot(*zip(*drawn, strict=True), linestyle=":", label=BASELINES[name].label, **style)
        axes.set_xlabel("models in the pool")
        axes.set_xticks(models, [f"{count:g}" for count in models])
    panels[0].set_ylabel("accuracy in %")
    _legend(figure, panels[0])
    return figure


def _prepare(axes: Axes, task: str, grid: Literal["x", "y"]) -> None:
    axes.set_title(task_label(task))
    tidy(axes, grid=grid)


def _interval(axes: Axes, name: str, score: Score, row: int) -> None:
    axes.errorbar(score.mean, row, xerr=score.ci95, marker="o", color=OURS, capsize=3, label=name)


def _legend(figure: Figure, axes: Axes) -> None:
    """Each name once; a case may lack what another has."""
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    figure.legend(once.values(), once.keys(), loc="outside lower center", ncols=4, frameon=False)
