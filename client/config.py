"""What an organisation configures: its images, its training, what it allows to leave."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from fedfree.architectures import Architecture
from fedfree.settings import Settings


class DataConfig(Settings):
    """Which images of a folder or zip; see ``client.data.load_images``."""

    source: Path
    """Image-folder tree, as directory or zip."""
    split: str | None = None
    """``meta_train``, ``meta_val`` or ``meta_test`` where the tree has them."""
    classes: tuple[str, ...] | None = None
    """Class folders to use; all of them by default."""
    images_per_class: Annotated[int, Field(ge=2)] | None = None
    """At most this many images of each class; all of them by default."""


class PretrainConfig(Settings):
    """How the contributed classifier is trained."""

    architecture: Architecture = Architecture()
    image_size: Annotated[int, Field(ge=16, le=512)] = 32
    """Pixels a side; images are resized to it."""
    horizontal_flip: bool | None = None
    """Whether a mirrored image still shows the same class; without it, colour images only are mirrored."""
    epochs: Annotated[int, Field(ge=1)] = 12
    min_steps: Annotated[int, Field(ge=1)] = 300
    """Few images are gone through more often than ``epochs`` says, until this many steps are taken."""
    batch_size: Annotated[int, Field(ge=2)] = 64
    learning_rate: Annotated[float, Field(gt=0)] = 0.05
    """Peak of a one-cycle schedule; SGD with Nesterov momentum 0.9."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    crop_padding: Annotated[int, Field(ge=0)] = 4
    """Pixels by which images are padded before a random crop."""
    held_out_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the images kept from training to measure accuracy; the number stays with the organisation."""
    threads: Annotated[int, Field(ge=1)] = 2
    """CPU threads; results depend on it in the last bits."""


class EvaluateConfig(Settings):
    """Labelled images of new classes on which the organisation measures the meta-learner."""

    data: DataConfig
    n_way: Annotated[int, Field(ge=2)] = 5
    n_query: Annotated[int, Field(ge=1)] = 15
    """Query images a class and episode."""
    episodes: Annotated[int, Field(ge=2)] = 50


class ClientConfig(Settings):
    """Everything one organisation configures."""

    data: DataConfig
    pretrain: PretrainConfig = PretrainConfig()
    evaluate: EvaluateConfig | None = None
    """Without it the organisation receives the meta-learner and reports nothing."""
    share_metrics: bool = False
    """Whether mean accuracy and its interval may be sent to the server."""
    cache: Path
    """Folder for trained models."""
    seed: int = 0
