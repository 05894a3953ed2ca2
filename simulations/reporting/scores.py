"""What was measured, as scores in rows: the meta-learner first, and each baseline beneath it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from simulations.baselines.table import BASELINES, BEST_SINGLE, META_LEARNER, PUBLIC_START, Baseline
from simulations.reporting.words import ABSENT


@dataclass(frozen=True)
class Score:
    """An accuracy, and what the meta-learner gains over it; all in percent or percentage points."""

    mean: float
    ci95: float
    gain: float | None = None
    gain_ci95: float | None = None

    @property
    def accuracy(self) -> str:
        """For instance ``41.2 ± 0.8``."""
        sign = "\N{MINUS SIGN}" if self.mean < 0 else ""
        return f"{sign}{abs(self.mean):.1f} ± {self.ci95:.1f}"

    @property
    def gained(self) -> str:
        """For instance ``+6.1 ± 0.9``; empty where nothing was compared."""
        if self.gain is None or self.gain_ci95 is None:
            return ""
        sign = "\N{MINUS SIGN}" if self.gain < 0 else "+"
        return f"{sign}{self.distance}"

    @property
    def distance(self) -> str:
        """The gain without its sign, for instance ``6.1 ± 0.9``; empty where nothing was compared."""
        if self.gain is None or self.gain_ci95 is None:
            return ""
        return f"{abs(self.gain):.1f} ± {self.gain_ci95:.1f}"

    @property
    def verdict(self) -> str:
        """``better`` or ``worse`` where the interval of the gain excludes zero, else ``unclear``."""
        if self.gain is None or self.gain_ci95 is None or abs(self.gain) <= self.gain_ci95:
            return "unclear"
        return "better" if self.gain > 0 else "worse"


@dataclass(frozen=True)
class Row:
    """One line of the comparison: the meta-learner, or a baseline."""

    key: str
    label: str
    scores: tuple[Score | None, ...]
    """One for each kind of episode; None where it was not measured."""
    is_reference: bool = False
    """Whether no federation could hand it out."""
    absent: str = ABSENT
    """What stands in the place of a score that there is none of."""


def comparison(result: Mapping[str, Any]) -> list[Row]:
    """The meta-learner and its baselines, over the kinds of episodes of ``few_shot``, in their order."""
    few_shot, found = result["few_shot"], result.get("baselines", {})

    def scores(measured: Mapping[str, Any]) -> tuple[Score | None, ...]:
        return tuple(_score(measured.get(task)) for task in few_shot)

    known = [
        Row(name, _row_label(each), scores(found.get(name) or {}), each.is_reference, each.absent or ABSENT)
        for name, each in BASELINES.items()
        if name in found or each.absent is not None
    ]
    others = [
        Row(name, name.replace("_", " "), scores(found[name] or {}))
        for name in found
        if name not in BASELINES
    ]
    return [Row(META_LEARNER, "meta-learner", scores(few_shot)), *known, *others]


def _row_label(baseline: Baseline) -> str:
    reference = f" (reference: {baseline.why_not})" if baseline.is_reference else ""
    return f"{baseline.label}{reference}"


ORIGINS = {PUBLIC_START: "the public start", BEST_SINGLE: "the best single model"}
"""Where the way to pooled data begins, as the headline calls it."""


def headline(result: Mapping[str, Any]) -> str:
    """How much of the way to pooled data the federation closes; empty where that was not measured."""
    shares = result.get("share_closed") or {}
    if not shares:
        return ""
    origin = ORIGINS[next(iter(shares.values()))["from"]]
    parts = [
        f"{Score(each['mean'], each['ci95']).accuracy} % in {task_label(task)} episodes"
        for task, each in shares.items()
    ]
    closed = " and ".join(parts)
    return (
        f"The federation closes {closed} of the way from {origin} to one network on everybody's images, "
        "which nobody may train."
    )


def _score(values: Mapping[str, float] | None) -> Score | None:
    if values is None:
        return None
    return Score(values["mean"], values["ci95"], values.get("gain"), values.get("gain_ci95"))


def task_label(name: str) -> str:
    """``5way1shot`` as ``5-way 1-shot``."""
    parts = re.fullmatch(r"(\d+)way(\d+)shot", name)
    return f"{parts[1]}-way {parts[2]}-shot" if parts else name
