"""What is looked at before a contribution joins the pool: one function a rule."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from fedfree.accounting import run_epsilon
from fedfree.codec import Contribution, sha256
from fedfree.errors import ContributionError
from fedfree.seeding import make_generator
from fedfree.start import LoadedStart, body_for, require_start

PROBE_IMAGES = 16
EPSILON_TOLERANCE = 0.02
"""By how much a claimed ε may lie below the one recomputed here: accountants round differently."""


@dataclass(frozen=True)
class Known:
    """What a contribution is held against."""

    pool: Mapping[str, str]
    """The pool so far: SHA-256 of weights to contribution id."""
    start: LoadedStart | None = None
    """Where the federation begins; None for random weights."""
    further: Sequence[LoadedStart] = ()
    """Other starts that are as good."""

    @property
    def starts(self) -> Sequence[LoadedStart]:
        """All of them."""
        return (self.start, *self.further) if self.start else ()


Rule = Callable[[Contribution, Known], Mapping[str, float]]
"""From a contribution, and what it is held against, to what to record of it.

Raises ContributionError with the reason, to quarantine it.
"""


def check_start(contribution: Contribution, known: Known) -> Mapping[str, float]:
    """Refuse a contribution that began at no start of the federation; first, as others need its start."""
    start = known.start.start if known.start else None
    require_start(contribution, start, *(each.start for each in known.further))
    return {}


def check_not_a_copy(contribution: Contribution, known: Known) -> Mapping[str, float]:
    """Refuse weights that are already in the pool."""
    original = known.pool.get(sha256(contribution.weights))
    if original is not None:
        raise ContributionError(f"the same weights as contribution {original[:12]}…")
    return {}


@torch.no_grad()
def check_behaviour(contribution: Contribution, known: Known) -> Mapping[str, float]:
    """Refuse a network that computes nothing useful: outputs not finite, or the same for every image."""
    spec = contribution.input
    noise = torch.rand(
        PROBE_IMAGES, spec.channels, spec.height, spec.width, generator=make_generator(0, "verify")
    )
    network = contribution.network(body_for(contribution, known.starts))
    logits = network(spec.normalise(noise))
    if not logits.isfinite().all():
        raise ContributionError("the network's outputs on noise are not finite")
    if torch.equal(logits, logits[:1].expand_as(logits)):
        raise ContributionError("the network's outputs do not depend on the image")
    return {}


def check_privacy_claim(contribution: Contribution, known: Known) -> Mapping[str, float]:
    """Recompute ε from the noise, sampling rate and steps that a statement names.

    What was really done cannot be seen from here, so even an ε that agrees is the client's claim.

    Returns:
        What to record: nothing where no differential privacy is claimed.

    Raises:
        ContributionError: the claimed ε is below the recomputed one.
    """
    claim = contribution.privacy.differential_privacy
    if claim is None:
        return {}
    recomputed = run_epsilon(claim.run, claim.delta)
    if claim.epsilon < recomputed - EPSILON_TOLERANCE:
        raise ContributionError(
            f"claims epsilon {claim.epsilon:.3f} at delta {claim.delta:g}, but its noise multiplier, "
            f"sampling rate and steps give {recomputed:.3f}"
        )
    return {
        "epsilon_claimed_by_the_client": claim.epsilon,
        "epsilon_recomputed_from_the_claim": recomputed,
        "delta": claim.delta,
    }


RULES: list[Rule] = [check_start, check_not_a_copy, check_behaviour, check_privacy_claim]
"""In the order in which they are applied."""
