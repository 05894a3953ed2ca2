"""The baselines, one function each: from what a federation leaves to accuracies on test episodes."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from client.adapting.adapt import (
    episode_accuracies,
    extract_features,
    head_accuracies,
    sample_episodes,
)
from client.config import ClientConfig
from client.data.image_set import ImageSet, LazyInputs
from fedfree.adaptation import Recipe
from fedfree.architectures import Classifier, InputSpec, build
from fedfree.codec import Contribution, MetaLearner
from fedfree.episodes import Episode
from fedfree.extension import Table
from fedfree.host.compute import choose_device
from fedfree.seeding import derive_seed
from fedfree.start import LoadedStart, body_for, fill_body
from server.events import Event, OnEvent, ignore
from simulations.baselines.dense import train_students
from simulations.baselines.pooled import train_pooled
from simulations.config import SimulationConfig
from simulations.federation.splits import episode_specs

CHOICE_EPISODES = 200
"""Episodes of meta_val on which the best single model is chosen."""


@dataclass(frozen=True)
class NewClasses:
    """Images of meta_test, and the episodes on which everything is compared."""

    images: ImageSet
    episodes: Sequence[Sequence[Episode]]
    """Of several shapes."""
    source: Path = Path()
    """The data set that the images are from."""


Measure = Callable[[NewClasses], list[Tensor]]
"""From what is tested on to accuracies [episodes], one for each shape of episodes."""


@dataclass(frozen=True)
class Available:
    """What a baseline may draw on: a federation's models, and the images on which choices are made."""

    config: SimulationConfig
    meta_learner: MetaLearner
    contributions: Sequence[Contribution]
    """Those in the pool."""
    validations: Sequence[ImageSet]
    """meta_val of each data set."""
    starts: Sequence[LoadedStart] = ()
    """What the models began from, that of the meta-learner first; none for random weights."""
    organisations: Sequence[ClientConfig] = ()
    """With their images, which only a simulation can see together."""
    on_event: OnEvent = ignore
    """Told of what was tried on meta_val, and by ``progress`` how many of its own networks one has asked."""

    @property
    def start(self) -> LoadedStart | None:
        """What the meta-learner began from; None for random weights."""
        return self.starts[0] if self.starts else None

    @property
    def device(self) -> torch.device:
        return choose_device(self.config.server.device)

    def measure(self, network: Classifier, input: InputSpec) -> Measure:
        """A network's accuracies with the meta-learner's recipe."""
        return lambda new: episode_accuracies(
            network.to(self.device),
            self.meta_learner.recipe,
            LazyInputs(new.images.images, input),
            new.episodes,
        )

    def network(self, model: Contribution) -> Classifier:
        """A contributed model's network."""
        return model.network(body_for(model, self.starts))


@dataclass(frozen=True)
class Baseline:
    """Something that the meta-learner is compared with."""

    label: str
    measure: Callable[[Available], Measure | None]
    """None where these models have no such baseline."""
    note: str = ""
    """What a reader must know of it; goes into ``result.json``."""
    is_reference: bool = False
    """Whether it is shown beside the others though no federation could hand it out."""
    why_not: str = "cannot be broadcast"
    """Why no federation could, of a reference."""
    absent: str | None = ""
    """What the table says where it was not measured; None leaves its row out there."""
    of_all_models: bool = False
    """Whether measuring it asks every model, and so takes as long as measuring that many."""


def random_init(available: Available) -> Measure | None:
    """The meta-learner's network before it learned anything; None where that is the public start."""
    if available.start is not None:
        return None
    learned = available.meta_learner
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(available.config.seed, "random baseline"))
        network = build(learned.architecture, num_classes=learned.num_classes, input=learned.input)
    return available.measure(network, learned.input)


def public_start(available: Available) -> Measure | None:
    """The public start as anybody can have it, without a federation; None where there is none."""
    if available.start is None:
        return None
    start = available.start.start
    network = build(start.architecture, num_classes=2, input=start.input)
    fill_body(network, available.start.body, str(start.architecture))
    return available.measure(network.eval(), start.input)


def parameter_average(available: Available) -> Measure | None:
    """One network with the mean of all parameters and buffers; None where the models differ in shape.

    Whether images may be mirrored is not a matter of shape. Of several starts the models of the first count.
    """
    further = {each.start.sha256 for each in available.starts[1:]}
    models = [each for each in available.contributions if each.start not in further]
    shapes = {
        (each.architecture, each.num_classes, replace(each.input, horizontal_flip=False)) for each in models
    }
    if len(shapes) > 1:
        return None
    states = [available.network(each).state_dict() for each in models]
    network = available.network(models[0])
    network.load_state_dict(
        OrderedDict(
            (name, torch.stack([state[name].double() for state in states]).mean(0).to(tensor.dtype))
            for name, tensor in states[0].items()
        )
    )
    return available.measure(network, models[0].input)


def best_single_model(available: Available) -> Measure:
    """The contributed model with the highest mean accuracy on episodes of each data set's meta_val."""
    accuracy = on_validation(available)

    def mean_accuracy(contribution: Contribution) -> float:
        return accuracy(available.measure(available.network(contribution), contribution.input))

    best = max(available.contributions, key=mean_accuracy)
    return available.measure(available.network(best), best.input)


def on_validation(available: Available) -> Callable[[Measure], float]:
    """Mean accuracy on episodes of each data set's meta_val, the same for all that are to choose from."""
    spec, *_ = episode_specs(available.config)
    episodes = [
        sample_episodes(images.labels, spec, CHOICE_EPISODES, seed=available.config.seed)
        for images in available.validations
    ]

    def mean_accuracy(measure: Measure) -> float:
        accuracies = [
            measure(NewClasses(images, [drawn]))[0]
            for images, drawn in zip(available.validations, episodes, strict=True)
        ]
        return float(torch.cat(accuracies).mean())

    return mean_accuracy


def dense(available: Available) -> Measure | None:
    """A student of the ensemble of all models (:mod:`simulations.baselines.dense`); None if not wanted.

    Of several settings the one whose student is best on episodes of meta_val.
    """
    config = available.config
    if not config.dense.trained:
        return None
    students = train_students(available.contributions, available.starts, config)
    measures = [(available.measure(student, input), choice) for choice, student, input in students]
    if len(measures) == 1:
        return measures[0][0]
    accuracy, scores = on_validation(available), []
    for measure, choice in measures:
        scores.append(accuracy(measure))
        found = {"baseline": DENSE, "on_meta_val": round(100 * scores[-1], 2), **asdict(choice)}
        available.on_event(Event("evaluate", TUNED, found))
    return measures[scores.index(max(scores))][0]


def pool_concatenation(available: Available) -> Measure:
    """Every model's features, each normalised, side by side: n times the size of one model's."""
    recipe = available.meta_learner.recipe
    head = recipe if recipe.keeps_network else Recipe()

    def features(images: Tensor, model: Contribution) -> Tensor:
        network = available.network(model).to(available.device)
        return F.normalize(extract_features(network, LazyInputs(images, model.input), recipe), dim=1)

    def measure(new: NewClasses) -> list[Tensor]:
        blocks = []
        for number, each in enumerate(available.contributions):
            available.on_event(Event("evaluate", "progress", {"done": number}))  # of this baseline's own
            blocks.append(features(new.images.images, each))
        return head_accuracies(torch.cat(blocks, dim=1), head, new.episodes)

    return measure


def pooled_data(available: Available) -> Measure | None:
    """One network trained on all organisations' images of the data set that is tested; None if not wanted."""
    if not available.config.has_pooled:
        return None

    def measure(new: NewClasses) -> list[Tensor]:
        own = [each for each in available.organisations if each.data.source == new.source]
        return available.measure(*train_pooled(own, available.config))(new)

    return measure


PUBLIC_START, BEST_SINGLE, POOLED = "public_start", "best_single_model", "pooled_data"
DENSE = "dense"
META_LEARNER = "meta_learner"
"""What all of them are compared with, under a name of the same kind."""
TUNED = "tuned"
"""Kind of the event that tells what a baseline with certain settings reaches on meta_val."""

BASELINES: Table[Baseline] = Table(
    "baseline",
    {
        "random_init": Baseline("random initialisation", random_init, absent=None),
        PUBLIC_START: Baseline(
            "public start, frozen",
            public_start,
            note="what anybody can have without a federation",
            absent=None,
        ),
        "parameter_average": Baseline("parameter average", parameter_average),
        BEST_SINGLE: Baseline("best single model", best_single_model, note="chosen on episodes of meta_val"),
        DENSE: Baseline(
            "DENSE-style distillation",
            dense,
            note="one student of all models taken as one classifier (after Zhang et al., NeurIPS 2022): each "
            "model's logits centred, at one scale, side by side; as many steps and generated images as the "
            "meta-learner has, and more passes through the models",
            absent=None,
        ),
        "pool_concatenation": Baseline(
            "all models side by side",
            pool_concatenation,
            note="the features of all models side by side: a reference that cannot be broadcast, since it is "
            "as many times larger as there are models and would hand everyone's model to everyone",
            is_reference=True,
            of_all_models=True,
        ),
        POOLED: Baseline(
            "one network on everybody's images",
            pooled_data,
            note="trained, in this simulation only, on all organisations' images together, from where they "
            "began and as they trained: a reference that nobody may have, since no image may leave its "
            "organisation",
            is_reference=True,
            why_not="nobody may train it",
            absent="not trained",
        ),
    },
    reserved={META_LEARNER: None},
)
"""By name in ``result.json``, in the order in which they are shown."""
