"""What a simulated federation is configured with."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from client.config import PrivacyConfig, TrainingConfig, implied_training, training_from
from fedfree.architectures import Architecture, ArchitectureId
from fedfree.errors import ConfigError
from fedfree.host.places import cache_folder
from fedfree.host.public_weights import find_public, is_public_name
from fedfree.host.starts import describe_folder
from fedfree.settings import Layer, Listed, Repeatable, Settings, Values, merge
from server.config import NotNegative, Positive, ServerConfig

ImageSize = Annotated[int, Field(ge=16, le=512)]


class DenseConfig(Settings):
    """A baseline, DENSE-style distillation (docs/method.md).

    Where weights, temperatures or rates are listed, a student is trained for each combination, and the one
    that is best on episodes of meta_val is compared.
    """

    trained: bool = False
    """Whether DENSE-style distillation is trained and compared.

    With many models it takes longer than all that the server does.
    """
    generator_steps: Annotated[int, Field(ge=1)] = 10
    """Of generator and latents on each batch of images, each through all models."""
    generator_learning_rate: Positive = 3e-3
    """Of the generator (Adam)."""
    latent_learning_rate: Positive = 0.1
    """Of the latent vectors (Adam)."""
    batch_norm_weight: Annotated[tuple[NotNegative, ...], Listed, Field(min_length=1)] = (0.05,)
    """λ₁, of the distance of generated images from the models' BatchNorm statistics."""
    adversarial_weight: NotNegative = 0.5
    """λ₂, of the disagreement between ensemble and student that the generator looks for."""
    temperature: Annotated[tuple[Positive, ...], Listed, Field(min_length=1)] = (1.0,)
    """Of the student's distillation."""
    learning_rate: Annotated[tuple[Positive, ...], Listed] = ()
    """Of the student (Adam), at first; by default server.learn.inner_learning_rate."""


class SimulationConfig(Settings):
    """One federation on one machine, from data set to report."""

    dataset: str = "glyphs"
    """glyphs, omniglot, cifar-fs, or the path of an image folder or zip.

    Several, separated by commas, are dealt to the organisations in turn.
    """
    clients: Annotated[int, Field(ge=2, le=10_000)] = 12
    """Organisations."""
    classes_each: Annotated[int, Field(ge=2)] = 5
    """Private classes of each organisation."""
    images_per_class: Annotated[int, Field(ge=2)] = 480
    """Private images of each class, at most."""
    partition: Literal["disjoint", "overlapping", "domain"] = "overlapping"
    """How the meta_train classes are dealt out."""
    start: Annotated[str | None, Repeatable()] = None
    """Public weights to begin from, such as efficientnet-lite0.

    Or timm/MODEL, torchvision/MODEL, or the folder of a start; several, separated by commas, are dealt to the
    organisations in turn, and the meta-learner begins from the first. Brings its architecture and image size
    (which training.image_size changes, but for a folder), and the server's preset ``start``. Random weights
    by default.
    """
    public_images: Path | None = None
    """Folder of public photos shown to the models.

    Or a zip of them, without labels: the server shows them beside the images that it recovers.
    """
    architectures: Annotated[tuple[ArchitectureId, ...], Listed] = ()
    """Of the models, dealt out in turn, e.g. conv4,resnet10.

    By default training.architecture for all.
    """
    image_sizes: Annotated[tuple[ImageSize, ...], Listed] = ()
    """Pixels a side of each data set in turn, e.g. 32,64; by default training.image_size for all."""
    training: TrainingConfig = TrainingConfig()
    """Of each organisation; initial weights are declared public."""
    privacy: PrivacyConfig = PrivacyConfig()
    """Of each organisation's training; by default without differential privacy."""
    server: ServerConfig = ServerConfig()
    """What the server learns with; whom it waits for, and its seed, are the simulation's."""
    pooled: bool | None = None
    """Whether the reference that nobody may train is trained: one network on everybody's images.

    It takes as long as all organisations together; by default it is trained where there is a start.
    """
    dense: DenseConfig = DenseConfig()
    episodes: Annotated[int, Field(ge=2)] = 600
    """Episodes of each data set's meta_test on which everything is compared."""
    n_way: Annotated[int, Field(ge=2)] = 5
    """Classes an episode."""
    n_query: Annotated[int, Field(ge=1)] = 15
    """Query images a class and episode."""
    engine: Literal["in-process", "flower"] = "in-process"
    """``flower`` runs the same apps under Flower's own simulation runtime."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides everything random."""
    cache: Path = Field(default_factory=cache_folder)
    """Folder for data sets and trained models; by default ``~/.cache/fedfree``."""

    @classmethod
    def implied(cls, given: Values) -> Layer:
        """A start brings its network and the server's preset, differential privacy what it can train."""
        if start := given.get("start"):
            first, *_ = _listed(str(start))
            layer = training_from(first, *describe(first), given)
            return Layer(layer.origin, merge(layer.values, {"server": {"preset": "start"}}))
        return implied_training(given)

    @property
    def datasets(self) -> dict[str, str]:
        """What ``dataset`` lists: a short name for each to the name or path given."""
        return {Path(each).name.removesuffix(".zip"): each for each in _listed(self.dataset)}

    @property
    def starts(self) -> list[str]:
        """What ``start`` lists, that of the meta-learner first; none for random weights."""
        return [] if self.start is None else _listed(self.start)

    @property
    def dealt_architectures(self) -> tuple[Architecture, ...]:
        """Those that the organisations of a data set take in turn; at least one."""
        return self.architectures or (self.training.architecture,)

    @property
    def dealt_image_sizes(self) -> tuple[int, ...]:
        """Pixels a side that the data sets take in turn; at least one."""
        return self.image_sizes or (self.training.image_size,)

    @property
    def has_pooled(self) -> bool:
        """Whether one network is trained on everybody's images."""
        return bool(self.start) if self.pooled is None else self.pooled

    @model_validator(mode="after")
    def _agree_on_the_datasets(self) -> Self:
        listed = _listed(self.dataset)
        if not all(listed):
            raise ConfigError(f"expected data sets separated by commas, got {self.dataset!r}")
        if len(self.datasets) < len(listed):
            raise ConfigError(f"data sets need different names, got {self.dataset!r}")
        if self.clients < len(listed):
            raise ConfigError(f"{self.clients} clients are too few for {len(listed)} data sets: use more")
        if len(self.image_sizes) > len(listed):
            raise ConfigError(
                f"expected one of image_sizes for each of {len(listed)} data sets, "
                f"got {len(self.image_sizes)}"
            )
        return self

    @model_validator(mode="after")
    def _agree_with_the_start(self) -> Self:
        self.server.require_preset_for(has_start=self.start is not None)
        if self.public_images:
            self.server.require_use_of_public_images()
        if self.start is None:
            return self
        (start, architecture, size), *_ = [(each, *describe(each)) for each in self.starts]
        for name, values in (
            ("training.architecture", [self.training.architecture]),
            ("architectures", list(self.architectures)),
        ):
            if others := [str(each) for each in values if each != architecture]:
                raise ConfigError(f"{name} is {others[0]}, and the start's is {architecture}: leave it out")
        size = self.training.image_size if is_public_name(start) else size
        for name, sizes in (
            ("training.image_size", [self.training.image_size]),
            ("image_sizes", list(self.image_sizes)),
        ):
            if wrong := [each for each in sizes if each != size]:
                raise ConfigError(f"{name} is {wrong[0]}, and the start's is {size}: leave it out")
        return self

    @model_validator(mode="after")
    def _nothing_decided_twice(self) -> Self:
        if self.training.start is not None:
            raise ConfigError("training.start is decided by start in a simulation: set start")
        collect = self.server.collect.organisations
        if collect not in (type(self.server.collect)().organisations, self.clients):
            raise ConfigError(
                "server.collect.organisations is decided by clients in a simulation: set clients"
            )
        if self.server.seed not in (0, self.seed):
            raise ConfigError("server.seed is the seed of the simulation: set seed")
        return self


def _listed(text: str) -> list[str]:
    return [each.strip() for each in text.split(",")]


def describe(start: str) -> tuple[Architecture, int]:
    """Architecture and own image size of public weights, or of the start in a folder.

    Raises:
        ConfigError: there are no such weights here, or nothing between two commas.
        StorageError, ContributionError: a folder without a start.
    """
    if not start:
        raise ConfigError("start names nothing beside a comma, or at all: name a start or leave it out")
    if is_public_name(start):
        found = find_public(start)
        return found.architecture, found.image_size
    described = describe_folder(Path(start))
    return described.architecture, described.input.height
