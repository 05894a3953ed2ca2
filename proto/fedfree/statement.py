"""The privacy statement that travels with a model.

It says what was done, never more: status ``none`` is the honest default.
"""

from dataclasses import dataclass
from enum import Enum


class PrivacyStatus(Enum):
    """What protects the training images of a released model."""

    NONE = "none"
    EMPIRICAL_ONLY = "empirical only"
    DP = "DP"


@dataclass(frozen=True)
class PrivacyStatement:
    """What the contributing organisation declares about its training images."""

    status: PrivacyStatus = PrivacyStatus.NONE
    """``none``: the model was trained without any protection of its training images."""
