"""The state of a run between iterations, and the two moves that change it: invert and meta-learn."""

import math
from collections.abc import Sequence

import torch

from fedfree.architectures import Classifier, InputSpec, build, use_channels_last
from fedfree.seeding import derive_seed, make_generator
from server import invert, meta_learn
from server.compose import compose
from server.config import ServerConfig
from server.generator import Generator
from server.invert import RecoveredTask
from server.memory import Corpus, Memory
from server.pool import Member, Pool


class Learner:
    """Meta-generator, meta-learner, memory, and their random streams."""

    def __init__(self, pool: Pool, config: ServerConfig) -> None:
        self._pool = pool
        self._config = config
        self._rng = make_generator(config.seed, "learn")
        self._teachers = self._choose_teachers()
        descriptions = pool.descriptions()
        self.input = common_input([each.input for each in descriptions])
        self.num_classes = max([config.learn.replay_ways, *(each.num_classes for each in descriptions)])
        self.memory = Memory(config.learn.memory_images)
        self._corpus = Corpus(config.learn.memory_images)
        self.images_recovered = 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(config.seed, "initialisation"))
            self._generator = self._build_generator()
            self.student = self._build_student()
        self._generator_optimizer = torch.optim.Adam(
            self._generator.parameters(), lr=config.invert.outer_learning_rate, betas=(0.5, 0.999)
        )
        self._inner_optimizer = torch.optim.Adam(
            self.student.parameters(), lr=config.learn.inner_learning_rate
        )
        self._replay_optimizer = torch.optim.Adam(
            self.student.parameters(), lr=config.learn.replay_learning_rate
        )

    def _choose_teachers(self) -> list[Member]:
        """The models that teach on every image; a random part of a pool larger than ``max_teachers``."""
        rng = make_generator(self._config.seed, "teachers")
        return self._pool.sample(self._config.learn.max_teachers, rng)

    def _build_generator(self) -> Generator:
        settings = self._config.invert
        generator = Generator(
            latent_size=settings.latent_size,
            width=settings.generator_width,
            channels=self.input.channels,
            image_size=self.input.height,
        )
        use_channels_last(generator)
        return generator.to(self._pool.device)

    def _build_student(self) -> Classifier:
        student = build(self._config.architecture, num_classes=self.num_classes, input=self.input)
        use_channels_last(student)
        return student.to(self._pool.device)

    def invert(self, iteration: int) -> list[RecoveredTask]:
        """FIVE: recover tasks from a meta-batch of models and remember them."""
        settings = self._config.invert
        members = self._pool.sample(settings.models_per_iteration, self._rng)
        warm = iteration >= self._config.warmup_iterations
        with self._autocast():
            recovered = invert.recover(
                self._generator,
                self._generator_optimizer,
                members,
                self.student,
                self.input,
                settings,
                adversarial_weight=settings.adversarial_weight if warm else 0.0,
                rng=self._rng,
            )
        if warm:
            self.memory.add(recovered)
            self.images_recovered += sum(len(task.labels) for task in recovered)
        return recovered

    def _ask_teachers(self, recovered: Sequence[RecoveredTask]) -> None:
        """Show every teacher what was just recovered, and new compositions of what is remembered."""
        images = torch.cat([task.images for task in recovered])
        count = self._config.learn.compositions
        if count:
            drawn = torch.randperm(len(self.memory), generator=self._rng)[: 4 * count]
            composed = compose(self.memory.pixels(drawn), count, rng=self._rng)
            images = torch.cat([images, composed])
        with self._autocast():
            features = meta_learn.teacher_features(self._teachers, images)
        self._corpus.add(images, features)

    def _autocast(self) -> torch.autocast:
        """bfloat16 where the configuration and the hardware have it; weights stay in float32."""
        enabled = self._config.precision == "bfloat16" or (
            self._config.precision == "auto" and has_fast_bfloat16(self._pool.device)
        )
        # Without the cache: it would go on using the weights from before an optimizer's step.
        return torch.autocast(
            self._pool.device.type, dtype=torch.bfloat16, enabled=enabled, cache_enabled=False
        )

    def meta_learn(self, recovered: Sequence[RecoveredTask], iteration: int) -> dict[str, float]:
        """BELL: distillation along a path of tasks, then replay; returns the mean losses."""
        losses = {
            "inversion_loss": _mean([task.loss for task in recovered]),
            "inversion_agreement": _mean([task.agreement for task in recovered]),
        }
        if iteration < self._config.warmup_iterations:
            return losses
        settings = self._config.learn
        self._schedule(iteration)
        if settings.relational_tasks:
            self._ask_teachers(recovered)
        tasks = meta_learn.relational_tasks(self._corpus, self._teachers, settings, rng=self._rng)
        if settings.own_tasks:
            tasks += meta_learn.recovered_tasks(recovered, rng=self._rng)
        with self._autocast():
            losses["distillation_loss"] = meta_learn.align(
                self.student, self._inner_optimizer, tasks, self.input, settings
            )
        if settings.replay_episodes:
            losses["replay_loss"] = meta_learn.replay(
                self.student,
                self._replay_optimizer,
                self.memory,
                self._config.recipe,
                self.input,
                settings,
                rng=self._rng,
            )
        return losses

    def _schedule(self, iteration: int) -> None:
        """Half a cosine from the configured rates to zero."""
        progress = iteration / self._config.iterations
        factor = (1 + math.cos(math.pi * progress)) / 2
        settings = self._config.learn
        for optimizer, rate in (
            (self._inner_optimizer, settings.inner_learning_rate),
            (self._replay_optimizer, settings.replay_learning_rate),
        ):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 itself."""
    supported: bool = (
        torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()
    )
    return supported


def common_input(inputs: Sequence[InputSpec]) -> InputSpec:
    """The meta-learner's input: the largest of the models', mirrored only if every model allows it."""
    side = max(max(each.height, each.width) for each in inputs)
    return InputSpec(
        channels=max(each.channels for each in inputs),
        height=side,
        width=side,
        horizontal_flip=all(each.horizontal_flip for each in inputs),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
