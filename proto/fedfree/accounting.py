"""What a DP-SGD run means in numbers, by Google's dp-accounting; both sides compute it for themselves.

Every ε is per image, where neighbours differ by adding or removing one, and an upper bound: from privacy
loss distributions rounded so that they never understate (Doroshenko et al. 2022). dp-accounting takes two
seconds to import, so it is imported where it is needed.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedfree.statement import DpSgd

REPEATS = (2, 5, 10)
FALSE_POSITIVE_RATE = 0.01
FINEST_MESH, MOST_POINTS = 1e-3, 500_000
FINER_MESH = 1e-5
"""For a claim that the other mesh contradicts: over thousands of steps that one overstates a small ε."""


@dataclass(frozen=True)
class Consequences:
    """What the numbers of a run come to."""

    true_positive_rate: float
    """Highest that any membership attack can have at FALSE_POSITIVE_RATE."""
    repeated: tuple[float, ...]
    """ε of the same images contributed REPEATS times."""
    without_amplification: float
    """ε had batches been dealt out from shuffled images, each image in one batch an epoch."""
    person: tuple[float, ...]
    """ε of a person with REPEATS images among the training images."""


@functools.lru_cache(maxsize=64)
def run_epsilon(run: DpSgd, delta: float, *, finest_mesh: float = FINEST_MESH) -> float:
    """ε of one run; Opacus' PRV accountant reports about 0.01 more."""
    return float(_privacy_loss(run, finest_mesh=finest_mesh).get_epsilon_for_delta(delta))


@functools.lru_cache(maxsize=64)
def highest_true_positive_rate(run: DpSgd) -> float:
    """Highest that any membership attack can have at FALSE_POSITIVE_RATE."""
    return _true_positive_rate(_privacy_loss(run))


@functools.lru_cache(maxsize=64)
def consequences(run: DpSgd, delta: float) -> Consequences:
    """The numbers that stand beside the ε of a run; takes seconds."""
    unsampled = DpSgd(run.noise_multiplier, 1, run.epochs)
    return Consequences(
        true_positive_rate=highest_true_positive_rate(run),
        repeated=tuple(
            float(_privacy_loss(run, times=times).get_epsilon_for_delta(delta)) for times in REPEATS
        ),
        without_amplification=run_epsilon(unsampled, delta),
        person=tuple(
            float(_person_privacy_loss(run, images).get_epsilon_for_delta(delta)) for images in REPEATS
        ),
    )


def _privacy_loss(run: DpSgd, *, times: int = 1, finest_mesh: float = FINEST_MESH) -> Any:
    """The distribution of the loss of a run done so many times."""
    from dp_accounting.pld import privacy_loss_distribution

    steps = run.steps * times
    step = privacy_loss_distribution.from_gaussian_mechanism(
        run.noise_multiplier,
        sampling_prob=run.sampling_rate,
        value_discretization_interval=_mesh(run, steps=steps, images=1, finest=finest_mesh),
    )
    return step.self_compose(steps)


def _person_privacy_loss(run: DpSgd, images: int) -> Any:
    """The same where batches hold a binomial number of somebody's images, each worth up to one norm."""
    from dp_accounting.pld import privacy_loss_distribution

    counts, q = range(images + 1), run.sampling_rate
    mesh = 10 * _mesh(run, steps=run.steps, images=images)
    if q == 1:
        step = privacy_loss_distribution.from_gaussian_mechanism(
            run.noise_multiplier, sensitivity=images, value_discretization_interval=mesh
        )
    else:
        step = privacy_loss_distribution.from_mixture_gaussian_mechanism(
            run.noise_multiplier,
            sensitivities=list(counts),
            sampling_probs=[math.comb(images, k) * q**k * (1 - q) ** (images - k) for k in counts],
            value_discretization_interval=mesh,
        )
    return step.self_compose(run.steps)


def _mesh(run: DpSgd, *, steps: int, images: int, finest: float = FINEST_MESH) -> float:
    """Fine, unless losses spread so far that they would fill the memory."""
    shift = images / run.noise_multiplier
    spread = steps * shift**2 / 2 + 8 * math.sqrt(steps) * shift
    return max(finest, spread / (MOST_POINTS if finest == FINEST_MESH else 10 * MOST_POINTS))


def _true_positive_rate(privacy_loss: Any) -> float:
    """The trade-off curve at FALSE_POSITIVE_RATE: the least e^ε FPR + δ(ε) (Kairouz et al. 2015)."""
    epsilon = np.linspace(0, 20, 2001)
    bound = np.exp(epsilon) * FALSE_POSITIVE_RATE + privacy_loss.get_delta_for_epsilon(epsilon)
    return float(min(1, bound.min()))
