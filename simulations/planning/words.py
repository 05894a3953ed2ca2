"""A plan and its estimate as a person reads them at the terminal."""

import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from simulations.config import SimulationConfig
from simulations.federation.splits import episode_specs
from simulations.planning.estimate import Estimate, estimate
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
    happenings = [f"{number}. {line}" for number, line in enumerate(_happenings(plan), start=1)]
    return [f"dry run: nothing is trained, nothing is written into {plan.run}", *happenings]


def _happenings(plan: Plan) -> Iterator[str]:
    server = plan.config.server
    if plan.found and plan.found.state != "prepared":
        yield f"go on with what {plan.run} holds already ({plan.found.state_words})"
    for data in plan.datasets:
        yield _data(data)
    for name, is_there in plan.starts:
        yield f"begin from {printable(name)} ({'there' if is_there else 'to be made into the cache'})"
    yield _trainings(plan)
    learner = plan.models[0].training.architecture if plan.starts else server.architecture
    yield (
        f"the server (preset {server.preset}, meta-learner {learner}) verifies them and learns "
        f"for {server.iterations} iterations"
    )
    yield "every organisation measures the meta-learner on new classes of its own"
    yield _evaluation(plan)


def _data(data: PlannedData) -> str:
    if not data.counts:
        return f"download {data.name} to {data.source}"
    counts = ", ".join(f"{data.images(split):,} in {split}" for split in data.counts)
    return f"{'read' if data.is_there else f'draw {data.name} into'} {data.source}: {counts}"


def _trainings(plan: Plan) -> str:
    """For instance ``12 organisations of 5 classes and 100 images each train …``."""
    models, privacy = plan.models, plan.config.privacy
    kinds = Counter("{} at {} pixels".format(*model.kind) for model in models)
    what = ", ".join(f"{count} × {kind}" if len(kinds) > 1 else kind for kind, count in kinds.items())
    begun = printable(" and ".join(name for name, _ in plan.starts)) or "random weights"
    private = f", under differential privacy (ε = {privacy.epsilon:g})" if privacy.is_dp else ""
    cached = Counter(model.is_cached for model in models)
    unknown = f", {cached[None]} not looked up" if cached[None] else ""
    return (
        f"{len(models)} organisations of {_range([model.classes for model in models])} classes "
        f"and {_range([model.images for model in models])} images each train {what} from {begun}, "
        f"{_range([model.steps for model in models])} steps each{private}: "
        f"{cached[True]} are in the cache already, {cached[False]} to be trained{unknown}"
    )


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _evaluation(plan: Plan) -> str:
    kinds = " and ".join(task_label(spec.name) for spec in episode_specs(plan.config))
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


def estimate_lines(plan: Plan, estimated: Estimate, rehearsed: float) -> Iterator[str]:
    """How long it would take, and how much it would need.

    Args:
        rehearsed: seconds that the rehearsal took.
    """
    spent = {STAGES[stage]: seconds for stage, seconds in estimated.seconds.items() if seconds >= 0.5}
    stages = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in spent.items())
    yield f"about {duration(sum(estimated.seconds.values()))}: {stages}"
    if not all(data.counts for data in plan.datasets):
        yield "downloading, and measuring on what is not there yet, were not counted, and come on top"
    if not estimated.is_complete:
        yield "training under differential privacy was not timed, and comes on top"
    if estimated.pooled_seconds:
        yield (
            f"of that {duration(estimated.pooled_seconds)} for the network on everybody's images, unless it "
            "was trained before"
        )
    yield f"about {_size(estimated.memory_bytes)} of memory and {_size(estimated.disk_bytes)} of disk"
    yield (
        "an estimate, right to a factor of about two: a few steps of everything, with random weights and "
        f"noise for images, were timed for {duration(rehearsed)} on this machine as busy as it is now"
    )
    folder = next(path for path in (plan.run.absolute(), *plan.run.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    if free < estimated.disk_bytes:
        yield f"the disk of {folder} has only {_size(free)} free"


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
