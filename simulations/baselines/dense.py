"""DENSE-style distillation (Zhang et al., NeurIPS 2022: "data generation" and "model distillation").

All models side by side are taken as one classifier, the ensemble. A generator learns to draw images that the
ensemble assigns to the classes asked for, that have its BatchNorm statistics, and on which the student does
not yet say what the ensemble says. The student learns the ensemble's logits on all that was drawn so far, and
the two take turns.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product, starmap

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedfree.architectures import Classifier, InputSpec, freeze_statistics
from fedfree.codec import Contribution, contribution_id, encode_contribution
from fedfree.host.compute import use_cpu
from fedfree.seeding import derive_seed, make_generator
from fedfree.start import LoadedStart
from server.config import ServerConfig
from server.learning.generator import Generator
from server.learning.invert import augment, batch_norm_distance, kl_divergence
from server.learning.memory import Corpus
from server.learning.meta_learn import distillation_loss, walk
from server.learning.pool import Member, Pool
from server.learning.precision import widen
from server.learning.state import begin
from simulations.config import DenseConfig, SimulationConfig
from simulations.federation.in_memory import pool_in_memory
from simulations.federation.prepare import server_config


@dataclass(frozen=True)
class Choice:
    """One value of each setting that may list several."""

    batch_norm_weight: float
    temperature: float
    learning_rate: float


def choices(settings: DenseConfig, config: ServerConfig) -> list[Choice]:
    """Every combination of the values that the settings list."""
    rates = settings.learning_rate or (config.learn.inner_learning_rate,)
    return [*starmap(Choice, product(settings.batch_norm_weight, settings.temperature, rates))]


def train_students(
    contributions: Sequence[Contribution], starts: Sequence[LoadedStart], config: SimulationConfig
) -> Iterator[tuple[Choice, Classifier, InputSpec]]:
    """One student for each combination of the settings in ``config.dense``, on the models of a federation."""
    server = server_config(config)
    use_cpu(server.threads)
    models = {contribution_id(encode_contribution(each)): each for each in contributions}
    for choice in choices(config.dense, server):
        training = begin_training(pool_in_memory(models, starts, server), server, config.dense, choice)
        training.run()
        yield choice, training.student, training.input


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Every model's logits side by side, where DENSE, of organisations of the same classes, takes the mean.

    Of each model the mean over its classes is taken away, so that one to which an image says nothing stays at
    0, below whoever knows it. Then each is brought to the same scale, so that large logits do not outvote the
    rest.
    """

    members: Sequence[Member]
    factors: Tensor
    """[models]: the mean of the models' scales over each one's own."""

    @classmethod
    def calibrated(cls, members: Sequence[Member], images: Tensor) -> "Ensemble":
        """At the scale, root mean square of centred logits, that models have on [batch, c, s, s] images."""
        alone = cls(members, torch.ones(len(members), device=images.device))
        with torch.no_grad():
            blocks = alone.logits(images).split(alone.counts, dim=1)
        scales = torch.stack([block.square().mean().sqrt().clamp_min(1e-6) for block in blocks])
        return cls(members, scales.mean() / scales)

    @property
    def counts(self) -> list[int]:
        """Classes of each model."""
        return [member.num_classes for member in self.members]

    def logits(self, images: Tensor) -> Tensor:
        """Of [batch, channels, size, size] images in [0, 1], [batch, sum of classes]."""
        return self.ask(images)[0]

    def ask(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and how far the images are from the BatchNorm statistics, a scalar, mean over models."""
        blocks, total = [], images.new_zeros(())
        for member, factor in zip(self.members, self.factors, strict=True):
            with batch_norm_distance(member.network) as distances:
                logits = logits_of(member.network, member.input, images)
            blocks.append(factor * (logits - logits.mean(1, keepdim=True)))
            total = total + (torch.stack(distances).sum() if distances else 0)
        return torch.cat(blocks, dim=1), total / len(self.members)


def logits_of(network: Classifier, spec: InputSpec, images: Tensor) -> Tensor:
    """A network's logits, [batch, classes], of [batch, channels, size, size] images in [0, 1]."""
    inputs = spec.normalise(spec.resize(images))
    return widen(network(inputs.contiguous(memory_format=torch.channels_last)))


def begin_training(pool: Pool, config: ServerConfig, settings: DenseConfig, choice: Choice) -> "Training":
    """The student where the meta-learner begins, with a head for the classes of all models."""
    state, rng = begin(pool, config), make_generator(config.seed, "dense")
    generator, student = state.generator, state.meta_learner
    with torch.no_grad():
        images = generator(draw_latents(generator, config.invert.images_per_model, rng))
    ensemble = Ensemble.calibrated([pool.member(number) for number in range(len(pool))], images)
    student.head = _head(ensemble, student.feature_size, config.seed).to(pool.device, pool.dtype)
    if pool.start:
        _begin_as_the_models_do(student.head, ensemble)
    return Training(
        config=config,
        settings=settings,
        choice=choice,
        ensemble=ensemble,
        generator=generator,
        student=student,
        input=state.input,
        corpus=Corpus(config.learn.memory_images, pool.device),
        generator_optimizer=torch.optim.Adam(
            generator.parameters(), settings.generator_learning_rate, betas=(0.5, 0.999)
        ),
        optimizer=torch.optim.Adam(student.parameters(), choice.learning_rate),
        rng=rng,
        is_from_start=pool.start is not None,
    )


def draw_latents(generator: Generator, count: int, rng: torch.Generator) -> Tensor:
    """[count, latent_size] from N(0, I), as the generator takes them."""
    return torch.randn(count, generator.latent_size, generator=rng).to(next(generator.parameters()))


def _head(ensemble: Ensemble, feature_size: int, seed: int) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "dense"))
        return nn.Linear(feature_size, sum(ensemble.counts))


@torch.no_grad()
def _begin_as_the_models_do(head: nn.Linear, ensemble: Ensemble) -> None:
    """The heads of those models that have the student's features, which from one start are alike."""
    blocks = (each.split(ensemble.counts) for each in (head.weight, head.bias))
    for member, factor, weight, bias in zip(ensemble.members, ensemble.factors, *blocks, strict=True):
        own = member.network.head
        if isinstance(own, nn.Linear) and own.in_features == head.in_features:
            weight.copy_(factor * (own.weight - own.weight.mean(0)))
            bias.copy_(factor * (own.bias - own.bias.mean()))


@dataclass(frozen=True, eq=False)
class Training:
    """Generator, student, and what the generator drew."""

    config: ServerConfig
    settings: DenseConfig
    choice: Choice
    ensemble: Ensemble
    generator: Generator
    student: Classifier
    input: InputSpec
    """Of the student."""
    corpus: Corpus
    """Images with the ensemble's logits."""
    generator_optimizer: torch.optim.Adam
    optimizer: torch.optim.Adam
    rng: torch.Generator
    is_from_start: bool

    def run(self) -> None:
        """As many iterations as the server's, of as many generated images and steps of the student each."""
        models = len(self.ensemble.members)
        for iteration in range(self.config.warmup_iterations, self.config.iterations):
            factor = (1 + math.cos(math.pi * iteration / self.config.iterations)) / 2
            self.optimizer.param_groups[0]["lr"] = self.choice.learning_rate * factor
            for _ in range(batches(self.config, models)):
                self.synthesise()
            self.distil(student_steps(self.config, models))

    def synthesise(self) -> float:
        """Data generation: learn to draw one batch, latents and all, and draw it; the mean loss."""
        latents, labels = self.draw()
        of_latents = torch.optim.Adam([latents.requires_grad_()], self.settings.latent_learning_rate)
        losses = []
        for _ in range(self.settings.generator_steps):
            loss = self.generator_loss(latents, labels)
            self.generator_optimizer.zero_grad()
            of_latents.zero_grad()
            loss.backward(inputs=[*self.generator.parameters(), latents])
            self.generator_optimizer.step()
            of_latents.step()
            losses.append(float(loss.detach()))
        with torch.no_grad():
            images = self.generator(latents)
            self.corpus.add(images, self.ensemble.logits(images))
        return sum(losses) / len(losses)

    def draw(self) -> tuple[Tensor, Tensor]:
        """Latents [images, latent_size] and a class of the ensemble for each."""
        latents = draw_latents(self.generator, self.config.invert.images_per_model, self.rng)
        labels = torch.randint(sum(self.ensemble.counts), latents.shape[:1], generator=self.rng)
        return latents, labels.to(latents.device)

    def generator_loss(self, latents: Tensor, labels: Tensor) -> Tensor:
        """CE(ensemble, labels) + λ₁ · BatchNorm distance - λ₂ · disagreement."""
        allowed = self.input.horizontal_flip
        images = augment(self.generator(latents), self.config.invert.crop_padding, allowed, self.rng)
        logits, distance = self.ensemble.ask(images)
        loss = F.cross_entropy(logits, labels) + self.choice.batch_norm_weight * distance
        if self.settings.adversarial_weight:
            loss = loss - self.settings.adversarial_weight * disagreement(logits, self.answer(images))
        return loss

    def distil(self, steps: int) -> None:
        """Model distillation: some steps of the student on what was drawn so far."""
        self.student.train()
        if self.is_from_start:
            freeze_statistics(self.student)
        walk(self.optimizer, [self._student_loss] * steps)
        self.student.eval()

    def _student_loss(self) -> Tensor:
        images, logits = self.corpus.sample(self.config.learn.batch_size, rng=self.rng)
        answers = self.answer(images.to(next(self.student.parameters())))
        return distillation_loss(answers, logits, self.choice.temperature)

    def answer(self, images: Tensor) -> Tensor:
        """The student's logits, [batch, classes], of [batch, channels, size, size] images in [0, 1]."""
        return logits_of(self.student, self.input, images)


def disagreement(ensemble: Tensor, student: Tensor) -> Tensor:
    """Mean KL(ensemble ‖ student) of rows of logits, 0 for those where both name the same class."""
    apart = (ensemble.argmax(1) != student.argmax(1)).to(ensemble.dtype)
    divergence: Tensor = kl_divergence(ensemble, student) * apart
    return divergence.mean()


def batches(config: ServerConfig, models: int) -> int:
    """Of ``images_per_model`` generated images an iteration: as many as ours recovers, each from a model."""
    return min(config.invert.models_per_iteration, models)


def student_steps(config: ServerConfig, models: int) -> int:
    """Of an iteration: as many as the meta-learner takes."""
    own = batches(config, models) if config.learn.own_tasks else 0
    return config.learn.relational_tasks + own + config.learn.replay_episodes
