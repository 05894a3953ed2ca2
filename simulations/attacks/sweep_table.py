"""A sweep as a table, as numbers, and what to read with them."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from client.rehearsing.attacks import Interval
from simulations.attacks.sweep import SPARE_IMAGES, Level
from simulations.reporting.scores import task_label
from simulations.reporting.tables import Table
from simulations.reporting.words import ABSENT
from simulations.series import provenance

FLOOR = "random_init"


def kept_gain(level: Level, levels: Sequence[Level], task: str) -> float | None:
    """Share of the gain over random initialisation that is left; None without a gain at ε = inf."""
    whole = next((_gain(other, task) for other in levels if math.isinf(other.epsilon)), None)
    ours = _gain(level, task)
    return ours / whole if ours is not None and whole is not None and whole > 0 else None


def _gain(level: Level, task: str) -> float | None:
    floor = level.federations.baseline(FLOOR, task)
    return None if floor is None else level.federations.score(task).mean - floor.mean


def table(levels: Sequence[Level]) -> Table:
    """One row for each ε."""
    tasks = [task_label(task).split()[-1] for task in levels[0].federations.tasks]
    columns = (
        "ε",
        *(f"meta-learner {task}" for task in tasks),
        *(f"random init {task}" for task in tasks),
        *(f"gain kept {task}" for task in tasks),
        "local accuracy",
        "canary AUC",
        "canary TPR at 1 % FPR",
        "of any attack",
        "ε ≥ (ceiling)",
    )
    return Table(columns, tuple(_row(level, levels) for level in levels), tuple(_notes(levels)))


def _row(level: Level, levels: Sequence[Level]) -> tuple[str, ...]:
    federations, audited = level.federations, level.audited
    floors = [federations.baseline(FLOOR, task) for task in federations.tasks]
    shares = [kept_gain(level, levels, task) for task in federations.tasks]
    return (
        f"{level.epsilon:g}",
        *(federations.score(task).accuracy for task in federations.tasks),
        *(floor.accuracy if floor else ABSENT for floor in floors),
        *(ABSENT if share is None else f"{100 * share:.0f} %" for share in shares),
        _local(level.local_accuracies),
        _interval(audited.canaries.auc, ".2f"),
        _percent(audited.canaries.tpr_at_1_percent),
        f"≤ {100 * audited.ceiling:.1f} %",
        f"{audited.bound.epsilon:.2f} ({audited.bound.ceiling:.2f})",
    )


def _local(accuracies: Sequence[float]) -> str:
    if not accuracies:
        return ABSENT
    return f"{fmean(accuracies):.1f} ({min(accuracies):.1f}–{max(accuracies):.1f})"


def _percent(rate: Interval | None) -> str:
    if rate is None:
        return ABSENT
    return f"{_interval(Interval(100 * rate.value, 100 * rate.low, 100 * rate.high), '.1f')} %"


def _interval(interval: Interval, style: str) -> str:
    value, low, high = (format(each, style) for each in (interval.value, interval.low, interval.high))
    return f"{value} ({low}–{high})"


def _notes(levels: Sequence[Level]) -> list[str]:
    config, audited = levels[0].federations.config, levels[0].audited
    pairs = f"{audited.canaries.members + audited.canaries.others:,}"
    return [
        "Meta-learner and random initialisation: accuracy in %, means over the seeds with the mean of their "
        "95 % intervals. Random initialisation is what there is without any contribution. Gain kept: of the "
        "gain over it at ε = inf, with the same architecture and images.",
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
        score, floor = federations.score(task), federations.baseline(FLOOR, task)
        few_shot |= {f"{task}_mean": score.mean, f"{task}_ci95": score.ci95}
        few_shot |= {f"{task}_random_init": floor.mean if floor else None}
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
