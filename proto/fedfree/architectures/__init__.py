"""Architecture id to network, one small file each: nothing is built from what another party sends."""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import BeforeValidator, PlainSerializer

from fedfree.architectures.base import (
    MAX_IMAGE_SIZE,
    MIN_IMAGE_SIZE,
    Classifier,
    InputSpec,
    make_norm,
    use_channels_last,
)
from fedfree.architectures.conv4 import Conv4
from fedfree.architectures.resnet import ResNet
from fedfree.architectures.torchvision import TorchvisionClassifier, torchvision_names
from fedfree.errors import ContributionError

__all__ = [
    "MAX_IMAGE_SIZE",
    "MIN_IMAGE_SIZE",
    "Architecture",
    "ArchitectureId",
    "Classifier",
    "InputSpec",
    "TorchvisionClassifier",
    "build",
    "make_norm",
    "use_channels_last",
]

TORCHVISION_PREFIX = "torchvision/"


@dataclass(frozen=True)
class Architecture:
    """Which network; together with classes and input it fixes every tensor's name and shape."""

    id: str = "conv4"
    """``conv4``, ``resnet10``, ``resnet18`` or ``torchvision/<name>``."""
    width: int = 0
    """Filters a layer, conv4 only: 32 (default) or 64."""
    norm: str = ""
    """``batch`` (default) or ``group`` (what DP-SGD needs); empty for torchvision networks."""

    def __post_init__(self) -> None:
        if self.id == "conv4":
            object.__setattr__(self, "width", self.width or 32)
        if self.id in ("conv4", "resnet10", "resnet18"):
            object.__setattr__(self, "norm", self.norm or "batch")
        elif not (self.id.startswith(TORCHVISION_PREFIX) and self._torchvision_name() in torchvision_names()):
            raise ContributionError(
                f"unknown architecture {self.id!r}: use conv4, resnet10, resnet18 or torchvision/<name> "
                "with a torchvision classification model such as torchvision/mobilenet_v2"
            )
        if self.id == "conv4" and self.width not in (32, 64):
            raise ContributionError(f"conv4 comes in width 32 and 64, got {self.width}")
        if self.id != "conv4" and self.width:
            raise ContributionError(f"{self.id} has no width option, got width {self.width}")
        if self.norm not in (("",) if self._torchvision_name() else ("batch", "group")):
            raise ContributionError(f"{self.id} cannot be built with norm {self.norm!r}: use batch or group")

    def _torchvision_name(self) -> str:
        return self.id.removeprefix(TORCHVISION_PREFIX) if self.id.startswith(TORCHVISION_PREFIX) else ""

    @classmethod
    def parse(cls, text: str) -> "Architecture":
        """Read what ``str`` writes, for instance ``conv4``, ``conv4-64`` or ``resnet10-group``."""
        id, *options = text.split("-")
        width = [option for option in options if option.isdecimal()]
        norm = [option for option in options if not option.isdecimal()]
        if len(width) > 1 or len(norm) > 1:
            raise ContributionError(f"expected <id>[-<width>][-<norm>], got {text!r}")
        return cls(id, int(width[0]) if width else 0, norm[0] if norm else "")

    def __str__(self) -> str:
        return "-".join(str(part) for part in (self.id, self.width, self.norm) if part)


def _parsed(value: object) -> object:
    return Architecture.parse(value) if isinstance(value, str) else value


ArchitectureId = Annotated[
    Architecture, BeforeValidator(_parsed), PlainSerializer(str, return_type=str, when_used="json")
]
"""In a configuration, ``conv4-64-group`` rather than a table."""


def build(architecture: Architecture, *, num_classes: int, input: InputSpec) -> Classifier:
    """A freshly initialised network in evaluation mode.

    Raises:
        ContributionError: fewer than two classes, or a torchvision network that cannot take this input.
    """
    if not 2 <= num_classes <= 10_000:
        raise ContributionError(f"a classifier has 2 to 10000 classes, got {num_classes}")
    if architecture.id == "conv4":
        return Conv4(
            width=architecture.width, norm=architecture.norm, num_classes=num_classes, input=input
        ).eval()
    if architecture.id in ("resnet10", "resnet18"):
        blocks = 1 if architecture.id == "resnet10" else 2
        return ResNet(
            blocks_a_stage=blocks, norm=architecture.norm, num_classes=num_classes, input=input
        ).eval()
    name = architecture.id.removeprefix(TORCHVISION_PREFIX)
    try:
        network = TorchvisionClassifier(name=name, num_classes=num_classes, input=input).eval()
        with torch.no_grad():
            network(torch.zeros(1, input.channels, input.height, input.width))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ContributionError(
            f"{architecture.id} cannot take {input.channels}x{input.height}x{input.width} images: {error}"
        ) from error
    return network
