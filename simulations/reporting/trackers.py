"""Where else the numbers of a run go while it runs: ``--log-to tensorboard``."""

import importlib.util
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

from fedfree.errors import ConfigError
from fedfree.host.options import changed_values
from server.events import Event
from simulations.config import SimulationConfig
from simulations.reporting.scores import comparison

LogTo = Literal["tensorboard"]
FOLDER = "tensorboard"
"""In the run directory; ``tensorboard --logdir`` takes it, or a folder of many runs."""
_COUNTS = ("iteration", "of", "done", "node")


class Tracker(Protocol):
    """What is told of a run."""

    def __call__(self, event: Event) -> None:
        """Take note of an event."""

    def finish(self, result: Mapping[str, Any]) -> None:
        """Take note of what came out."""


class Untracked:
    """Tells nobody."""

    def __call__(self, event: Event) -> None:
        """Nothing."""

    def finish(self, result: Mapping[str, Any]) -> None:
        """Nothing."""


class Writer(Protocol):
    """The part of torch's SummaryWriter that is used."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int, walltime: float) -> None: ...
    def add_hparams(
        self, hparam_dict: Mapping[str, Any], metric_dict: Mapping[str, float], *, run_name: str
    ) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Losses by iteration and counts as scalars; settings and final accuracies as hyperparameters."""

    def __init__(self, run: Path, config: SimulationConfig) -> None:
        self._run, self._config = run, config
        self._seen = Counter[str]()

    @cached_property
    def writer(self) -> Writer:
        """Made when there is first something to write: until then nobody knows that the run can begin."""
        from torch.utils.tensorboard import SummaryWriter

        made: Writer = SummaryWriter(str(self._run / FOLDER))
        return made

    def __call__(self, event: Event) -> None:
        """Write every number of an event, or that it happened once more."""
        step = int(event.values.get("iteration", event.values.get("done", 0)))
        numbers = {
            name: float(value)
            for name, value in event.values.items()
            if name not in _COUNTS and not isinstance(value, str) and math.isfinite(value)
        }
        if event.kind == "progress" and "done" in event.values:
            numbers["done"] = step
        if event.kind in ("accepted", "quarantined", "failed"):
            self._seen[event.kind] += 1
            step, numbers = self._seen[event.kind], {event.kind: self._seen[event.kind]}
        if event.kind == "recovered":
            self._seen["recovered"] += 1
            step = self._seen["recovered"]
        for name, number in numbers.items():
            self.writer.add_scalar(f"{event.stage}/{name}", number, step, event.time)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write what was set, and what came out."""
        self.writer.add_hparams(_settings(self._config), _accuracies(result), run_name=".")

    def close(self) -> None:
        """Write what is still to be written, where anything was."""
        if "writer" in self.__dict__:
            self.writer.close()


def _settings(config: SimulationConfig) -> dict[str, Any]:
    values = changed_values(config, {}).items()
    return {path: value if isinstance(value, int | float | str) else str(value) for path, value in values}


def _accuracies(result: Mapping[str, Any]) -> dict[str, float]:
    """In percent, by kind of episode and competitor."""
    return {
        f"{task}/{row.key}": score.mean
        for row in comparison(result)
        for task, score in zip(result["few_shot"], row.scores, strict=True)
        if score is not None
    }


@contextmanager
def tracked(name: LogTo | None, run: Path, config: SimulationConfig) -> Iterator[Tracker]:
    """The tracker of this name; None tells nobody.

    Raises:
        ConfigError: its package is not installed; nothing was begun.
    """
    if name is None:
        yield Untracked()
        return
    if importlib.util.find_spec(name) is None:
        raise ConfigError(f"--log-to {name}: its package is not installed: pip install 'fedfree[{name}]'")
    board = TensorBoard(run, config)
    try:
        yield board
    finally:
        board.close()
