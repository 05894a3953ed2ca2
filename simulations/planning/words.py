"""A plan and its estimate as a person reads them at the terminal."""

import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from simulations.config import SimulationConfig
from simulations.planning.estimate import Estimate, estimate, specs, steps_of
from simulations.planning.plan import Plan, PlannedData, make_plan
from simulations.planning.rehearsal import rehearse
from simulations.reporting.scores import task_label
from simulations.reporting.words import duration, printable

STAGES = {
    "prepare": "prepare",
    "train": "train the organisations' models",
    "learn": "learn on the server",
    "adapt": "measure at the organisations",
    "evaluate": "evaluate, with the baselines",
}


def dry_run_lines(run: Path, config: SimulationConfig) -> Iterator[str]:
    """What a run would do, and what it would take; the former before the latter is looked for."""
    plan = make_plan(run, config)
    yield from plan_lines(plan)
    began = time.monotonic()
    pace = rehearse(plan)
    yield from estimate_lines(plan, estimate(plan, pace), time.monotonic() - began)


def plan_lines(plan: Plan) -> list[str]:
    """What would happen, in order."""
    return [f"dry run: nothing is trained, nothing is written into {plan.run}", *_numbered(_happenings(plan))]


def _numbered(lines: Iterator[str]) -> list[str]:
    return [f"{number}. {line}" for number, line in enumerate(lines, start=1)]


def _happenings(plan: Plan) -> Iterator[str]:
    config = plan.config
    if plan.found and plan.found.state != "prepared":
        yield f"go on with what {plan.run} holds already ({plan.found.state_words})"
    for data in plan.datasets:
        yield _data(data, made=data.name == "glyphs")
    for name, is_there in plan.starts:
        yield f"begin from {printable(name)} ({'there' if is_there else 'to be made into the cache'})"
    yield _trainings(plan)
    yield (
        f"the server (preset {config.server.preset}, meta-learner {_learner(plan)}) verifies them and learns "
        f"for {config.server.iterations} iterations"
    )
    yield "every organisation measures the meta-learner on new classes of its own"
    yield _evaluation(plan)


def _data(data: PlannedData, *, made: bool) -> str:
    if data.images is None:
        return f"download {data.name} to {data.source}"
    counts = ", ".join(f"{count:,} in {split}" for split, count in data.images.items())
    if data.is_there:
        return f"read {data.source}: {counts}"
    return f"{'draw' if made else 'make'} {data.name} into {data.source}: {counts}"


def _learner(plan: Plan) -> str:
    return str(plan.models[0].training.architecture if plan.starts else plan.config.server.architecture)


def _trainings(plan: Plan) -> str:
    """For instance ``12 organisations of 5 classes and 100 images each train …``."""
    kinds = Counter(
        f"{each.training.architecture} at {each.training.image_size} pixels" for each in plan.models
    )
    what = ", ".join(f"{count} × {kind}" if len(kinds) > 1 else kind for kind, count in kinds.items())
    begun = " and ".join(name for name, _ in plan.starts) or "random weights"
    whose = f"{len(plan.models)} organisations of {_range([each.classes for each in plan.models])} classes"
    images = f"{_range([each.images for each in plan.models])} images each"
    return (
        f"{whose} and {images} train {what} from {printable(begun)}, "
        f"{_range([steps_of(each) for each in plan.models])} steps each{_private(plan)}: {_cached(plan)}"
    )


def _private(plan: Plan) -> str:
    return (
        f", under differential privacy (ε = {plan.config.privacy.epsilon:g})"
        if plan.config.privacy.is_dp
        else ""
    )


def _cached(plan: Plan) -> str:
    unknown = sum(model.is_cached is None for model in plan.models)
    rest = f", {unknown} not looked up" if unknown else ""
    return f"{plan.cached} are in the cache already, {len(plan.to_train) - unknown} to be trained{rest}"


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _evaluation(plan: Plan) -> str:
    kinds = " and ".join(task_label(spec.name) for spec in specs(plan))
    several = " of each data set" if len(plan.datasets) > 1 else ""
    baselines = ["public start, frozen" if plan.starts else "random initialisation"]
    baselines += ["parameter average", "best single model"]
    baselines += ["DENSE-style distillation"] if plan.config.dense.trained else []
    baselines += ["all models side by side"]
    baselines += ["one network on everybody's images, trained for it"] if plan.config.has_pooled else []
    return (
        f"it is compared on {plan.config.episodes:,} episodes{several} each of {kinds} with "
        f"{len(baselines)} baselines: {', '.join(baselines)}"
    )


def estimate_lines(plan: Plan, estimated: Estimate, seconds: float) -> list[str]:
    """How long it would take, and how much it would need.

    Args:
        seconds: that the rehearsal took.
    """
    total = sum(estimated.seconds.values())
    stages = ", ".join(
        f"{STAGES[stage]} {duration(spent)}" for stage, spent in estimated.seconds.items() if spent >= 0.5
    )
    lines = [
        f"about {duration(total)}: {stages}",
        f"about {_size(estimated.memory_bytes)} of memory and {_size(estimated.disk_bytes)} of disk",
        "an estimate, right to a factor of about two: a few steps of everything, with random weights and "
        f"noise for images, were timed for {duration(seconds)} on this machine as busy as it is now",
    ]
    if estimated.pooled_seconds:
        lines.insert(
            1,
            f"of that {duration(estimated.pooled_seconds)} for the network on everybody's images, unless it "
            "was trained before",
        )
    if not estimated.is_complete:
        lines.insert(1, "training under differential privacy was not timed, and comes on top")
    if any(data.images is None for data in plan.datasets):
        lines.insert(
            1, "downloading, and measuring on what is not there yet, were not counted, and come on top"
        )
    return [*lines, *_shortage(plan, estimated)]


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _shortage(plan: Plan, estimated: Estimate) -> list[str]:
    """A warning where the disk has less room than that."""
    folder = next(path for path in (plan.run.absolute(), *plan.run.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    return [f"{_where(folder)} has only {_size(free)} free"] if free < estimated.disk_bytes else []


def _where(folder: Path) -> str:
    return f"the disk of {folder}"
