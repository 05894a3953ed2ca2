"""How accurate the meta-learner is: cases of federations, each over several seeds."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import cycle
from pathlib import Path

from fedfree.errors import ConfigError
from simulations.config import SimulationConfig
from simulations.series import Measured, over_seeds, run_series

GROWTH = (4, 8, 16)
"""Pool sizes of the growth curve, which ends with the whole pool."""

DEFAULT, DOMAINS = "default", "domains"
CHANGES: dict[str, dict[str, object]] = {
    DEFAULT: {},
    "paper": {"preset": "paper"},
    "large": {"preset": "large"},
    "architectures": {"architectures": "conv4,resnet10,resnet18"},
    "student-resnet18": {"student": "resnet18"},
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


def available_cases(base: SimulationConfig) -> dict[str, SimulationConfig]:
    """Every case this pool allows, by name, in the order of the table."""
    changes = dict(CHANGES)
    for count in GROWTH:
        if len(base.datasets) <= count < base.clients:
            changes[f"models-{count}"] = {"clients": count}
    if len(base.datasets) > 1:
        changes[DOMAINS] = {}
        for (name, dataset), size in zip(base.datasets.items(), cycle(base.image_size), strict=False):
            changes[f"domain-{name}"] = {"dataset": dataset, "image_size": size}
    values = base.model_dump()
    return {
        name: SimulationConfig.parse(values | change, origin=f"case {name}")
        for name, change in changes.items()
    }


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
    available = available_cases(base)
    folders = {name: _first_alike(name, available) for name in available}
    return run_series(
        {
            name: over_seeds(out / folders[name], available[name], seeds)
            for name in choose_cases(cases, available)
        },
        tell,
    )


def _first_alike(name: str, available: Mapping[str, SimulationConfig]) -> str:
    return next(other for other, config in available.items() if config == available[name])


def growth(measured: Sequence[Measured]) -> list[Measured]:
    """The cases of the growth curve, from the smallest pool to the largest."""
    curve = [each for each in measured if each.case == DEFAULT or each.case.startswith("models-")]
    return sorted(curve, key=Measured.models)
