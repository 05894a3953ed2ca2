"""Time to accuracy: how good the meta-learner is after so many seconds, here and as FREE published it."""

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from client.data.image_set import ImageSet
from fedfree.episodes import Accuracy, mean_and_ci95
from fedfree.host.compute import use_cpu
from server.config import ServerConfig
from server.learning.moves import invert, meta_learn
from server.learning.pool import Pool
from server.learning.state import State, begin
from simulations.benchmarks.validation import few_shot
from simulations.config import SimulationConfig

LOOKS = 10
"""Times that each is looked at while it learns."""


@dataclass(frozen=True)
class Look:
    """At one meta-learner that is not done yet."""

    iterations: int
    seconds: float
    """Of learning; looking is not counted."""
    accuracies: Mapping[str, Accuracy]
    """On meta_val, nearest class mean, by name of the episodes."""


@dataclass(frozen=True)
class Pace:
    """Of one configuration."""

    name: str
    looks: Sequence[Look]

    def best(self, task: str) -> Look:
        """Where it was most accurate."""
        return max(self.looks, key=lambda look: look.accuracies[task].mean)

    def seconds_to(self, task: str, accuracy: float) -> float | None:
        """Until it was first seen to be as accurate; None where it never was."""
        return next((each.seconds for each in self.looks if each.accuracies[task].mean >= accuracy), None)

    def values(self) -> dict[str, object]:
        """Everything measured, as numbers."""
        return {"name": self.name, "looks": [asdict(look) for look in self.looks]}


def pace(
    name: str,
    pool: Pool,
    server: ServerConfig,
    validation: ImageSet,
    config: SimulationConfig,
    *,
    at_most: float,
) -> Pace:
    """Learn as configured, to the end or for so many seconds, and look at the meta-learner along the way."""
    use_cpu(server.threads)
    started = time.perf_counter()
    state = begin(pool, server)
    took, looks = time.perf_counter() - started, []
    every = max(1, server.iterations // LOOKS)
    for iteration in range(server.iterations):
        started = time.perf_counter()
        meta_learn(state, invert(state, iteration), iteration)
        took += time.perf_counter() - started
        last = took >= at_most or iteration + 1 == server.iterations
        if last or (iteration + 1) % every == 0:
            looks.append(_look(state, iteration + 1, took, validation, config))
        if last:
            break
    return Pace(name, looks)


def _look(state: State, iterations: int, took: float, validation: ImageSet, config: SimulationConfig) -> Look:
    fractions = few_shot(copy.deepcopy(state.meta_learner), state.input, validation, config)
    return Look(iterations, took, {name: mean_and_ci95(each) for name, each in fractions.items()})


def sentence(ours: Pace, theirs: Pace, task: str) -> str:
    """How many times longer ``theirs`` took to its best, in words."""
    best = theirs.best(task)
    reached = ours.seconds_to(task, best.accuracies[task].mean)
    found = f"{task}: {theirs.name} had {best.accuracies[task]} after {best.seconds:.0f} s at its best, "
    if reached is None:
        return f"{found}{ours.name} never"
    return f"{found}{ours.name} after {reached:.0f} s, {best.seconds / reached:.1f} times sooner"
