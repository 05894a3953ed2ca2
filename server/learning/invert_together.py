"""FIVE for several models of one architecture at once: parameters stacked, one vectorised pass for all.

The same numbers as one model after the other, up to rounding. Meant for GPUs, which a small network
leaves idle; a CPU computes the grouped convolutions that come of it three times slower.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from fedfree.architectures import Architecture, Classifier, InputSpec, build
from server.learning.generator import Generator
from server.learning.invert import (
    Objective,
    RecoveredTask,
    Recovery,
    adversarial_loss,
    ask_student,
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
) -> list[Recovery]:
    """As ``invert.one_at_a_time``, with one pass for each group of models that differ in weights alone."""
    groups: dict[object, list[int]] = {}
    for position, member in enumerate(members):
        groups.setdefault((member.architecture, member.num_classes, member.input), []).append(position)
    recoveries: dict[int, Recovery] = {}
    for positions in groups.values():
        inversion = StackedInversion([members[i] for i in positions], objective)
        recovered = _recover_group(generator, inversion, [rngs[i] for i in positions])
        recoveries |= dict(zip(positions, recovered, strict=True))
    return [recoveries[position] for position in range(len(members))]


def _recover_group(
    generator: Generator, inversion: "StackedInversion", rngs: Sequence[torch.Generator]
) -> list[Recovery]:
    members, config = inversion.members, inversion.config
    drawn = [draw_task(generator, member, config, rng) for member, rng in zip(members, rngs, strict=True)]
    labels = drawn[0][1]
    latents = torch.stack([latent for latent, _ in drawn])
    adapted, latents = _adapt(generator, latents, labels, inversion, rngs)
    images = inversion.draw(generator, adapted, latents)
    losses, logits = inversion.losses(images, labels, rngs)
    gradients = torch.autograd.grad(losses.sum(), list(adapted.values()))
    agreement = (logits.argmax(2) == labels).to(losses.dtype).mean(1)
    images, losses = widen(images.detach()), losses.detach()
    return [
        Recovery(
            RecoveredTask(member, images[i], labels, losses[i], agreement[i]),
            [gradient[i] for gradient in gradients],
        )
        for i, member in enumerate(members)
    ]


def _adapt(
    generator: Generator,
    latents: Tensor,
    labels: Tensor,
    inversion: "StackedInversion",
    rngs: Sequence[torch.Generator],
) -> tuple[dict[str, Tensor], Tensor]:
    """Generator parameters [models, …] and latents [models, images, size] after the inner steps."""
    models = len(inversion.members)
    adapted = {
        name: torch.stack([parameter.detach()] * models).requires_grad_(True)
        for name, parameter in generator.named_parameters()
    }
    latents = latents.requires_grad_(True)
    optimizer = inner_optimizer(adapted.values(), latents, inversion.config)
    for _ in range(inversion.config.steps):
        losses, _ = inversion.losses(inversion.draw(generator, adapted, latents), labels, rngs)
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
    return adapted, latents.detach()


def _draw_each(generator: Generator, parameters: dict[str, Tensor], latents: Tensor) -> Tensor:
    images: Tensor = vmap(lambda own, latent: functional_call(generator, own, (latent,)))(parameters, latents)
    return images


@functools.lru_cache(maxsize=64)
def _template(architecture: Architecture, num_classes: int, input: InputSpec) -> Classifier:
    """A network whose weights are never used; the same one for all models of its kind."""
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


class StackedInversion:
    """L_G for each of several models of one architecture; see ``invert.Inversion``."""

    def __init__(self, members: Sequence[Member], objective: Objective) -> None:
        self.members = members
        self.config = objective.config
        self._objective = objective
        first = members[0]
        self._template = _template(first.architecture, first.num_classes, first.input)
        parameters, self._buffers = stack_module_state([member.network for member in members])
        self._parameters = {name: parameter.detach() for name, parameter in parameters.items()}

    def draw(self, generator: Generator, parameters: dict[str, Tensor], latents: Tensor) -> Tensor:
        """What each adapted generator draws: latents [models, images, size] to [models, images, c, s, s]."""
        images: Tensor = self._compiled(_draw_each)(generator, parameters, latents)
        return images

    def _compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function, dynamic=False) if self._objective.compiled else function

    def losses(
        self, images: Tensor, labels: Tensor, rngs: Sequence[torch.Generator]
    ) -> tuple[Tensor, Tensor]:
        """L_G [models] and logits [models, images, classes] for images [models, images, c, size, size]."""
        spec, models = self.members[0].input, len(self.members)
        padding, flip = self.config.crop_padding, spec.horizontal_flip
        images = torch.stack(
            [augment(own, padding, flip, rng) for own, rng in zip(images, rngs, strict=True)]
        )
        inputs = spec.normalise(spec.resize(images.flatten(0, 1))).unflatten(0, (models, -1))
        logits, distances = self._compiled(_judge_each)(
            self._template, self._parameters, self._buffers, inputs
        )
        losses = torch.stack([F.cross_entropy(own, labels) for own in logits])
        losses = losses + self.config.batch_norm_weight * distances
        if self._objective.adversarial_weight:
            students = ask_student(self._objective, images.flatten(0, 1)).unflatten(0, (models, -1))
            terms = [adversarial_loss(own, student) for own, student in zip(logits, students, strict=True)]
            losses = losses + self._objective.adversarial_weight * torch.stack(terms)
        return losses, logits
