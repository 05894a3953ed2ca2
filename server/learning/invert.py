"""FIVE: faster inversion via a meta-generator (FREE, section 3.2).

Each model is a task. The meta-generator's parameters θ are adapted to it in a few steps, the images
are what the adapted generator draws, and θ moves against the sum of the gradients found there
(first-order MAML). Here one model is adapted after the other; ``invert_together`` adapts several at once.
"""

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedfree.architectures import Classifier, InputSpec
from fedfree.errors import ExtensionError
from fedfree.extension import described, extending
from server.config import InvertConfig
from server.learning.generator import Generator
from server.learning.inversions import Inversion
from server.learning.pool import Member
from server.learning.precision import widen
from server.learning.team import ALONE, Team

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass(frozen=True)
class RecoveredTask:
    """What one model gave back."""

    member: Member
    images: Tensor
    """[images, channels, image_size, image_size] in [0, 1], in the meta-learner's shape."""
    labels: Tensor
    """[images], int64: the class each image was asked to show."""
    loss: Tensor
    """Scalar: L_G after the last step; NaN where anything that came of the model is not finite."""
    agreement: Tensor
    """Scalar: fraction of the images that the model assigns to the class asked for."""


@dataclass(frozen=True)
class Recovery:
    """A recovered task with what it asks of the meta-generator."""

    task: RecoveredTask
    gradients: Sequence[Tensor]
    """∇L_G at the adapted parameters, in the order of the generator's."""


@dataclass(frozen=True)
class Objective:
    """What L_G is made of, besides the model."""

    config: InvertConfig
    meta_learner: Classifier
    """Whose uncertainty the adversarial term seeks."""
    meta_learner_input: InputSpec
    adversarial_weight: float
    """λ_adv; 0 leaves the term out."""


RecoverEach = Callable[
    [Generator, Sequence[Member], Objective, Sequence[torch.Generator]], Sequence[Recovery]
]
"""Recovers one task from each member, with one random stream each."""

Loss = Callable[[Tensor], tuple[Tensor, Tensor]]
"""L_G and the model's logits, [batch, classes], of [batch, channels, size, size] images in [0, 1]."""


def recover(
    generator: Generator,
    optimizer: torch.optim.Optimizer,
    members: Sequence[Member],
    objective: Objective,
    *,
    rng: torch.Generator,
    recover_each: RecoverEach | None = None,
    team: Team = ALONE,
) -> list[RecoveredTask]:
    """Recover a task from each model and take one step of the meta-generator.

    Args:
        optimizer: of the meta-generator's parameters (the outer step, rate β).
        recover_each: :func:`one_at_a_time` by default, or ``invert_together.together``.
        team: shares the models; every process returns all tasks.

    Returns:
        A task for each model. A loss that is not finite marks one of which nothing is to be used.
    """
    seeds = torch.randint(2**62, (len(members),), generator=rng).tolist()
    rngs = [torch.Generator().manual_seed(seed) for seed in team.share(seeds)]
    recoveries = (recover_each or one_at_a_time)(generator, team.share(members), objective, rngs)
    recoveries = [each if _is_finite(each) else _spoiled(each) for each in recoveries]
    outer_step(generator, optimizer, recoveries, team)
    return _everyones([each.task for each in recoveries], members, team)


def _is_finite(recovery: Recovery) -> bool:
    values = (recovery.task.images, recovery.task.loss, *recovery.gradients)
    return all(bool(each.isfinite().all()) for each in values)


def _spoiled(recovery: Recovery) -> Recovery:
    """What asks nothing of the meta-generator, and says by its loss that nothing may be learned from it."""
    task = recovery.task
    task = replace(task, images=torch.zeros_like(task.images), loss=torch.full_like(task.loss, torch.nan))
    return Recovery(task, [torch.zeros_like(each) for each in recovery.gradients])


def one_at_a_time(
    generator: Generator,
    members: Sequence[Member],
    objective: Objective,
    rngs: Sequence[torch.Generator],
) -> list[Recovery]:
    """Adapt a copy of the generator to each model and draw its task."""
    return [
        _recover_one(generator, member, objective, rng) for member, rng in zip(members, rngs, strict=True)
    ]


def _recover_one(
    generator: Generator, member: Member, objective: Objective, rng: torch.Generator
) -> Recovery:
    latent, labels = draw_task(generator, member, objective.config, rng)
    evaluate = partial(inversion_loss, labels=labels, member=member, objective=objective, rng=rng)
    adapted, latent = adapt_generator(generator, latent, evaluate, objective.config)
    images = adapted(latent)
    loss, logits = evaluate(images)
    gradients = torch.autograd.grad(loss, list(adapted.parameters()))
    agreement = (logits.argmax(1) == labels).to(loss.dtype).mean()
    task = RecoveredTask(member, widen(images.detach()), labels, loss.detach(), agreement)
    return Recovery(task, gradients)


def by_function(name: str, inversion: Inversion) -> RecoverEach:
    """A way of recovering that has no meta-generator, and leaves it as it is.

    Args:
        name: of the inversion, for what is said where it fails.
    """
    what = f"the inversion {name!r}"

    def recover_each(
        generator: Generator,
        members: Sequence[Member],
        objective: Objective,
        rngs: Sequence[torch.Generator],
    ) -> list[Recovery]:
        asked_for_nothing = [torch.zeros_like(each) for each in generator.parameters()]
        with extending(what, inversion):
            found = inversion(members, objective, rngs)
        pairs = _pairs_in(found, len(members), what)
        return [
            Recovery(_task_of(member, *pair, objective, rng, what), asked_for_nothing)
            for member, pair, rng in zip(members, pairs, rngs, strict=True)
        ]

    return recover_each


def _pairs_in(found: object, models: int, what: str) -> list[tuple[Tensor, Tensor]]:
    """What an inversion gave, where it is two tensors for each model; else raises ExtensionError."""
    if not isinstance(found, list | tuple) or len(found) != models:
        gave = f"{len(found)} pairs" if isinstance(found, list | tuple) else f"a {type(found).__name__}"
        raise ExtensionError(f"{what} gave {gave} for {models} models: expected images and labels of each")
    for pair in found:
        if not isinstance(pair, list | tuple) or [isinstance(each, Tensor) for each in pair] != [True, True]:
            raise ExtensionError(
                f"{what} gave {described(pair)} for a model: expected two tensors, images and labels"
            )
    return list(found)


@torch.no_grad()
def _task_of(
    member: Member, images: Tensor, labels: Tensor, objective: Objective, rng: torch.Generator, what: str
) -> RecoveredTask:
    """What an inversion gave for a model, in the meta-learner's shape, with the model's own judgement of it.

    Raises:
        ExtensionError: of another shape than images and their classes have.
    """
    are_images = images.dim() == 4 and images.shape[1] in (1, 3) and 0 not in images.shape[2:]
    are_images = are_images and images.is_floating_point()
    are_labels = labels.shape == images.shape[:1] and labels.dtype in _INTEGERS
    if not (are_images and are_labels):
        raise ExtensionError(
            f"{what} gave {images.dtype} images {list(images.shape)} and {labels.dtype} labels "
            f"{list(labels.shape)}: expected [images, 1 or 3 channels, height, width] in [0, 1], and an "
            "integer for each image"
        )
    if bool(((labels < 0) | (labels >= member.num_classes)).any()):
        raise ExtensionError(
            f"{what} gave labels from {int(labels.min())} to {int(labels.max())} for a model of "
            f"{member.num_classes} classes"
        )
    labels = labels.long()
    images = objective.meta_learner_input.resize(images.detach().to(member.device, member.dtype))
    labels = labels.to(member.device)
    loss, logits = inversion_loss(images, labels=labels, member=member, objective=objective, rng=rng)
    agreement = (logits.argmax(1) == labels).to(loss.dtype).mean()
    return RecoveredTask(member, widen(images), labels, loss, agreement)


def draw_task(
    generator: Generator, member: Member, config: InvertConfig, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Latents [images, latent_size] from N(0, I) and labels [images], balanced over the model's classes."""
    labels = torch.arange(config.images_per_model, device=member.device) % member.num_classes
    latent = torch.randn(len(labels), generator.latent_size, generator=rng)
    return latent.to(member.device, next(generator.parameters()).dtype), labels


def adapt_generator(
    generator: Generator, latent: Tensor, evaluate: Loss, config: InvertConfig
) -> tuple[Generator, Tensor]:
    """A copy of the generator and the latents after the inner steps on one model (θ_i^(k), z^(k))."""
    adapted = copy.deepcopy(generator)
    latent = latent.clone().requires_grad_(True)
    optimizer = inner_optimizer(adapted.parameters(), latent, config)
    descend(adapted, latent, evaluate, optimizer, steps=config.steps)
    return adapted, latent.detach()


def descend(
    generator: Generator, latent: Tensor, evaluate: Loss, optimizer: torch.optim.Optimizer, *, steps: int
) -> None:
    """Move the generator and the latents down L_G of the images that they draw."""
    for _ in range(steps):
        loss, _ = evaluate(generator(latent))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def inner_optimizer(parameters: Iterable[Tensor], latent: Tensor, config: InvertConfig) -> torch.optim.Adam:
    """Of an adapted generator's parameters and its latents."""
    return torch.optim.Adam(
        [
            {"params": list(parameters), "lr": config.inner_learning_rate},
            {"params": [latent], "lr": config.latent_learning_rate},
        ],
        betas=(0.5, 0.999),
    )


def outer_step(
    generator: Generator, optimizer: torch.optim.Optimizer, recoveries: Sequence[Recovery], team: Team
) -> None:
    """θ ← θ - β Σ_i ∇L_G(θ_i^(k)), over the recoveries of every process."""
    columns = zip(*(recovery.gradients for recovery in recoveries), strict=True)
    sums = [torch.stack(gradients).sum(0) for gradients in columns]
    team.sum(sums)
    for parameter, gradient in zip(generator.parameters(), sums, strict=True):
        parameter.grad = gradient
    optimizer.step()


def _everyones(tasks: Sequence[RecoveredTask], members: Sequence[Member], team: Team) -> list[RecoveredTask]:
    """The tasks of every process, in the order of the members."""
    if team.size == 1:
        return list(tasks)
    count = len(members)
    images, labels, loss, agreement = (
        team.gather(torch.stack(values), count)
        for values in zip(
            *((task.images, task.labels, task.loss, task.agreement) for task in tasks), strict=True
        )
    )
    return [
        RecoveredTask(member, images[i], labels[i], loss[i], agreement[i]) for i, member in enumerate(members)
    ]


def inversion_loss(
    images: Tensor, *, labels: Tensor, member: Member, objective: Objective, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """L_G for one model: cross-entropy, BatchNorm statistics and adversarial term; see :data:`Loss`."""
    config, spec = objective.config, member.input
    images = augment(images, config.crop_padding, spec.horizontal_flip, rng)
    with batch_norm_distance(member.network) as distances:
        logits = widen(member.network(spec.normalise(spec.resize(images))))
    loss = F.cross_entropy(logits, labels)
    if config.batch_norm_weight and distances:
        loss = loss + config.batch_norm_weight * torch.stack(distances).sum()
    if objective.adversarial_weight:
        answers = ask_meta_learner(objective, images)
        loss = loss + objective.adversarial_weight * adversarial_loss(logits, answers)
    return loss, logits


def ask_meta_learner(objective: Objective, images: Tensor) -> Tensor:
    """The meta-learner's logits, [batch, classes], for [batch, channels, size, size] images in [0, 1]."""
    spec = objective.meta_learner_input
    return widen(objective.meta_learner(spec.normalise(spec.resize(images))))


def adversarial_loss(logits: Tensor, meta_learner_logits: Tensor) -> Tensor:
    """L_adv = -KL(model ‖ meta-learner) over the images on whose class both agree.

    Args:
        logits: [batch, classes].
        meta_learner_logits: [batch, own classes]; of the two, the first classes that both have are compared.
    """
    answers, logits = meta_learner_logits[:, : logits.shape[1]], logits[:, : meta_learner_logits.shape[1]]
    agree = (answers.argmax(1) == logits.argmax(1)).to(logits.dtype)
    divergence: Tensor = kl_divergence(logits, answers) * agree
    return -divergence.mean()


def kl_divergence(logits: Tensor, other_logits: Tensor) -> Tensor:
    """KL(softmax(logits) ‖ softmax(other_logits)) of each row, [batch]."""
    log_p, log_q = logits.log_softmax(1), other_logits.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def augment(images: Tensor, padding: int, horizontal_flip: bool, rng: torch.Generator) -> Tensor:
    """One random shift, and one random mirror where allowed, for the whole batch; differentiable."""
    if padding:
        top, left = torch.randint(0, 2 * padding + 1, (2,), generator=rng).tolist()
        height, width = images.shape[2:]
        padded = F.pad(images, (padding,) * 4, mode="reflect")
        images = padded[:, :, top : top + height, left : left + width]
    if horizontal_flip and torch.rand((), generator=rng) < 0.5:
        images = images.flip(3)
    return images


def batch_norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    """Its BatchNorm layers."""
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


@contextlib.contextmanager
def batch_norm_distance(network: nn.Module) -> Iterator[list[Tensor]]:
    """Collect ‖μ - running mean‖ + ‖σ² - running variance‖ of each BatchNorm layer (Yin et al. 2020)."""
    distances: list[Tensor] = []

    def measure(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.BatchNorm2d) and module.running_mean is not None
        assert module.running_var is not None
        values = widen(inputs[0])
        mean = values.mean((0, 2, 3))
        variance = values.square().mean((0, 2, 3)) - mean.square()
        distances.append((mean - module.running_mean).norm() + (variance - module.running_var).norm())

    handles = [layer.register_forward_pre_hook(measure) for layer in batch_norms(network)]
    try:
        yield distances
    finally:
        for handle in handles:
            handle.remove()
