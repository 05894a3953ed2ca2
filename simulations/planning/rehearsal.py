"""How long a run would take on this machine: a few steps of everything, with stand-ins of the right size.

Networks have random weights and images are noise: neither changes how long a step takes.
"""

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from client.adapting.adapt import episode_accuracies, extract_features, head_accuracies, sample_episodes
from client.config import TrainingConfig
from client.data.image_set import ImageSet, LazyInputs
from client.training.fit import fit
from fedfree.adaptation import FEATURE_BATCH, Recipe
from fedfree.architectures import Architecture, Classifier, InputSpec, build
from fedfree.codec import Contribution, sha256
from fedfree.host.compute import choose_device, use_cpu
from fedfree.host.starts import describe_folder, has_start, keep_start
from fedfree.start import LoadedStart, Start, encode_body
from fedfree.statement import PrivacyStatement
from server.config import ServerConfig
from server.learning import moves
from server.learning.pool import Pool
from server.learning.precision import parameter_dtype
from server.learning.state import State, begin
from simulations.config import SimulationConfig
from simulations.federation.splits import episode_specs
from simulations.federation.starts import start_folder
from simulations.planning.plan import Plan, PlannedModel

STEPS = 3
"""Timed steps of training, after one that warms up."""
EPISODES = 10
FEWEST_COMPOSED = 20
COLOURED = frozenset({"cifar-fs"})
"""Data sets of coloured images among those that are made or downloaded."""


@dataclass(frozen=True)
class Pace:
    """Seconds that things take here."""

    step: Mapping[tuple[str, int], float]
    """One batch of an organisation's training, by architecture and image size."""
    invert: float
    """A model, in one iteration."""
    ask: float
    """An image that all teachers are asked about."""
    distil: float
    """A task."""
    replay: float
    """An episode."""
    embed: float
    """An image through one network."""
    episodes: Mapping[str, float]
    """One episode of each kind, features extracted."""
    wide_episodes: Mapping[str, float]
    """The same on the features of all models side by side."""
    model_bytes: int
    """Of one network's weights."""
    feature_size: int
    """Numbers of one network about an image."""


def rehearse(plan: Plan) -> Pace:
    """Time a few steps of everything; a folder for it is made and removed."""
    config = plan.config
    use_cpu(config.server.threads)
    with (
        tempfile.TemporaryDirectory(prefix="fedfree-rehearsal-") as scratch,
        torch.random.fork_rng(devices=[]),
    ):
        step = {}
        for model in plan.to_train:
            kind = str(model.training.architecture), model.training.image_size
            if kind not in step and not config.privacy.is_dp:
                step[kind] = _time_training(model, config, Path(scratch))
        return _time_server(plan, step)


def channels_of(config: SimulationConfig) -> int:
    """Of the images, as far as that is known before they are read."""
    for each in config.starts:
        if has_start(folder := start_folder(each, config)):
            return describe_folder(folder).input.channels
    known = set(config.datasets.values())
    return 3 if config.starts or not known <= {"glyphs", "omniglot"} else 1


def is_coloured(config: SimulationConfig) -> bool:
    """Whether training would take the images for coloured."""
    return not set(config.datasets.values()) <= {"glyphs", "omniglot"}


def _noise(config: SimulationConfig, count: int, size: int) -> Tensor:
    """Images [count, channels, size, size], uint8; grey where those of the run are."""
    channels = channels_of(config)
    drawn = channels if is_coloured(config) else 1
    return torch.randint(0, 256, (count, drawn, size, size), dtype=torch.uint8).expand(-1, channels, -1, -1)


def _time_training(model: PlannedModel, config: SimulationConfig, scratch: Path) -> float:
    """Seconds of a step, the median of a few."""
    training, classes = model.training, model.classes
    held = training.held_out_fraction
    batch = min(training.batch_size, max(2, int(model.images * (1 - held))))
    count = int(batch / (1 - held)) + 2 * classes
    images = ImageSet(
        _noise(config, count, training.image_size).contiguous(),
        torch.arange(count) % classes,
        tuple(map(str, range(classes))),
    )
    start = _stand_in_start(training, config, scratch) if config.starts else None
    short = {"batch_size": batch, "epochs": STEPS + 1, "min_steps": 1, "start": start}
    times: list[float] = []
    fit(
        images,
        training.model_copy(update=short),
        seed=0,
        observe=lambda *_: times.append(time.monotonic()),
    )
    return sorted(after - before for before, after in itertools.pairwise(times))[STEPS // 2]


def _stand_in_start(training: TrainingConfig, config: SimulationConfig, scratch: Path) -> Path:
    """Folder of a start of the right shape, with random weights."""
    folder = scratch / f"{training.architecture}".replace("/", "-")
    begun = _random_start(training.architecture, _input(config, training.image_size))
    if not has_start(folder):
        keep_start(folder, begun.start, begun.weights)
    return folder


def _random_start(architecture: Architecture, spec: InputSpec) -> LoadedStart:
    weights = encode_body(build(architecture, num_classes=2, input=spec))
    return LoadedStart(Start(architecture, sha256(weights), spec, "a rehearsal", "CC0-1.0"), weights)


def _input(config: SimulationConfig, size: int) -> InputSpec:
    return InputSpec(channels_of(config), size, size, horizontal_flip=is_coloured(config))


class _StandIns:
    """Models of the kinds that organisations would contribute, as a pool takes them."""

    def __init__(self, plan: Plan) -> None:
        config = plan.config
        self._models = plan.models
        self._config = config
        self.ids = [f"{number:064d}" for number in range(len(plan.models))]
        kinds = dict.fromkeys((each.training.architecture, each.training.image_size) for each in plan.models)
        starts = [_random_start(architecture, _input(config, size)) for architecture, size in kinds]
        self._starts = starts if config.starts else []
        self.start = self._starts[0] if self._starts else None
        self.further_starts = self._starts[1:]

    def describe(self, identity: str) -> Contribution:
        model = self._models[int(identity)]
        architecture = model.training.architecture
        begun = [each.start.sha256 for each in self._starts if each.start.architecture == architecture]
        return Contribution(
            architecture=architecture,
            num_classes=model.classes,
            input=_input(self._config, model.training.image_size),
            privacy=PrivacyStatement(),
            weights=b"",
            start=begun[0] if begun else "",
        )

    def network(self, identity: str) -> tuple[Contribution, Classifier]:
        described = self.describe(identity)
        network = build(described.architecture, num_classes=described.num_classes, input=described.input)
        return described, network.eval()

    def organisation(self, identity: str) -> None:
        return None


def _small(config: ServerConfig) -> ServerConfig:
    """One model inverted, a few tasks distilled of as many images as always: enough to tell the pace."""
    wanting = config.learn.batch_size - config.invert.images_per_model
    return config.model_copy(
        update={
            "invert": config.invert.model_copy(update={"models_per_iteration": 1}),
            "learn": config.learn.model_copy(
                update={
                    "relational_tasks": min(2, config.learn.relational_tasks),
                    "replay_episodes": min(2, config.learn.replay_episodes),
                    "compositions": min(max(FEWEST_COMPOSED, wanting), config.learn.compositions),
                }
            ),
        }
    )


def _time_server(plan: Plan, step: Mapping[tuple[str, int], float]) -> Pace:
    whole = plan.config.server
    config = _small(whole)
    stand_ins = _StandIns(plan)
    pool = Pool(stand_ins, stand_ins.ids, choose_device(config.device), parameter_dtype(config.precision))
    state = begin(pool, config)
    iteration = config.warmup_iterations
    with _timed() as invert:
        recovered = moves.invert(state, iteration)
    learn = config.learn
    asked = sum(len(task.images) for task in recovered) + learn.compositions
    with _timed() as ask:
        if learn.relational_tasks:
            moves.ask_teachers(state, recovered, iteration=iteration)
    tasks = learn.relational_tasks + len(recovered) * learn.own_tasks
    with _timed() as distil:
        if tasks:
            moves.distil(state, recovered)
    embed, episodes, wide = _time_evaluation(plan, state)
    return Pace(
        step=step,
        invert=invert(),
        ask=ask() / max(1, asked),
        distil=distil() / max(1, tasks),
        replay=distil() / max(1, tasks) if learn.replay_episodes else 0.0,
        embed=embed,
        episodes=episodes,
        wide_episodes=wide,
        model_bytes=sum(
            each.numel() * each.element_size() for each in state.meta_learner.state_dict().values()
        ),
        feature_size=state.meta_learner.feature_size,
    )


def _time_evaluation(plan: Plan, state: State) -> tuple[float, dict[str, float], dict[str, float]]:
    """Seconds of an image through the meta-learner, and of an episode, also on all models' features."""
    config, recipe, network = plan.config, state.recipe, state.meta_learner
    per_class = max(spec.n_shot for spec in episode_specs(config)) + config.n_query
    labels = torch.arange(config.n_way).repeat_interleave(per_class)
    images = _noise(config, max(len(labels), FEATURE_BATCH), state.input.height)
    inputs = LazyInputs(images, state.input)
    network.eval()
    network.float()
    with _timed() as warm:
        extract_features(network, inputs, recipe if recipe.keeps_network else Recipe())
    with _timed() as embed:
        features = extract_features(network, inputs, recipe if recipe.keeps_network else Recipe())
    features = features[: len(labels)]
    episodes, wide = {}, {}
    for spec in episode_specs(config):
        drawn = sample_episodes(labels, spec, EPISODES, seed=0)
        with _timed() as narrow:
            if recipe.keeps_network:
                head_accuracies(features, recipe, [drawn])
            else:
                drawn = drawn[:2]
                episode_accuracies(network, recipe, inputs, [drawn])
        episodes[spec.name] = narrow() / len(drawn)
        side_by_side = features.repeat(1, len(plan.models))
        with _timed() as broad:
            head_accuracies(side_by_side, recipe if recipe.keeps_network else Recipe(), [drawn])
        wide[spec.name] = broad() / len(drawn)
    return min(embed(), warm()) / len(images), episodes, wide


@contextmanager
def _timed() -> Iterator[Callable[[], float]]:
    """Seconds that the block took, once it is over."""
    began = time.monotonic()
    ended: list[float] = []
    yield lambda: ended[0] - began
    ended.append(time.monotonic())
