"""What hostile organisations cost, for people: a table over the seeds, the numbers, and bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch

from fedfree.episodes import Accuracy, mean_and_ci95
from simulations.benchmarks.poison import NOBODY, WITHOUT, Cell, Measured
from simulations.reporting.plots import OTHER, OURS, new_figure, tidy
from simulations.reporting.record import ACCURACY, Column, Row, Table
from simulations.reporting.scores import task_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOST = "{mean:+.1f} ± {ci95:.1f}"
TRIGGERED = "triggered"


def table(measured: Sequence[Measured], *, clients: int) -> Table:
    """One row a cell, over the seeds; what was lost is paired over the episodes."""
    tasks = tuple(measured[0].accuracies)
    columns = (
        Column(key="attack", title="attack"),
        Column(key="hostile", title="hostile"),
        Column(key="defence", title="defence"),
        *(Column(key=task, title=task_label(task), format=ACCURACY) for task in tasks),
        *(Column(key=f"lost_{task}", title=f"lost, {task_label(task)}", format=LOST) for task in tasks),
        Column(key="hostile_counts", title="a hostile model counts", format="{:.2f}"),
        Column(key="honest_counts", title="an honest one", format="{:.2f}"),
        Column(key=TRIGGERED, title=f"trigger, {task_label(tasks[-1])}", format=ACCURACY),
    )
    rows = tuple(_row(cell, measured, clients) for cell in dict.fromkeys(each.cell for each in measured))
    return Table("Lost to hostile organisations", columns, rows, _notes(measured))


def _row(cell: Cell, measured: Sequence[Measured], clients: int) -> Row:
    own = [each for each in measured if each.cell == cell]
    tasks = tuple(own[0].accuracies)
    lost = {task: lost_points(cell, measured, task) for task in tasks}
    hostile = [count for each in own for count in each.hostile_counts]
    return {
        "attack": cell.attack,
        "hostile": f"{cell.hostile} of {clients}",
        "defence": "on" if cell.robust else "off",
        **{task: _parts(mean_and_ci95(_pooled(own, task))) for task in tasks},
        **{f"lost_{task}": _parts(each) if each else None for task, each in lost.items()},
        "hostile_counts": round(fmean(hostile), 4) if hostile else None,
        "honest_counts": round(fmean(count for each in own for count in each.honest_counts), 4),
        TRIGGERED: _parts(mean_and_ci95([rate for each in own for rate in each.triggered[tasks[-1]]])),
    }


def lost_points(cell: Cell, measured: Sequence[Measured], task: str) -> Accuracy | None:
    """By how much a cell is worse than what it is held against, over the same episodes of every seed."""
    own, others = ([each for each in measured if each.cell == which] for which in (cell, cell.reference))
    return mean_and_ci95(_pooled(others, task) - _pooled(own, task)) if others else None


def _pooled(measured: Sequence[Measured], task: str) -> torch.Tensor:
    return torch.tensor(
        [fraction for each in measured for fraction in each.accuracies[task]], dtype=torch.float64
    )


def _parts(accuracy: Accuracy) -> dict[str, int | float]:
    return {"mean": round(accuracy.mean, 4), "ci95": round(accuracy.ci95, 4)}


def _notes(measured: Sequence[Measured]) -> tuple[str, ...]:
    refused = {reason: each.cell.attack for each in measured for reason in each.refused}
    return (
        "accuracies on meta_val, in %; lost: points against the pool without the hostile organisations, with "
        f"the same defence, on the same episodes, ± 95 %; where {NOBODY}, against the defence off",
        "a model that counts in full counts 1; without the defence all do",
        "trigger: share of other classes' queries that a mark sends to a class whose support images bear it, "
        "in %",
        *(f"refused by VERIFY, {attack}: {reason}" for reason, attack in refused.items()),
    )


def values(measured: Sequence[Measured]) -> dict[str, Any]:
    """Everything measured, as numbers; of the episodes mean and interval."""
    return {"cells": [_values(each) for each in measured]}


def _values(measured: Measured) -> dict[str, Any]:
    averaged = {
        name: {task: asdict(mean_and_ci95(each)) for task, each in getattr(measured, name).items()}
        for name in ("accuracies", "triggered")
    }
    return asdict(measured) | averaged


def plot(measured: Sequence[Measured]) -> Figure:
    """Points lost with the defence off and on, attack by attack; a panel for each share, the fewest shots."""
    task = next(iter(measured[0].accuracies))
    cells = dict.fromkeys(each.cell for each in measured if each.cell.attack not in (NOBODY, WITHOUT))
    shares = sorted({cell.hostile for cell in cells}) or [0]
    figure = new_figure(7, 3.5 * len(shares))
    for axes, hostile in zip(figure.subplots(len(shares), squeeze=False)[:, 0], shares, strict=True):
        attacks = list(dict.fromkeys(cell.attack for cell in cells if cell.hostile == hostile))
        for robust, colour, offset in ((False, OTHER, -0.2), (True, OURS, 0.2)):
            lost = [lost_points(Cell(attack, hostile, robust), measured, task) for attack in attacks]
            _bars(
                axes, [each for each in lost if each], offset, colour, f"defence {'on' if robust else 'off'}"
            )
        axes.set_xticks(range(len(attacks)), attacks, rotation=30, ha="right")
        axes.set_ylabel(f"points lost, {task_label(task)}")
        axes.set_title(f"{hostile} hostile", loc="left")
        tidy(axes, grid="y")
        axes.legend(frameon=False)
    return figure


def _bars(axes: Axes, lost: Sequence[Accuracy], offset: float, colour: str, label: str) -> None:
    places = [place + offset for place in range(len(lost))]
    means, intervals = [each.mean for each in lost], [each.ci95 for each in lost]
    axes.bar(places, means, width=0.4, yerr=intervals, color=colour, label=label, error_kw={"linewidth": 0.8})
