"""Federations of one kind over several seeds: run where they are missing, their results read together.

Every one is an ordinary run directory, which any ``fedfree-sim run`` could have made; one that holds a
``result.json`` is not run again, so a series that was killed goes on where it was.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from simulations.command_line import run_command
from simulations.config import SimulationConfig
from simulations.federation.prepare import check_folder
from simulations.reporting.record import Cell
from simulations.reporting.scores import Score, task_label
from simulations.reporting.words import duration
from simulations.simulate import simulate

Planned = Sequence[tuple[Path, SimulationConfig]]
"""Run directories, and what is to be run in each."""


@dataclass(frozen=True)
class Run:
    """One federation of a case."""

    folder: Path
    config: SimulationConfig
    result: Mapping[str, Any]
    """What its ``result.json`` holds."""


@dataclass(frozen=True)
class Measured:
    """A case over its seeds."""

    case: str
    runs: tuple[Run, ...]

    @property
    def config(self) -> SimulationConfig:
        return self.runs[0].config

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the kinds of episodes."""
        return tuple(self.runs[0].result["few_shot"])

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the data sets where there are several."""
        return tuple(self.runs[0].result.get("domains", {}))

    def accuracies(self, task: str, domain: str | None = None) -> list[float]:
        """The meta-learner's in percent, one a seed."""
        return [each["few_shot"][task]["mean"] for each in self._parts(domain)]

    def score(self, task: str, domain: str | None = None) -> Score:
        """The meta-learner's mean over the seeds, with the mean of their 95 % intervals."""
        return _mean_score(each["few_shot"][task] for each in self._parts(domain))

    def baseline(self, name: str, task: str, domain: str | None = None) -> Score | None:
        """A baseline's mean over the seeds; None where a run has none."""
        found = [each["baselines"].get(name) for each in self._parts(domain)]
        return None if None in found else _mean_score(each[task] for each in found)

    def share(self, task: str, domain: str | None = None) -> Score | None:
        """Of the way to pooled data, in percent, as :meth:`score`; None where a run did not measure it."""
        found = [each.get("share_closed", {}).get(task) for each in self._parts(domain)]
        return None if None in found else _mean_score(found)

    def models(self) -> float:
        """Accepted contributions, mean over the seeds."""
        return fmean(
            sum(each["state"] == "accepted" for each in run.result["contributions"]) for run in self.runs
        )

    def server_minutes(self) -> float:
        """Inversion and meta-learning, mean over the seeds."""
        return fmean(run.result["seconds"]["learn"] for run in self.runs) / 60

    def _parts(self, domain: str | None) -> list[Mapping[str, Any]]:
        return [run.result if domain is None else run.result["domains"][domain] for run in self.runs]


def _mean_score(values: Iterable[Mapping[str, float]]) -> Score:
    each = list(values)
    names = [name for name in ("mean", "ci95", "gain", "gain_ci95") if name in each[0]]
    return Score(**{name: fmean(value[name] for value in each) for name in names})


def over_seeds(folder: Path, config: SimulationConfig, seeds: Iterable[int]) -> Planned:
    """One federation a seed, in ``<folder>/<seed>``."""
    return [(folder / str(seed), config.model_copy(update={"seed": seed})) for seed in seeds]


def run_series(planned: Mapping[str, Planned], tell: Callable[[str], None]) -> list[Measured]:
    """Run every federation whose result is not in its folder.

    Args:
        planned: by the name of the case.
        tell: takes one line for each federation, what came out.

    Raises:
        ConfigError: a folder holds another federation; nothing was run.
    """
    for runs in planned.values():
        for folder, config in runs:
            check_folder(folder, config)
    return [Measured(case, tuple(_run_all(case, runs, tell))) for case, runs in planned.items()]


def _run_all(case: str, runs: Planned, tell: Callable[[str], None]) -> Iterator[Run]:
    for folder, config in runs:
        written = folder / "result.json"
        is_new = not written.exists()
        if is_new:
            simulate(folder, config, command=run_command(folder, config))
        run = Run(folder, config, json.loads(written.read_text()))
        tell(f"{case}, seed {config.seed}: {_in_short(run.result)}{'' if is_new else ' (was there)'}")
        yield run


def _in_short(result: Mapping[str, Any]) -> str:
    accuracies = [
        f"{task_label(task)} {Score(measured['mean'], measured['ci95']).accuracy}"
        for task, measured in result["few_shot"].items()
    ]
    seconds = result["seconds"]
    times = f"learned in {duration(seconds['learn'])}, {duration(sum(seconds.values()))} in all"
    return f"{', '.join(accuracies)}; {times}"


def accuracy_cell(score: Score | None) -> Cell:
    """Mean and interval; None without a score."""
    return {"mean": round(score.mean, 4), "ci95": round(score.ci95, 4)} if score else None


def seconds(measured: Sequence[Measured]) -> float:
    """That all runs took; a run that several cases share counts once."""
    runs = {run.folder: run.result["seconds"] for each in measured for run in each.runs}
    return float(sum(sum(spent.values()) for spent in runs.values()))


def provenance(measured: Measured) -> str:
    """Command, seeds, commit, hardware and time of a case."""
    runs = measured.runs
    seeds = ", ".join(str(run.config.seed) for run in runs)
    folder = runs[0].folder.parent / "S"
    command = run_command(folder, measured.config.model_copy(update={"seed": 0}))
    commits = sorted({str(run.result["commit"] or "unknown") for run in runs})
    machines = sorted({_machine(run) for run in runs})
    dates = sorted({str(run.result["finished"])[:10] for run in runs})
    total = sum(sum(run.result["seconds"].values()) for run in runs)
    return (
        f"{measured.case}: `{command} --seed S`, seeds {seeds}, commit {', '.join(commits)}, "
        f"{'; '.join(machines)}, {', '.join(dates)}, {duration(total)} in all"
    )


def _machine(run: Run) -> str:
    hardware = run.result["hardware"]
    gpu = hardware["gpu"] if run.config.server.device != "cpu" else None
    threads = f"{hardware['threads']} thread{'' if hardware['threads'] == 1 else 's'}"
    return f"{hardware['cores']} cores of {hardware['cpu']}, {threads}, {gpu or 'no GPU'}"
