"""FIVE for several models of one architecture at once: parameters stacked, one vectorised pass for all.

The same numbers as one model after the other, up to rounding. Meant for GPUs, which a small network
leaves idle; a CPU computes the grouped convolutions that come of it three times slower.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from fedfree.architectures import Architecture, Classifier, InputSpec, build
from server.config import InvertConfig
from server.learning.generator import Generator
from server.learning.invert import (
    Loss,
    Objective,
    RecoveredTask,
    Recovery,
    adversarial_loss,
    ask_meta_learner,
    augment,
    batch_norm_distance,
    draw_task,
    inner_optimizer,
)
from server.learning.pool import Member
from server.learning.precision import widen


def together(
    generator: Generator,
    members: Sequence[Member],
    objective: Objective,
    rngs: Sequence[torch.Generator],
    *,
    compiled: bool = False,
) -> list[Recovery]:
    """As ``invert.one_at_a_time``, with one pass for each group of models that differ in weights alone.

    Args:
        compiled: whether the passes go through ``torch.compile``.
    """
    groups: dict[object, list[int]] = {}
    for position, member in enumerate(members):
        groups.setdefault((member.architecture, member.num_classes, member.input), []).append(position)
    recoveries: dict[int, Recovery] = {}
    for positions in groups.values():
        stack = _stack([members[i] for i in positions], compiled=compiled)
        recovered = _recover_stack(generator, stack, objective, [rngs[i] for i in positions])
        recoveries |= dict(zip(positions, recovered, strict=True))
    return [recoveries[position] for position in range(len(members))]


@dataclass(frozen=True, eq=False)
class Stack:
    """Models that differ in weights alone, ready to be asked in one pass."""

    members: Sequence[Member]
    template: Classifier
    """Whose code is run; its own weights are never used."""
    parameters: dict[str, Tensor]
    """[models, …] by name."""
    buffers: dict[str, Tensor]
    compiled: bool


def _stack(members: Sequence[Member], *, compiled: bool) -> Stack:
    parameters, buffers = stack_module_state([member.network for member in members])
    detached = {name: parameter.detach() for name, parameter in parameters.items()}
    first = members[0]
    template = _template(first.architecture, first.num_classes, first.input)
    return Stack(members, template, detached, buffers, compiled)


def _recover_stack(
    generator: Generator, stack: Stack, objective: Objective, rngs: Sequence[torch.Generator]
) -> list[Recovery]:
    config = objective.config
    drawn = [
        draw_task(generator, member, config, rng) for member, rng in zip(stack.members, rngs, strict=True)
    ]
    labels = drawn[0][1]
    latents = torch.stack([latent for latent, _ in drawn])
    evaluate = partial(stacked_losses, labels=labels, stack=stack, objective=objective, rngs=rngs)
    draw = partial(_compiled(_draw_each, stack), generator)
    adapted, latents = _adapt(generator, latents, draw, evaluate, config)
    images = draw(adapted, latents)
    losses, logits = evaluate(images)
    gradients = torch.autograd.grad(losses.sum(), list(adapted.values()))
    agreement = (logits.argmax(2) == labels).to(losses.dtype).mean(1)
    images, losses = widen(images.detach()), losses.detach()
    return [
        Recovery(
            RecoveredTask(member, images[i], labels, losses[i], agreement[i]),
            [gradient[i] for gradient in gradients],
        )
        for i, member in enumerate(stack.members)
    ]


def _adapt(
    generator: Generator,
    latents: Tensor,
    draw: Callable[[dict[str, Tensor], Tensor], Tensor],
    evaluate: Loss,
    config: InvertConfig,
) -> tuple[dict[str, Tensor], Tensor]:
    """Generator parameters [models, …] and latents [models, images, size] after the inner steps."""
    adapted = {
        name: torch.stack([parameter.detach()] * len(latents)).requires_grad_(True)
        for name, parameter in generator.named_parameters()
    }
    latents = latents.requires_grad_(True)
    optimizer = inner_optimizer(adapted.values(), latents, config)
    for _ in range(config.steps):
        losses, _ = evaluate(draw(adapted, latents))
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
    return adapted, latents.detach()


def _compiled(function: Callable[..., Any], stack: Stack) -> Callable[..., Any]:
    return torch.compile(function, dynamic=False) if stack.compiled else function


def _draw_each(generator: Generator, parameters: dict[str, Tensor], latents: Tensor) -> Tensor:
    """What each adapted generator draws: latents [models, images, size] to [models, images, c, s, s]."""
    images: Tensor = vmap(lambda own, latent: functional_call(generator, own, (latent,)))(parameters, latents)
    return images


@lru_cache(maxsize=64)
def _template(architecture: Architecture, num_classes: int, input: InputSpec) -> Classifier:
    """The same network for all models that differ in weights alone."""
    return build(architecture, num_classes=num_classes, input=input).requires_grad_(False)


def _judge_each(
    template: Classifier, parameters: dict[str, Tensor], buffers: dict[str, Tensor], inputs: Tensor
) -> tuple[Tensor, Tensor]:
    """Logits [models, images, classes] and BatchNorm distances [models] of stacked weights [models, …].

    Args:
        inputs: [models, images, channels, height, width], normalised.
    """

    def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], own: Tensor) -> tuple[Tensor, Tensor]:
        with batch_norm_distance(template) as distances:
            logits = widen(functional_call(template, (parameters, buffers), (own,)))
        return logits, torch.stack(distances).sum() if distances else logits.new_zeros(())

    logits, distances = vmap(one)(parameters, buffers, inputs)
    return logits, distances


def stacked_losses(
    images: Tensor, *, labels: Tensor, stack: Stack, objective: Objective, rngs: Sequence[torch.Generator]
) -> tuple[Tensor, Tensor]:
    """L_G [models] and logits [models, images, classes] for images [models, images, c, size, size].

    Of each model what ``invert.inversion_loss`` gives.
    """
    config, spec, models = objective.config, stack.members[0].input, len(stack.members)
    images = torch.stack(
        [
            augment(own, config.crop_padding, spec.horizontal_flip, rng)
            for own, rng in zip(images, rngs, strict=True)
        ]
    )
    inputs = spec.normalise(spec.resize(images.flatten(0, 1))).unflatten(0, (models, -1))
    judge = _compiled(_judge_each, stack)
    logits, distances = judge(stack.template, stack.parameters, stack.buffers, inputs)
    losses = torch.stack([F.cross_entropy(own, labels) for own in logits])
    losses = losses + config.batch_norm_weight * distances
    if objective.adversarial_weight:
        answers = ask_meta_learner(objective, images.flatten(0, 1)).unflatten(0, (models, -1))
        terms = [adversarial_loss(own, answer) for own, answer in zip(logits, answers, strict=True)]
        losses = losses + objective.adversarial_weight * torch.stack(terms)
    return losses, logits
