"""What hostile organisations cost everyone: attacks, by their share, with and without the defence.

The honest models of a seed are trained once. In each cell the first organisations send something else in
place of theirs; what the server makes of the pool is held against what it makes of the honest ones alone, on
the same episodes of meta_val.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from client.adapting.adapt import extract_features, head_accuracies
from client.config import ClientConfig
from client.data.image_set import ImageSet, LazyInputs
from client.training.pretrain import shuffle_classes
from fedfree.adaptation import Recipe
from fedfree.codec import Contribution, MetaLearner, encode_contribution
from fedfree.episodes import Episode
from fedfree.errors import ConfigError
from fedfree.host.compute import use_cpu
from fedfree.host.files import discard, read_file, write_file
from server import pipeline
from server.config import ServerConfig
from server.events import ignore
from server.learning.outcome import Outcome
from server.storage.store import QUARANTINED, Store
from server.verify.verify import verify_received
from simulations.attacks.backdoor import marked
from simulations.attacks.poison import POISONS, is_possible, poison
from simulations.baselines.evaluate import CHOICE_IMAGES
from simulations.benchmarks.pools import MadePool, make_pool
from simulations.benchmarks.validation import load_validation, validation_episodes
from simulations.config import SimulationConfig
from simulations.federation.prepare import check_folder, load_own, server_config

NOBODY, WITHOUT = "nobody is hostile", "without them"
"""Cells that attacks are held against: the whole honest pool, and the pool without the hostile ones."""
ALL, ONE = "all", "one"


@dataclass(frozen=True)
class Cell:
    """One federation of a seed."""

    attack: str
    hostile: int
    """The first so many organisations."""
    robust: bool
    """Whether ``learn.robust`` is on."""

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.attack.replace(' ', '-')}-{self.hostile}-{'on' if self.robust else 'off'}"

    @property
    def reference(self) -> "Cell | None":
        """What it is held against; for the honest pool, the same without the defence."""
        if self.attack == NOBODY:
            return Cell(NOBODY, 0, False) if self.robust else None
        return None if self.attack == WITHOUT else Cell(WITHOUT, self.hostile, self.robust)


@dataclass(frozen=True)
class Measured:
    """What came out of a cell."""

    cell: Cell
    seed: int
    accuracies: Mapping[str, Sequence[float]]
    """Fractions on the episodes of meta_val, by their name."""
    triggered: Mapping[str, Sequence[float]]
    """Share of the other classes' queries that the mark of :func:`marked` sends to a class whose support
    images bear it, in each episode."""
    hostile_counts: Sequence[float]
    """How much each hostile model counted that was accepted."""
    honest_counts: Sequence[float]
    evidence: Sequence[str]
    """Against the hostile models, in words; empty for one that counted in full."""
    refused: Sequence[str]
    """Why VERIFY refused hostile models."""
    seconds: float

    @classmethod
    def read(cls, path: Path) -> "Measured":
        """What :meth:`write` wrote."""
        values = json.loads(read_file(path))
        return cls(**(values | {"cell": Cell(**values["cell"])}))

    def write(self, path: Path) -> None:
        """As JSON."""
        write_file(path, f"{json.dumps(asdict(self))}\n".encode())


def plan(config: SimulationConfig, *, attacks: str, shares: str) -> list[Cell]:
    """The cells of a seed, those that others are held against first.

    Args:
        attacks: some of POISONS separated by commas, or ``all`` that this pool allows.
        shares: percentages of hostile organisations separated by commas, or ``one`` organisation.

    Raises:
        ConfigError: an attack or a share that there is not, or several starts.
    """
    if len(config.starts) > 1:
        raise ConfigError(f"hostile contributions are made from one start, got {config.start}: name one")
    counts = list(dict.fromkeys(_count(word.strip(), config) for word in shares.split(",")))
    cells = [(NOBODY, 0), *((WITHOUT, count) for count in counts)]
    cells += [(attack, count) for attack in _chosen(attacks, config) for count in counts]
    return [Cell(attack, count, robust) for attack, count in cells for robust in (False, True)]


def _count(word: str, config: SimulationConfig) -> int:
    quorum = config.server.collect.quorum
    if word != ONE and not (word.isdecimal() and int(word) > 0):
        raise ConfigError(f"expected percentages separated by commas, or {ONE}, got {word!r}")
    count = 1 if word == ONE else max(1, round(config.clients * int(word) / 100))
    if config.clients - count < quorum:
        raise ConfigError(
            f"{word} leaves {config.clients - count} of {config.clients} organisations honest, fewer than "
            f"the quorum of {quorum}: choose a smaller share or more --clients"
        )
    return count


def _chosen(attacks: str, config: SimulationConfig) -> list[str]:
    allowed = partial(is_possible, architectures=config.dealt_architectures, has_start=bool(config.starts))
    possible = [attack for attack in POISONS if allowed(attack)]
    words = possible if attacks == ALL else [word.strip() for word in attacks.split(",")]
    if unknown := [word for word in words if word not in possible]:
        raise ConfigError(
            f"no attack {unknown[0]!r} on this pool: use {ALL}, or some of {', '.join(possible)}"
        )
    return words


def measure(
    out: Path, config: SimulationConfig, cells: Sequence[Cell], tell: Callable[[str], None]
) -> list[Measured]:
    """Every cell of one seed; those whose files are there are read.

    Args:
        tell: takes one line for each cell, what came out.

    Raises:
        ConfigError: the folder holds other federations.
    """
    check_folder(out / "pool", config)
    bench, measured = Bench(out, config), []
    for cell in cells:
        file = out / f"{cell.name}.json"
        is_new = not file.exists()
        if is_new:
            bench.run(cell).write(file)
            discard(out / cell.name)
        measured.append(Measured.read(file))
        tell(f"seed {config.seed}: {_in_short(measured[-1])}{'' if is_new else ' (was there)'}")
    return measured


def _in_short(measured: Measured) -> str:
    cell, shown = measured.cell, [f"{100 * fmean(each):.1f}" for each in measured.accuracies.values()]
    counts = f", hostile count {fmean(measured.hostile_counts):.2f}" if measured.hostile_counts else ""
    return (
        f"{cell.attack}, {cell.hostile} hostile, defence {'on' if cell.robust else 'off'}: "
        f"{' / '.join(shown)} %{counts}, {measured.seconds:.0f} s"
    )


class Bench:
    """The honest pool of a seed, made when a cell first needs it, and what is measured on."""

    def __init__(self, out: Path, config: SimulationConfig) -> None:
        self._out = out
        self._config = config
        self._poisoned: tuple[tuple[str, int], list[Contribution]] | None = None

    def run(self, cell: Cell) -> Measured:
        """Let the server learn from the cell's pool, and measure what it broadcasts."""
        began = time.monotonic()
        store = self._fresh_store(self._out / cell.name / "store")
        honest = [self._pool.store.read(identity) for identity in self._ids[cell.hostile :]]
        hostile = {store.receive(*each) for each in self._sent(cell)}
        for each in honest:
            store.receive(*each)
        verify_received(store, ignore)
        refused = [store.reason(identity) for identity in store.ids(QUARANTINED) if identity in hostile]
        checkpoint = self._out / cell.name / "checkpoint.safetensors"
        outcome = pipeline.run(store, self._server(cell), checkpoint=checkpoint)
        accuracies, triggered = self._evaluate(outcome.meta_learner)
        accepted = outcome.meta_learner.provenance.contributions
        return Measured(
            cell,
            self._config.seed,
            accuracies,
            triggered,
            [_counts(outcome, each) for each in accepted if each in hostile],
            [_counts(outcome, each) for each in accepted if each not in hostile],
            [outcome.doubted[each].evidence for each in accepted if each in hostile & outcome.doubted.keys()],
            refused,
            round(time.monotonic() - began, 1),
        )

    @cached_property
    def _pool(self) -> MadePool:
        return make_pool(self._out / "pool", self._config)

    @property
    def _ids(self) -> list[str]:
        """Of the honest contributions, in the order of the organisations."""
        return list(self._pool.organisations)

    @cached_property
    def _validation(self) -> ImageSet:
        return load_validation(self._config, images_per_class=CHOICE_IMAGES if self._config.start else None)

    @cached_property
    def _episodes(self) -> Mapping[str, Sequence[Episode]]:
        return validation_episodes(self._validation, self._config)

    def _fresh_store(self, path: Path) -> Store:
        """Without what a process left that was killed; its checkpoint tells by itself whether it fits."""
        discard(path)
        return Store(path, lambda: self._pool.store.start)

    def _sent(self, cell: Cell) -> Iterator[tuple[bytes, bytes]]:
        """Manifest and weights of what hostile organisations send; of the whole honest pool and none."""
        if cell.attack in (NOBODY, WITHOUT):
            return
        key = cell.attack, cell.hostile
        if self._poisoned is None or self._poisoned[0] != key:
            self._poisoned = key, self._poison(cell)
        for each in self._poisoned[1]:
            yield encode_contribution(each), each.weights

    def _poison(self, cell: Cell) -> list[Contribution]:
        use_cpu(self._config.server.threads)
        store, ids = self._pool.store, self._ids[: cell.hostile]
        return poison(
            [store.contribution(identity) for identity in ids],
            cell.attack,
            seed=self._config.seed,
            start=store.start,
            images=[partial(_own_images, self._pool.organisations[identity]) for identity in ids],
        )

    def _server(self, cell: Cell) -> ServerConfig:
        server = server_config(self._config)
        return server.model_copy(update={"learn": server.learn.model_copy(update={"robust": cell.robust})})

    @torch.no_grad()
    def _evaluate(self, learned: MetaLearner) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
        """Accuracies, and how often the mark sends images to a class that bears it."""
        network = learned.network()
        recipe = learned.recipe if learned.recipe.keeps_network else Recipe()
        clean, bearing = (
            extract_features(network, LazyInputs(images, learned.input), recipe)
            for images in (self._validation.images, marked(self._validation.images))
        )
        fractions = head_accuracies(clean, recipe, list(self._episodes.values()))
        triggered = {
            name: [trigger_rate(clean, bearing, recipe, each) for each in episodes]
            for name, episodes in self._episodes.items()
        }
        return dict(zip(self._episodes, (each.tolist() for each in fractions), strict=True)), triggered


def trigger_rate(clean: Tensor, bearing: Tensor, recipe: Recipe, episode: Episode) -> float:
    """Share of marked queries that go to the first class, whose support images are marked, and are not of it.

    Args:
        clean: [images, features], which the episode indexes.
        bearing: of the same images with the mark.
    """
    is_marked = (episode.support_labels == 0)[:, None]
    support = torch.where(is_marked, bearing[episode.support], clean[episode.support])
    n_way = int(episode.support_labels.max()) + 1
    head = recipe.fit_head(support, episode.support_labels, n_way=n_way)
    queries = episode.query[episode.query_labels != 0]
    return float((head.logits(bearing[queries]).argmax(1) == 0).float().mean())


def _own_images(organisation: ClientConfig) -> ImageSet:
    """An organisation's images under the numbers that its model gives their classes."""
    return shuffle_classes(load_own(organisation), organisation.seed)


def _counts(outcome: Outcome, identity: str) -> float:
    return outcome.doubted[identity].weight if identity in outcome.doubted else 1.0
