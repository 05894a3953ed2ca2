"""What a simulated federation is configured with."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from fedfree.architectures import Architecture
from fedfree.settings import Settings


class SimulationConfig(Settings):
    """One federation on one machine, from data set to report."""

    dataset: str = "glyphs"
    """``glyphs``, ``omniglot``, ``cifar-fs``, or the path of an image folder or zip."""
    clients: Annotated[int, Field(ge=2, le=10_000)] = 12
    """Organisations."""
    classes_each: Annotated[int, Field(ge=2)] = 5
    """Classes of each organisation's private images."""
    images_per_class: Annotated[int, Field(ge=2)] = 480
    """Private images of each class, at most."""
    partition: Literal["disjoint", "overlapping", "domain"] = "overlapping"
    """How the meta_train classes are dealt out."""
    architectures: tuple[Architecture, ...] = (Architecture(),)
    """Of the contributed models, dealt out in turn."""
    image_size: Annotated[int, Field(ge=16, le=512)] = 32
    """Pixels a side."""
    horizontal_flip: bool | None = None
    """Whether a mirrored image still shows the same class; without it, colour images only are mirrored."""
    epochs: Annotated[int, Field(ge=1)] = 12
    """Of each organisation's training."""
    min_steps: Annotated[int, Field(ge=1)] = 300
    """Few images are gone through more often than ``epochs`` says, until this many steps are taken."""
    preset: Literal["default", "paper"] = "default"
    """``paper`` is the published method; ``default`` also distils the pool's relations."""
    iterations: Annotated[int, Field(ge=1)] | None = None
    """Of the server; the preset's own number by default."""
    episodes: Annotated[int, Field(ge=2)] = 600
    """Episodes of meta_test on which everything is compared."""
    n_way: Annotated[int, Field(ge=2)] = 5
    n_query: Annotated[int, Field(ge=1)] = 15
    """Query images a class and episode."""
    engine: Literal["in-process", "flower"] = "in-process"
    """``flower`` runs the same apps under Flower's own simulation runtime."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """The server's."""
    threads: Annotated[int, Field(ge=1)] = 2
    """CPU threads of the server and of each organisation."""
    seed: Annotated[int, Field(ge=0)] = 0
    cache: Path = Path(".cache/fedfree")
    """Folder for data sets made or downloaded, and for trained models."""

    @field_validator("architectures", mode="before")
    @classmethod
    def _read_architectures(cls, value: object) -> object:
        """``conv4,resnet10`` as well as a list of tables."""
        if isinstance(value, str):
            return tuple(Architecture.parse(part.strip()) for part in value.split(","))
        return value
