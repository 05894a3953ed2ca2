"""What a simulated federation is configured with."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from client.config import PrivacyConfig
from fedfree.architectures import Architecture
from fedfree.errors import ConfigError
from fedfree.host.compute import Device
from fedfree.settings import Settings


class SimulationConfig(Settings):
    """One federation on one machine, from data set to report."""

    dataset: str = "glyphs"
    """``glyphs``, ``omniglot``, ``cifar-fs``, or the path of an image folder or zip.

    Several, separated by commas, are dealt to the organisations in turn.
    """
    clients: Annotated[int, Field(ge=2, le=10_000)] = 12
    """Organisations."""
    classes_each: Annotated[int, Field(ge=2)] = 5
    """Classes of each organisation's private images."""
    images_per_class: Annotated[int, Field(ge=2)] = 480
    """Private images of each class, at most."""
    partition: Literal["disjoint", "overlapping", "domain"] = "overlapping"
    """How the meta_train classes are dealt out."""
    architectures: tuple[Architecture, ...] = (Architecture(),)
    """Of the contributed models, dealt out in turn among the organisations of a data set."""
    student: Architecture = Architecture()
    """Of the meta-learner."""
    image_size: Annotated[tuple[Annotated[int, Field(ge=16, le=512)], ...], Field(min_length=1)] = (32,)
    """Pixels a side, dealt to the data sets in turn."""
    horizontal_flip: bool | None = None
    """Whether a mirrored image still shows the same class; without it, colour images only are mirrored."""
    epochs: Annotated[int, Field(ge=1)] = 30
    """Of each organisation's training."""
    min_steps: Annotated[int, Field(ge=1)] = 300
    """Few images are gone through more often than ``epochs`` says, until this many steps are taken."""
    rotation_task: bool | None = None
    """Whether models also learn to tell quarter turns; without it, for colour images only."""
    initial_weights: Path | None = None
    """safetensors that every organisation's training begins from; they are declared public."""
    privacy: PrivacyConfig = PrivacyConfig()
    """Of each organisation's training; by default without differential privacy."""
    preset: Literal["default", "large", "paper"] = "default"
    """``paper`` is the published method; ``default`` and ``large`` also distil the pool's relations."""
    iterations: Annotated[int, Field(ge=1)] | None = None
    """Of the server; the preset's own number by default."""
    episodes: Annotated[int, Field(ge=2)] = 600
    """Episodes of each data set's meta_test on which everything is compared."""
    n_way: Annotated[int, Field(ge=2)] = 5
    n_query: Annotated[int, Field(ge=1)] = 15
    """Query images a class and episode."""
    engine: Literal["in-process", "flower"] = "in-process"
    """``flower`` runs the same apps under Flower's own simulation runtime."""
    device: Device = "auto"
    """Of the server and of each organisation."""
    threads: Annotated[int, Field(ge=1)] = 2
    """CPU threads of the server and of each organisation."""
    seed: Annotated[int, Field(ge=0)] = 0
    cache: Path = Path(".cache/fedfree")
    """Folder for data sets made or downloaded, and for trained models."""

    @property
    def datasets(self) -> dict[str, str]:
        """What ``dataset`` lists: a short name for each to the name or path given."""
        return {Path(each).name.removesuffix(".zip"): each for each in self._listed()}

    def _listed(self) -> list[str]:
        return [each.strip() for each in self.dataset.split(",")]

    @model_validator(mode="after")
    def _agree_on_the_datasets(self) -> Self:
        listed = self._listed()
        if not all(listed):
            raise ConfigError(f"expected data sets separated by commas, got {self.dataset!r}")
        if len(self.datasets) < len(listed):
            raise ConfigError(f"data sets need different names, got {self.dataset!r}")
        if self.clients < len(listed):
            raise ConfigError(f"{self.clients} clients are too few for {len(listed)} data sets: use more")
        if len(self.image_size) > len(listed):
            raise ConfigError(
                f"expected one image_size or one for each of {len(listed)} data sets, "
                f"got {len(self.image_size)}"
            )
        return self

    @field_validator("image_size", mode="before")
    @classmethod
    def _read_image_size(cls, value: object) -> object:
        """``32`` and ``32,64,28`` as well as a list."""
        if isinstance(value, str):
            return tuple(value.split(","))
        return (value,) if isinstance(value, int) else value

    @field_validator("student", mode="before")
    @classmethod
    def _read_student(cls, value: object) -> object:
        """``resnet18`` as well as a table."""
        return Architecture.parse(value) if isinstance(value, str) else value

    @field_validator("architectures", mode="before")
    @classmethod
    def _read_architectures(cls, value: object) -> object:
        """``conv4,resnet10`` as well as a list of tables."""
        if isinstance(value, str):
            return tuple(Architecture.parse(part.strip()) for part in value.split(","))
        return value
