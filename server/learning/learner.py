"""The state of a run between iterations, and the two moves that change it: invert and meta-learn."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from fedfree.adaptation import Recipe
from fedfree.architectures import Classifier, InputSpec, build, use_channels_last
from fedfree.seeding import derive_seed, make_generator
from server.config import ServerConfig
from server.learning import invert, meta_learn
from server.learning.compose import compose, noise
from server.learning.generator import Generator
from server.learning.invert import Objective, RecoveredTask
from server.learning.invert_together import together
from server.learning.memory import Corpus, Memory, Ring
from server.learning.optimizer import make_adam, state_tensors
from server.learning.pool import Member, Pool
from server.learning.precision import autocast
from server.learning.teachers import Faculty, relational_tasks
from server.learning.team import ALONE, Team


class Learner:
    """Meta-generator, meta-learner, memory, and their random streams.

    With a team of several processes each holds all of it and does its share of the work.
    """

    def __init__(self, pool: Pool, config: ServerConfig, team: Team = ALONE) -> None:
        self.pool = pool
        self.config = config
        self.team = team
        self._rng = make_generator(config.seed, "learn")
        self.input, most_classes, self._kinds = shapes(pool)
        alike = self._draw_models()
        self.recipe = _allowed(config.recipe, self.input)
        self.num_classes = max(config.learn.replay_ways, most_classes)
        self.memory = Memory(config.learn.memory_images, pool.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(config.seed, "initialisation"))
            self.generator = self._build_generator()
            self.student = self._build_student()
            self.faculties = [self._build_faculty(models, alike) for models in alike]
        self._projections = [each.projection for each in self.faculties if each.projection is not None]
        self.generator_optimizer = make_adam(
            self.generator.parameters(), config.invert.outer_learning_rate, betas=(0.5, 0.999)
        )
        learned = [
            parameter for each in (self.student, *self._projections) for parameter in each.parameters()
        ]
        self._path_optimizers = [
            make_adam(learned, config.learn.inner_learning_rate) for _ in range(config.learn.paths)
        ]
        self._replay_optimizer = make_adam(self.student.parameters(), config.learn.replay_learning_rate)

    @property
    def images_recovered(self) -> int:
        """So far, those that the memory has forgotten included."""
        return self.memory.rows.added

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

    def _draw_models(self) -> list[list[Member]]:
        """For each kind of input some models of that kind (all, if they are few), in random order."""
        rng = make_generator(self.config.seed, "teachers")
        kinds = int(self._kinds.max()) + 1
        at_most = max(1, self.config.learn.max_teachers // kinds)
        drawn = []
        for kind in range(kinds):
            numbers = (self._kinds == kind).nonzero().flatten()
            chosen = numbers[torch.randperm(len(numbers), generator=rng)[:at_most]].tolist()
            drawn.append([self.pool.member(number) for number in chosen])
        return drawn

    def _build_faculty(self, models: list[Member], alike: Sequence[Sequence[Member]]) -> Faculty:
        """Of models of one kind; where these are too few, the models of every kind teach."""
        settings = self.config.learn
        teachers = models if len(models) >= settings.min_alike else list(itertools.chain(*alike))
        corpus = Corpus(max(1, settings.memory_images // len(alike)), self.pool.device)
        matched = any(invert.batch_norms(model.network) for model in models)
        channels = 0 if matched else models[0].input.channels
        if not (settings.relational_tasks and settings.projection_weight):
            return Faculty(teachers, corpus, noise_channels=channels)
        size = sum(teacher.network.feature_size for teacher in teachers)
        projection = nn.Linear(self.student.feature_size, size).to(self.pool.device, self.pool.dtype)
        return Faculty(teachers, corpus, projection, channels)

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
        recovered = [self._as_seen(task) for task in recovered]
        if warm:
            self.memory.add(recovered)
        return recovered

    def _as_seen(self, task: RecoveredTask) -> RecoveredTask:
        """With images as the meta-learner would get that organisation's own: no finer, no more coloured."""
        return replace(task, images=self.input.resize(task.member.input.resize(task.images)))

    def _ask_teachers(self, recovered: Sequence[RecoveredTask]) -> None:
        """Show teachers what was just recovered from models of their kind, and new compositions of it."""
        remembered = self._kinds[self.memory.models]
        for kind, faculty in enumerate(self.faculties):
            images = [task.images for task in recovered if self._kinds[task.member.number] == kind]
            rows = (remembered == kind).nonzero().flatten()
            images = self._questions(images, rows, faculty)
            if images:
                with autocast(self.config.precision, self.pool.device):
                    faculty.show(torch.cat(images), team=self.team)

    def _questions(self, images: list[Tensor], rows: Tensor, faculty: Faculty) -> list[Tensor]:
        """What teachers are shown: recovered images, and compositions of those in these rows of the memory.

        Images of models without BatchNorm matched no statistics, and have neither the colours nor the
        contrasts of photographs: as many compositions take their place, with noise among the pieces.
        """
        count = self.config.learn.compositions // len(self.faculties)
        if not (count and len(rows)):
            return images
        if faculty.noise_channels:
            count, images = count + sum(len(each) for each in images), []
        drawn = rows[torch.randperm(len(rows), generator=self._rng)[: 4 * count]]
        pieces = self.memory.pixels(drawn)
        if faculty.noise_channels:
            made = noise(len(pieces), faculty.noise_channels, pieces.shape[-1], rng=self._rng)
            pieces = torch.cat([pieces, self.input.resize(made).to(pieces.device)])
        return [*images, compose(pieces, count, rng=self._rng)]

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
        tasks = relational_tasks(self.faculties, settings, rng=self._rng)
        if settings.own_tasks:
            tasks += meta_learn.recovered_tasks(recovered, rng=self._rng)
        with autocast(self.config.precision, self.pool.device):
            losses["distillation_loss"] = meta_learn.align(
                self.student,
                self._path_optimizers,
                tasks,
                self.input,
                settings,
                projections=self._projections,
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
        networks: dict[str, nn.Module] = {"generator": self.generator, "student": self.student}
        networks |= {f"projection{number}": each for number, each in enumerate(self._projections)}
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
        corpora = ((f"corpus{kind}", each.corpus.rows) for kind, each in enumerate(self.faculties))
        return (("memory", self.memory.rows), *corpora)


def _allowed(recipe: Recipe, input: InputSpec) -> Recipe:
    return replace(recipe, mirror=recipe.mirror and input.horizontal_flip)


def shapes(pool: Pool) -> tuple[InputSpec, int, Tensor]:
    """The meta-learner's input, the most classes of any model, and each model's kind of input, [models].

    The input is as large as the middle one of the models', mirrored only if every model allows it. Models are
    of one kind that take images of the same channels and size: organisations whose images differ in these
    hold different things. Kinds are numbered in the order of their shapes.
    """
    inputs, most_classes = [], 0
    for each in pool.descriptions():
        inputs.append(each.input)
        most_classes = max(most_classes, each.num_classes)
    sizes = [(each.channels, each.height, each.width) for each in inputs]
    kinds = sorted(set(sizes))
    side = sorted(max(height, width) for _, height, width in sizes)[len(sizes) // 2]
    flip = all(each.horizontal_flip for each in inputs)
    common = InputSpec(max(channels for channels, _, _ in kinds), side, side, horizontal_flip=flip)
    return common, most_classes, torch.tensor([kinds.index(size) for size in sizes])


def _set_rate(optimizers: Iterable[torch.optim.Optimizer], rate: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
