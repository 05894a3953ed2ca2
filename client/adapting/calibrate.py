"""Probabilities that mean what they say: one temperature, fitted to images the classifier has not seen.

Temperature scaling (Guo et al., ICML 2017) changes no decision, only how sure it sounds.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from client.adapting.classifier import Calibration

PRIOR = 0.2
"""Standard deviation of the logarithm of the temperature that a head calibrated beforehand needs."""

TEMPERATURES = torch.logspace(-1, 1, 401, dtype=torch.float64)
"""Those tried: 0.1 to 10 in steps of 1.2 %."""


def calibrate(logits: Tensor, labels: Tensor, *, near_one: bool = False) -> Calibration:
    """The temperature with the lowest negative log-likelihood of the labels.

    To the images comes one more, of which nothing is known (all classes alike): without it a handful of
    images predicted correctly would claim certainty. Platt (1999) smooths his targets for this reason.

    Args:
        logits: [images, n_way] of images that the classifier was not adapted to.
        labels: [images], int64; at least one.
        near_one: the logits are calibrated already, so that the temperature is 1 unless the images say
            otherwise (PRIOR); this takes the place of the image of which nothing is known.
    """
    count = len(labels)
    unknown = 0 if near_one else 1 / (count + 1)

    def loss(temperature: Tensor) -> float:
        misfit = F.cross_entropy(logits.double() / temperature, labels, label_smoothing=unknown)
        surprise = (temperature.log() / PRIOR) ** 2 / 2 / count if near_one else 0
        return float(misfit + surprise)

    return Calibration(
        temperature=float(min(TEMPERATURES, key=loss)),
        images=count,
        accuracy=float((logits.argmax(1) == labels).double().mean()),
    )
