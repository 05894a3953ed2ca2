"""What a server run is configured with; presets ``default``, ``large``, ``paper`` and ``start``."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from fedfree.adaptation import Recipe
from fedfree.architectures import Architecture, ArchitectureId
from fedfree.codec import sha256
from fedfree.errors import ConfigError
from fedfree.host.compute import ComputeConfig
from fedfree.settings import Layer, Settings, Values, value_at
from server.learning.inversions import INVERSIONS, META_GENERATOR

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
PUBLIC_IMAGES = 100
"""Shown an iteration, unless somebody chooses another number."""
AS_EVER: dict[str, dict[str, Any]] = {
    "learn": {"public_images": PUBLIC_IMAGES, "robust": False, "patched": 0.0},
    "invert": {"inversion": META_GENERATOR},
}
"""With these values a setting changes nothing, and what was hashed without it keeps its hash."""


class CollectConfig(Settings):
    """Who is waited for, and for how long."""

    organisations: AtLeastOne = 12
    """How many are expected to contribute."""
    quorum: AtLeastOne = 2
    """Fewer accepted contributions than this end the run."""
    deadline_hours: Positive = 12.0
    """How long contributions are waited for."""

    @property
    def timeout_seconds(self) -> float:
        """The same in seconds."""
        return 3600 * self.deadline_hours


def _known_inversion(name: str) -> str:
    if name not in INVERSIONS:
        raise ValueError(f"no such inversion: use one of {', '.join(INVERSIONS)}")
    return name


class InvertConfig(Settings):
    """FIVE: how tasks are recovered from models."""

    inversion: Annotated[str, AfterValidator(_known_inversion)] = META_GENERATOR
    """One of ``INVERSIONS``: ``meta-generator``, or one of your own (docs/extending.md)."""
    models_per_iteration: AtLeastOne = 4
    """B, the meta-batch."""
    images_per_model: AtLeastOne = 100
    """Recovered from each model of the meta-batch, balanced over its classes."""
    steps: AtLeastOne = 5
    """k, inner steps by which the generator adapts to one model."""
    latent_size: AtLeastOne = 256
    """Numbers from which an image is generated."""
    generator_width: AtLeastOne = 16
    """Channels of the generator's last hidden layer; the layers before it have twice as many."""
    inner_learning_rate: Positive = 3e-3
    """Of the adapted generator (Adam)."""
    latent_learning_rate: Positive = 1e-2
    """Of the latent vectors (Adam)."""
    outer_learning_rate: Positive = 2e-3
    """β, of the meta-generator (Adam)."""
    batch_norm_weight: NotNegative = 0.05
    """λ_bn; has no effect on models without BatchNorm."""
    adversarial_weight: NotNegative = 0.0
    """λ_adv."""
    crop_padding: Count = 4
    """Pixels by which recovered images are shifted at random before a model sees them."""
    together: bool | None = None
    """Whether models of one architecture are adapted in one vectorised pass; without it, on a GPU only."""


class MetaLearnConfig(Settings):
    """BELL: how the meta-learner learns from recovered tasks."""

    memory_images: AtLeastOne = 40_000
    """Capacity of the memory."""
    max_teachers: AtLeastOne = 32
    """At most this many models teach, shared out among the kinds of input."""
    min_alike: AtLeastOne = 4
    """On images recovered from a model, the models of its kind of input (channels and size) teach; where they
    are fewer than this, those of every kind."""
    compositions: Count = 200
    """New images an iteration that are composed from recovered ones; each teacher sees each once."""
    public_images: AtLeastOne = PUBLIC_IMAGES
    """Public images shown an iteration, each once, where the coordinator named some."""
    relational_tasks: Count = 50
    """Batches of recovered and composed images an iteration, for relational distillation."""
    own_tasks: bool = False
    """Whether each recovered task is also distilled from the logits of its own model."""
    paths: AtLeastOne = 1
    """The tasks of an iteration are dealt out to so many paths, whose ends are averaged."""
    batch_size: Annotated[int, Field(ge=4)] = 256
    """Images in such a batch."""
    relational_temperature: Positive = 0.1
    """By which pairwise similarities are divided."""
    robust: bool = True
    """Whether a model counts less, down to nothing, whose function is no use to the others or draws the rest
    away, and whether copies and the models of one organisation share one vote."""
    patched: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the images on which the meta-learner sees a patch of random colours and its teachers none:
    against backdoors, at a price (docs/log.md)."""
    projection_weight: NotNegative = 1.0
    """Of predicting every teacher's features by a linear map, beside the relational loss."""
    distillation_temperature: Positive = 1.0
    """T of L_KD."""
    inner_learning_rate: Positive = 2e-3
    """α, of the path through the tasks (Adam)."""
    outer_rate: Positive = 1.0
    """β of φ ← φ - β (φ - φ'); 1 continues from where the path ended."""
    broadcast_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """With a public start: so far from the mean of the models to what was learned lies what is broadcast."""
    replay_episodes: Count = 0
    """Cross-task episodes an iteration; 0 leaves the replay out."""
    replay_ways: Annotated[int, Field(ge=2)] = 5
    """Classes of a cross-task episode, each of another model."""
    replay_shots: AtLeastOne = 1
    """Support images a class."""
    replay_queries: AtLeastOne = 15
    """Query images a class."""
    replay_learning_rate: Positive = 1e-3
    """Of the replay (Adam)."""


class ServerConfig(ComputeConfig):
    """Everything a run of the server depends on, besides the contributions."""

    preset: Literal["default", "large", "paper", "start"] = "default"
    """What the other settings of the server begin from.

    ``large`` is better and five times slower; ``paper`` is FREE as published; ``start`` is for models that
    began from one public start.
    """
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides everything random."""
    precision: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    """Of inversion and distillation; ``auto`` takes bfloat16 where the hardware multiplies it."""
    compiled: bool = False
    """Whether distillation, and inversion of models together, go through ``torch.compile``; slow to begin."""
    collect: CollectConfig = CollectConfig()
    architecture: ArchitectureId = Architecture()
    """Of the meta-learner, for instance conv4 or resnet18."""
    recipe: Recipe = Recipe(mirror=True)
    """How the meta-learner will be adapted; ``mirror`` only where every contribution allows it."""
    iterations: AtLeastOne = 60
    """Meta-iterations of the server.

    In each one meta-batch is inverted, and one path learned.
    """
    checkpoint_iterations: AtLeastOne = 10
    """The state is saved after every so many iterations."""
    warmup_iterations: Count = 0
    """First iterations in which only the generator learns."""
    invert: InvertConfig = InvertConfig()
    learn: MetaLearnConfig = MetaLearnConfig()

    @classmethod
    def implied(cls, given: Values) -> Layer:
        """The values of the preset that is named."""
        name = str(value_at(given, "preset", "default"))
        return Layer(f"preset {name}", PRESETS.get(name, {}))

    @model_validator(mode="after")
    def _leave_something_to_learn(self) -> Self:
        if self.iterations <= self.warmup_iterations:
            raise ConfigError(
                f"{self.iterations} iterations leave nothing after a warm-up of {self.warmup_iterations}: "
                f"use more than {self.warmup_iterations}"
            )
        return self

    def sha256(self) -> str:
        """Hexadecimal hash of every value, defaults included, but for those that are as in ``AS_EVER``."""
        excluded = {
            table: {name for name, value in values.items() if getattr(getattr(self, table), name) == value}
            for table, values in AS_EVER.items()
        }
        return sha256(self.model_dump_json(exclude=excluded).encode())

    def require_use_of_public_images(self) -> None:
        """Raise ConfigError where nobody would look at public images."""
        if not self.learn.relational_tasks:
            raise ConfigError(
                "public images are for relational distillation, and learn.relational_tasks is 0 "
                f"(preset {self.preset}): raise it, or leave out --public-images"
            )

    @classmethod
    def begun(cls, collect: CollectConfig, *, has_start: bool) -> Self:
        """What a run is configured with of which nothing is known but whom it waits for."""
        return cls.checked({"collect": collect.plain()} | ({"preset": "start"} if has_start else {}))

    def require_preset_for(self, has_start: bool) -> None:
        """Refuse to learn from a start with what was chosen for random weights, and the other way round."""
        if has_start == (self.preset == "start"):
            return
        began = "a public start" if has_start else "random weights"
        other = "preset start" if has_start else "another preset"
        raise ConfigError(
            f"the models began from {began}, and the server is configured with preset {self.preset}: "
            f"use {other}, and leave out the settings that you did not choose yourself"
        )


PRESETS: dict[str, dict[str, Any]] = {
    "default": {"recipe": {"mirror": True}},
    "large": {
        "recipe": {"mirror": True},
        "iterations": 120,
        "invert": {"models_per_iteration": 16},
        "learn": {"memory_images": 160_000, "compositions": 1000},
    },
    "paper": {
        "recipe": {"head": "gradient", "steps": 10, "learning_rate": 0.01, "mirror": False},
        "iterations": 400,
        "warmup_iterations": 20,
        "invert": {
            "generator_width": 64,
            "inner_learning_rate": 1e-3,
            "latent_learning_rate": 1e-3,
            "outer_learning_rate": 1e-3,
            "batch_norm_weight": 0.0,
            "adversarial_weight": 1.0,
        },
        "learn": {
            "compositions": 0,
            "relational_tasks": 0,
            "own_tasks": True,
            "inner_learning_rate": 1e-3,
            "outer_rate": 0.5,
            "replay_episodes": 10,
        },
    },
    "start": {
        "recipe": {"head": "ridge", "mirror": True, "levels": True},
        "precision": "float32",
        "iterations": 12,
        "invert": {"images_per_model": 50, "batch_norm_weight": 0.0},
        "learn": {
            "compositions": 100,
            "relational_tasks": 10,
            "batch_size": 64,
            "inner_learning_rate": 5e-5,
            "projection_weight": 0.0,
            "broadcast_share": 0.5,
        },
    },
}
"""What each preset changes: ``large`` has twice the iterations and four to five times the images in each;
``paper`` has FREE's released settings where the paper names none."""
