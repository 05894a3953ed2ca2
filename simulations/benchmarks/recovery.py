"""How long it takes to recover a task from a model never seen before, at equal quality.

The meta-generator learns from some of the models; each of the others is then inverted twice: in its
few steps, and by training the same generator from scratch until the images are as good. Good means that
a classifier which the same organisation trained on its real images from another seed, and which no server
ever sees, finds in an image the class that was asked for.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from client.config import ClientConfig
from client.contribute import shuffle_classes
from client.data import ImageSet, load_configured
from client.pretrain import Pretrained, pretrain
from fedfree.episodes import Accuracy, mean_and_ci95
from fedfree.seeding import derive_seed, make_generator
from server import meta_learn
from server.faculty import Faculty, relational_tasks
from server.generator import Generator
from server.invert import Inversion, draw_task, inner_optimizer, one_at_a_time
from server.learner import Learner
from server.memory import Corpus
from server.optimizer import make_adam
from server.pool import Member, Pool
from server.precision import autocast
from simulations.benchmarks.timing import seconds
from simulations.benchmarks.validation import few_shot
from simulations.config import SimulationConfig

LOOK_EVERY, GIVE_UP = 5, 600
"""Steps from scratch between two looks at the quality, and at most."""
RATE_FACTORS = (1.0, 4.0)
"""Multiples of the configured rates that training from scratch is tried with; the faster one counts."""
STUDENT_STEPS = 150

OURS, SCRATCH = "meta-generator", "from scratch"


@dataclass(frozen=True)
class Recovered:
    """Images of one unseen model, made one way."""

    images: Tensor
    labels: Tensor
    seconds: float
    steps: int
    quality: float
    """Fraction of the images in which the independent classifier finds the class asked for."""


@dataclass(frozen=True)
class Comparison:
    """All unseen models, inverted both ways."""

    recovered: Mapping[str, Sequence[Recovered]]
    """OURS and SCRATCH."""
    episodes: Mapping[str, Mapping[str, Tensor]]
    """Fractions on episodes of meta_val, for a student distilled from each way's images."""

    @property
    def speedup(self) -> float:
        """How many times longer it takes from scratch, over all models."""
        ours, scratch = (sum(each.seconds for each in self.recovered[way]) for way in (OURS, SCRATCH))
        return scratch / ours

    def sentences(self) -> list[str]:
        """What was found, in words."""
        ours = self.recovered[OURS]
        images = len(ours[0].labels)
        found = [
            f"{images} images from a model never seen, {len(ours)} models: {self.speedup:.1f} times faster"
        ]
        for way, each in self.recovered.items():
            accuracies = ", ".join(f"{name} {accuracy}" for name, accuracy in self.accuracies(way).items())
            took, steps, good = (
                fmean(getattr(one, field) for one in each) for field in ("seconds", "steps", "quality")
            )
            found.append(
                f"{way}: {took:.2f} s and {steps:.0f} steps a model, quality {100 * good:.0f} %, few-shot "
                f"accuracy of a student of these images (meta_val): {accuracies}"
            )
        return found

    def accuracies(self, way: str) -> dict[str, Accuracy]:
        """Few-shot accuracy of the student, by name of the episodes."""
        return {name: mean_and_ci95(each) for name, each in self.episodes[way].items()}

    def values(self) -> dict[str, object]:
        """Everything measured, as numbers."""
        ways = {
            way: {
                "seconds": [each.seconds for each in recovered],
                "steps": [each.steps for each in recovered],
                "quality": [each.quality for each in recovered],
                "few_shot": {
                    name: {"mean": accuracy.mean, "ci95": accuracy.ci95}
                    for name, accuracy in self.accuracies(way).items()
                },
            }
            for way, recovered in self.recovered.items()
        }
        return {"speedup": self.speedup, **ways}


def compare(
    unseen: Pool,
    organisations: Mapping[str, ClientConfig],
    learner: Learner,
    validation: ImageSet,
    config: SimulationConfig,
) -> Comparison:
    """Invert every model of ``unseen`` both ways.

    Args:
        organisations: who made each model, by id; they train the independent classifiers.
        learner: its meta-generator has learned from other models.
        validation: meta_val, at the size of the student's input.
        config: gives the shape and number of the episodes.
    """
    recovered: dict[str, list[Recovered]] = {OURS: [], SCRATCH: []}
    for member in (unseen.member(number) for number in range(len(unseen))):
        judge = independent_classifier(organisations[member.id])
        ours = recover_ours(learner, member, judge)
        tries = [
            recover_from_scratch(learner, member, judge, ours.quality, factor) for factor in RATE_FACTORS
        ]
        recovered[OURS].append(ours)
        recovered[SCRATCH].append(min(tries, key=lambda each: (each.quality < ours.quality, each.seconds)))
    episodes = {
        way: student_accuracies(
            learner, unseen, torch.cat([each.images for each in made]), validation, config
        )
        for way, made in recovered.items()
    }
    return Comparison(recovered, episodes)


def independent_classifier(organisation: ClientConfig) -> Pretrained:
    """The organisation's classifier of the same classes, in the same order, from another seed."""
    images = load_configured(organisation.data, size=organisation.pretrain.image_size)
    in_order = shuffle_classes(images, organisation.seed)
    return pretrain(in_order, organisation.pretrain, seed=derive_seed(organisation.seed, "independent"))


@torch.no_grad()
def quality(judge: Pretrained, images: Tensor, labels: Tensor) -> float:
    """Fraction of [images, channels, size, size] in [0, 1] that the judge assigns to the labels."""
    inputs = judge.input.normalise(judge.input.resize(images.float().cpu()))
    return float((judge.network(inputs).argmax(1) == labels.cpu()).float().mean())


def recover_ours(learner: Learner, member: Member, judge: Pretrained) -> Recovered:
    """As the server does it; the median of a few turns counts, the first is a warm-up."""
    objective, made = learner.objective(0.0), []

    def work() -> None:
        with autocast(learner.config.precision, member.device):
            rngs = [make_generator(learner.config.seed, "recovery")]
            made.append(one_at_a_time(learner.generator, [member], objective, rngs)[0].task)

    times = sorted(seconds(work, member.device) for _ in range(4))
    task = made[-1]
    steps = learner.config.invert.steps
    return Recovered(task.images, task.labels, times[1], steps, quality(judge, task.images, task.labels))


def recover_from_scratch(
    learner: Learner, member: Member, judge: Pretrained, enough: float, rate_factor: float
) -> Recovered:
    """Train a fresh generator for one model until its images are as good, or it is given up."""
    config = learner.config.invert
    rng = make_generator(learner.config.seed, "scratch")
    generator = fresh_generator(learner)
    latent, labels = draw_task(generator, member, config, rng)
    latent.requires_grad_(True)
    optimizer = inner_optimizer(generator.parameters(), latent, config)
    for group in optimizer.param_groups:
        group["lr"] *= rate_factor
    inversion = Inversion(member, learner.objective(0.0))

    def work() -> None:
        with autocast(learner.config.precision, member.device):
            for _ in range(LOOK_EVERY):
                loss, _ = inversion.loss(generator(latent), labels, rng)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    took, steps, found = 0.0, 0, 0.0
    while found < enough and steps < GIVE_UP:
        took += seconds(work, member.device)
        steps += LOOK_EVERY
        images = generator(latent).detach()
        found = quality(judge, images, labels)
    return Recovered(images, labels, took, steps, found)


def fresh_generator(learner: Learner) -> Generator:
    """The meta-generator's network before it learned anything."""
    generator = copy.deepcopy(learner.generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(learner.config.seed, "scratch"))
        for module in generator.modules():
            reset: Callable[[], None] | None = getattr(module, "reset_parameters", None)
            if reset is not None:
                reset()
    return generator


def student_accuracies(
    learner: Learner, teachers: Pool, images: Tensor, validation: ImageSet, simulation: SimulationConfig
) -> dict[str, Tensor]:
    """Distil the teachers' relations on these images alone, and measure the student on meta_val."""
    config, members = learner.config.learn, [teachers.member(number) for number in range(len(teachers))]
    student = copy.deepcopy(learner.student)
    faculty = Faculty(members, Corpus(len(images), images.device))
    rng = make_generator(learner.config.seed, "student")
    with autocast(learner.config.precision, teachers.device):
        faculty.show(images)
        steps = config.model_copy(update={"relational_tasks": STUDENT_STEPS, "batch_size": len(images) // 2})
        tasks = relational_tasks([faculty], steps, rng=rng)
        optimizer = make_adam(student.parameters(), config.inner_learning_rate)
        meta_learn.align(student, [optimizer], tasks, learner.input, steps)
    return few_shot(student, learner.input, validation, simulation)
