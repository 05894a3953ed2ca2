"""The state of a run between iterations, and the two moves that change it: invert and meta-learn."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from fedfree.adaptation import Recipe
from fedfree.architectures import Classifier, InputSpec, build, use_channels_last
from fedfree.seeding import derive_seed, make_generator
from server import invert, meta_learn
from server.compose import compose
from server.config import ServerConfig
from server.generator import Generator
from server.invert import Objective, RecoveredTask
from server.invert_together import together
from server.memory import Corpus, Memory, Ring
from server.optimizer import make_adam, state_tensors
from server.pool import Member, Pool
from server.precision import autocast
from server.team import ALONE, Team


class Learner:
    """Meta-generator, meta-learner, memory, and their random streams.

    With a team of several processes each holds all of it and does its share of the work.
    """

    def __init__(self, pool: Pool, config: ServerConfig, team: Team = ALONE) -> None:
        self.pool = pool
        self.config = config
        self.team = team
        self._rng = make_generator(config.seed, "learn")
        self._teachers = self._choose_teachers()
        self.input, most_classes = common_shape(pool)
        self.recipe = _allowed(config.recipe, self.input)
        self.num_classes = max(config.learn.replay_ways, most_classes)
        self.memory = Memory(config.learn.memory_images, pool.device)
        self._corpus = Corpus(config.learn.memory_images, pool.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(config.seed, "initialisation"))
            self.generator = self._build_generator()
            self.student = self._build_student()
            self._projection = self._build_projection()
        self.generator_optimizer = make_adam(
            self.generator.parameters(), config.invert.outer_learning_rate, betas=(0.5, 0.999)
        )
        learned = [*self.student.parameters(), *(self._projection.parameters() if self._projection else ())]
        self._path_optimizers = [
            make_adam(learned, config.learn.inner_learning_rate) for _ in range(config.learn.paths)
        ]
        self._replay_optimizer = make_adam(self.student.parameters(), config.learn.replay_learning_rate)

    @property
    def images_recovered(self) -> int:
        """So far, those that the memory has forgotten included."""
        return self.memory.rows.added

    def _choose_teachers(self) -> list[Member]:
        """The models that teach on every image; a random part of a pool larger than ``max_teachers``."""
        rng = make_generator(self.config.seed, "teachers")
        return self.pool.sample(self.config.learn.max_teachers, rng)

    def _build_generator(self) -> Generator:
        settings = self.config.invert
        generator = Generator(
            latent_size=settings.latent_size,
            width=settings.generator_width,
            channels=self.input.channels,
            image_size=self.input.height,
        )
        use_channels_last(generator)
        return generator.to(self.pool.device, self.pool.dtype)

    def _build_student(self) -> Classifier:
        student = build(self.config.architecture, num_classes=self.num_classes, input=self.input)
        use_channels_last(student)
        return student.to(self.pool.device, self.pool.dtype)

    def _build_projection(self) -> nn.Linear | None:
        """From the student's features to every teacher's; it never leaves."""
        settings = self.config.learn
        if not (settings.relational_tasks and settings.projection_weight):
            return None
        size = sum(teacher.network.feature_size for teacher in self._teachers)
        return nn.Linear(self.student.feature_size, size).to(self.pool.device, self.pool.dtype)

    def objective(self, adversarial_weight: float) -> Objective:
        """L_G as configured, against the meta-learner as it stands."""
        return Objective(
            self.config.invert, self.student, self.input, adversarial_weight, self.config.compiled
        )

    def invert(self, iteration: int) -> list[RecoveredTask]:
        """FIVE: recover tasks from a meta-batch of models and remember them."""
        settings = self.config.invert
        members = self.pool.sample(settings.models_per_iteration, self._rng)
        warm = iteration >= self.config.warmup_iterations
        stacked = settings.together or (settings.together is None and self.pool.device.type == "cuda")
        with autocast(self.config.precision, self.pool.device):
            recovered = invert.recover(
                self.generator,
                self.generator_optimizer,
                members,
                self.objective(settings.adversarial_weight if warm else 0.0),
                rng=self._rng,
                recover_each=together if stacked else invert.one_at_a_time,
                team=self.team,
            )
        if warm:
            self.memory.add(recovered)
        return recovered

    def _ask_teachers(self, recovered: Sequence[RecoveredTask]) -> None:
        """Show every teacher what was just recovered, and new compositions of what is remembered."""
        images = torch.cat([task.images for task in recovered])
        count = self.config.learn.compositions
        if count:
            drawn = torch.randperm(len(self.memory), generator=self._rng)[: 4 * count]
            composed = compose(self.memory.pixels(drawn), count, rng=self._rng)
            images = torch.cat([images, composed])
        with autocast(self.config.precision, self.pool.device):
            features = meta_learn.teacher_features(self._teachers, images, team=self.team)
        self._corpus.add(images, features)

    def meta_learn(self, recovered: Sequence[RecoveredTask], iteration: int) -> dict[str, float]:
        """BELL: distillation along a path of tasks, then replay; returns the mean losses."""
        losses = {
            "inversion_loss": float(torch.stack([task.loss for task in recovered]).mean()),
            "inversion_agreement": float(torch.stack([task.agreement for task in recovered]).mean()),
        }
        if iteration < self.config.warmup_iterations:
            return losses
        settings = self.config.learn
        self._schedule(iteration)
        if settings.relational_tasks:
            self._ask_teachers(recovered)
        tasks = meta_learn.relational_tasks(self._corpus, self._teachers, settings, rng=self._rng)
        if settings.own_tasks:
            tasks += meta_learn.recovered_tasks(recovered, rng=self._rng)
        with autocast(self.config.precision, self.pool.device):
            losses["distillation_loss"] = meta_learn.align(
                self.student,
                self._path_optimizers,
                tasks,
                self.input,
                settings,
                projection=self._projection,
                compiled=self.config.compiled,
                team=self.team,
            )
        if settings.replay_episodes and meta_learn.can_replay(self.memory, settings):
            losses["replay_loss"] = meta_learn.replay(
                self.student,
                self._replay_optimizer,
                self.memory,
                self.recipe,
                self.input,
                settings,
                rng=self._rng,
                team=self.team,
            )
        return losses

    def _schedule(self, iteration: int) -> None:
        """Half a cosine from the configured rates to zero."""
        progress = iteration / self.config.iterations
        factor = (1 + math.cos(math.pi * progress)) / 2
        settings = self.config.learn
        _set_rate(self._path_optimizers, settings.inner_learning_rate * factor)
        _set_rate([self._replay_optimizer], settings.replay_learning_rate * factor)

    def gallery(self) -> dict[str, Tensor]:
        """For each contribution id one recovered image a class, uint8 [classes, channels, size, size]."""
        return {self.pool.ids[number]: images for number, images in self.memory.gallery().items()}

    def state(self) -> dict[str, Tensor]:
        """Everything that decides how the run goes on, by name; every process of the team must call it."""
        state = {name: tensor.detach().clone() for name, tensor in self._live_tensors()}
        self.team.sum(self._zeroed_unless_owned(state))
        state["rng"] = self._rng.get_state()
        for name, rows in self._rings():
            state |= {f"{name}.{key}": tensor for key, tensor in rows.state().items()}
        return state

    def _zeroed_unless_owned(self, state: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """The tensors of the paths' optimizers; zeros for the paths that other processes walk."""
        owned = {f"path{path}" for path in self.team.share(range(len(self._path_optimizers)))}
        for name, tensor in state.items():
            if name.startswith("path"):
                yield tensor if name.split(".")[0] in owned else tensor.zero_()

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what :meth:`state` returned."""
        for name, tensor in self._live_tensors():
            tensor.copy_(state[name])
        self._rng.set_state(state["rng"])
        for name, rows in self._rings():
            prefix = f"{name}."
            rows.restore(
                {key.removeprefix(prefix): each for key, each in state.items() if key.startswith(prefix)}
            )

    def _live_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor that learning changes in place."""
        networks = {"generator": self.generator, "student": self.student}
        if self._projection is not None:
            networks["projection"] = self._projection
        for name, network in networks.items():
            yield from ((f"{name}.{key}", tensor) for key, tensor in network.state_dict().items())
        optimizers = {
            "generator_optimizer": self.generator_optimizer,
            "replay_optimizer": self._replay_optimizer,
            **{f"path{path}": optimizer for path, optimizer in enumerate(self._path_optimizers)},
        }
        for name, optimizer in optimizers.items():
            yield from ((f"{name}.{key}", tensor) for key, tensor in state_tensors(optimizer))

    def _rings(self) -> tuple[tuple[str, Ring], ...]:
        return (("memory", self.memory.rows), ("corpus", self._corpus.rows))


def _allowed(recipe: Recipe, input: InputSpec) -> Recipe:
    return replace(recipe, mirror=recipe.mirror and input.horizontal_flip)


def common_shape(pool: Pool) -> tuple[InputSpec, int]:
    """The meta-learner's input, and the most classes of any model.

    The input is the largest of the models', mirrored only if every model allows it.
    """
    channels = side = most_classes = 0
    horizontal_flip = True
    for each in pool.descriptions():
        channels = max(channels, each.input.channels)
        side = max(side, each.input.height, each.input.width)
        most_classes = max(most_classes, each.num_classes)
        horizontal_flip &= each.input.horizontal_flip
    return InputSpec(channels, side, side, horizontal_flip=horizontal_flip), most_classes


def _set_rate(optimizers: Iterable[torch.optim.Optimizer], rate: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
