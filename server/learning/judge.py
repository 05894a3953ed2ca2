"""Whether what was learned from the mean of the models is better than the mean itself.

Judged on recovered images that nothing was learned from: few-shot episodes whose classes come from different
models, the same for both. Nobody here has a real image to ask.
"""

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedfree.adaptation import FEATURE_BATCH, Recipe, head_accuracy
from fedfree.architectures import Classifier
from fedfree.episodes import Accuracy, EpisodeSpec, mean_and_ci95
from fedfree.seeding import make_generator
from server.learning.invert import RecoveredTask
from server.learning.merge import merge_into, part_way
from server.learning.meta_learn import can_draw, draw_episode
from server.learning.precision import parameter_dtype, widen
from server.learning.state import State

EPISODES = 200
HELD_OUT_EVERY = 5
"""One recovered image of each class in so many is kept for judging."""


@dataclass(frozen=True)
class Judgement:
    """Both on the same synthetic episodes."""

    mean: Accuracy
    """Of the parameter average."""
    learned: Accuracy
    """Of what was learned, so far from the average as is broadcast."""

    @property
    def keeps_learned(self) -> bool:
        """Whether what was learned is broadcast, and not the average."""
        return self.learned.mean > self.mean.mean


def choose(state: State) -> tuple[Classifier, Judgement | None]:
    """The network to broadcast: part of the way from the mean of the models to what was learned, unless the
    mean does at least as well.

    Without a start nothing was merged, and what was learned is it; with one model or with too few recovered
    images there is no judgement.
    """
    if state.pool.start is None:
        return state.meta_learner, None
    average = copy.deepcopy(state.meta_learner)
    merge_into(average, state.pool, robust=state.config.learn.robust)
    learned = part_way(average, state.meta_learner, state.config.learn.broadcast_share)
    ways = min(state.config.learn.replay_ways, len(state.pool))
    if ways < 2 or not can_draw(state.validation, spec := EpisodeSpec(ways, 1, 5)):
        return learned, None
    judgement = Judgement(*(_accuracy(state, network, spec) for network in (average, learned)))
    return (learned if judgement.keeps_learned else average), judgement


def part_held_out(task: RecoveredTask) -> tuple[RecoveredTask, RecoveredTask]:
    """What may be learned from, and the images of each class that are kept for judging."""
    rows = torch.arange(len(task.labels), device=task.labels.device)
    held = rows // task.member.num_classes % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    kept, judged = (
        replace(task, images=task.images[part], labels=task.labels[part]) for part in (~held, held)
    )
    return kept, judged


@torch.no_grad()
def _accuracy(state: State, network: Classifier, spec: EpisodeSpec) -> Accuracy:
    """Of the heads that the recipe fits to the network's features, which stay as they are."""
    recipe = state.recipe if state.recipe.keeps_network else Recipe()
    features = torch.cat(
        [
            recipe.embed(network, _inputs(state, rows))
            for rows in torch.arange(len(state.validation)).split(FEATURE_BATCH)
        ]
    )
    features = widen(features).cpu()
    rng = make_generator(state.config.seed, "judge")
    episodes = [draw_episode(state.validation, spec, rng) for _ in range(EPISODES)]
    return mean_and_ci95(torch.stack([head_accuracy(features, recipe, each) for each in episodes]))


def _inputs(state: State, rows: Tensor) -> Tensor:
    pixels = state.validation.pixels(rows).to(parameter_dtype(state.config.precision))
    return state.input.normalise(state.input.resize(pixels)).contiguous(memory_format=torch.channels_last)
