"""BELL: better generalisation via a meta-learner (FREE, section 3.3); distils what the pool knows.

Three signals, each switched by its weight or count in ``MetaLearnConfig``: logit distillation from
the model an image was recovered from, relational distillation from many teachers, and cross-task
replay with the adaptation recipe. The first two run as a sequential path over tasks with one outer
step, which is to align the tasks' gradients (what it does: docs/log.md).
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedfree.adaptation import Recipe, adapt
from fedfree.architectures import Classifier, InputSpec, freeze_statistics
from fedfree.episodes import Episode, EpisodeSpec, sample_episode
from server.config import MetaLearnConfig
from server.learning.invert import RecoveredTask, kl_divergence
from server.learning.memory import Memory
from server.learning.precision import widen
from server.learning.team import ALONE, Team


@dataclass(frozen=True)
class Lesson:
    """How teachers place some images to each other."""

    features: Tensor
    """[images, sum of sizes]; see ``teachers.teacher_features``."""
    sizes: tuple[int, ...]
    """Feature size of each teacher."""
    projection: nn.Linear | None = None
    """From the meta-learner's features to the teachers'; it is learned along with the meta-learner."""
    weights: Tensor | None = None
    """How much each teacher counts, [teachers]; None where all count the same."""


@dataclass(frozen=True)
class DistillationTask:
    """Images with what teachers say about them."""

    images: Tensor
    """[batch, channels, size, size] in [0, 1]."""
    teacher_logits: Tensor | None = None
    """[batch, classes] of the model the images were recovered from; None for images of several models."""
    lessons: tuple[Lesson, ...] = ()
    """Each about as many of the images as it has rows, one lesson after the other."""


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """L_KD = KL(softmax(teacher / T) ‖ softmax(meta-learner / T)) · T², mean over rows.

    Args:
        logits: [batch, own classes].
        teacher_logits: [batch, classes]; of the two, the first classes that both have are compared.
    """
    logits, teacher_logits = logits[:, : teacher_logits.shape[1]], teacher_logits[:, : logits.shape[1]]
    divergence = kl_divergence(teacher_logits / temperature, logits / temperature)
    loss: Tensor = divergence.mean() * temperature**2
    return loss


def relational_loss(own: Tensor, teachers: Tensor, temperature: float) -> Tensor:
    """Mean KL of the teachers' softmaxed rows of pairwise similarities from the meta-learner's.

    Args:
        own: [batch, size], of :func:`side_by_side` for the meta-learner alone.
        teachers: [batch, sum of teacher_sizes], of :func:`side_by_side`.
    """
    itself = torch.eye(len(own), dtype=torch.bool, device=own.device)
    rows, teacher_rows = (
        (vectors @ vectors.T / temperature).masked_fill(itself, -1e4) for vectors in (own, teachers)
    )
    divergence: Tensor = kl_divergence(teacher_rows, rows)
    return divergence.mean()


def projection_loss(
    projected: Tensor, teachers: Tensor, sizes: Sequence[int], weights: Tensor | None = None
) -> Tensor:
    """One minus the cosine between projected and teachers' features, mean over teachers and rows.

    Args:
        projected: [batch, sum of sizes], a linear map of the meta-learner's features.
        teachers: [batch, sum of sizes], of :func:`side_by_side` with the same weights.
    """
    cosines = (_unit_blocks(projected, sizes, weights) * teachers).sum(1)
    return 1 - cosines.mean()


def side_by_side(features: Tensor, sizes: Sequence[int], weights: Tensor | None = None) -> Tensor:
    """Unit-length rows whose inner products are the mean of the networks' own cosine similarities.

    Args:
        features: [batch, sum of sizes]; each network's block is centred on the batch and normalised.
        weights: of the networks in the mean, [networks]; the same for all by default.
    """
    return _unit_blocks(features - features.mean(0), sizes, weights)


def _unit_blocks(features: Tensor, sizes: Sequence[int], weights: Tensor | None) -> Tensor:
    """Each network's block at the same length, or at that of its weight; neighbours of one size are
    normalised together.
    """
    runs = [(size, len(list(run))) for size, run in itertools.groupby(sizes)]
    parts = features.split([size * count for size, count in runs], dim=1)
    blocks = [
        F.normalize(part.unflatten(1, (count, size)), dim=2).flatten(1)
        for part, (size, count) in zip(parts, runs, strict=True)
    ]
    if weights is None:
        return torch.cat(blocks, dim=1) / math.sqrt(len(sizes))
    lengths = (weights / weights.sum()).sqrt().to(features)
    return torch.cat(blocks, dim=1) * lengths.repeat_interleave(torch.tensor(sizes, device=features.device))


def recovered_tasks(recovered: Sequence[RecoveredTask], *, rng: torch.Generator) -> list[DistillationTask]:
    """One task a model, in random order, taught by that model alone."""
    order = torch.randperm(len(recovered), generator=rng).tolist()
    tasks = []
    for task in (recovered[index] for index in order):
        spec = task.member.input
        with torch.no_grad():
            logits = widen(task.member.network(spec.normalise(spec.resize(task.images))))
        tasks.append(DistillationTask(task.images, teacher_logits=logits))
    return tasks


def align(
    meta_learner: Classifier,
    optimizers: Sequence[torch.optim.Optimizer],
    tasks: Sequence[DistillationTask],
    input: InputSpec,
    config: MetaLearnConfig,
    *,
    projections: Sequence[nn.Module] = (),
    frozen_statistics: bool = False,
    compiled: bool = False,
    team: Team = ALONE,
) -> float:
    """Walk φ' through the tasks one after the other, then φ ← φ - β (φ - φ'); returns the mean loss.

    In expectation the outer step contains the gradient of the inner product between the tasks'
    gradients (FREE, Lemma 1 and Theorem 1); `fedfree-sim bench alignment` saw them no better aligned.

    Args:
        optimizers: one for each path, which take the inner steps. With several, the tasks are dealt out
            to the paths, each starts at φ, and φ' is the mean of their ends.
        projections: those of the tasks, learned along with the meta-learner.
        frozen_statistics: whether BatchNorm keeps its statistics, as the models of a start do.
        compiled: whether the losses go through ``torch.compile``.
        team: shares the paths.
    """
    paths = min(len(optimizers), len(tasks))
    evaluate = torch.compile(task_loss, dynamic=False) if compiled else task_loss
    learned = nn.ModuleList([meta_learner, *projections])
    start = _snapshot(learned)
    total = [torch.zeros_like(tensor) for tensor in start]
    loss = start[0].new_zeros(())
    meta_learner.train()
    if frozen_statistics:
        freeze_statistics(meta_learner)
    for path in team.share(range(paths)):
        _load(learned, start)
        steps = [partial(evaluate, meta_learner, task, input, config) for task in tasks[path::paths]]
        loss += walk(optimizers[path], steps)
        for sum_, end in zip(total, _snapshot(learned), strict=True):
            sum_ += end
    meta_learner.eval()
    team.sum([loss, *total])
    ends = (sum_ / paths for sum_ in total)
    _load(learned, [torch.lerp(*both, config.outer_rate) for both in zip(start, ends, strict=True)])
    return float(loss) / paths


def _snapshot(network: nn.Module) -> list[Tensor]:
    """Copies of all weights and buffers; counters as floats, so that they can be averaged."""
    return [
        tensor.clone() if tensor.is_floating_point() else tensor.double()
        for tensor in network.state_dict().values()
    ]


@torch.no_grad()
def _load(network: nn.Module, snapshot: Sequence[Tensor]) -> None:
    for tensor, value in zip(network.state_dict().values(), snapshot, strict=True):
        tensor.copy_(value)


def walk(optimizer: torch.optim.Optimizer, losses: Sequence[Callable[[], Tensor]]) -> Tensor:
    """φ' ← φ' - α ∇L_i(φ') for one loss after the other; returns their mean before each step, a scalar."""
    values = []
    for evaluate in losses:
        loss = evaluate()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.detach())
    return torch.stack(values).mean()


def task_loss(
    meta_learner: Classifier, task: DistillationTask, input: InputSpec, config: MetaLearnConfig
) -> Tensor:
    """The distillation losses of one task, weighted; see :func:`align`."""
    images = task.images.to(next(meta_learner.parameters()).dtype)
    inputs = input.normalise(input.resize(images)).contiguous(memory_format=torch.channels_last)
    features = widen(meta_learner.features(inputs))
    # Similarities divided by a small temperature need all the digits that bfloat16 lacks.
    with torch.autocast(features.device.type, enabled=False):
        loss = features.new_zeros(())
        if task.teacher_logits is not None:
            logits = meta_learner.head(features)
            loss = loss + distillation_loss(logits, task.teacher_logits, config.distillation_temperature)
        parts = features.split([len(lesson.features) for lesson in task.lessons]) if task.lessons else ()
        for lesson, part in zip(task.lessons, parts, strict=True):
            loss = loss + lesson_loss(part, lesson, config) / len(parts)
        return loss


def lesson_loss(features: Tensor, lesson: Lesson, config: MetaLearnConfig) -> Tensor:
    """Relational and projection loss of the meta-learner's features [images, size] under one lesson."""
    teachers = side_by_side(lesson.features, lesson.sizes, lesson.weights)
    own = side_by_side(features, [features.shape[1]])
    loss = relational_loss(own, teachers, config.relational_temperature)
    if lesson.projection is not None:
        projected = lesson.projection(features - features.mean(0))
        missed = projection_loss(projected, teachers, lesson.sizes, lesson.weights)
        loss = loss + config.projection_weight * missed
    return loss


def replay_episodes(
    meta_learner: Classifier,
    optimizer: torch.optim.Optimizer,
    memory: Memory,
    recipe: Recipe,
    input: InputSpec,
    config: MetaLearnConfig,
    *,
    rng: torch.Generator,
    team: Team = ALONE,
) -> float:
    """Cross-task replay: episodes whose classes come from different models; returns the mean query loss.

    Args:
        team: shares the episodes.
    """
    spec = EpisodeSpec(config.replay_ways, config.replay_shots, config.replay_queries)
    drawn = [draw_episode(memory, spec, rng) for _ in range(config.replay_episodes)]
    optimizer.zero_grad()
    total = next(meta_learner.parameters()).new_zeros(())
    for episode in team.share(drawn):
        loss = _episode_loss(meta_learner, memory, recipe, input, episode) / len(drawn)
        loss.backward()
        total += loss.detach()
    gradients = [_gradient(parameter) for parameter in meta_learner.parameters()]
    team.sum([total, *gradients])
    optimizer.step()
    return float(total)


def can_replay(memory: Memory, config: MetaLearnConfig) -> bool:
    """Whether enough is remembered to draw an episode of the replay."""
    return can_draw(memory, EpisodeSpec(config.replay_ways, config.replay_shots, config.replay_queries))


def can_draw(memory: Memory, spec: EpisodeSpec) -> bool:
    """Whether enough models are remembered, with enough images of each class, to draw an episode."""
    if not len(memory):
        return False
    classes, counts = torch.stack([memory.models, memory.classes], dim=1).unique(dim=0, return_counts=True)
    scarce = counts < spec.n_shot + spec.n_query
    models = set(classes[:, 0].tolist()) - set(classes[scarce, 0].tolist())
    return len(models) >= spec.n_way


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def draw_episode(memory: Memory, spec: EpisodeSpec, rng: torch.Generator) -> Episode:
    """An episode that indexes the memory."""
    members, labels = replay_members(memory, rng=rng)
    episode = sample_episode(labels, spec, generator=rng)
    return replace(episode, support=members[episode.support], query=members[episode.query])


def _episode_loss(
    meta_learner: Classifier, memory: Memory, recipe: Recipe, input: InputSpec, episode: Episode
) -> Tensor:
    parameter = next(meta_learner.parameters())
    support, query = (
        input.normalise(input.resize(memory.pixels(rows).to(parameter.dtype)))
        for rows in (episode.support, episode.query)
    )
    support_labels, query_labels = (
        labels.to(parameter.device) for labels in (episode.support_labels, episode.query_labels)
    )
    n_way = int(episode.support_labels.max()) + 1
    adapted = adapt(meta_learner, recipe, support, support_labels, n_way=n_way)
    return F.cross_entropy(adapted.logits(query), query_labels)


def replay_members(memory: Memory, *, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Indices of the memory's images of one random class of each model, and the models' numbers."""
    models = memory.models.max() + 1
    class_counts = torch.zeros(int(models), dtype=torch.int64).scatter_reduce(
        0, memory.models, memory.classes + 1, reduce="amax"
    )
    chosen = (torch.rand(int(models), generator=rng) * class_counts).long()
    members = (memory.classes == chosen[memory.models]).nonzero().squeeze(1)
    return members, memory.models[members]
