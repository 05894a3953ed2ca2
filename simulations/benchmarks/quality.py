"""How accurate the meta-learner is: cases of federations, each over several seeds."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import Any

from fedfree.errors import ConfigError
from fedfree.host.options import given_values
from fedfree.settings import merge
from simulations.commands.options import run_command
from simulations.config import SimulationConfig
from simulations.federation.simulate import simulate
from simulations.reporting.progress import Score, duration, task_label

GROWTH = (4, 8, 16)
"""Pool sizes of the growth curve, which ends with the whole pool."""

DEFAULT, DOMAINS = "default", "domains"
CHANGES: dict[str, dict[str, object]] = {
    DEFAULT: {},
    "paper": {"server": {"preset": "paper"}},
    "large": {"server": {"preset": "large"}},
    "architectures": {"architectures": "conv4,resnet10,resnet18"},
    "student-resnet18": {"server": {"architecture": "resnet18"}},
    "groupnorm": {"architectures": "conv4-group"},
}
"""Cases of any pool, with what they change."""
GROUPS: Mapping[str, tuple[str, ...]] = {
    "pool": (DEFAULT,),
    "growth": ("models-*", DEFAULT),
    "architectures": (DEFAULT, "architectures"),
    "domains": (DOMAINS, "domain-*"),
    "norms": (DEFAULT, "groupnorm"),
    "student": (DEFAULT, "student-resnet18"),
    "paper": (DEFAULT, "paper"),
    "all": ("*",),
}
"""What ``--cases`` may name besides a case: patterns of the names of its cases."""


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


def available_cases(base: SimulationConfig) -> dict[str, dict[str, object]]:
    """What every case that this pool allows changes, by name, in the order of the table."""
    changes = dict(CHANGES)
    for count in GROWTH:
        if len(base.datasets) <= count < base.clients:
            changes[f"models-{count}"] = {"clients": count}
    if len(base.datasets) > 1:
        changes[DOMAINS] = {}
        for (name, dataset), size in zip(base.datasets.items(), cycle(base.dealt_image_sizes), strict=False):
            changes[f"domain-{name}"] = {"dataset": dataset, "image_sizes": [size]}
    return changes


def config_of(base: SimulationConfig, name: str) -> SimulationConfig:
    """The configuration of a case; raises ConfigError where the base allows no such change."""
    change = available_cases(base)[name]
    return SimulationConfig.parse(merge(given_values(base), change), origin=f"case {name}")


def choose_cases(text: str, available: Iterable[str]) -> list[str]:
    """The cases that ``text`` lists by name or group, each once, in the order of ``available``.

    Raises:
        ConfigError: a name that is neither here.
    """
    names = list(available)
    chosen: set[str] = set()
    for word in (part.strip() for part in text.split(",")):
        patterns = GROUPS.get(word, (word,))
        members = {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}
        if not members:
            raise ConfigError(
                f"no case {word!r} in this pool: use {', '.join(names)}, or a group of {', '.join(GROUPS)} "
                "(domains need several data sets, models-N more than N organisations)"
            )
        chosen |= members
    return [name for name in names if name in chosen]


def measure(
    out: Path, base: SimulationConfig, *, cases: str, seeds: Sequence[int], tell: Callable[[str], None]
) -> list[Measured]:
    """Run every federation whose result is not there yet.

    Args:
        out: holds one run directory for each case and seed. Cases that come to the same configuration
            share one, under the name of the first.
        cases: names of cases or groups, separated by commas.
        tell: takes one line for each run.

    Raises:
        ConfigError: an unknown case, or a run directory of another configuration.
    """
    changes = available_cases(base)
    planned = {
        name: [
            (
                out / _first_alike(name, changes) / str(seed),
                config_of(base, name).model_copy(update={"seed": seed}),
            )
            for seed in seeds
        ]
        for name in choose_cases(cases, changes)
    }
    for runs in planned.values():
        for folder, config in runs:
            check_folder(folder, config)
    return [Measured(name, tuple(run_all(name, runs, tell))) for name, runs in planned.items()]


def _seeded(
    folder: Path, config: SimulationConfig, seeds: Sequence[int]
) -> list[tuple[Path, SimulationConfig]]:
    return [(folder / str(seed), config.model_copy(update={"seed": seed})) for seed in seeds]


def _first_alike(name: str, changes: Mapping[str, object]) -> str:
    return next(other for other, change in changes.items() if change == changes[name])


def check_folder(folder: Path, config: SimulationConfig) -> None:
    """Raise ConfigError where the folder holds a run of another configuration."""
    existing = folder / "config.toml"
    if existing.exists() and existing.read_bytes() != config.to_toml().encode():
        raise ConfigError(
            f"{folder} holds a run of another configuration (see {existing}): choose another --out, "
            "give the options it was made with, or remove it"
        )


def run_all(
    name: str, runs: Sequence[tuple[Path, SimulationConfig]], tell: Callable[[str], None]
) -> Iterator[Run]:
    """Run each federation whose result is not in its folder, and tell what came out."""
    for folder, config in runs:
        written = folder / "result.json"
        is_new = not written.exists()
        if is_new:
            simulate(folder, config, command=run_command(folder, config))
        run = Run(folder, config, json.loads(written.read_text()))
        tell(f"{name}, seed {config.seed}: {_in_short(run.result)}{'' if is_new else ' (was there)'}")
        yield run


def _in_short(result: Mapping[str, Any]) -> str:
    accuracies = [
        f"{task_label(task)} {Score(measured['mean'], measured['ci95']).accuracy}"
        for task, measured in result["few_shot"].items()
    ]
    seconds = result["seconds"]
    times = f"learned in {duration(seconds['learn'])}, {duration(sum(seconds.values()))} in all"
    return f"{', '.join(accuracies)}; {times}"


def growth(measured: Sequence[Measured]) -> list[Measured]:
    """The cases of the growth curve, from the smallest pool to the largest."""
    curve = [each for each in measured if each.case == DEFAULT or each.case.startswith("models-")]
    return sorted(curve, key=Measured.models)
