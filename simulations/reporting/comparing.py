"""Several runs side by side: what was set differently, and what came out differently."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from fedfree.episodes import mean_and_ci95
from fedfree.errors import ConfigError, FedFreeError
from fedfree.host.options import changed_values
from fedfree.settings import Values
from simulations.baselines.table import META_LEARNER
from simulations.config import SimulationConfig
from simulations.reporting.episodes import Episodes, read_episodes
from simulations.reporting.record import ACCURACY, GAIN, Cell, Column, Row, Table
from simulations.reporting.runs import FoundRun
from simulations.reporting.scores import Score, comparison, task_label

_DECIDES_NOTHING = ("cache",)
"""Settings that two runs may differ in without a word."""


@dataclass(frozen=True)
class Difference:
    """Of a run's accuracy to the first run's, in points."""

    mean: float
    ci95: float
    is_paired: bool
    """Whether it is the mean over the same episodes; else the runs met others, and both intervals count."""


class ComparedRuns:
    """Finished runs; the first is the one that the others are held against."""

    def __init__(self, runs: Sequence[FoundRun]) -> None:
        """Take up runs that have a result.

        Raises:
            ConfigError: fewer than two, the same one twice, or runs that have no kind of episodes in common.
        """
        if len(runs) < 2:
            raise ConfigError(f"expected two runs to compare or more, got {len(runs)}")
        if len({run.folder.resolve() for run in runs}) < len(runs):
            raise ConfigError("the same run is named twice: name each once")
        self.runs = runs
        if not self.tasks:
            kinds = " and ".join(", ".join(map(task_label, _result(run)["few_shot"])) for run in runs)
            raise ConfigError(f"the runs have no kind of episodes in common: they have {kinds}")

    @cached_property
    def names(self) -> list[str]:
        """Of each run: its folder's own name where that tells them apart, else its path."""
        short = [run.folder.resolve().name for run in self.runs]
        return short if len(set(short)) == len(short) else [str(run.folder) for run in self.runs]

    @cached_property
    def tasks(self) -> list[str]:
        """Kinds of episodes that all runs measured."""
        first, *others = [_result(run)["few_shot"] for run in self.runs]
        return [task for task in first if all(task in each for each in others)]

    @cached_property
    def competitors(self) -> dict[str, str]:
        """Key to label: the meta-learner, and every baseline that some run measured."""
        rows = [row for run in self.runs for row in comparison(_result(run)) if any(row.scores)]
        return {row.key: row.label for row in rows}

    @cached_property
    def settings(self) -> dict[str, list[str]]:
        """Path of each setting that a person set differently, to its value in each run."""
        paths = list(dict.fromkeys(path for run in self.runs for path in _set_paths(run)))
        values = {path: [_shown(run.setting(path)) for run in self.runs] for path in paths}
        return {
            path: each for path, each in values.items() if len(set(each)) > 1 and path not in _DECIDES_NOTHING
        }

    @cached_property
    def circumstances(self) -> dict[str, list[str]]:
        """What else differs and may matter: sources, versions, machine."""
        found = [_circumstances(_result(run)) for run in self.runs]
        names = dict.fromkeys(name for each in found for name in each)
        values = {name: [each.get(name, "") for each in found] for name in names}
        return {name: each for name, each in values.items() if len(set(each)) > 1}

    def score(self, number: int, task: str, competitor: str) -> Score | None:
        """An accuracy of one of the runs; None where it was not measured."""
        result = _result(self.runs[number])
        at = list(result["few_shot"]).index(task)
        found = [row.scores[at] for row in comparison(result) if row.key == competitor]
        return found[0] if found else None

    def difference(self, number: int, task: str, competitor: str) -> Difference | None:
        """Of a run to the first, for the same competitor; None where one of them has none."""
        ours, theirs = (self.score(each, task, competitor) for each in (number, 0))
        if ours is None or theirs is None:
            return None
        if pair := self._pair(number, task, competitor):
            paired = mean_and_ci95(pair[0] - pair[1])
            return Difference(paired.mean, paired.ci95, is_paired=True)
        return Difference(ours.mean - theirs.mean, math.hypot(ours.ci95, theirs.ci95), is_paired=False)

    @cached_property
    def _episodes(self) -> list[Episodes | None]:
        return [read_episodes(run.folder) for run in self.runs]

    def _pair(self, number: int, task: str, competitor: str) -> tuple[Tensor, Tensor] | None:
        """Accuracies of a run and of the first on the same episodes; None where they met others."""
        ours, theirs = self._episodes[number], self._episodes[0]
        if ours is None or theirs is None or ours.sha256.get(task) != theirs.sha256.get(task, ""):
            return None
        found = [each.accuracies.get(task, {}).get(competitor) for each in (ours, theirs)]
        if found[0] is None or found[1] is None or len(found[0]) != len(found[1]):
            return None
        return found[0], found[1]

    def notes(self) -> list[str]:
        """How the differences are to be read, one sentence for each run but the first."""
        return [self._note(number) for number in range(1, len(self.runs))]

    def _note(self, number: int) -> str:
        name, first = self.names[number], self.names[0]
        if self._pair(number, self.tasks[0], META_LEARNER):
            count = _result(self.runs[0])["few_shot"][self.tasks[0]]["episodes"]
            return f"{name} and {first} met the same {count:,} episodes: differences are paired."
        why = "they met other episodes"
        if None in (self._episodes[number], self._episodes[0]):
            why = "accuracies of each episode were not kept"
        return (
            f"{name} and {first} are compared unpaired, because {why}: the interval of a difference is the "
            "root of the sum of both squared."
        )


INTERVALS = (
    "accuracy in %, difference in points, ± 95 % interval over episodes; it does not cover "
    "what another seed of training would change"
)


def score_table(compared: ComparedRuns) -> Table:
    """Accuracies side by side, and the differences to the first run."""
    names = compared.names
    columns = [Column(key="what", title="")]
    columns += [Column(key=f"run{i}", title=name, format=ACCURACY) for i, name in enumerate(names)]
    columns += [
        Column(key=f"difference{i}", title=f"{name} − {names[0]}", format=GAIN)
        for i, name in enumerate(names)
        if i
    ]
    rows = [
        _row(compared, task, key, label)
        for task in compared.tasks
        for key, label in compared.competitors.items()
    ]
    return Table("Accuracies", tuple(columns), tuple(rows), (*compared.notes(), INTERVALS))


def _row(compared: ComparedRuns, task: str, key: str, label: str) -> Row:
    numbers = range(len(compared.runs))
    scores = {f"run{i}": _cell(compared.score(i, task, key)) for i in numbers}
    differences = {f"difference{i}": _cell(compared.difference(i, task, key)) for i in numbers if i}
    return {"what": f"{task_label(task)}, {label}", **scores, **differences}


def _cell(value: Score | Difference | None) -> Cell:
    return None if value is None else {"mean": round(value.mean, 2), "ci95": round(value.ci95, 2)}


def settings_table(compared: ComparedRuns) -> Table:
    """What differs, and nothing else: settings that somebody chose, and circumstances."""
    columns = [Column(key="what", title="set differently")]
    columns += [Column(key=f"run{i}", title=name) for i, name in enumerate(compared.names)]
    rows: list[Row] = [
        {"what": name, **{f"run{i}": value for i, value in enumerate(values)}}
        for name, values in (compared.settings | compared.circumstances).items()
    ]
    return Table("Settings", tuple(columns), tuple(rows))


def as_plain(compared: ComparedRuns) -> dict[str, Any]:
    """All of it as JSON holds it."""
    return {
        "runs": [
            {
                "name": name,
                "folder": str(run.folder),
                "command": run.command,
                "finished": _result(run).get("finished"),
            }
            for name, run in zip(compared.names, compared.runs, strict=True)
        ],
        "settings": compared.settings,
        "circumstances": compared.circumstances,
        "accuracies": {
            task: {key: _plain_scores(compared, task, key) for key in compared.competitors}
            for task in compared.tasks
        },
        "notes": [*compared.notes(), INTERVALS],
    }


def _plain_scores(compared: ComparedRuns, task: str, key: str) -> list[dict[str, Any]]:
    plain = []
    for number in range(len(compared.runs)):
        difference = compared.difference(number, task, key) if number else None
        each: dict[str, Any] = {"accuracy": _cell(compared.score(number, task, key))}
        if number:
            paired = {"paired": difference.is_paired} if difference else {}
            each["difference"] = {**_as_dict(_cell(difference)), **paired} if difference else None
        plain.append(each)
    return plain


def _as_dict(cell: Cell) -> dict[str, Any]:
    return dict(cell) if isinstance(cell, dict) else {}


def _result(run: FoundRun) -> Mapping[str, Any]:
    assert run.result is not None, f"{run.folder} has no result"
    return run.result


def _set_paths(run: FoundRun) -> list[str]:
    """What somebody chose; every setting there is, where that cannot be told any more."""
    try:
        config = SimulationConfig.parse(run.settings, origin=str(run.folder))
        return list(changed_values(config, {}))
    except FedFreeError:  # a start, for instance, whose folder is gone
        return list(_paths(run.settings))


def _paths(values: Values, above: tuple[str, ...] = ()) -> list[str]:
    found = []
    for name, value in values.items():
        path = (*above, name)
        found += _paths(value, path) if isinstance(value, Mapping) else [".".join(path)]
    return found


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _circumstances(result: Mapping[str, Any]) -> dict[str, str]:
    hardware = result.get("hardware") or {}
    found = {"commit": result.get("commit"), "seconds in all": round(sum(result.get("seconds", {}).values()))}
    found |= result.get("versions") or {}
    found |= {name: hardware.get(name) for name in ("cpu", "gpu", "threads")}
    return {name: _shown(value) for name, value in found.items() if value is not None}
