"""Do synthetic images lie nearer to the images a model was trained on than to others like them?

A weak check: such tests read chance where membership inference on the same model does not. Structural
similarity after Wang et al. 2004: Gaussian window of 11 pixels, deviation 1.5.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from client.adapting.adapt import extract_features
from fedfree.adaptation import Recipe
from fedfree.architectures import Classifier, InputSpec
from fedfree.codec import Contribution

LABEL = "memorisation check (weak): not evidence of privacy"
SSIM_WINDOW, SSIM_DEVIATION = 11, 1.5
_LUMINANCE, _CONTRAST = 0.01**2, 0.03**2

Distances = Callable[[Tensor, Tensor], Tensor]
"""From images [n, channels, size, size] and [m, channels, size, size] in [0, 1] to [n, m]."""


def pixel_distances(first: Tensor, second: Tensor) -> Tensor:
    """Root mean square differences, [n, m]."""
    distances: Tensor = torch.cdist(first.flatten(1), second.flatten(1))
    return distances / math.sqrt(first[0].numel())


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Mean structural similarity of every pair, [n, m]; 1 for an image and itself."""
    mean, others_mean = _blur(first), _blur(second)
    variance = _blur(first**2) - mean**2
    others_variance = _blur(second**2) - others_mean**2
    rows = []
    for index, image in enumerate(first):
        covariance = _blur(image * second) - mean[index] * others_mean
        likeness = (2 * mean[index] * others_mean + _LUMINANCE) * (2 * covariance + _CONTRAST)
        size = (mean[index] ** 2 + others_mean**2 + _LUMINANCE) * (
            variance[index] + others_variance + _CONTRAST
        )
        rows.append((likeness / size).mean((1, 2, 3)))
    return torch.stack(rows)


def _blur(images: Tensor) -> Tensor:
    """Gaussian means over the windows that lie within the images."""
    offsets = torch.arange(SSIM_WINDOW, dtype=images.dtype) - SSIM_WINDOW // 2
    weights = (-(offsets**2) / (2 * SSIM_DEVIATION**2)).exp()
    channels = images.shape[1]
    row = (weights / weights.sum()).expand(channels, 1, 1, -1)
    return F.conv2d(F.conv2d(images, row, groups=channels), row.transpose(2, 3), groups=channels)


def ssim_distances(first: Tensor, second: Tensor) -> Tensor:
    """1 - SSIM, [n, m]."""
    return 1 - ssim(first, second)


def feature_distances(witness: Contribution) -> Distances:
    """Distances between normalised features of a network that knows nothing of who is a member."""
    network, spec = witness.network(), witness.input

    def measure(first: Tensor, second: Tensor) -> Tensor:
        return torch.cdist(_features(network, spec, first), _features(network, spec, second))

    return measure


def _features(network: Classifier, spec: InputSpec, images: Tensor) -> Tensor:
    return F.normalize(extract_features(network, spec.normalise(spec.resize(images)), Recipe()), dim=1)


@dataclass(frozen=True)
class Nearness:
    """Nearest private against nearest held-out image, by one measure of distance."""

    closer_to_private: float
    """Fraction of the synthetic images; about 0.5 where nothing was copied."""
    median_ratio: float
    """Of distances to the nearest private and the nearest held-out image; about 1, near 0 for copies."""
    lowest_ratio: float
    """The smallest of all synthetic images."""
    closest: tuple[tuple[int, int, int], ...]
    """Indices of synthetic, nearest private and nearest held-out image, closest pairs first."""


def memorisation_check(
    synthetic: Tensor,
    private: Tensor,
    held_out: Tensor,
    measures: Mapping[str, Distances],
    *,
    pairs: int = 4,
    rng: torch.Generator,
) -> dict[str, Nearness]:
    """Compare synthetic images with as many private as held-out images, drawn at random from each.

    Args:
        synthetic: uint8 [n, channels, size, size], like the others.
        measures: name to a function for distances.
        pairs: how many of the closest to name.
    """
    count = min(len(private), len(held_out))
    chosen = [torch.randperm(len(images), generator=rng)[:count] for images in (private, held_out)]
    references = [
        images[rows].float() / 255 for images, rows in zip((private, held_out), chosen, strict=True)
    ]
    return {
        name: _nearness([measure(synthetic.float() / 255, each) for each in references], chosen, pairs)
        for name, measure in measures.items()
    }


def _nearness(distances: list[Tensor], chosen: list[Tensor], pairs: int) -> Nearness:
    """From distances [synthetic, references] to private and to held-out images, and their indices."""
    (to_private, private), (to_held_out, held_out) = (each.min(1) for each in distances)
    ratios = to_private / to_held_out.clamp_min(1e-12)
    closer = (to_private < to_held_out).double() + 0.5 * (to_private == to_held_out).double()
    first = to_private.argsort()[:pairs].tolist()
    return Nearness(
        float(closer.mean()),
        float(ratios.median()),
        float(ratios.min()),
        tuple((row, int(chosen[0][private[row]]), int(chosen[1][held_out[row]])) for row in first),
    )
