"""What an organisation configures: its images, its training, what it allows to leave."""

import math
from pathlib import Path
from typing import Annotated, Self, TypeVar

from pydantic import Field, field_validator, model_validator

from fedfree.architectures import Architecture
from fedfree.host.compute import Device
from fedfree.host.places import cache_folder, state_folder
from fedfree.settings import Settings
from fedfree.statement import MAX_EPSILON

LEDGER = "ledger.sqlite"
_Settings = TypeVar("_Settings", bound=Settings)


def or_if_colour(setting: bool | None, channels: int) -> bool:
    """A setting that, where it was not made, is on for colour images only."""
    return channels == 3 if setting is None else setting


class DataConfig(Settings):
    """Which images of a folder or zip; see ``client.data.images.load_images``."""

    source: Path
    """Image-folder tree, as directory or zip."""
    split: str | None = None
    """``meta_train``, ``meta_val`` or ``meta_test`` where the tree has them."""
    classes: tuple[str, ...] | None = None
    """Class folders to use; all of them by default."""
    images_per_class: Annotated[int, Field(ge=2)] | None = None
    """At most this many images of each class; all of them by default."""


class TrainingConfig(Settings):
    """How the contributed classifier is trained."""

    architecture: Architecture = Architecture()
    image_size: Annotated[int, Field(ge=16, le=512)] = 32
    """Pixels a side; images are resized to it."""
    horizontal_flip: bool | None = None
    """Whether a mirrored image still shows the same class; without it, colour images only are mirrored."""
    epochs: Annotated[int, Field(ge=1)] = 30
    min_steps: Annotated[int, Field(ge=1)] = 300
    """Few images are gone through more often than ``epochs`` says, until this many steps are taken."""
    batch_size: Annotated[int, Field(ge=2)] = 64
    learning_rate: Annotated[float, Field(gt=0)] = 0.05
    """Peak of a one-cycle schedule; SGD with Nesterov momentum 0.9."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    rotation_task: bool | None = None
    """Whether a second head, which never leaves, also learns to tell class and quarter turn of turned copies;
    without it, for colour images only.

    It doubles the time of training, and makes features that carry over to other classes. Private training
    leaves it out.
    """
    crop_padding: Annotated[int, Field(ge=0)] = 4
    """Pixels by which images are padded before a random crop."""
    held_out_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the images kept from training to measure accuracy; the number stays with the organisation."""
    initial_weights: Path | None = None
    """safetensors of the same architecture to begin from; a head of other classes is drawn afresh."""
    initial_weights_public: bool = False
    """Whether you declare them public: learned from nobody's images, or from images everyone may see."""
    device: Device = "auto"
    """``cuda``, ``cpu``, or ``auto``: a GPU where there is one; results depend on it in the last bits."""
    threads: Annotated[int, Field(ge=1)] = 2
    """CPU threads; results depend on it in the last bits."""


class PrivacyConfig(Settings):
    """Training under differential privacy (DP-SGD); noise and sampling ignore every seed."""

    epsilon: Annotated[float, Field(gt=0)] = math.inf
    """Target for one contribution, per image; what was spent is at most this. ``inf``: no privacy at all."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """Must be below one over the number of images."""
    epsilon_budget: Annotated[float, Field(gt=0)] | None = None
    """Most that all contributions of an image may spend together; beyond it nothing is trained."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Norm to which each image's gradient is clipped."""
    batch_size: Annotated[int, Field(ge=1)] = 512
    """Expected images a step; each image is drawn by itself, so batches differ in size."""
    epochs: Annotated[int, Field(ge=1)] = 30
    """Batches that an image is expected to enter; the number of steps is fixed by it beforehand."""
    learning_rate: Annotated[float, Field(gt=0)] = 1.0
    """Constant; plain SGD."""
    averaging: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay of the average of the weights over the steps, which is released; 0 releases the last weights."""
    images_rounded_to: Annotated[int, Field(ge=1)] = 100
    """The number of images is stated rounded down to a multiple of this."""

    @field_validator("epsilon")
    @classmethod
    def _limit_epsilon(cls, value: float) -> float:
        if MAX_EPSILON < value < math.inf:
            raise ValueError(f"an epsilon above {MAX_EPSILON:g} promises nothing; use inf, which says so")
        return value

    @model_validator(mode="after")
    def _budget_needs_privacy(self) -> Self:
        if self.epsilon_budget is not None and not self.is_dp:
            raise ValueError("no epsilon budget can hold a contribution of epsilon inf; set epsilon")
        return self

    @property
    def is_dp(self) -> bool:
        """Whether training is under differential privacy at all."""
        return math.isfinite(self.epsilon)

    def training_sha256(self) -> str:
        """Hash of what decides the released model and its statement: everything but the budget."""
        return self.model_copy(update={"epsilon_budget": None}).sha256()


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
    training: TrainingConfig = TrainingConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    evaluate: EvaluateConfig | None = None
    """Without it the organisation receives the meta-learner and reports nothing."""
    share_metrics: bool = False
    """Whether mean accuracy and its interval may be sent to the server."""
    cache: Path = Field(default_factory=lambda: cache_folder() / "models")
    """Folder for trained models; by default one of this user's, ``~/.cache/fedfree/models``."""
    ledger: Path | None = None
    """SQLite file that remembers every contribution; by default one for all that this user contributes,
    ``~/.local/state/fedfree/ledger.sqlite``."""
    seed: int = 0

    @classmethod
    def read(cls, path: Path) -> Self:
        """As every configuration; relative paths are relative to the folder of the file.

        One that names a cache and no ledger goes on with the ledger beside that cache, where earlier releases
        kept it, if there is one.
        """
        config = anchored(super().read(path), path.resolve().parent)
        beside = config.cache.parent / LEDGER
        if config.ledger or "cache" not in config.model_fields_set or not beside.is_file():
            return config
        return config.model_copy(update={"ledger": beside})

    @property
    def ledger_path(self) -> Path:
        """Where the ledger is."""
        return self.ledger or state_folder() / LEDGER


def anchored(settings: _Settings, folder: Path) -> _Settings:
    """The same settings, every relative path that was given in them below ``folder``."""
    changes: dict[str, object] = {}
    for name in settings.model_fields_set:
        value = getattr(settings, name)
        if isinstance(value, Path):
            changes[name] = folder / value
        elif isinstance(value, Settings):
            changes[name] = anchored(value, folder)
    return settings.model_copy(update=changes)
