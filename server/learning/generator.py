"""The meta-generator G(z; θ): latent vectors to images (FREE, section 3.2 and its released network)."""

import math

import torch.nn.functional as F
from torch import Tensor, nn


class Generator(nn.Module):
    """A linear layer to a quarter of the image size, then two upsampling convolution blocks.

    BatchNorm uses the statistics of the batch at hand, always: the generator is adapted to each
    model anew, so running statistics would describe none of them.
    """

    def __init__(self, *, latent_size: int, width: int, channels: int, image_size: int) -> None:
        super().__init__()
        self.latent_size = latent_size
        self.image_size = image_size
        self._base = math.ceil(image_size / 4)
        self.project = nn.Linear(latent_size, 2 * width * self._base**2)
        self.blocks = nn.Sequential(
            _batch_norm(2 * width),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False),
            _batch_norm(2 * width),
            nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(2 * width, width, 3, padding=1, bias=False),
            _batch_norm(width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, channels, 3, padding=1),
            nn.Sigmoid(),
        )

    def forward(self, latent: Tensor) -> Tensor:
        """[batch, latent_size] to images [batch, channels, image_size, image_size] in [0, 1]."""
        hidden = self.project(latent).view(len(latent), -1, self._base, self._base)
        images: Tensor = self.blocks(hidden)
        if images.shape[-1] != self.image_size:
            images = F.interpolate(images, size=self.image_size, mode="bilinear", align_corners=False)
        return images


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, track_running_stats=False)
