"""How long a run would take on this machine: a few steps of everything, with stand-ins of the right size.

Networks have random weights and images are noise: neither changes how long a step takes.
"""

import itertools
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from client.adapting.adapt import episode_accuracies, extract_features, head_accuracies, sample_episodes
from client.data.image_set import ImageSet, LazyInputs
from client.training.fit import fit
from fedfree.adaptation import FEATURE_BATCH, Recipe
from fedfree.architectures import InputSpec, build
from fedfree.codec import Contribution, encode_tensors, sha256
from fedfree.host.compute import use_cpu
from fedfree.host.starts import describe_folder, has_start, keep_start
from fedfree.start import LoadedStart, Start, encode_body, trained_tensors
from fedfree.statement import PrivacyStatement
from server.config import ServerConfig
from server.learning import moves
from server.learning.pool import Pool
from server.learning.state import State, begin
from simulations.config import SimulationConfig
from simulations.federation.in_memory import pool_in_memory
from simulations.federation.splits import episode_specs
from simulations.federation.starts import start_folder
from simulations.planning.plan import Plan, PlannedModel

Given = ParamSpec("Given")
Result = TypeVar("Result")
STEPS = 3
"""Timed steps of training, after one that warms up."""
EPISODES = 10
FEWEST_COMPOSED = 20
GREY = frozenset({"glyphs", "omniglot"})
"""Data sets of grey images among those that are made or downloaded."""


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
    """A task, or an episode of replay."""
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
    use_cpu(plan.config.server.threads)
    kinds = {} if plan.config.privacy.is_dp else {each.kind: each for each in plan.to_train}
    with torch.random.fork_rng(devices=[]):
        step = {kind: _time_training(each, plan.config) for kind, each in kinds.items()}
        return _time_server(plan, step)


def _time_training(model: PlannedModel, config: SimulationConfig) -> float:
    """Seconds of a step, the median of a few."""
    training, classes, trained = model.training, model.classes, 1 - model.training.held_out_fraction
    batch = min(training.batch_size, max(2, int(model.images * trained)))
    count = int(batch / trained) + 2 * classes
    pixels = _noise(_input(model, config), count).contiguous()
    images = ImageSet(pixels, torch.arange(count) % classes, tuple(map(str, range(classes))))
    short: dict[str, object] = {"batch_size": batch, "epochs": STEPS + 1, "min_steps": 1}
    times: list[float] = []
    with tempfile.TemporaryDirectory(prefix="fedfree-rehearsal-") as scratch:
        if config.starts:
            begun = _random_start(model, config)
            keep_start(Path(scratch), begun.start, begun.weights)
            short["start"] = Path(scratch)
        few = training.model_copy(update=short)
        fit(images, few, seed=0, observe=lambda *_: times.append(time.monotonic()))
    return median(after - before for before, after in itertools.pairwise(times))


def _time_server(plan: Plan, step: Mapping[tuple[str, int], float]) -> Pace:
    config = _small(plan.config.server)
    learn, iteration = config.learn, config.warmup_iterations
    state = begin(_random_pool(plan, config), config)
    invert, recovered = _timed(moves.invert, state, iteration)
    ask = distil = 0.0
    if learn.relational_tasks:
        ask, _ = _timed(moves.ask_teachers, state, recovered, iteration=iteration)
    if tasks := learn.relational_tasks + len(recovered) * learn.own_tasks:
        distil, _ = _timed(moves.distil, state, recovered)
    embed, episodes, wide_episodes = _time_evaluation(plan, state)
    weights = state.meta_learner.state_dict().values()
    return Pace(
        step=step,
        invert=invert,
        ask=ask / max(1, sum(len(task.images) for task in recovered) + learn.compositions),
        distil=distil / max(1, tasks),
        embed=embed,
        episodes=episodes,
        wide_episodes=wide_episodes,
        model_bytes=sum(each.numel() * each.element_size() for each in weights),
        feature_size=state.meta_learner.feature_size,
    )


def _small(config: ServerConfig) -> ServerConfig:
    """One model inverted, a few tasks distilled of as many images as always: enough to tell the pace."""
    invert, learn = config.invert.model_copy(update={"models_per_iteration": 1}), config.learn
    most = max(FEWEST_COMPOSED, learn.batch_size - invert.images_per_model)
    few = {"relational_tasks": min(2, learn.relational_tasks), "compositions": min(most, learn.compositions)}
    return config.model_copy(update={"invert": invert, "learn": learn.model_copy(update=few)})


def _time_evaluation(plan: Plan, state: State) -> tuple[float, dict[str, float], dict[str, float]]:
    """Seconds of an image through the meta-learner, and of an episode, also on all models' features."""
    config, recipe, network = plan.config, state.recipe, state.meta_learner.float().eval()
    head = recipe if recipe.keeps_network else Recipe()
    specs = episode_specs(config)
    labels = torch.arange(config.n_way).repeat_interleave(specs[-1].n_shot + config.n_query)
    inputs = LazyInputs(_noise(state.input, max(len(labels), FEATURE_BATCH)), state.input)
    warm, _ = _timed(extract_features, network, inputs, head)
    embed, features = _timed(extract_features, network, inputs, head)
    wide_features = features[: len(labels)].repeat(1, len(plan.models))
    episodes, wide_episodes = {}, {}
    for spec in specs:
        drawn = sample_episodes(labels, spec, EPISODES if recipe.keeps_network else 2, seed=0)
        if recipe.keeps_network:
            narrow, _ = _timed(head_accuracies, features, recipe, [drawn])
        else:
            narrow, _ = _timed(episode_accuracies, network, recipe, inputs, [drawn])
        wide, _ = _timed(head_accuracies, wide_features, head, [drawn])
        episodes[spec.name], wide_episodes[spec.name] = narrow / len(drawn), wide / len(drawn)
    return min(warm, embed) / len(inputs), episodes, wide_episodes


def _timed(do: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs) -> tuple[float, Result]:
    """Seconds that it took, and what came of it."""
    began = time.monotonic()
    result = do(*args, **kwargs)
    return time.monotonic() - began, result


def channels_of(config: SimulationConfig) -> int:
    """Of the images, as far as that is known before they are read."""
    for each in config.starts:
        if has_start(folder := start_folder(each, config)):
            return describe_folder(folder).input.channels
    return 3 if config.starts or _is_coloured(config) else 1


def _is_coloured(config: SimulationConfig) -> bool:
    """Whether training would take the images for coloured."""
    return not set(config.datasets.values()) <= GREY


def _input(model: PlannedModel, config: SimulationConfig) -> InputSpec:
    size = model.training.image_size
    return InputSpec(channels_of(config), size, size, horizontal_flip=_is_coloured(config))


def _noise(spec: InputSpec, count: int) -> Tensor:
    """Images [count, channels, size, size], uint8; grey where those of the run are."""
    drawn = spec.channels if spec.horizontal_flip else 1
    pixels = torch.randint(0, 256, (count, drawn, spec.height, spec.width), dtype=torch.uint8)
    return pixels.expand(-1, spec.channels, -1, -1)


def _random_start(model: PlannedModel, config: SimulationConfig) -> LoadedStart:
    """Of the right shape."""
    architecture, spec = model.training.architecture, _input(model, config)
    weights = encode_body(build(architecture, num_classes=2, input=spec))
    return LoadedStart(Start(architecture, sha256(weights), spec, "a rehearsal", "CC0-1.0"), weights)


def _random_model(model: PlannedModel, config: SimulationConfig, start: LoadedStart | None) -> Contribution:
    """What an organisation would contribute, of the right shape."""
    architecture, spec, begun = model.training.architecture, _input(model, config), ""
    network = build(architecture, num_classes=model.classes, input=spec)
    tensors = network.state_dict()
    if start:
        tensors, begun = trained_tensors(network, start.body), start.start.sha256
    weights = encode_tensors(tensors)
    return Contribution(architecture, model.classes, spec, PrivacyStatement(), weights, begun)


def _random_pool(plan: Plan, config: ServerConfig) -> Pool:
    """As many models as there are organisations; those of one shape are the same."""
    starts = {}
    if plan.config.starts:
        kinds = {each.kind: each for each in plan.models}
        starts = {kind: _random_start(each, plan.config) for kind, each in kinds.items()}
    shapes = {(each.kind, each.classes): each for each in plan.models}
    made = {shape: _random_model(each, plan.config, starts.get(each.kind)) for shape, each in shapes.items()}
    models = {f"{place:064d}": made[each.kind, each.classes] for place, each in enumerate(plan.models)}
    return pool_in_memory(models, list(starts.values()), config)
