"""What an organisation configures: its images, its training, what it allows to leave."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from client.limits import LimitsConfig
from fedfree.architectures import Architecture, ArchitectureId
from fedfree.errors import ConfigError
from fedfree.host.compute import ComputeConfig
from fedfree.host.images.formats import Fit
from fedfree.host.places import cache_folder, state_folder
from fedfree.host.starts import describe_folder
from fedfree.settings import Layer, Listed, Settings, Values, merge, nested, value_at
from fedfree.signing import KEY_PATTERN
from fedfree.statement import MAX_DELTA, MAX_EPSILON, MIN_EPSILON

LEDGER = "ledger.sqlite"


def or_if_colour(setting: bool | None, channels: int) -> bool:
    """A setting that, where it was not made, is on for colour images only."""
    return channels == 3 if setting is None else setting


class DataConfig(Settings):
    """Which images of a folder or zip; see ``client.data.loading.load_images``."""

    source: Path
    """Folder or zip of images, a folder a class."""
    split: str | None = None
    """``meta_train``, ``meta_val`` or ``meta_test`` where the images have splits."""
    classes: Annotated[tuple[str, ...], Listed] | None = None
    """Class folders to use; all of them by default."""
    images_per_class: Annotated[int, Field(ge=2)] | None = None
    """At most this many images of each class; all of them by default."""
    fit: Fit = "crop"
    """How an image that is not square becomes one: its middle is cut out, it is padded, or squeezed.

    ``crop`` keeps the shapes and loses what is left and right, or above and below; ``letterbox`` keeps the
    shapes and the whole image, smaller between two grey bars; ``squeeze`` distorts it.
    """


class TrainingConfig(ComputeConfig):
    """How the contributed classifier is trained."""

    start: Path | None = None
    """Folder of the public start that training begins from.

    It brings its architecture and image size. BatchNorm keeps the start's statistics, and only what was
    trained leaves.
    """
    trained: Literal["all", "last", "scales", "head", "low-rank"] = "all"
    """What training from a start changes, beside the head: everything, the last quarter of the network, the
    scales and shifts of its norms and its biases, or nothing; or a transformer's linear layers by changes of
    low rank (LoRA), of which two small factors a layer travel. That needs the extra ``adapters``."""
    low_rank: Annotated[int, Field(ge=1, le=64)] = 8
    """Rank of these changes."""
    architecture: ArchitectureId = Architecture()
    """For instance conv4, conv4-64-group, resnet10.

    Under differential privacy conv4-group by default.
    """
    image_size: Annotated[int, Field(ge=16, le=512)] = 32
    """Pixels a side; images are resized to it."""
    horizontal_flip: bool | None = None
    """Whether a mirrored image still shows the same class; by default of colour images only."""
    epochs: Annotated[int, Field(ge=1)] = 30
    """Passes over the images.

    Under differential privacy, batches that an image is expected to enter: the number of steps is fixed by it
    beforehand.
    """
    min_steps: Annotated[int, Field(ge=1)] = 300
    """Few images are gone through more often than ``epochs`` says, until so many steps are taken."""
    batch_size: Annotated[int, Field(ge=2)] = 64
    """Images a step."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with Nesterov momentum 0.9, or AdamW."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.05
    """Peak of a one-cycle schedule."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """Of the optimizer."""
    rotation_task: bool | None = None
    """Whether the model also learns to tell quarter turns of images; by default of colour images, and from a
    start.

    A second head, which never leaves, learns class and quarter turn. From random weights it sees turned
    copies, which doubles the time of training; from a start the images themselves are turned. Either makes
    features that carry over to other classes. Private training leaves it out.
    """
    crop_padding: Annotated[int, Field(ge=0)] = 4
    """Pixels by which images are padded before a random crop."""
    held_out_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the images kept from training to measure accuracy; the number stays with the organisation."""
    initial_weights: Path | None = None
    """safetensors of the same architecture to begin from; a head of other classes is drawn afresh."""
    initial_weights_public: bool = False
    """Declare that the initial weights are learned from nobody's images, or from images everyone may see."""


class PrivacyConfig(Settings):
    """Training under differential privacy (DP-SGD); noise and sampling ignore every seed."""

    epsilon: Annotated[float, Field(ge=MIN_EPSILON)] = math.inf
    """Spend at most this an image; ``inf``: no differential privacy."""
    delta: Annotated[float, Field(gt=0, le=MAX_DELTA)] = 1e-5
    """Of differential privacy: below one over the number of images."""
    epsilon_budget: Annotated[float, Field(gt=0)] | None = None
    """Most that all contributions of an image may spend together; beyond it nothing is trained."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Norm to which each image's gradient is clipped."""
    batch_size: Annotated[int, Field(ge=1)] = 512
    """Expected images a step; each image is drawn by itself, so batches differ in size."""
    learning_rate: Annotated[float, Field(gt=0)] = 1.0
    """Constant; plain SGD."""
    parameter_noise: Annotated[float, Field(ge=0)] = 0.0
    """Standard deviation of the noise that the steps after ``head_epochs`` leave in each number trained.

    From it, ε and the number of images follows the learning rate; 0: that is ``learning_rate``."""
    averaging: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay of the average of the weights over the steps, which is released; 0 releases the last weights."""
    augmentations: Annotated[int, Field(ge=1, le=64)] = 1
    """Views of each image whose mean gradient is clipped; each costs the time of another image."""
    head_epochs: Annotated[int, Field(ge=0)] = 0
    """Of the epochs, in how many the head learns alone, from zero; from then on all but the head does."""
    head_learning_rate: Annotated[float, Field(gt=0)] = 1.0
    """While it learns alone."""
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


PRIVACY_ONLY = frozenset(
    (
        *("max_grad_norm", "batch_size", "learning_rate", "parameter_noise", "averaging"),
        *("augmentations", "head_epochs", "head_learning_rate", "images_rounded_to"),
    )
)
"""Options of PrivacyConfig that training without differential privacy has no use for."""
WITHOUT_PRIVACY_ONLY = frozenset(
    (
        *("min_steps", "batch_size", "optimizer", "learning_rate", "weight_decay"),
        *("rotation_task", "held_out_fraction"),
    )
)
"""Options of TrainingConfig that training under differential privacy has no use for."""


FROM_START: dict[str, Any] = {
    "epochs": 8,
    "min_steps": 200,
    "batch_size": 32,
    "optimizer": "adamw",
    "learning_rate": 3e-4,
    "weight_decay": 0.01,
}
"""What training from a start begins from instead of the defaults."""
FROM_START_PRIVATE: dict[str, dict[str, Any]] = {
    "training": {"trained": "scales", "epochs": 15},
    "privacy": {
        "batch_size": 4096,
        "max_grad_norm": 0.1,
        "parameter_noise": 0.1,
        "head_epochs": 3,
        "head_learning_rate": 5.0,
    },
}
"""What it begins from under differential privacy: few numbers, so little noise, in batches of all images.

A head that was taught for long leaves the rest nothing to learn. The noise is more than one model can bear,
and right for the average of several, in which it cancels (docs/log.md).
"""


def implied_training(given: Values) -> Layer:
    """What a start brings with it; without one conv4-group, where differential privacy is asked for."""
    if start := value_at(given, "training.start"):
        described = describe_folder(Path(start))
        return training_from(str(start), described.architecture, described.input.height, given)
    if not _asks_for_privacy(given):
        return Layer("", {})
    return Layer("differential privacy", {"training": {"architecture": "conv4-group"}})


def training_from(start: str, architecture: Architecture, image_size: int, given: Values) -> Layer:
    """How training begins from a start, for whoever does not say otherwise."""
    own = {"architecture": str(architecture), "image_size": image_size}
    chosen: Mapping[str, Any] = FROM_START_PRIVATE if _asks_for_privacy(given) else {"training": FROM_START}
    if chosen is FROM_START_PRIVATE and value_at(given, "privacy.learning_rate") is not None:
        chosen = merge(chosen, nested("privacy.parameter_noise", 0.0))
    return Layer(f"start {start}", merge(chosen, {"training": own}))


def _asks_for_privacy(given: Values) -> bool:
    epsilon = value_at(given, "privacy.epsilon", math.inf)
    return isinstance(epsilon, int | float) and math.isfinite(epsilon)


def check_training(training: TrainingConfig, privacy: PrivacyConfig) -> None:
    """Refuse what would have no effect; raises ConfigError."""
    if not privacy.is_dp and (changed := _changed(privacy, PRIVACY_ONLY)):
        raise ConfigError(
            f"privacy.{changed[0]} has no effect without differential privacy: set privacy.epsilon"
        )
    if privacy.parameter_noise and _changed(privacy, ["learning_rate"]):
        raise ConfigError(
            "privacy.learning_rate has no effect where privacy.parameter_noise decides it: leave one out"
        )
    if training.trained != "low-rank" and _changed(training, ["low_rank"]):
        raise ConfigError('training.low_rank has no effect unless training.trained is "low-rank"')
    if privacy.is_dp and (changed := _changed(training, WITHOUT_PRIVACY_ONLY)):
        own = changed[0] in PrivacyConfig.model_fields
        remedy = f"set privacy.{changed[0]}" if own else "leave it out"
        raise ConfigError(f"training.{changed[0]} has no effect under differential privacy: {remedy}")


def _changed(settings: Settings, names: Iterable[str]) -> list[str]:
    fields = type(settings).model_fields
    return [name for name in sorted(names) if getattr(settings, name) not in (fields[name].default, False)]


class EvaluateConfig(Settings):
    """Labelled images of new classes on which the organisation measures the meta-learner."""

    data: DataConfig
    n_way: Annotated[int, Field(ge=2)] = 5
    """Classes an episode."""
    n_query: Annotated[int, Field(ge=1)] = 15
    """Query images a class and episode."""
    episodes: Annotated[int, Field(ge=2)] = 50
    """Few-shot tasks to draw from the images."""


class ClientConfig(Settings):
    """Everything one organisation configures."""

    data: DataConfig
    training: TrainingConfig = TrainingConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    start_sha256: Annotated[str, Field(pattern="^[0-9a-f]{1,64}$")] | None = None
    """Which start to train from, by its first digits, where a federation over Flower has several; by default
    the first. A copy of your own is named as ``training.start`` instead."""
    coordinator_key: Annotated[str, Field(pattern=KEY_PATTERN)] | None = None
    """The key that a Flower node's coordinator signs with, which `fedfree-server key show` prints; by default
    the first that is seen is believed, and kept beside this file."""
    evaluate: EvaluateConfig | None = None
    """Without it the organisation receives the meta-learner and reports nothing."""
    limits: LimitsConfig = LimitsConfig()
    share_metrics: bool = False
    """Whether mean accuracy and its interval may be sent to the server."""
    cache: Path = Field(default_factory=lambda: cache_folder() / "models")
    """Folder for trained models; by default ``~/.cache/fedfree/models``."""
    ledger: Path | None = None
    """The record of what was contributed; by default ``~/.local/state/fedfree/ledger.sqlite``."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides everything random but noise and sampling of differential privacy."""

    @classmethod
    def implied(cls, given: Values) -> Layer:
        """A start or differential privacy brings an architecture; all images become square alike."""
        implied, fit = implied_training(given), value_at(given, "data.fit")
        if fit is None or value_at(given, "evaluate") is None:
            return implied
        return Layer(f"{implied.origin}, data.fit", merge(implied.values, nested("evaluate.data.fit", fit)))

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> Self:
        check_training(self.training, self.privacy)
        if self.start_sha256 and self.training.start:
            raise ConfigError("start_sha256 has no effect where training.start names a folder: leave it out")
        return self

    @property
    def ledger_path(self) -> Path:
        """Where the ledger is; beside a cache that was named, where an earlier release kept one there."""
        beside = self.cache.parent / LEDGER
        if self.ledger is None and "cache" in self.model_fields_set and beside.is_file():
            return beside
        return self.ledger or state_folder() / LEDGER
