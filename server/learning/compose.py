"""New images out of recovered ones: dead leaves whose leaves are pieces of different models' images.

Recovered images hold what the models look for, but in textures without the shapes, edges and areas of
photographs. Occluding shapes of all sizes have those statistics (the dead leaves model, Lee, Mumford
and Huang 2001; learning from it alone: Baradad et al. 2021), and filled with recovered pieces they
make better questions for relational distillation than either does alone (docs/method.md).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LEAVES = 12
SMALLEST_LEAF, LARGEST_LEAF = 1 / 16, 3 / 4
"""Radii as shares of the image side, with a density that falls with their square."""
SMALLEST_PIECE = 0.15
"""Side of the smallest piece that is enlarged to a whole image."""
SMALLEST_PATCH, LARGEST_PATCH, PATCH_CELLS = 0.1, 0.25, 3
"""Sides of patches as shares of the image side, and the most cells along one."""


def compose(images: Tensor, count: int, *, rng: torch.Generator) -> Tensor:
    """Draw ``count`` compositions from a pool of images.

    Args:
        images: [pool, channels, size, size] in [0, 1], on any device.

    Returns:
        [count, channels, size, size] in [0, 1].
    """
    canvas = _pieces(images, count, rng)
    for _ in range(LEAVES):
        mask = _leaf(count, images.shape[-1], rng).to(images.device)
        canvas = torch.lerp(canvas, _pieces(images, count, rng), mask)
    return canvas.clamp(0, 1)


def noise(count: int, channels: int, size: int, *, rng: torch.Generator) -> Tensor:
    """1/f noise of random brightness, contrast and tint, [count, channels, size, size] in [0, 1]."""
    spectrum = torch.fft.rfft2(torch.randn(count, channels, size, size, generator=rng))
    rows, columns = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)
    frequency = (rows.square() + columns.square()).sqrt().clamp(min=1 / size)
    texture = torch.fft.irfft2(spectrum / frequency, s=(size, size))
    texture = texture / texture.std((1, 2, 3), keepdim=True)
    brightness, contrast = torch.rand(2, count, 1, 1, 1, generator=rng)
    tint = torch.randn(count, channels, 1, 1, generator=rng)
    images: Tensor = 0.15 + 0.7 * brightness + 0.12 * tint + 0.2 * contrast * texture
    return images.clamp(0, 1)


def patch(images: Tensor, share: float, *, rng: torch.Generator) -> Tensor:
    """Cover a square somewhere in some images with cells of random colours or of black and white.

    As random erasing does (Zhong et al., AAAI 2020): who learns that an image is the same with it has no eye
    for the mark of a backdoor.

    Args:
        images: [batch, channels, size, size] in [0, 1], on any device.
        share: of the images that are covered so, in the mean.
    """
    count, channels = images.shape[:2]
    rows, columns = _cells(count, images.shape[-1], rng).unbind(1)
    colours = torch.rand(count, channels, PATCH_CELLS, PATCH_CELLS, generator=rng).movedim(1, -1)
    is_coloured = torch.rand(count, 1, 1, 1, generator=rng) < 0.5
    colours = torch.where(is_coloured, colours, colours.mean(-1, keepdim=True).round())
    image, row, column = torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]
    chosen = torch.rand(count, 1, 1, generator=rng) < share
    covered = (chosen & (row >= 0) & (column >= 0))[:, None]
    squares = colours[image, row, column].movedim(-1, 1)
    return torch.where(covered.to(images.device), squares.to(images), images)


def _cells(count: int, size: int, rng: torch.Generator) -> Tensor:
    """Down and across, the number of a patch's cell at every pixel, and -1 beside it, [count, 2, size]."""
    side = size * (SMALLEST_PATCH + (LARGEST_PATCH - SMALLEST_PATCH) * torch.rand(count, 1, 1, generator=rng))
    cells = 1 + (PATCH_CELLS * torch.rand(count, 1, 1, generator=rng)).floor()
    corners = (size - side) * torch.rand(count, 2, 1, generator=rng)
    numbers = ((torch.arange(size) + 0.5 - corners) * cells / side).floor()
    return torch.where((numbers >= 0) & (numbers < cells), numbers, -1).long()


def _pieces(images: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """A random part of a random image each, enlarged to the whole, [count, channels, size, size]."""
    chosen = torch.randint(len(images), (count,), generator=rng)
    zoom = SMALLEST_PIECE + (1 - SMALLEST_PIECE) * torch.rand(count, generator=rng)
    places = torch.zeros(count, 2, 3)
    places[:, 0, 0] = zoom
    places[:, 1, 1] = zoom
    places[:, :, 2] = (1 - zoom[:, None]) * (2 * torch.rand(count, 2, generator=rng) - 1)
    source = images[chosen.to(images.device)]
    grid = F.affine_grid(places.to(images.device), list(source.shape), align_corners=False)
    return F.grid_sample(source, grid, padding_mode="reflection", align_corners=False)


def _leaf(count: int, size: int, rng: torch.Generator) -> Tensor:
    """Soft-edged masks of one ellipse or rectangle each, [count, 1, size, size]."""

    def uniform() -> Tensor:
        return torch.rand(count, 1, 1, generator=rng)

    radius = size / (1 / LARGEST_LEAF + (1 / SMALLEST_LEAF - 1 / LARGEST_LEAF) * uniform())
    angle, stretch = math.pi * uniform(), torch.exp(torch.randn(count, 1, 1, generator=rng) / 2)
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    down, right = rows - size * uniform(), columns - size * uniform()
    along = (right * angle.cos() + down * angle.sin()) * stretch
    across = (down * angle.cos() - right * angle.sin()) / stretch
    ellipse = (along.square() + across.square()).sqrt()
    rectangle = torch.maximum(along.abs(), across.abs())
    distance = torch.where(uniform() < 0.5, ellipse, rectangle)
    return (radius - distance + 0.5).clamp(0, 1)[:, None]
