"""What was recovered from the models, as one PNG; it is made here, where no image library may come."""

import struct
import zlib
from pathlib import Path

import safetensors
import torch
import torch.nn.functional as F
from torch import Tensor

CELL = 64
"""Pixels a side that an image is shown at."""
GAP = 4
MAX_MODELS, MAX_CLASSES = 100, 20
_PAPER = 128
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def recovered_picture(file: Path) -> bytes:
    """A PNG with one row a model and one column a class, of ``recovered.safetensors``.

    No more is read than is shown: MAX_MODELS and MAX_CLASSES.

    Raises:
        OSError, safetensors.SafetensorError, ValueError: a file that is missing, damaged, or holds none.
    """
    with safetensors.safe_open(file, "pt") as tensors:
        rows = [tensors.get_slice(key)[:MAX_CLASSES] for key in sorted(tensors.keys())[:MAX_MODELS]]
    if not rows:
        raise ValueError(f"{file.name} holds no images")
    return png(_grid([_cells(each) for each in rows]))


def _cells(images: Tensor) -> Tensor:
    """uint8 [classes, channels, height, width], one or three channels, as [classes, 3, CELL, CELL]."""
    smaller = max(images.shape[-2:]) > CELL
    size = (CELL, CELL)
    pixels = images.float()
    resized = F.interpolate(pixels, size, mode="area") if smaller else F.interpolate(pixels, size)
    return resized.round().to(torch.uint8).expand(-1, 3, -1, -1)


def _grid(rows: list[Tensor]) -> Tensor:
    """Cells of several models beneath each other, uint8 [height, width, 3]."""
    step, columns = CELL + GAP, max(map(len, rows))
    canvas = torch.full((3, GAP + len(rows) * step, GAP + columns * step), _PAPER, dtype=torch.uint8)
    for row, cells in enumerate(rows):
        for column, cell in enumerate(cells):
            top, left = GAP + row * step, GAP + column * step
            canvas[:, top : top + CELL, left : left + CELL] = cell
    return canvas.permute(1, 2, 0).contiguous()


def png(pixels: Tensor) -> bytes:
    """A PNG of uint8 [height, width, 3], as of the PNG specification, sections 5, 9 and 11."""
    height, width, _ = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    lines = b"".join(b"\0" + pixels[row].numpy().tobytes() for row in range(height))
    return (
        _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(lines, 6)) + _chunk(b"IEND", b"")
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
