"""``result.json``: everything a run of a simulated federation found, as one value."""

import json
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from client.training.statement import page
from fedfree.codec import decode_contribution
from fedfree.episodes import mean_and_ci95
from fedfree.errors import ContributionError
from fedfree.host.compute import count_threads
from fedfree.host.files import write_file
from fedfree.host.starts import describe_folder
from fedfree.start import Start
from server.events import Event, doubted
from server.storage.run_directory import RunDirectory
from server.storage.store import ACCEPTED, QUARANTINED
from simulations.baselines.evaluate import Comparison
from simulations.baselines.share import Share, share_closed
from simulations.baselines.table import BASELINES, META_LEARNER
from simulations.config import SimulationConfig
from simulations.reporting import facts

ONE_FOR_ALL_NOTE = "one for all data sets, chosen by its mean accuracy on episodes of each one's meta_val"

UNKNOWN_FACTS: dict[str, object] = {"architecture": None, "classes": None, "privacy": None}


def write_result(
    run: Path,
    config: SimulationConfig,
    domains: Mapping[str, Sequence[Comparison]],
    seconds: Mapping[str, float],
    *,
    commit: str | None,
    tuned: Sequence[Mapping[str, object]] = (),
) -> dict[str, Any]:
    """Write ``result.json`` and return it; accuracies and gains are in percent.

    Args:
        domains: name of each data set to its comparisons. With several, ``few_shot`` and ``baselines``
            pool their episodes, and ``domains`` holds each one's own.
        seconds: by stage, of this start of the run; learning counts over all its starts.
        commit: of the sources that ran.
        tuned: what baselines reached on meta_val with the settings that were tried.
    """
    directory = RunDirectory(run)
    events = directory.read_events()
    spent = spent_learning(events)
    several = len(domains) > 1
    own = {"domains": {name: _accuracies(each) for name, each in domains.items()}} if several else {}
    seconds = {**seconds, "learn": sum(spent.iterations.values())}
    pooled = _accuracies([_pool(alike) for alike in zip(*domains.values(), strict=True)])
    result: dict[str, Any] = {
        **pooled,
        **own,
        "baseline_notes": _notes(pooled["baselines"], several=several),
        **({"tuned": list(tuned)} if tuned else {}),
        "contributions": _contributions(directory, events),
        "organisations": _organisations(directory),
        **_start(config, directory),
        "judged": judged(events),
        **_public_images(config, directory),
        "recovery": {"images": spent.images, "seconds": round(sum(spent.recovery.values()), 2)},
        "seconds": {stage: round(value, 2) for stage, value in seconds.items()},
        **_made_with(config, commit),
    }
    write_file(run / "result.json", (json.dumps(result, indent=2) + "\n").encode())
    return result


def _made_with(config: SimulationConfig, commit: str | None) -> dict[str, object]:
    return {
        "dataset": config.dataset,
        "preset": config.server.preset,
        "engine": config.engine,
        "seed": config.seed,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "versions": facts.versions(),
        "hardware": facts.hardware() | {"threads": count_threads(config.server.threads)},
    }


def _start(config: SimulationConfig, directory: RunDirectory) -> dict[str, object]:
    """What everybody began from; empty for random weights."""
    described = [_of_start(describe_folder(folder)) for folder in directory.start_folders().values()]
    if not described:
        return {}
    first, *further = described
    beside = {"further_starts": further} if further else {}
    return {"start": {"name": config.starts[0], **first}, **beside}


def _of_start(start: Start) -> dict[str, object]:
    return {
        "architecture": str(start.architecture),
        "image_size": start.input.height,
        "sha256": start.sha256,
        "source": start.source,
        "licence": start.licence,
    }


def judged(events: Iterable[Event]) -> dict[str, Any]:
    """How what was learned did against the average of the models, as learning last ended; or nothing."""
    ends = [dict(each.values) for each in events if (each.stage, each.kind) == ("learn", "finished")]
    return ends[-1] if ends else {}


def _public_images(config: SimulationConfig, directory: RunDirectory) -> dict[str, object]:
    """What the server had beside recovered images; empty where it had no image."""
    if (images := directory.public_images()) is None:
        return {}
    turns = config.server.iterations - config.server.warmup_iterations
    shown = min(len(images), turns * config.server.learn.public_images)
    return {"public_images": {"images": len(images), "shown": shown, "sha256": images.sha256}}


def _notes(measured: Container[str], *, several: bool) -> dict[str, str]:
    notes = {name: each.note for name, each in BASELINES.items() if each.note and name in measured}
    return notes | ({"best_single_model": ONE_FOR_ALL_NOTE} if several else {})


def _pool(alike: Sequence[Comparison]) -> Comparison:
    """The same kind of episodes of several data sets, one after the other."""
    names = alike[0].accuracies
    return Comparison(
        alike[0].spec, {name: torch.cat([each.accuracies[name] for each in alike]) for name in names}
    )


def _accuracies(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    few_shot = {each.spec.name: _few_shot(each) for each in comparisons}
    shares = {each.spec.name: share_closed(each.accuracies, META_LEARNER) for each in comparisons}
    return {
        "few_shot": few_shot,
        "baselines": _baselines(comparisons),
        "share_closed": {name: _share(each) for name, each in shares.items() if each},
    }


def _share(share: Share) -> dict[str, object]:
    return {"from": share.origin, "mean": round(share.mean, 2), "ci95": round(share.ci95, 2)}


def _few_shot(comparison: Comparison) -> dict[str, object]:
    accuracy = mean_and_ci95(comparison.accuracies[META_LEARNER])
    return {
        "mean": round(accuracy.mean, 2),
        "ci95": round(accuracy.ci95, 2),
        "episodes": accuracy.episodes,
        "transductive": False,
    }


def _baselines(comparisons: Sequence[Comparison]) -> dict[str, dict[str, object]]:
    names = [name for name in comparisons[0].accuracies if name != META_LEARNER]
    return {name: {each.spec.name: _baseline(each, name) for each in comparisons} for name in names}


def _baseline(comparison: Comparison, name: str) -> dict[str, float]:
    """A baseline's accuracy, and the meta-learner's mean paired difference to it."""
    ours, theirs = comparison.accuracies[META_LEARNER], comparison.accuracies[name]
    accuracy, gain = mean_and_ci95(theirs), mean_and_ci95(ours - theirs)
    return {
        "mean": round(accuracy.mean, 2),
        "ci95": round(accuracy.ci95, 2),
        "gain": round(gain.mean, 2),
        "gain_ci95": round(gain.ci95, 2),
    }


def _contributions(directory: RunDirectory, events: Sequence[Event]) -> list[dict[str, object]]:
    """Every contribution with what was decided about it, and every organisation that sent none."""
    store, doubts = directory.store(), doubted(events)
    answers = {
        event.values["node"]: event for event in events if event.stage == "collect" and "node" in event.values
    }
    ordinals = {node: rank for rank, node in enumerate(sorted(answers))}
    senders = {
        answer.values["contribution"]: ordinals[node]
        for node, answer in answers.items()
        if "contribution" in answer.values
    }
    described = []
    for place in (ACCEPTED, QUARANTINED):
        for identity in store.ids(place):
            reason = store.reason(identity) if place == QUARANTINED else ""
            entry = {"organisation": senders.get(identity), "id": identity, "state": place, "reason": reason}
            entry |= doubts.get(identity, {})
            described.append(entry | manifest_facts(*store.read(identity)))
    for node, answer in answers.items():
        if answer.kind == "failed":
            failed = {"organisation": ordinals[node], "id": None, "state": "failed"}
            described.append(failed | {"reason": answer.values["reason"]} | UNKNOWN_FACTS)
    return sorted(described, key=lambda entry: (entry["organisation"] is None, entry["organisation"]))


def _organisations(directory: RunDirectory) -> list[dict[str, object]]:
    """What each organisation measured itself, of those that allowed it to be sent."""
    replies = json.loads(directory.adaptation.read_text())
    return [
        {"organisation": reply["node"], "results": reply["results"]}
        for reply in replies
        if reply.get("results")
    ]


def manifest_facts(manifest: bytes, weights: bytes) -> dict[str, object]:
    """What a contribution says of itself; under differential privacy its statement in plain words too."""
    try:
        contribution = decode_contribution(manifest, weights)
    except ContributionError:
        return UNKNOWN_FACTS
    spent = contribution.privacy.differential_privacy
    return {
        "architecture": str(contribution.architecture),
        "classes": contribution.num_classes,
        "privacy": contribution.privacy.status.value,
        **({"statement": page(manifest, contribution)} if spent else {}),
    }


@dataclass
class Spent:
    """What the learn stage did and took, whatever number of starts it needed."""

    images: int = 0
    """Recovered over the whole run."""
    recovery: dict[int, float] = field(default_factory=dict)
    """Iteration to the seconds of its inversion."""
    iterations: dict[int, float] = field(default_factory=dict)
    """Iteration to its seconds."""


def spent_learning(events: Iterable[Event]) -> Spent:
    """Each iteration counts once, as it was done last: a run may have been killed and started again."""
    spent, since, recovered = Spent(), 0.0, 0.0
    for event in events:
        if event.stage != "learn":
            continue
        if event.kind == "started":
            since = event.time
        elif event.kind == "recovered":
            spent.images, recovered = int(event.values["images"]), event.time
        elif event.kind == "progress":
            iteration = int(event.values["iteration"])
            # Of a clock that was set back meanwhile nothing is learned.
            spent.recovery[iteration] = max(0.0, recovered - since)
            spent.iterations[iteration] = max(0.0, event.time - since)
            since = event.time
    return spent
