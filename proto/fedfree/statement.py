"""The privacy statement that travels with a model.

It says what was done, never more: status ``none`` is the honest default.
"""

import math
from dataclasses import dataclass
from enum import Enum

from torch import nn

from fedfree.errors import ContributionError, printable

MIN_EPSILON, MAX_EPSILON = 0.001, 50.0
"""That may be asked for: noise that gives less than the former leaves nothing of what was learned."""
MAX_DELTA = 0.01
"""The chance that the promise fails altogether: from there on it is none."""
MAX_CHARACTERS = 200
MIN_NOISE_MULTIPLIER, MAX_NOISE_MULTIPLIER = 0.1, 1e4
MAX_STEPS = 100_000


class PrivacyStatus(Enum):
    """What protects the training images of a released model."""

    NONE = "none"
    EMPIRICAL_ONLY = "empirical only"
    DP = "DP"


@dataclass(frozen=True)
class DpSgd:
    """One training run by DP-SGD with Poisson sampling, as every accountant sees it."""

    noise_multiplier: float
    """Standard deviation of the noise over the largest norm of one image's gradient (σ)."""
    sampling_rate: float
    """Probability with which each image enters a batch (q)."""
    steps: int

    def __post_init__(self) -> None:
        _check_range("noise multiplier", self.noise_multiplier, MIN_NOISE_MULTIPLIER, MAX_NOISE_MULTIPLIER)
        _check_range("sampling rate", self.sampling_rate, 1e-6, 1)
        _check_range("number of steps", self.steps, 1, MAX_STEPS)

    @property
    def epochs(self) -> int:
        """Batches that each image would enter if batches were dealt out instead of sampled."""
        return max(1, math.ceil(self.steps * self.sampling_rate - 1e-6))


@dataclass(frozen=True)
class Composition:
    """This and every earlier contribution that shares an image with it, by the client's ledger."""

    epsilon: float
    """Of the contributions under differential privacy together, at the same δ."""
    contributions: int
    """Those contributions; this one and those begun and never finished included."""
    without_differential_privacy: int = 0
    """Contributions that no ε covers."""
    epsilon_budget: float | None = None
    """The organisation's cap."""

    def __post_init__(self) -> None:
        _check_range("composed epsilon", self.epsilon, 0, 1e9)
        _check_range("number of composed contributions", self.contributions, 1, 1e9)
        _check_range("number of contributions without it", self.without_differential_privacy, 0, 1e9)
        if self.epsilon_budget is not None:
            _check_range("epsilon budget", self.epsilon_budget, 0, 1e9)


@dataclass(frozen=True)
class DifferentialPrivacy:
    """(ε, δ) per image, neighbours by adding or removing one, and what it was computed from."""

    epsilon: float
    """Spent: an upper bound by the accountant, never the target."""
    delta: float
    run: DpSgd
    max_grad_norm: float
    """Norm to which each image's gradient is clipped."""
    images: int
    """Training images, rounded down."""
    images_rounded_to: int
    accountant: str
    software: str
    """For instance ``fedfree 0.1.0, opacus 1.6.0, torch 2.15.0``."""
    composition: Composition

    def __post_init__(self) -> None:
        _check_range("epsilon", self.epsilon, MIN_EPSILON / 2, MAX_EPSILON)  # a run spends less than asked
        _check_range("delta", self.delta, 1e-300, MAX_DELTA)
        _check_range("gradient norm", self.max_grad_norm, 1e-9, 1e9)
        _check_range("rounding of the number of images", self.images_rounded_to, 1, 1e9)
        _check_range("number of images", self.images, 0, 1e9)
        if self.images % self.images_rounded_to:
            raise ContributionError(
                f"{self.images} images are no multiple of {self.images_rounded_to}, to which they are rounded"
            )
        if self.run.sampling_rate * (self.images + self.images_rounded_to) < 1:
            raise ContributionError(
                f"at a sampling rate of {self.run.sampling_rate:g} a batch of {self.images} images is empty: "
                "nothing is learned from such batches"
            )
        check_text(self.accountant)
        check_text(self.software)
        if self.images * self.delta >= 1:
            raise ContributionError(
                f"delta {self.delta:g} is not below 1/{self.images}, one over the number of images"
            )
        if self.composition.epsilon < self.epsilon - 1e-6:
            raise ContributionError(
                f"a composed epsilon of {self.composition.epsilon:g} is below "
                f"the {self.epsilon:g} of this run alone"
            )


@dataclass(frozen=True)
class InitialWeights:
    """What training began from, where not from random numbers."""

    sha256: str
    public: bool
    """Declared by the organisation: nobody's images, or images that everyone may see."""


@dataclass(frozen=True)
class PrivacyStatement:
    """What the contributing organisation declares about its training images."""

    status: PrivacyStatus = PrivacyStatus.NONE
    """``none``: the model was trained without any protection of its training images."""
    differential_privacy: DifferentialPrivacy | None = None
    """Where the status is ``DP``, and nowhere else."""
    initial_weights: InitialWeights | None = None

    def __post_init__(self) -> None:
        if (self.status is PrivacyStatus.DP) != (self.differential_privacy is not None):
            raise ContributionError(
                f"a privacy statement of status {self.status.value!r} must "
                f"{'' if self.status is PrivacyStatus.DP else 'not '}say what was spent"
            )


def batch_coupled_layers(network: nn.Module) -> list[str]:
    """Layers in which one image's gradient depends on the rest of the batch, or that store statistics of it.

    Every BatchNorm counts, also frozen or without parameters, and every norm with running statistics.
    """
    return [
        f"{name} ({type(module).__name__})"
        for name, module in network.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        or getattr(module, "track_running_stats", False)
    ]


def check_text(text: str) -> str:
    """Words of a manifest for people, as they are; raises ContributionError unless one short line."""
    if len(text) > MAX_CHARACTERS or not text.isprintable():
        raise ContributionError(
            f"expected one printable line of at most {MAX_CHARACTERS} characters, got {printable(text, 60)!r}"
        )
    return text


def _check_range(what: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ContributionError(
            f"the {what} of a privacy statement is from {low:g} to {high:g}, got {value:g}"
        )
