"""FIVE: faster inversion via a meta-generator (FREE, section 3.2).

Each model is a task. The meta-generator's parameters θ are adapted to it in a few steps, the images
are what the adapted generator draws, and θ moves against the sum of the gradients found there
(first-order MAML).
"""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedfree.architectures import Classifier, InputSpec
from server.config import InvertConfig
from server.generator import Generator
from server.pool import Member


@dataclass(frozen=True)
class RecoveredTask:
    """What one model gave back."""

    member: Member
    images: Tensor
    """[images, channels, image_size, image_size] in [0, 1], before the model's own resizing."""
    labels: Tensor
    """[images], int64: the class each image was asked to show."""
    loss: float
    """L_G after the last step."""
    agreement: float
    """Fraction of the images that the model assigns to the class asked for."""


def recover(
    generator: Generator,
    optimizer: torch.optim.Optimizer,
    members: Sequence[Member],
    student: Classifier,
    student_input: InputSpec,
    config: InvertConfig,
    *,
    adversarial_weight: float,
    rng: torch.Generator,
) -> list[RecoveredTask]:
    """Recover a task from each model and take one step of the meta-generator.

    Args:
        optimizer: of the meta-generator's parameters (the outer step, rate β).
        student: the meta-learner, whose uncertainty the adversarial term seeks.
        adversarial_weight: λ_adv; 0 leaves the term out.
    """
    optimizer.zero_grad()
    tasks = []
    for member in members:
        inversion = Inversion(member, student, student_input, config, adversarial_weight)
        labels = torch.arange(config.images_per_model, device=member.device) % member.num_classes
        latent = torch.randn(len(labels), generator.latent_size, generator=rng).to(member.device)
        adapted, latent = adapt_generator(generator, latent, labels, inversion, config, rng)
        tasks.append(_outer_gradient(generator, adapted, latent, labels, inversion, rng))
    optimizer.step()
    return tasks


def adapt_generator(
    generator: Generator,
    latent: Tensor,
    labels: Tensor,
    inversion: "Inversion",
    config: InvertConfig,
    rng: torch.Generator,
) -> tuple[Generator, Tensor]:
    """A copy of the generator and the latents after ``config.steps`` steps on one model (θ_i^(k), z^(k))."""
    adapted = copy.deepcopy(generator)
    latent = latent.clone().requires_grad_(True)
    optimizer = torch.optim.Adam(
        [
            {"params": list(adapted.parameters()), "lr": config.inner_learning_rate},
            {"params": [latent], "lr": config.latent_learning_rate},
        ],
        betas=(0.5, 0.999),
    )
    for _ in range(config.steps):
        loss, _ = inversion.loss(adapted(latent), labels, rng)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return adapted, latent.detach()


def _outer_gradient(
    generator: Generator,
    adapted: Generator,
    latent: Tensor,
    labels: Tensor,
    inversion: "Inversion",
    rng: torch.Generator,
) -> RecoveredTask:
    """Add ∇L_G at the adapted parameters to the meta-generator's gradient; its images are the task."""
    images = adapted(latent)
    loss, logits = inversion.loss(images, labels, rng)
    gradients = torch.autograd.grad(loss, list(adapted.parameters()))
    for parameter, gradient in zip(generator.parameters(), gradients, strict=True):
        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
    agreement = (logits.argmax(1) == labels).float().mean()
    return RecoveredTask(
        inversion.member, images.detach().float(), labels, float(loss.detach()), float(agreement)
    )


class Inversion:
    """L_G for one model: cross-entropy, adversarial term and BatchNorm statistics."""

    def __init__(
        self,
        member: Member,
        student: Classifier,
        student_input: InputSpec,
        config: InvertConfig,
        adversarial_weight: float,
    ) -> None:
        self.member = member
        self._student = student
        self._student_input = student_input
        self._config = config
        self._adversarial_weight = adversarial_weight

    def loss(self, images: Tensor, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """L_G and the model's logits for [batch, channels, size, size] images in [0, 1]."""
        images = augment(images, self._config.crop_padding, self.member.input.horizontal_flip, rng)
        network, spec = self.member.network, self.member.input
        with batch_norm_distance(network) as distances:
            logits = network(spec.normalise(spec.resize(images))).float()
        loss = F.cross_entropy(logits, labels)
        if self._config.batch_norm_weight and distances:
            loss = loss + self._config.batch_norm_weight * torch.stack(distances).sum()
        if self._adversarial_weight:
            loss = loss + self._adversarial_weight * self._adversarial(images, logits)
        return loss, logits

    def _adversarial(self, images: Tensor, logits: Tensor) -> Tensor:
        spec = self._student_input
        student_logits = self._student(spec.normalise(spec.resize(images)))[:, : logits.shape[1]].float()
        agree = (student_logits.argmax(1) == logits.argmax(1)).to(logits.dtype)
        divergence: Tensor = kl_divergence(logits, student_logits) * agree
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


@contextlib.contextmanager
def batch_norm_distance(network: nn.Module) -> Iterator[list[Tensor]]:
    """Collect ‖μ - running mean‖ + ‖σ² - running variance‖ of each BatchNorm layer (Yin et al. 2020)."""
    distances: list[Tensor] = []

    def measure(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.BatchNorm2d) and module.running_mean is not None
        assert module.running_var is not None
        values = inputs[0].float()
        mean = values.mean((0, 2, 3))
        variance = values.square().mean((0, 2, 3)) - mean.square()
        distances.append((mean - module.running_mean).norm() + (variance - module.running_var).norm())

    layers = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    handles = [layer.register_forward_pre_hook(measure) for layer in layers]
    try:
        yield distances
    finally:
        for handle in handles:
            handle.remove()
