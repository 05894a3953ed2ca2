"""None of these: how near an image is to the classes, and how near is near enough.

The score is the cosine similarity of an image's features (their roots, see :func:`unit_roots`) to the
nearest class mean, each image on its own. The threshold is set so that about 95 % of the images of known
classes pass.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from client.adapting.classifier import Openness
from fedfree.adaptation import unit_roots

ENOUGH = 10
"""Support images that, left out one at a time, show how near images of known classes are."""
DEVIATIONS = 1.645
"""Five percent of a normal distribution lie more than so many standard deviations below its mean."""
MARGIN = 0.22
"""With fewer than ENOUGH: how far below the similarity of support images to the nearest *other* class the
threshold lies, as a share of what that similarity lacks to 1. Chosen on meta_val (docs/method.md)."""


def measure_openness(features: Tensor, labels: Tensor, *, n_way: int) -> tuple[Openness, Tensor]:
    """The threshold and the class means, from the support set alone.

    Args:
        features: [images, feature_size] of the support images.
        labels: [images], int64 in 0 … n_way - 1.

    Returns:
        The threshold, and the class means [n_way, feature_size], of unit length.
    """
    roots = unit_roots(features)
    members = F.one_hot(labels, n_way).to(roots.dtype)
    sums = members.T @ roots
    means = F.normalize(sums, dim=1)
    others = (roots @ means.T).masked_fill(members.bool(), -1).amax(1)
    has_company = members.sum(0)[labels] >= 2
    own = (roots * F.normalize(sums[labels] - roots, dim=1)).sum(1)
    scores = torch.maximum(own, others)[has_company]
    if len(scores) >= ENOUGH:
        threshold = scores.mean() - DEVIATIONS * scores.std()
    else:
        threshold = others.mean() - MARGIN * (1 - others.mean())
    left_out = len(scores) if len(scores) >= ENOUGH else 0
    return Openness(threshold=float(threshold.clamp(-1, 1)), images=left_out), means
