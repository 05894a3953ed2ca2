"""How accurate the meta-learner is: cases of federations, each over several seeds."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import cycle
from pathlib import Path

from fedfree.errors import ConfigError
from fedfree.host.options import given_values
from fedfree.host.public_weights import LITE0
from fedfree.settings import merge
from simulations.config import SimulationConfig
from simulations.series import Measured, over_seeds, run_series

GROWTH = (4, 8, 16)
"""Pool sizes of the growth curve, which ends with the whole pool."""

DEFAULT, DOMAINS, START, MIXTURE = "default", "domains", "start", "mixture"
CHANGES: dict[str, dict[str, object]] = {
    DEFAULT: {},
    "paper": {"server": {"preset": "paper"}},
    "large": {"server": {"preset": "large"}},
    "architectures": {"architectures": "conv4,resnet10,resnet18"},
    "student-resnet18": {"server": {"architecture": "resnet18"}},
    "groupnorm": {"architectures": "conv4-group"},
}
"""Cases of any pool from random weights, with what they change."""
GROUPS: Mapping[str, tuple[str, ...]] = {
    "pool": (DEFAULT,),
    "growth": ("models-*", DEFAULT),
    "architectures": (DEFAULT, "architectures"),
    "domains": (DOMAINS, "domain-*"),
    "norms": (DEFAULT, "groupnorm"),
    "student": (DEFAULT, "student-resnet18"),
    "paper": (DEFAULT, "paper"),
    START: (START, "start-*"),
    MIXTURE: (MIXTURE, "start-*"),
    "all": (*CHANGES, "models-*", DOMAINS, "domain-*"),
}
"""What ``--cases`` may name besides a case: patterns of the names of its cases, all of them from random
weights but for the two that begin from a start."""


def available_cases(base: SimulationConfig) -> dict[str, dict[str, object]]:
    """What every case that this pool allows changes, by name, in the order of the table."""
    if base.start is not None:
        return _from_start(base)
    changes = dict(CHANGES)
    for count in GROWTH:
        if len(base.datasets) <= count < base.clients:
            changes[f"models-{count}"] = {"clients": count}
    if len(base.datasets) > 1:
        changes[DOMAINS] = {}
        for (name, dataset), size in zip(base.datasets.items(), cycle(base.dealt_image_sizes), strict=False):
            changes[f"domain-{name}"] = {"dataset": dataset, "image_sizes": [size]}
    has_own = base.architectures or base.image_sizes
    return changes if has_own else changes | _from_start(base)


def _from_start(base: SimulationConfig) -> dict[str, dict[str, object]]:
    """The cases that begin from a public start: the base's own, or the one that needs no network.

    Of several data sets each is a federation of its own, with as many organisations as their mixture.
    """
    begun: dict[str, object] = {} if base.start else {"start": LITE0}
    if len(base.datasets) == 1:
        return {START: begun}
    alone = {f"start-{name}": begun | {"dataset": each} for name, each in base.datasets.items()}
    return {MIXTURE: begun, **alone}


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
                "(domains and mixture need several data sets, models-N more than N organisations)"
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
    return run_series(
        {
            name: over_seeds(out / _first_alike(name, changes), config_of(base, name), seeds)
            for name in choose_cases(cases, changes)
        },
        tell,
    )


def _seeded(
    folder: Path, config: SimulationConfig, seeds: Sequence[int]
) -> list[tuple[Path, SimulationConfig]]:
    return [(folder / str(seed), config.model_copy(update={"seed": seed})) for seed in seeds]


def _first_alike(name: str, changes: Mapping[str, object]) -> str:
    return next(other for other, change in changes.items() if change == changes[name])


def growth(measured: Sequence[Measured]) -> list[Measured]:
    """The cases of the growth curve, from the smallest pool to the largest."""
    curve = [each for each in measured if each.case == DEFAULT or each.case.startswith("models-")]
    return sorted(curve, key=Measured.models)
