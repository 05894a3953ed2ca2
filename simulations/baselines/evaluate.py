"""Meta-learner and baselines on the same episodes of meta_test, which nothing has touched before."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from client.adapting.adapt import sample_episodes
from client.data.finding import hash_images
from fedfree.codec import decode_meta_learner, sha256
from fedfree.episodes import Episode, EpisodeSpec
from fedfree.errors import ExtensionError
from fedfree.extension import described, extending
from server.events import Event, OnEvent
from server.storage.run_directory import RunDirectory
from server.storage.store import ACCEPTED
from simulations.baselines.table import BASELINES, META_LEARNER, Available, Measure, NewClasses
from simulations.config import SimulationConfig
from simulations.federation.prepare import read_organisations
from simulations.federation.splits import DataSet, episode_specs, find_datasets

CHOICE_IMAGES = 100
"""Of each class of meta_val, on which the best of many public networks, each costly to ask, is chosen."""


@dataclass(frozen=True)
class Comparison:
    """Test episodes of one shape with everyone's accuracy on each."""

    spec: EpisodeSpec
    accuracies: Mapping[str, Tensor]
    """Name to fractions [episodes]; ``meta_learner`` and the baselines there are."""
    episodes_sha256: str = ""
    """Of the image files and the episodes drawn from them: where it is the same, so is every episode."""


def evaluate(run: Path, config: SimulationConfig, *, on_event: OnEvent) -> dict[str, list[Comparison]]:
    """Meta-learner and baselines on the same episodes of meta_test, with the same recipe.

    Returns:
        For each data set, by name, a comparison for each kind of episode; no episode mixes data sets.
    """
    on_event(Event("evaluate", "started"))
    datasets, done, of = find_datasets(config), 0, 0

    def tell(event: Event) -> None:
        if event.kind == "progress":
            event = replace(event, values={"done": done + int(event.values.get("done", 0)), "of": of})
        on_event(event)

    available = replace(_read_available(run, config, datasets), on_event=tell)
    competitors = _competitors(available)
    comparisons = {}
    asked = _asked_networks(competitors, models=len(available.contributions))
    of = len(datasets) * sum(asked.values())
    on_event(Event("evaluate", "started", {"of": of}))  # from here on each network takes about as long
    for dataset in datasets:
        test, specs = dataset.load("meta_test"), episode_specs(config)
        episodes = [sample_episodes(test.labels, spec, config.episodes, seed=config.seed) for spec in specs]
        new = NewClasses(test, episodes, dataset.source)
        accuracies: dict[str, list[Tensor]] = {}
        for name, measure in competitors.items():
            on_event(Event("evaluate", "progress", {"done": done, "of": of}))
            accuracies[name] = _measured(name, measure, new)
            done += asked[name]
        files = _files_sha256(dataset.source, test.class_names)
        comparisons[dataset.name] = [
            Comparison(
                spec,
                {name: each[position] for name, each in accuracies.items()},
                _episodes_sha256(files, episodes[position]),
            )
            for position, spec in enumerate(specs)
        ]
    on_event(Event("evaluate", "finished", {"done": done, "of": of}))
    return comparisons


def _asked_networks(competitors: Mapping[str, Measure], *, models: int) -> dict[str, int]:
    """How many networks see the images, by competitor."""
    everyone = {name for name, baseline in BASELINES.items() if baseline.of_all_models}
    return {name: models if name in everyone else 1 for name in competitors}


def _files_sha256(source: Path, class_names: Sequence[str]) -> str:
    """Hash of what is tested on, at whatever size: the files, and the order of their classes."""
    return sha256("\n".join([*class_names, *sorted(hash_images(source, split="meta_test"))]).encode())


def _episodes_sha256(files: str, episodes: Sequence[Episode]) -> str:
    """Hash of which images of these files each episode holds, and in what part."""
    digest = hashlib.sha256(files.encode())
    for each in episodes:
        for part in (each.support, each.query):
            digest.update(part.numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def _read_available(run: Path, config: SimulationConfig, datasets: Sequence[DataSet]) -> Available:
    directory = RunDirectory(run)
    store = directory.store()
    return Available(
        config,
        decode_meta_learner(directory.manifest.read_bytes(), directory.weights.read_bytes()),
        [store.contribution(identity) for identity in store.ids(ACCEPTED)],
        [each.load("meta_val", images_per_class=CHOICE_IMAGES if store.start else None) for each in datasets],
        store.starts,
        read_organisations(run, config),
    )


def _competitors(available: Available) -> dict[str, Measure]:
    """The meta-learner, then every baseline that these models have."""
    learned = available.meta_learner
    measures = {META_LEARNER: available.measure(learned.network(), learned.input)}
    for name, baseline in BASELINES.items():
        with extending(f"the baseline {name!r}", baseline.measure):
            measure = baseline.measure(available)
        if measure is not None:
            measures[name] = measure
    return measures


def _measured(name: str, measure: Measure, new: NewClasses) -> list[Tensor]:
    """Fractions [episodes] for each kind of episode; raises ExtensionError where there are none of these."""
    what = f"the baseline {name!r}"
    with extending(what, measure):
        found = measure(new)
    if (gave := described(found)) != (expected := [[len(each)] for each in new.episodes]):
        raise ExtensionError(f"{what} gave accuracies {gave}: expected tensors {expected}, one an episode")
    return found
