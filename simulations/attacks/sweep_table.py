"""A sweep as a table, as numbers, and what to read with them."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from client.rehearsing.attacks import Interval
from simulations.attacks.sweep import SPARE_IMAGES, Level
from simulations.baselines.table import PUBLIC_START
from simulations.reporting.record import ACCURACY, Cell, Column, Row, Table
from simulations.reporting.scores import task_label
from simulations.reporting.words import ABSENT
from simulations.series import accuracy_cell, provenance

FLOORS = {"random_init": "random init", PUBLIC_START: "public start"}
"""What there is without any contribution, and its title."""


def floor_of(level: Level) -> str:
    """The baseline over which gains are counted."""
    return PUBLIC_START if level.federations.config.start else "random_init"


def kept_gain(level: Level, levels: Sequence[Level], task: str) -> float | None:
    """Share of the gain over no contribution that is left; None without a gain at ε = inf."""
    whole = next((_gain(other, task) for other in levels if math.isinf(other.epsilon)), None)
    ours = _gain(level, task)
    return ours / whole if ours is not None and whole is not None and whole > 0 else None


def _gain(level: Level, task: str) -> float | None:
    floor = level.federations.baseline(floor_of(level), task)
    return None if floor is None else level.federations.score(task).mean - floor.mean


def table(levels: Sequence[Level]) -> Table:
    """One row for each ε."""
    tasks = [task_label(task).split()[-1] for task in levels[0].federations.tasks]
    floor = floor_of(levels[0])
    columns = (
        Column(key="epsilon", title="ε"),
        *(
            Column(key=f"meta_learner_{task}", title=f"meta-learner {task}", format=ACCURACY)
            for task in tasks
        ),
        *(Column(key=f"{floor}_{task}", title=f"{FLOORS[floor]} {task}", format=ACCURACY) for task in tasks),
        *(Column(key=f"gain_kept_{task}", title=f"gain kept {task}", format="{:.0f} %") for task in tasks),
        Column(key="local", title="local accuracy", format="{mean:.1f} ({low:.1f}–{high:.1f})"),
        Column(key="auc", title="canary AUC", format="{value:.2f} ({low:.2f}–{high:.2f})"),
        Column(key="tpr", title="canary TPR at 1 % FPR", format="{value:.1f} ({low:.1f}–{high:.1f}) %"),
        Column(key="any_attack", title="of any attack", format="≤ {:.1f} %"),
        Column(key="bound", title="ε ≥ (ceiling)", format="{value:.2f} ({ceiling:.2f})"),
    )
    rows = tuple(_row(level, levels) for level in levels)
    return Table("What ε costs and buys", columns, rows, tuple(_notes(levels)))


def _row(level: Level, levels: Sequence[Level]) -> Row:
    federations, audited = level.federations, level.audited
    floor = floor_of(level)
    cells: dict[str, Cell] = {"epsilon": f"{level.epsilon:g}"}
    for name in federations.tasks:
        task, share = task_label(name).split()[-1], kept_gain(level, levels, name)
        cells[f"meta_learner_{task}"] = accuracy_cell(federations.score(name))
        cells[f"{floor}_{task}"] = accuracy_cell(federations.baseline(floor, name))
        cells[f"gain_kept_{task}"] = None if share is None else 100 * share
    return cells | {
        "local": _local(level.local_accuracies),
        "auc": interval_cell(audited.canaries.auc),
        "tpr": interval_cell(audited.canaries.tpr_at_1_percent, times=100),
        "any_attack": 100 * audited.ceiling,
        "bound": {"value": audited.bound.epsilon, "ceiling": audited.bound.ceiling},
    }


def _local(accuracies: Sequence[float]) -> Cell:
    if not accuracies:
        return None
    return {"mean": fmean(accuracies), "low": min(accuracies), "high": max(accuracies)}


def interval_cell(interval: Interval | None, *, times: float = 1) -> Cell:
    """Value and bounds; None where it is not resolvable."""
    return {name: times * value for name, value in asdict(interval).items()} if interval else None


def _notes(levels: Sequence[Level]) -> list[str]:
    config, audited = levels[0].federations.config, levels[0].audited
    pairs = f"{audited.canaries.members + audited.canaries.others:,}"
    return [
        f"Meta-learner and {FLOORS[floor_of(levels[0])]}, which is what there is without any contribution: "
        "accuracy in %, means over the seeds with the mean of their 95 % intervals. Gain kept: of the gain "
        "over it at ε = inf, with the same architecture and images.",
        "Local accuracy in %: mean (lowest–highest) of the contributed models on up to "
        f"{SPARE_IMAGES} images of each of their classes that nobody trains on; {ABSENT} where there are "
        "none to spare.",
        f"Canaries: mislabelled images of one organisation, {audited.bound.models} models each on a random "
        f"half of {config.classes_each} x {config.images_per_class} images, LiRA online, {pairs} pairs of "
        "model and canary, 95 % bootstrap intervals. The models are trained for the audit, with half the "
        "images, and no ledger counts them.",
        "Of any attack: the highest true-positive rate at 1 % false positives that differential privacy "
        "leaves open, by the noise, sampling rate and steps of the audited models.",
        f"ε ≥: refuted by the audit at 95 % confidence and δ = {audited.bound.delta:g}; a claim above the "
        "ceiling cannot be refuted with so many canaries. An attack that fails is not evidence of safety.",
        *(provenance(level.federations) for level in levels),
    ]


def values(levels: Sequence[Level]) -> list[dict[str, Any]]:
    """The table as numbers, one flat row for each ε; accuracies in percent, rates as fractions."""
    return [_values(level, levels) for level in levels]


def _values(level: Level, levels: Sequence[Level]) -> dict[str, Any]:
    federations, audited, local = level.federations, level.audited, level.local_accuracies
    few_shot: dict[str, object] = {}
    for task in federations.tasks:
        score, floor = federations.score(task), federations.baseline(floor_of(level), task)
        few_shot |= {f"{task}_mean": score.mean, f"{task}_ci95": score.ci95}
        few_shot |= {f"{task}_{floor_of(level)}": floor.mean if floor else None}
        few_shot |= {f"{task}_gain_kept": kept_gain(level, levels, task)}
    return {
        "epsilon": f"{level.epsilon:g}",
        "seeds": len(federations.runs),
        **few_shot,
        "local_mean": fmean(local) if local else None,
        "local_lowest": min(local, default=None),
        "local_highest": max(local, default=None),
        **_flat("canary_auc", audited.canaries.auc),
        **_flat("canary_tpr_at_1_percent", audited.canaries.tpr_at_1_percent),
        **_flat("natural_auc", audited.natural.auc),
        "highest_tpr_at_1_percent": audited.ceiling,
        "epsilon_bound": audited.bound.epsilon,
        "epsilon_bound_ceiling": audited.bound.ceiling,
    }


def _flat(name: str, interval: Interval | None) -> dict[str, float | None]:
    parts = asdict(interval) if interval else dict.fromkeys(("value", "low", "high"))
    return {name if part == "value" else f"{name}_{part}": number for part, number in parts.items()}
