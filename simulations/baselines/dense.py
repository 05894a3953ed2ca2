"""DENSE-style distillation (Zhang et al., NeurIPS 2022): one student of all models taken as one classifier.

A generator is trained against the ensemble of the models: towards the classes asked for, towards their
BatchNorm statistics, and away from where the student already says what the ensemble says. The student
learns the ensemble's logits on what the generator draws. DENSE is for organisations of the same classes, and
takes the mean of their logits; here no class is known to be another's, see :class:`Ensemble`.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedfree.architectures import Classifier, InputSpec, freeze_statistics
from fedfree.codec import Contribution, contribution_id, encode_contribution
from fedfree.host.compute import choose_device, use_cpu
from fedfree.seeding import derive_seed, make_generator
from fedfree.start import LoadedStart, body_for
from server.config import ServerConfig
from server.learning.generator import Generator
from server.learning.invert import augment, batch_norm_distance, kl_divergence
from server.learning.memory import Corpus
from server.learning.meta_learn import distillation_loss
from server.learning.pool import Member, Pool
from server.learning.precision import parameter_dtype, widen
from server.learning.state import begin
from simulations.config import DenseConfig, SimulationConfig
from simulations.federation.prepare import server_config


@dataclass(frozen=True)
class Choice:
    """One value of each setting that may list several."""

    batch_norm_weight: float
    temperature: float
    learning_rate: float


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Every model's logits side by side: a classifier of the classes of all organisations.

    Of each model the mean over its classes is taken away, so that one to which an image says nothing stays at
    0, below whoever knows it. That is DENSE's mean where a model's logits of classes that it does not have
    are 0, times the number of models. Then each model is brought to the same scale, so that large logits do
    not outvote the rest.
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
                inputs = member.input.normalise(member.input.resize(images))
                logits = widen(member.network(inputs.contiguous(memory_format=torch.channels_last)))
            blocks.append(factor * (logits - logits.mean(1, keepdim=True)))
            total = total + (torch.stack(distances).sum() if distances else 0)
        return torch.cat(blocks, dim=1), total / len(self.members)


def disagreement(ensemble: Tensor, student: Tensor) -> Tensor:
    """Mean KL(ensemble ‖ student) of rows of logits, 0 for those where both name the same class."""
    apart = (ensemble.argmax(1) != student.argmax(1)).to(ensemble.dtype)
    divergence: Tensor = kl_divergence(ensemble, student) * apart
    return divergence.mean()


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

    def answer(self, images: Tensor) -> Tensor:
        """The student's logits, [batch, classes], of [batch, channels, size, size] images in [0, 1]."""
        inputs = self.input.normalise(self.input.resize(images))
        return widen(self.student(inputs.contiguous(memory_format=torch.channels_last)))

    def draw(self) -> tuple[Tensor, Tensor]:
        """Latents [images, latent_size] and a class of the ensemble for each."""
        count = self.config.invert.images_per_model
        latents = torch.randn(count, self.generator.latent_size, generator=self.rng)
        labels = torch.randint(sum(self.ensemble.counts), (count,), generator=self.rng)
        parameter = next(self.generator.parameters())
        return latents.to(parameter), labels.to(parameter.device)

    def generator_loss(self, latents: Tensor, labels: Tensor) -> Tensor:
        """CE(ensemble, labels) + λ₁ · BatchNorm distance - λ₂ · disagreement."""
        allowed = self.input.horizontal_flip
        images = augment(self.generator(latents), self.config.invert.crop_padding, allowed, self.rng)
        logits, distance = self.ensemble.ask(images)
        loss = F.cross_entropy(logits, labels) + self.choice.batch_norm_weight * distance
        if self.settings.adversarial_weight:
            loss = loss - self.settings.adversarial_weight * disagreement(logits, self.answer(images))
        return loss

    def synthesise(self) -> float:
        """Some steps on one batch, of the generator and the latents, which is then drawn; the mean loss."""
        latents, labels = self.draw()
        latents.requires_grad_(True)
        moving = [*self.generator.parameters(), latents]
        of_latents = torch.optim.Adam([latents], self.settings.latent_learning_rate)
        losses = []
        for _ in range(self.settings.generator_steps):
            loss = self.generator_loss(latents, labels)
            self.generator_optimizer.zero_grad()
            of_latents.zero_grad()
            loss.backward(inputs=moving)
            self.generator_optimizer.step()
            of_latents.step()
            losses.append(float(loss.detach()))
        with torch.no_grad():
            images = self.generator(latents)
            self.corpus.add(images, self.ensemble.logits(images))
        return sum(losses) / len(losses)

    def distil(self, steps: int) -> float:
        """Some steps of the student on what was drawn so far; the mean loss."""
        self.student.train()
        if self.is_from_start:
            freeze_statistics(self.student)
        losses = []
        for _ in range(steps):
            images, logits = self.corpus.sample(self.config.learn.batch_size, rng=self.rng)
            answers = self.answer(images.to(next(self.student.parameters())))
            loss = distillation_loss(answers, logits, self.choice.temperature)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(float(loss.detach()))
        self.student.eval()
        return sum(losses) / len(losses)

    def run(self) -> None:
        """As many iterations as the server's, of as many generated images and steps of the student each."""
        for iteration in range(self.config.warmup_iterations, self.config.iterations):
            factor = (1 + math.cos(math.pi * iteration / self.config.iterations)) / 2
            for group in self.optimizer.param_groups:
                group["lr"] = self.choice.learning_rate * factor
            for _ in range(batches(self.config, len(self.ensemble.members))):
                self.synthesise()
            self.distil(student_steps(self.config, len(self.ensemble.members)))


def batches(config: ServerConfig, models: int) -> int:
    """Of ``images_per_model`` generated images an iteration: as many as ours recovers, each from a model."""
    return min(config.invert.models_per_iteration, models)


def student_steps(config: ServerConfig, models: int) -> int:
    """Of an iteration: as many as the meta-learner takes."""
    own = batches(config, models) if config.learn.own_tasks else 0
    return config.learn.relational_tasks + own + config.learn.replay_episodes


def begin_training(pool: Pool, config: ServerConfig, settings: DenseConfig, choice: Choice) -> Training:
    """The student where the meta-learner begins, with a head for the classes of all models."""
    state = begin(pool, config)
    rng = make_generator(config.seed, "dense")
    members = [pool.member(number) for number in range(len(pool))]
    latents = torch.randn(config.invert.images_per_model, config.invert.latent_size, generator=rng)
    with torch.no_grad():
        images = state.generator(latents.to(next(state.generator.parameters())))
    ensemble, student = Ensemble.calibrated(members, images), state.meta_learner
    student.head = _head(ensemble, student.feature_size, config.seed).to(pool.device, pool.dtype)
    if pool.start:
        _begin_as_the_models_do(student.head, ensemble)
    return Training(
        config=config,
        settings=settings,
        choice=choice,
        ensemble=ensemble,
        generator=state.generator,
        student=student,
        input=state.input,
        corpus=Corpus(config.learn.memory_images, pool.device),
        generator_optimizer=torch.optim.Adam(
            state.generator.parameters(), settings.generator_learning_rate, betas=(0.5, 0.999)
        ),
        optimizer=torch.optim.Adam(student.parameters(), choice.learning_rate),
        rng=rng,
        is_from_start=pool.start is not None,
    )


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


class Contributed:
    """Contributions in memory, as a pool asks for them."""

    def __init__(self, contributions: Sequence[Contribution], starts: Sequence[LoadedStart]) -> None:
        self._models = {contribution_id(encode_contribution(each)): each for each in contributions}
        self._starts = starts
        self.start = starts[0] if starts else None
        self.further_starts = starts[1:]

    def pool(self, config: ServerConfig) -> Pool:
        """All of them, on the device and in the format configured."""
        device, dtype = choose_device(config.device), parameter_dtype(config.precision)
        return Pool(self, sorted(self._models), device, dtype)

    def describe(self, identity: str) -> Contribution:
        return self._models[identity]

    def network(self, identity: str) -> tuple[Contribution, Classifier]:
        model = self._models[identity]
        return model, model.network(body_for(model, self._starts))

    def organisation(self, identity: str) -> None:
        return None


def choices(settings: DenseConfig, config: ServerConfig) -> list[Choice]:
    """Every combination of the values that the settings list."""
    rates = settings.learning_rate or (config.learn.inner_learning_rate,)
    listed = itertools.product(settings.batch_norm_weight, settings.temperature, rates)
    return [Choice(*values) for values in listed]


def train_students(
    contributions: Sequence[Contribution], starts: Sequence[LoadedStart], config: SimulationConfig
) -> Iterator[tuple[Choice, Classifier, InputSpec]]:
    """One student for each combination of the settings in ``config.dense``, on the models of a federation."""
    server = server_config(config)
    use_cpu(server.threads)
    for choice in choices(config.dense, server):
        pool = Contributed(contributions, starts).pool(server)
        training = begin_training(pool, server, config.dense, choice)
        training.run()
        yield choice, training.student, training.input
