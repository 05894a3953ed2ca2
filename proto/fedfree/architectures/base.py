"""What every network is: named features before a linear head, for images of one input specification."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedfree.errors import ContributionError

GROUP_NORM_GROUPS = 8
MIN_IMAGE_SIZE = 16
MAX_IMAGE_SIZE = 512


@dataclass(frozen=True)
class InputSpec:
    """What a network expects of an image; pixels are in [0, 1] before normalisation."""

    channels: int = 3
    height: int = 32
    width: int = 32
    mean: tuple[float, ...] = ()
    """One a channel; 0.5 by default, which says nothing about anyone's images."""
    std: tuple[float, ...] = ()
    """One a channel, above zero; 0.5 by default."""
    horizontal_flip: bool = True
    """Whether a mirrored image still shows the same class."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(self.mean) or (0.5,) * self.channels)
        object.__setattr__(self, "std", tuple(self.std) or (0.5,) * self.channels)
        if self.channels not in (1, 3):
            raise ContributionError(f"images have 1 or 3 channels, got {self.channels}")
        if not all(MIN_IMAGE_SIZE <= side <= MAX_IMAGE_SIZE for side in (self.height, self.width)):
            raise ContributionError(
                f"images are {MIN_IMAGE_SIZE} to {MAX_IMAGE_SIZE} pixels a side, "
                f"got {self.height}x{self.width}"
            )
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ContributionError(
                f"expected {self.channels} means and deviations, got {self.mean}, {self.std}"
            )
        if not all(-10 < m < 10 for m in self.mean) or not all(1e-3 < s < 100 for s in self.std):
            raise ContributionError(f"normalisation out of range: mean {self.mean}, std {self.std}")

    def normalise(self, images: Tensor) -> Tensor:
        """[batch, channels, height, width] in [0, 1] to the network's scale, same shape."""
        return (images - _one_a_channel(self.mean, images)) / _one_a_channel(self.std, images)

    def resize(self, images: Tensor) -> Tensor:
        """Bring [batch, 1 or 3, h, w] images to this spec's channels and size, still in [0, 1]."""
        if images.shape[1] != self.channels:
            images = images.mean(1, keepdim=True) if self.channels == 1 else images.expand(-1, 3, -1, -1)
        if images.shape[2:] != (self.height, self.width):
            images = nn.functional.interpolate(
                images, size=(self.height, self.width), mode="bilinear", antialias=True, align_corners=False
            )
        return images


def _one_a_channel(values: tuple[float, ...], like: Tensor) -> Tensor | float:
    """[1, channels, 1, 1]; a number where it is the same for all, since a copy to a GPU waits for the GPU."""
    if len(set(values)) == 1:
        return values[0]
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, 1, 1)


class Classifier(nn.Module):
    """A network with named features: ``forward`` is ``head(features(images))``."""

    head: nn.Module
    feature_size: int
    level_size: int | None = None
    """Of what :meth:`levels` gives; None where that is the features."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def features(self, images: Tensor) -> Tensor:
        """[batch, channels, height, width], normalised, to [batch, feature_size]."""
        raise NotImplementedError

    def levels(self, images: Tensor) -> Tensor:
        """Features of several depths side by side, [batch, level_size]; else the features."""
        return self.features(images)

    def forward(self, images: Tensor) -> Tensor:
        """[batch, channels, height, width], normalised, to logits [batch, num_classes]."""
        logits: Tensor = self.head(self.features(images))
        return logits


def make_norm(norm: str, channels: int) -> nn.Module:
    """BatchNorm, or GroupNorm with 8 groups (what DP-SGD allows)."""
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(GROUP_NORM_GROUPS, channels)


def freeze_statistics(network: nn.Module) -> None:
    """Let every BatchNorm normalise by its running statistics, and leave them alone."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def use_channels_last(network: nn.Module) -> None:
    """Lay out the convolution weights so that a CPU runs Conv4 about twice as fast."""
    network.to(memory_format=torch.channels_last)
