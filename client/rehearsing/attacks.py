"""Membership inference: can somebody who holds a model tell which images it was trained on?

The score and LiRA after Carlini et al. 2022 (sections III and V); reported as they ask, true positives
at few false positives. Scores and memberships are arrays [models, images]: each model is the target
once, and all the others, whose training images the attacker knows, are its shadows.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedfree.extension import Table

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

ONLINE, OFFLINE, LOSS_THRESHOLD = "LiRA online", "LiRA offline", "loss threshold"
MODELS_FOR_VARIANCE = 32
"""With fewer models a side, one variance for all images is better than one an image (Carlini, VI-B)."""
BOOTSTRAP_SAMPLES = 200


def membership_scores(logits: Tensor, labels: Tensor) -> Floats:
    """φ = z_y - logsumexp of the other classes' logits, [images]; y is the label used in training.

    Args:
        logits: [images, classes].
        labels: [images], int64.
    """
    logits, own = logits.detach().double(), labels[:, None]
    others = logits.scatter(1, own, -torch.inf).logsumexp(1)
    scores: Floats = (logits.gather(1, own).squeeze(1) - others).numpy()
    return scores


def loss_threshold(scores: Floats, members: Mask) -> Floats:
    """The floor: φ itself, which falls as the loss grows; uses no shadow."""
    return scores


def lira_online(scores: Floats, members: Mask) -> Floats:
    """Log-likelihood ratio of φ with the image in training against without it, [models, images]."""
    return _each_against_the_others(scores, members, _log_likelihood_ratio)


def lira_offline(scores: Floats, members: Mask) -> Floats:
    """By how many deviations φ exceeds that of models without the image, [models, images]."""
    return _each_against_the_others(scores, members, _deviations_above)


Attack = Callable[[Floats, Mask], Floats]
"""From φ and memberships [models, images] to what the attacker sorts by: higher, more likely a member."""

ATTACKS: Table[Attack] = Table(
    "attack",
    {
        LOSS_THRESHOLD: loss_threshold,
        OFFLINE: lira_offline,
        ONLINE: lira_online,
    },
)


def _each_against_the_others(
    scores: Floats, members: Mask, judge: Callable[[Floats, Floats, Mask], Floats]
) -> Floats:
    return np.stack(
        [
            judge(scores[target], np.delete(scores, target, 0), np.delete(members, target, 0))
            for target in range(len(scores))
        ]
    )


def _log_likelihood_ratio(target: Floats, shadows: Floats, members: Mask) -> Floats:
    inside, outside = _fit(shadows, members), _fit(shadows, ~members)
    return _where_known(_log_density(target, *inside) - _log_density(target, *outside))


def _deviations_above(target: Floats, shadows: Floats, members: Mask) -> Floats:
    mean, deviation = _fit(shadows, ~members)
    return _where_known((target - mean) / deviation)


def _log_density(values: Floats, mean: Floats, deviation: Floats) -> Floats:
    """Of a Gaussian, without its constant."""
    return -np.log(deviation) - (values - mean) ** 2 / (2 * deviation**2)


def _where_known(evidence: Floats) -> Floats:
    """0, which speaks for neither side, for an image that all shadows have or that none has."""
    return np.where(np.isnan(evidence), 0.0, evidence)


def _fit(scores: Floats, chosen: Mask) -> tuple[Floats, Floats]:
    """Mean and deviation of each image's scores over the models chosen, [images]; NaN where none is."""
    counts = chosen.sum(0)
    means = np.full(scores.shape[1], np.nan)
    np.divide((scores * chosen).sum(0), counts, out=means, where=counts > 0)
    squares = np.where(chosen, (scores - means) ** 2, 0.0)
    if counts.min() >= MODELS_FOR_VARIANCE:
        variances = squares.sum(0) / (counts - 1)
    else:
        freedom = max(1, int((counts - 1).clip(0).sum()))
        variances = np.full(scores.shape[1], squares.sum() / freedom)
    return means, np.sqrt(variances.clip(1e-12))


@dataclass(frozen=True)
class Roc:
    """Rates at every threshold from above all scores to below them, both ascending from 0 to 1."""

    false_positive_rates: Floats
    true_positive_rates: Floats

    @property
    def area(self) -> float:
        """AUC: 0.5 for guessing."""
        return float(np.trapezoid(self.true_positive_rates, self.false_positive_rates))

    def true_positive_rate(self, false_positive_rate: float) -> float:
        """The highest that a threshold with at most this false-positive rate reaches."""
        last = np.searchsorted(self.false_positive_rates, false_positive_rate, side="right") - 1
        return float(self.true_positive_rates[last])


def roc(evidence: Floats, members: Mask, weights: Floats | None = None) -> Roc:
    """The curve of an attack, over arrays of one shape; equal evidence is one threshold."""
    evidence, members = evidence.ravel(), members.ravel()
    order = np.argsort(-evidence, kind="stable")
    ranked, of_members = evidence[order], members[order]
    counts = np.ones(len(order)) if weights is None else weights.ravel()[order]
    ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    true, false = (np.cumsum(counts * side)[ends] for side in (of_members, ~of_members))
    return Roc(np.append(0.0, false / false[-1]), np.append(0.0, true / true[-1]))


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Exposure:
    """How well one attack tells members from others, over all pairs of target model and image."""

    members: int
    """Pairs in which the model was trained on the image."""
    others: int
    """Pairs in which it was not."""
    auc: Interval
    tpr_at_1_percent: Interval | None
    """True-positive rate at 1 % false positives; None with fewer than 100 others: not resolvable."""
    tpr_at_0_1_percent: Interval | None
    """The same at 0.1 %; None with fewer than 1,000 others."""


def exposure(evidence: Floats, members: Mask, *, samples: int = BOOTSTRAP_SAMPLES, seed: int = 0) -> Exposure:
    """Measure an attack; intervals come from drawing the images anew, for the models as they are.

    Args:
        evidence: [models, images], from one of ATTACKS.
        members: [models, images].
        samples: of the bootstrap.
    """
    curve = roc(evidence, members)
    draws = _redrawn_curves(evidence, members, samples, np.random.default_rng(seed))
    others = int((~members).sum())

    def at(rate: float) -> Interval | None:
        if others < 1 / rate:
            return None
        return _interval(curve.true_positive_rate(rate), [draw.true_positive_rate(rate) for draw in draws])

    area = _interval(curve.area, [draw.area for draw in draws])
    return Exposure(int(members.sum()), others, area, at(0.01), at(0.001))


def _redrawn_curves(evidence: Floats, members: Mask, samples: int, random: np.random.Generator) -> list[Roc]:
    """Curves over images drawn with replacement, each with all its models."""
    models, images = evidence.shape
    order = np.argsort(-evidence.ravel(), kind="stable")
    ranked, of_members = evidence.ravel()[order], members.ravel()[order]
    image = np.tile(np.arange(images), models)[order]
    curves = []
    for _ in range(samples):
        counts = np.bincount(random.integers(images, size=images), minlength=images).astype(float)
        drawn = counts[image]
        if drawn[of_members].any() and drawn[~of_members].any():
            curves.append(roc(ranked, of_members, drawn))
    return curves


def _interval(value: float, draws: list[float]) -> Interval:
    low, high = np.quantile(draws, (0.025, 0.975)) if draws else (0.0, 1.0)
    return Interval(value, float(low), float(high))


def epsilon_lower_bound(
    canaries: int, guesses: int, right: int, *, delta: float, confidence: float = 0.95
) -> float:
    """The ε that one training run refutes (Steinke, Nasr and Jagielski 2023, Theorem 5.2).

    Each canary was in or out by a fair coin, and the attacker names ``guesses`` of them, a number
    fixed beforehand, as members. Returns the smallest ε that is not rejected:
    sup{ε: β + 2·canaries·δ·α < 1 - confidence}, with Bin ~ Binomial(guesses, 1 / (1 + e^-ε)),
    β = P[Bin ≥ right] and α = max over i of P[right - i ≤ Bin < right] / i.
    """
    if not 0 <= right <= guesses <= canaries:
        raise ValueError(f"expected 0 <= right <= guesses <= canaries, got {right}, {guesses}, {canaries}")
    low, high = 0.0, 64.0
    if _p_value(low, canaries, guesses, right, delta) >= 1 - confidence:
        return 0.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        rejected = _p_value(middle, canaries, guesses, right, delta) < 1 - confidence
        low, high = (middle, high) if rejected else (low, middle)
    return low


def _p_value(epsilon: float, canaries: int, guesses: int, right: int, delta: float) -> float:
    """How likely at most so many right guesses are under (ε, δ)-differential privacy."""
    if right == 0:
        return 1.0
    from scipy import special  # as long to import as a command may take that attacks nothing

    probability = 1 / (1 + math.exp(-epsilon))
    beta = float(special.bdtrc(right - 1, guesses, probability))
    at_most = special.bdtr(np.arange(right), guesses, probability)
    below = at_most[-1] - np.append(at_most[-2::-1], 0.0)
    alpha = float((below / np.arange(1, right + 1)).max())
    return beta + 2 * canaries * delta * alpha


@dataclass(frozen=True)
class EpsilonBound:
    """What an attack on canaries refutes, and what it could have refuted at best."""

    epsilon: float
    """With ``confidence``, training is not (ε', δ)-differentially private for any ε' below this."""
    ceiling: float
    """The bound if every guess were right: this audit cannot refute a larger ε."""
    delta: float
    canaries: int
    guesses: int
    """Fixed beforehand: half the canaries."""
    models: int
    confidence: float = 0.95


def audit_epsilon(evidence: Floats, members: Mask, *, delta: float) -> EpsilonBound:
    """One-run audits of several models, each of which is a target once, as one bound.

    Half of the p-values at or below half a level reject at that level, however they depend on each other
    (Rüger 1978), so the bound is the median over the models at half the level: no model is picked.

    Args:
        evidence: [models, canaries], from one of ATTACKS; for each model its canaries' coins are
            independent of everything else that the evidence was made from.
        members: [models, canaries], fair coins.
    """
    models, canaries = evidence.shape
    guesses, middle = canaries // 2, math.ceil(models / 2)
    confidence = 1 - 0.05 * middle / models
    named = np.argsort(-evidence, axis=1, kind="stable")[:, :guesses]
    right = np.sort(np.take_along_axis(members, named, 1).sum(1))[::-1]

    def bound(count: int) -> float:
        return epsilon_lower_bound(canaries, guesses, count, delta=delta, confidence=confidence)

    return EpsilonBound(bound(int(right[middle - 1])), bound(guesses), delta, canaries, guesses, models)
