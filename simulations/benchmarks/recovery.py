"""How long it takes to recover a task from a model never seen before, at equal quality.

The meta-generator learns from some of the models; each of the others is then inverted twice: in its
few steps, and by training the same generator from scratch until the images are as good. Good is meant
twice. A classifier which the same organisation trained on its real images from another seed, and which no
server ever sees, finds in an image the class that was asked for; and a student that learns from the
images alone does well on few-shot episodes.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from statistics import fmean, median

import torch
from torch import Tensor

from client.config import ClientConfig
from client.data.image_set import ImageSet
from client.data.loading import load_configured
from client.training.fit import Fitted, fit
from client.training.pretrain import shuffle_classes
from fedfree.episodes import Accuracy, mean_and_ci95
from fedfree.seeding import derive_seed, make_generator
from server.learning.generator import Generator
from server.learning.invert import descend, draw_task, inner_optimizer, inversion_loss, one_at_a_time
from server.learning.memory import Corpus
from server.learning.meta_learn import align
from server.learning.moves import objective
from server.learning.optimizer import make_adam
from server.learning.pool import Member, Pool
from server.learning.precision import autocast
from server.learning.state import State
from server.learning.teachers import Teachers, relational_tasks
from simulations.benchmarks.timing import seconds
from simulations.benchmarks.validation import few_shot
from simulations.config import SimulationConfig

MILESTONES = (5, 10, 20, 40, 80, 160)
"""Steps from scratch after which the images are judged."""
RATE_FACTORS = (1.0, 4.0)
"""Multiples of the configured rates that training from scratch is tried with; the faster one counts."""
STUDENT_STEPS = 150


@dataclass(frozen=True)
class TimedImages:
    """Images of one unseen model, made one way."""

    images: Tensor
    labels: Tensor
    seconds: float


@dataclass(frozen=True)
class Attempt:
    """One way to recover a task, with all unseen models."""

    way: str
    steps: int
    images: int
    """A model."""
    seconds: float
    """A model, mean."""
    quality: float
    """Fraction of the images in which the independent classifier finds the class asked for."""
    episodes: Mapping[str, Tensor]
    """Fractions on episodes of meta_val, by their name, for a student distilled from these images."""

    @property
    def accuracies(self) -> dict[str, Accuracy]:
        """The student's, by name of the episodes."""
        return {name: mean_and_ci95(each) for name, each in self.episodes.items()}

    def is_as_good_as(self, other: "Attempt") -> bool:
        """Whether neither measure is below the other's, whatever the intervals."""
        few_shot = (each.mean >= other.accuracies[name].mean for name, each in self.accuracies.items())
        return self.quality >= other.quality and all(few_shot)

    def sentence(self) -> str:
        """What was found, in words."""
        accuracies = ", ".join(f"{name} {accuracy}" for name, accuracy in self.accuracies.items())
        return (
            f"{self.way}: {self.seconds:.2f} s and {self.steps} steps a model, "
            f"quality {100 * self.quality:.0f} %, "
            f"few-shot accuracy of a student of these images (meta_val): {accuracies}"
        )

    def values(self) -> dict[str, object]:
        """Everything measured, as numbers."""
        few_shot = {name: asdict(accuracy) for name, accuracy in self.accuracies.items()}
        numbers = {name: getattr(self, name) for name in ("way", "steps", "images", "seconds", "quality")}
        return numbers | {"few_shot": few_shot}


@dataclass(frozen=True)
class AgainstScratch:
    """The meta-generator's few steps, and training from scratch looked at after ever more steps."""

    ours: Attempt
    scratch: Sequence[Attempt]

    @property
    def equal(self) -> Attempt | None:
        """The fastest from scratch that is as good as ours; None where none is."""
        good = [each for each in self.scratch if each.is_as_good_as(self.ours)]
        return min(good, key=lambda each: each.seconds, default=None)

    @property
    def speedup(self) -> float | None:
        """How many times longer it takes from scratch; None where nothing from scratch is as good."""
        return None if self.equal is None else self.equal.seconds / self.ours.seconds

    def sentences(self) -> list[str]:
        """What was found, in words."""
        found = f"{self.ours.images} images from a model never seen: "
        if self.equal is None:
            most = max(each.steps for each in self.scratch)
            return [f"{found}not as good from scratch within {most} steps", self.ours.sentence()]
        return [
            f"{found}{self.speedup:.1f} times faster than from scratch",
            self.ours.sentence(),
            self.equal.sentence(),
        ]

    def values(self) -> dict[str, object]:
        """Everything measured, as numbers."""
        scratch = [each.values() for each in self.scratch]
        return {"speedup": self.speedup, "ours": self.ours.values(), "scratch": scratch}


def against_scratch(
    unseen: Pool,
    organisations: Mapping[str, ClientConfig],
    state: State,
    validation: ImageSet,
    config: SimulationConfig,
) -> AgainstScratch:
    """Invert every model of ``unseen`` both ways.

    Args:
        organisations: who made each model, by id; they train the independent classifiers.
        state: its meta-generator has learned from other models.
        validation: meta_val, at the size of the student's input.
        config: gives the shape and number of the episodes.
    """
    members = [unseen.member(number) for number in range(len(unseen))]
    judges = [independent_classifier(organisations[member.id]) for member in members]

    def judged(way: str, steps: int, made: Sequence[TimedImages]) -> Attempt:
        qualities = [
            quality(judge, each.images, each.labels) for judge, each in zip(judges, made, strict=True)
        ]
        images = torch.cat([each.images for each in made])
        episodes = student_accuracies(state, unseen, images, validation, config)
        seconds = fmean(each.seconds for each in made)
        return Attempt(way, steps, len(made[0].images), seconds, fmean(qualities), episodes)

    ours = [recover_ours(state, member) for member in members]
    scratch = []
    for factor in RATE_FACTORS:
        looks = zip(*(recover_from_scratch(state, member, factor) for member in members), strict=True)
        way = f"from scratch, {factor:g} times the rates"
        scratch += [judged(way, steps, made) for steps, made in zip(MILESTONES, looks, strict=True)]
    return AgainstScratch(judged("meta-generator", state.config.invert.steps, ours), scratch)


def independent_classifier(organisation: ClientConfig) -> Fitted:
    """The organisation's classifier of the same classes, in the same order, from another seed."""
    images = load_configured(organisation.data, size=organisation.training.image_size)
    in_order = shuffle_classes(images, organisation.seed)
    return fit(in_order, organisation.training, seed=derive_seed(organisation.seed, "independent"))


@torch.no_grad()
def quality(judge: Fitted, images: Tensor, labels: Tensor) -> float:
    """Fraction of [images, channels, size, size] in [0, 1] that the judge assigns to the labels."""
    inputs = judge.input.normalise(judge.input.resize(images.float().cpu()))
    return float((judge.network(inputs).argmax(1) == labels.cpu()).float().mean())


def recover_ours(state: State, member: Member) -> TimedImages:
    """As the server does it; the median of a few turns counts, the first is a warm-up."""
    plain, made = objective(state, 0.0), []

    def work() -> None:
        with autocast(state.config.precision, member.device):
            rngs = [make_generator(state.config.seed, "recovery")]
            made.append(one_at_a_time(state.generator, [member], plain, rngs)[0].task)

    times = [seconds(work, member.device) for _ in range(4)]
    return TimedImages(made[-1].images, made[-1].labels, median(times[1:]))


def recover_from_scratch(state: State, member: Member, rate_factor: float) -> Iterator[TimedImages]:
    """Train a fresh generator for one model; its images and time so far at every milestone."""
    config = state.config.invert
    rng = make_generator(state.config.seed, "scratch")
    generator = fresh_generator(state)
    latent, labels = draw_task(generator, member, config, rng)
    latent.requires_grad_(True)
    optimizer = inner_optimizer(generator.parameters(), latent, config)
    for group in optimizer.param_groups:
        group["lr"] *= rate_factor
    evaluate = partial(inversion_loss, labels=labels, member=member, objective=objective(state, 0.0), rng=rng)

    def work(steps: int) -> None:
        with autocast(state.config.precision, member.device):
            descend(generator, latent, evaluate, optimizer, steps=steps)

    took = 0.0
    for before, milestone in pairwise((0, *MILESTONES)):
        took += seconds(partial(work, milestone - before), member.device)
        yield TimedImages(generator(latent).detach(), labels, took)


def fresh_generator(state: State) -> Generator:
    """The meta-generator's network before it learned anything."""
    generator = copy.deepcopy(state.generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(state.config.seed, "scratch"))
        for module in generator.modules():
            reset: Callable[[], None] | None = getattr(module, "reset_parameters", None)
            if reset is not None:
                reset()
    return generator


def student_accuracies(
    state: State, teachers: Pool, images: Tensor, validation: ImageSet, simulation: SimulationConfig
) -> dict[str, Tensor]:
    """Distil the teachers' relations on these images alone, and measure the student on meta_val."""
    config, members = state.config.learn, [teachers.member(number) for number in range(len(teachers))]
    student = copy.deepcopy(state.meta_learner)
    taught_by = Teachers(members, Corpus(len(images), images.device))
    rng = make_generator(state.config.seed, "student")
    with autocast(state.config.precision, teachers.device):
        taught_by.show(images)
        steps = config.model_copy(update={"relational_tasks": STUDENT_STEPS, "batch_size": len(images) // 2})
        tasks = relational_tasks([taught_by], steps, rng=rng)
        optimizer = make_adam(student.parameters(), config.inner_learning_rate)
        align(student, [optimizer], tasks, state.input, steps)
    return few_shot(student, state.input, validation, simulation)
