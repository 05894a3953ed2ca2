"""``result.json``: everything a run of a simulated federation found, as one value."""

import itertools
import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from fedfree.codec import decode_contribution
from fedfree.episodes import mean_and_ci95
from fedfree.errors import ContributionError
from server.events import Event
from server.run_directory import RunDirectory
from server.store import ACCEPTED, QUARANTINED, write_durably
from simulations.config import SimulationConfig
from simulations.federation import Comparison

META_LEARNER = "meta_learner"
BASELINE_NOTES = {
    "pool_concatenation": (
        "the features of all models side by side: a reference that cannot be broadcast, since it is as many "
        "times larger as there are models and would hand everyone's model to everyone"
    ),
    "best_single_model": "chosen on episodes of meta_val",
}

UNKNOWN_FACTS: dict[str, object] = {"architecture": None, "classes": None, "privacy": None}


def write_result(
    run: Path, config: SimulationConfig, comparisons: Sequence[Comparison], seconds: Mapping[str, float]
) -> dict[str, Any]:
    """Write ``result.json`` and return it; accuracies and gains are in percent."""
    directory = RunDirectory(run)
    events = directory.read_events()
    result: dict[str, Any] = {
        "few_shot": {each.spec.name: _few_shot(each) for each in comparisons},
        "baselines": _baselines(comparisons),
        "baseline_notes": BASELINE_NOTES,
        "contributions": _contributions(directory, events),
        "organisations": _organisations(directory),
        "recovery": _recovery(events),
        "seconds": {stage: round(value, 2) for stage, value in seconds.items()},
        "dataset": config.dataset,
        "preset": config.preset,
        "engine": config.engine,
        "seed": config.seed,
        "versions": {name: version(name) for name in ("fedfree", "torch", "torchvision", "flwr")},
        "hardware": _hardware(),
    }
    write_durably(run / "result.json", (json.dumps(result, indent=2) + "\n").encode())
    return result


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
    store = directory.store()
    collected = [event.values for event in events if event.stage == "collect" and "node" in event.values]
    ordinals = {node: rank for rank, node in enumerate(sorted({values["node"] for values in collected}))}
    senders = {
        values["contribution"]: ordinals[values["node"]] for values in collected if "contribution" in values
    }
    described = []
    for place in (ACCEPTED, QUARANTINED):
        for identity in store.ids(place):
            reason = store.reason(identity) if place == QUARANTINED else ""
            entry = {"organisation": senders.get(identity), "id": identity, "state": place, "reason": reason}
            described.append(entry | _manifest_facts(*store.read(identity)))
    for event in events:
        if (event.stage, event.kind) == ("collect", "failed"):
            failed = {"organisation": ordinals[event.values["node"]], "id": None, "state": "failed"}
            described.append(failed | {"reason": event.values["reason"]} | UNKNOWN_FACTS)
    return sorted(described, key=lambda entry: (entry["organisation"] is None, entry["organisation"]))


def _organisations(directory: RunDirectory) -> list[dict[str, object]]:
    """What each organisation measured itself, of those that allowed it to be sent."""
    replies = json.loads(directory.adaptation.read_text())
    return [
        {"organisation": reply["node"], "results": reply["results"]}
        for reply in replies
        if reply.get("results")
    ]


def _manifest_facts(manifest: bytes, weights: bytes) -> dict[str, object]:
    try:
        contribution = decode_contribution(manifest, weights)
    except ContributionError:
        return UNKNOWN_FACTS
    return {
        "architecture": str(contribution.architecture),
        "classes": contribution.num_classes,
        "privacy": contribution.privacy.status.value,
    }


def _recovery(events: Sequence[Event]) -> dict[str, float]:
    """Images recovered over the whole run, and the seconds that inversion alone took."""
    learning = [event for event in events if event.stage == "learn"]
    seconds = sum(
        after.time - before.time
        for before, after in itertools.pairwise(learning)
        if after.kind == "recovered"
    )
    images = [int(event.values["images"]) for event in learning if event.kind == "recovered"]
    return {"images": images[-1], "seconds": round(seconds, 2)}


def _hardware() -> dict[str, object]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "gpu": gpu}
