"""A sweep as three pictures, each with ε at equal distances."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from simulations.attacks.sweep import Level
from simulations.attacks.sweep_table import floor_of
from simulations.reporting.plots import GREY, OTHER, OURS, new_figure, tidy
from simulations.reporting.scores import task_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (OURS, OTHER)
"""Of the kinds of episodes."""


def plots(levels: Sequence[Level]) -> dict[str, Figure]:
    """By file name."""
    return {
        "few-shot": few_shot_plot(levels),
        "local": local_plot(levels),
        "canaries": canary_plot(levels),
    }


def few_shot_plot(levels: Sequence[Level]) -> Figure:
    """The meta-learner with 95 % intervals, a dot for each seed, and what there is without contributions."""
    figure, axes = _prepared(levels, "Meta-learner", "accuracy in %")
    for task, colour in zip(levels[0].federations.tasks, COLOURS, strict=False):
        scores = [level.federations.score(task) for level in levels]
        label = task_label(task)
        axes.errorbar(
            range(len(levels)),
            [score.mean for score in scores],
            yerr=[score.ci95 for score in scores],
            marker="o",
            color=colour,
            capsize=3,
            label=label,
        )
        for place, level in enumerate(levels):
            seeds = level.federations.accuracies(task)
            axes.plot([place + 0.08] * len(seeds), seeds, ".", color=colour, alpha=0.5)
        floors = [level.federations.baseline(floor_of(level), task) for level in levels]
        drawn = [(place, floor.mean) for place, floor in enumerate(floors) if floor]
        axes.plot(*zip(*drawn, strict=True), "--", color=colour, label=f"{label}, no contribution")
    axes.legend(fontsize="small", loc="best")
    return figure


def local_plot(levels: Sequence[Level]) -> Figure:
    """Contributed models on unseen images of their own classes: the mean, and a dot for each."""
    figure, axes = _prepared(levels, "Contributed models on their own classes", "accuracy in %")
    measured = [(place, level.local_accuracies) for place, level in enumerate(levels)]
    for place, accuracies in measured:
        axes.plot([place] * len(accuracies), accuracies, ".", color=OURS, alpha=0.4)
    means = [(place, fmean(accuracies)) for place, accuracies in measured if accuracies]
    if means:
        axes.plot(*zip(*means, strict=True), "o-", color=OURS, label="mean")
    chance = 100 / levels[0].federations.config.classes_each
    axes.axhline(chance, linestyle="--", color=GREY, label="guessing")
    axes.legend(fontsize="small", loc="best")
    return figure


def canary_plot(levels: Sequence[Level]) -> Figure:
    """The best attack's rate on canaries with its interval, beneath what no attack can exceed."""
    figure, axes = _prepared(levels, "Canaries found at 1 % false positives", "true-positive rate in %")
    axes.set_yscale("symlog", linthresh=1, linscale=0.5)
    ticks = (0, 1, 2, 5, 10, 20, 50, 100)
    axes.set_yticks(ticks, [str(tick) for tick in ticks])
    axes.set_ylim(-0.1, 130)
    ceilings = [100 * level.audited.ceiling for level in levels]
    axes.plot(range(len(levels)), ceilings, "_", color=GREY, markersize=28, markeredgewidth=2)
    axes.plot([], [], "-", color=GREY, linewidth=2, label="ceiling of any attack, by theory")
    found = [(place, level.audited.canaries.tpr_at_1_percent) for place, level in enumerate(levels)]
    for place, rate in found:
        if rate:
            below, above = 100 * (rate.value - rate.low), 100 * (rate.high - rate.value)
            errors = [[max(0.0, below)], [max(0.0, above)]]
            axes.errorbar(place, 100 * rate.value, yerr=errors, marker="o", color=OTHER, capsize=3)
    axes.plot([], [], "o", color=OTHER, label="LiRA online, 95 % interval")
    axes.axhline(1, linestyle="--", color=GREY, linewidth=1, label="guessing")
    axes.legend(fontsize="small", loc="upper left")
    return figure


def _prepared(levels: Sequence[Level], title: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = new_figure(5.6, 4.2)
    axes = figure.add_subplot()
    axes.set(title=title, xlabel="ε of a contribution (inf: no privacy)", ylabel=ylabel)
    axes.set_xticks(range(len(levels)), [f"{level.epsilon:g}" for level in levels])
    axes.set_xlim(-0.4, len(levels) - 0.6)
    tidy(axes, grid="y")
    return figure, axes
