"""The moves of learning: INVERT and META-LEARN, and the steps the latter is made of.

Each takes the state, changes it, and returns what came of it. A team shares the work of a move; every process
of it makes the same moves.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from server.learning.compose import compose, noise
from server.learning.inversions import INVERSIONS
from server.learning.invert import Objective, RecoverEach, RecoveredTask, by_function, one_at_a_time, recover
from server.learning.invert_together import together
from server.learning.judge import part_held_out
from server.learning.meta_learn import (
    DistillationTask,
    align,
    can_replay,
    recovered_tasks,
    replay_episodes,
)
from server.learning.precision import autocast
from server.learning.state import State
from server.learning.teachers import Teachers, relational_tasks
from server.learning.team import ALONE, Team


def invert(state: State, iteration: int, team: Team = ALONE) -> list[RecoveredTask]:
    """FIVE: recover tasks from a meta-batch of models; after the warm-up the memory keeps them."""
    settings = state.config.invert
    chances = {identity: trust.weight for identity, trust in state.doubted().items()}
    members = state.pool.sample(settings.models_per_iteration, state.rng, chances)
    warm = _is_warm(state, iteration)
    with autocast(state.config.precision, state.pool.device):
        recovered = recover(
            state.generator,
            state.generator_optimizer,
            members,
            objective(state, settings.adversarial_weight if warm else 0.0),
            rng=state.rng,
            recover_each=_way_to_recover(state),
            team=team,
        )
    recovered = [_as_seen(state, task) for task in _usable(state, recovered)]
    if warm and state.pool.start:
        parts = [part_held_out(task) for task in recovered]
        state.validation.add([judged for _, judged in parts])
        recovered = [kept for kept, _ in parts]
    if warm:
        state.memory.add(recovered)
    return recovered


def _usable(state: State, recovered: Sequence[RecoveredTask]) -> list[RecoveredTask]:
    """Without what is not finite: one model may not spoil what is learned from the others."""
    usable = [bool(task.loss.isfinite()) for task in recovered]
    state.left_out.update(task.member.id for task, fine in zip(recovered, usable, strict=True) if not fine)
    return [task for task, fine in zip(recovered, usable, strict=True) if fine]


def objective(state: State, adversarial_weight: float) -> Objective:
    """L_G as configured, against the meta-learner as it stands."""
    return Objective(state.config.invert, state.meta_learner, state.input, adversarial_weight)


def meta_learn(
    state: State, recovered: Sequence[RecoveredTask], iteration: int, team: Team = ALONE
) -> dict[str, float]:
    """BELL, after the warm-up: ask the teachers, distil along a path of tasks, replay; the mean losses."""
    losses: dict[str, float] = {}
    if recovered:
        losses["inversion_loss"] = float(torch.stack([task.loss for task in recovered]).mean())
        losses["inversion_agreement"] = float(torch.stack([task.agreement for task in recovered]).mean())
    if not _is_warm(state, iteration):
        return losses
    schedule(state, iteration)
    if state.config.learn.relational_tasks:
        ask_teachers(state, recovered, team, iteration=iteration)
    if state.config.learn.relational_tasks or state.config.learn.own_tasks:
        loss = distil(state, recovered, team)
        losses |= {} if loss is None else {"distillation_loss": loss}
    if state.config.learn.replay_episodes and can_replay(state.memory, state.config.learn):
        losses["replay_loss"] = replay(state, team)
    return losses


def schedule(state: State, iteration: int) -> None:
    """Half a cosine from the configured rates to zero."""
    factor = (1 + math.cos(math.pi * (iteration / state.config.iterations))) / 2
    _set_rate(state.path_optimizers, state.config.learn.inner_learning_rate * factor)
    _set_rate([state.replay_optimizer], state.config.learn.replay_learning_rate * factor)


def ask_teachers(
    state: State, recovered: Sequence[RecoveredTask], team: Team = ALONE, *, iteration: int = 0
) -> None:
    """Show teachers what was just recovered from models of their shape, new compositions of it, and public
    images that nobody was shown yet.
    """
    remembered = state.shapes[state.memory.models]
    for shape, teachers in enumerate(state.teachers):
        tasks = [task for task in recovered if state.shapes[task.member.number] == shape]
        rows = (remembered == shape).nonzero().flatten()
        images = _questions(state, [task.images for task in tasks], rows, teachers)
        images += _public_images(state, shape, iteration)
        if images:
            sources = _sources(tasks, teachers, sum(map(len, images)))
            with autocast(state.config.precision, state.pool.device):
                state.left_out.update(teachers.show(torch.cat(images), sources=sources, team=team))


def _sources(tasks: Sequence[RecoveredTask], teachers: Teachers, count: int) -> Tensor:
    """Model and class of the recovered images, which are the first of those shown; -1 for all others."""
    sources = torch.full((count, 2), -1)
    if tasks and not teachers.noise_channels:
        known = [F.pad(task.labels[:, None].cpu(), (1, 0), value=task.member.number) for task in tasks]
        sources[: sum(map(len, known))] = torch.cat(known)
    return sources


def distil(state: State, recovered: Sequence[RecoveredTask], team: Team = ALONE) -> float | None:
    """Take the meta-learner along the path of this iteration's tasks; the mean loss, None without a task."""
    settings = state.config.learn
    tasks = relational_tasks(state.teachers, settings, rng=state.rng)
    if settings.own_tasks:
        tasks += _finite_tasks(state, recovered)
    if not tasks:
        return None
    with autocast(state.config.precision, state.pool.device):
        return align(
            state.meta_learner,
            state.path_optimizers,
            tasks,
            state.input,
            settings,
            projections=state.projections,
            frozen_statistics=state.pool.start is not None,
            compiled=state.config.compiled,
            team=team,
        )


def _finite_tasks(state: State, recovered: Sequence[RecoveredTask]) -> list[DistillationTask]:
    """Each model's own task, but where its outputs are not finite."""
    tasks = []
    for task in recovered_tasks(recovered, rng=state.rng):
        if task.teacher_logits is None or bool(task.teacher_logits.isfinite().all()):
            tasks.append(task)
        else:
            state.left_out.update(each.member.id for each in recovered if each.images is task.images)
    return tasks


def replay(state: State, team: Team = ALONE) -> float:
    """Let the meta-learner adapt to episodes across the models in memory; the mean query loss."""
    return replay_episodes(
        state.meta_learner,
        state.replay_optimizer,
        state.memory,
        state.recipe,
        state.input,
        state.config.learn,
        rng=state.rng,
        team=team,
    )


def _is_warm(state: State, iteration: int) -> bool:
    return iteration >= state.config.warmup_iterations


def _way_to_recover(state: State) -> RecoverEach:
    name = state.config.invert.inversion
    if (inversion := INVERSIONS[name]) is not None:
        return by_function(name, inversion)
    stacked = state.config.invert.together
    if stacked is None:
        stacked = state.pool.device.type == "cuda"
    return partial(together, compiled=state.config.compiled) if stacked else one_at_a_time


def _as_seen(state: State, task: RecoveredTask) -> RecoveredTask:
    """With images as the meta-learner would get that organisation's own: no finer, no more coloured."""
    return replace(task, images=state.input.resize(task.member.input.resize(task.images)))


def _questions(state: State, images: list[Tensor], rows: Tensor, teachers: Teachers) -> list[Tensor]:
    """What teachers are shown: recovered images, and compositions of those in these rows of the memory.

    Images of models without BatchNorm matched no statistics, and have neither the colours nor the
    contrasts of photographs: as many compositions take their place, with noise among the pieces.
    """
    count = state.config.learn.compositions // len(state.teachers)
    if not (count and len(rows)):
        return images
    if teachers.noise_channels:
        count, images = count + sum(len(each) for each in images), []
    drawn = rows[torch.randperm(len(rows), generator=state.rng)[: 4 * count]]
    pieces = state.memory.pixels(drawn)
    if teachers.noise_channels:
        made = noise(len(pieces), teachers.noise_channels, pieces.shape[-1], rng=state.rng)
        pieces = torch.cat([pieces, state.input.resize(made).to(pieces.device)])
    return [*images, compose(pieces, count, rng=state.rng)]


def _public_images(state: State, shape: int, iteration: int) -> list[Tensor]:
    """This shape's share of the public images of an iteration, as its organisations would hold them."""
    if state.public_images is None:
        return []
    turn = iteration - state.config.warmup_iterations
    images = state.public_images.turn(turn, state.config.learn.public_images)[shape :: len(state.teachers)]
    if not len(images):
        return []
    return [state.input.resize(state.shape_inputs[shape].resize(images)).to(state.pool.device)]


def _set_rate(optimizers: Iterable[torch.optim.Optimizer], rate: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
