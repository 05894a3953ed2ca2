"""The picture of what a server recovered from the models it was given."""

import io
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fedfree.host.files import write_file

CELL_PIXELS = 64
"""Smallest side of a cell."""
MAX_CELL_PIXELS = 128
"""Larger images are shrunk to it."""
GAP_PIXELS = 4
"""Between cells."""
MARGIN_PIXELS = 12
LABEL_GAP_PIXELS = 8
"""Between a label and its cells."""
FONT_PIXELS = 13
ID_DIGITS = 8
"""Of a contribution's id, on its row."""

_PAPER, _INK = (245, 246, 247), (70, 76, 84)


def synthetic_picture(gallery: dict[str, Tensor], path: Path) -> None:
    """Write a PNG with one row a model and one column a class.

    Args:
        gallery: contribution id to uint8 [classes, channels, size, size], one or three channels; the
            models may differ in each of these numbers.
        path: where the PNG goes.

    Raises:
        ValueError: nothing to draw.
    """
    if not gallery:
        raise ValueError("the gallery holds no model, so there is nothing to draw")
    font = ImageFont.load_default(size=FONT_PIXELS)
    cell = _cell_side(max(images.shape[-1] for images in gallery.values()))
    left = MARGIN_PIXELS + LABEL_GAP_PIXELS + round(max(font.getlength(_row_label(key)) for key in gallery))
    top = MARGIN_PIXELS + LABEL_GAP_PIXELS + FONT_PIXELS
    xs = _starts(left, cell, max(len(images) for images in gallery.values()))
    ys = _starts(top, cell, len(gallery))
    canvas = Image.new("RGB", (xs[-1] + cell + MARGIN_PIXELS, ys[-1] + cell + MARGIN_PIXELS), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for column, x in enumerate(xs):
        draw.text((x + cell / 2, top - LABEL_GAP_PIXELS), str(column), fill=_INK, font=font, anchor="ms")
    for y, (identity, images) in zip(ys, gallery.items(), strict=True):
        label_at = (left - LABEL_GAP_PIXELS, y + cell / 2)
        draw.text(label_at, _row_label(identity), fill=_INK, font=font, anchor="rm")
        for x, image in zip(xs, images, strict=False):
            _paste_centred(canvas, _enlarged(image, cell), (x, y), cell)
    buffer = io.BytesIO()
    canvas.save(buffer, "png")
    write_file(path, buffer.getvalue())


def _cell_side(largest: int) -> int:
    """A whole multiple of the largest image's side, unless that side is too large itself."""
    return min(largest * -(-CELL_PIXELS // largest), MAX_CELL_PIXELS)


def _starts(first: int, cell: int, count: int) -> list[int]:
    return [first + index * (cell + GAP_PIXELS) for index in range(count)]


def _row_label(identity: str) -> str:
    return identity[:ID_DIGITS]


def _enlarged(image: Tensor, cell: int) -> Image.Image:
    """[channels, size, size] uint8 as a picture, each pixel a square of whole pixels where that fits."""
    pixels = image.cpu().permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).convert("RGB")
    if max(picture.size) > cell:
        picture.thumbnail((cell, cell))
        return picture
    factor = cell // max(picture.size)
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _paste_centred(canvas: Image.Image, picture: Image.Image, corner: tuple[int, int], cell: int) -> None:
    x, y = corner
    canvas.paste(picture, (x + (cell - picture.width) // 2, y + (cell - picture.height) // 2))
