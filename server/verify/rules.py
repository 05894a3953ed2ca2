"""What is looked at before a contribution joins the pool: one function a rule."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fedfree.accounting import FINER_MESH, run_epsilon
from fedfree.architectures import Classifier, InputSpec
from fedfree.codec import Contribution, sha256
from fedfree.errors import ContributionError
from fedfree.extension import name_taken
from fedfree.rule import RULES as CONTRACT
from fedfree.seeding import make_generator
from fedfree.start import LoadedStart, body_for, require_start

PROBE_IMAGES = 16
PART = 4
"""Images that are looked at together: the largest network at the largest size then takes half a gigabyte."""
MAX_ACTIVATION = 1e4
"""Half-precision numbers, in which features are remembered, end at 65504; trained networks stay below 100."""
EPSILON_TOLERANCE, RELATIVE_TOLERANCE = 0.02, 0.02
"""By how much a claimed ε may lie below the one recomputed here, the smaller counts: accountants round
differently."""


@dataclass(frozen=True)
class Known:
    """What a contribution is held against."""

    pool: Mapping[str, str]
    """The pool so far: SHA-256 of weights to contribution id."""
    starts: Sequence[LoadedStart] = ()
    """Where the federation begins, one as good as another; none for random weights."""


Rule = Callable[[Contribution, Known], Mapping[str, float]]
"""From a contribution, and what it is held against, to what to record of it.

Raises ContributionError with the reason, to quarantine it.
"""


def check_start(contribution: Contribution, known: Known) -> Mapping[str, float]:
    """It began where the federation does.

    First, as other rules need its start.
    """
    require_start(contribution, [each.start for each in known.starts])
    return {}


def check_not_a_copy(contribution: Contribution, known: Known) -> Mapping[str, float]:
    """Its weights are not in the pool already."""
    original = known.pool.get(sha256(contribution.weights))
    if original is not None:
        raise ContributionError(f"the same weights as contribution {original[:12]}…")
    return {}


def check_activations(contribution: Contribution, known: Known) -> Mapping[str, float]:
    """On noise of several scales, flat and striped images, features and outputs are at most 10,000."""
    network, spec = _network(contribution, known), contribution.input
    for name, images in probe_images(spec).items():
        for part in images.split(PART):
            with torch.no_grad():
                features = network.features(spec.normalise(part))
                logits = network.head(features)
            for what, values in (("features", features), ("outputs", logits)):
                if not values.isfinite().all():
                    raise ContributionError(f"the network's {what} on {name} are not finite")
                if (largest := float(values.abs().max())) > MAX_ACTIVATION:
                    raise ContributionError(
                        f"the network's {what} on {name} reach {largest:.3g}, above {MAX_ACTIVATION:g}"
                    )
    return {}


@torch.no_grad()
def check_outputs_differ(contribution: Contribution, known: Known) -> Mapping[str, float]:
    """The outputs depend on the image."""
    network, spec = _network(contribution, known), contribution.input
    parts = spec.normalise(probe_images(spec)["noise"]).split(PART)
    logits = torch.cat([network(part) for part in parts])
    if torch.equal(logits, logits[:1].expand_as(logits)):
        raise ContributionError("the network's outputs do not depend on the image")
    return {}


def check_gradients(contribution: Contribution, known: Known) -> Mapping[str, float]:
    """The gradient by which images are recovered is finite."""
    network, spec = _network(contribution, known), contribution.input
    for name, images in probe_images(spec).items():
        pixels = images[:1].clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(network(spec.normalise(pixels)).logsumexp(1).sum(), pixels)
        if not gradient.isfinite().all():
            raise ContributionError(f"the gradient of the network's outputs on {name} is not finite")
    return {}


def probe_images(spec: InputSpec) -> dict[str, Tensor]:
    """Images that no organisation holds, by their kind: [images, channels, height, width] in [0, 1]."""
    rng, size = make_generator(0, "verify"), (spec.height, spec.width)

    def noise(count: int, height: int, width: int) -> Tensor:
        return torch.rand(count, spec.channels, height, width, generator=rng)

    stripes = (torch.arange(spec.width) // 4 % 2).float().expand(1, spec.channels, *size)
    return {
        "noise": noise(PROBE_IMAGES, *size),
        "coarse noise": F.interpolate(noise(4, 4, 4), size=size, mode="bilinear"),
        "faint noise": 0.5 + (noise(2, *size) - 0.5) / 100,
        "hard noise": noise(2, *size).round(),
        "flat images": torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1).expand(3, spec.channels, *size),
        "stripes": torch.cat([stripes, 1 - stripes]),
    }


def _network(contribution: Contribution, known: Known) -> Classifier:
    return contribution.network(body_for(contribution, known.starts)).requires_grad_(False)


def check_privacy_claim(contribution: Contribution, known: Known) -> Mapping[str, float]:
    """A claimed ε is no smaller than its own noise, sampling rate and steps give.

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
    if _is_below(claim.epsilon, recomputed):
        recomputed = run_epsilon(claim.run, claim.delta, finest_mesh=FINER_MESH)
    if _is_below(claim.epsilon, recomputed):
        raise ContributionError(
            f"claims epsilon {claim.epsilon:.3f} at delta {claim.delta:g}, but its noise multiplier, "
            f"sampling rate and steps give {recomputed:.3f}"
        )
    return {
        "epsilon_claimed_by_the_client": claim.epsilon,
        "epsilon_recomputed_from_the_claim": recomputed,
        "delta": claim.delta,
    }


def _is_below(claimed: float, recomputed: float) -> bool:
    return claimed < recomputed - min(EPSILON_TOLERANCE, RELATIVE_TOLERANCE * recomputed)


RULES: list[Rule] = [
    check_start,
    check_not_a_copy,
    check_activations,
    check_outputs_differ,
    check_gradients,
    check_privacy_claim,
]
"""In the order in which they are applied, after those of the contract, :data:`fedfree.rule.RULES`."""


def name_of(rule: Rule) -> str:
    """A rule's name, as whoever broke it is told."""
    return str(getattr(rule, "__name__", rule)).removeprefix("check_").replace("_", "-")


OURS: Mapping[str, object] = {**CONTRACT, **{name_of(rule): rule for rule in RULES}}
"""Every rule of FedFREE's own by its name."""


def require_own_names() -> None:
    """Refuse somebody's own rule under the name of one of ours, which is told to senders; ExtensionError."""
    for rule in RULES:
        ours = OURS.get(name_of(rule), rule)
        if rule is not ours:
            raise name_taken("rule", name_of(rule), rule, ours)
