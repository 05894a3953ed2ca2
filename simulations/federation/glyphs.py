"""The embedded data set ``glyphs``: characters of many scripts, rendered from the fonts of matplotlib.

A made stand-in for handwriting (after Omniglot; Lake et al. 2015) for machines without a network.
Whole scripts belong to one split, so that meta-testing meets scripts, not just characters, never seen.
"""

import io
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from fedfree.errors import DataError
from fedfree.host.files import replacing
from fedfree.seeding import derive_seed

SIZE = 32
"""Side of an image, in pixels."""


def _expand(ranges: str) -> str:
    """``0041-0043 0045`` to ``ABCE``."""
    spans = [span.split("-") for span in ranges.split()]
    return "".join(chr(code) for span in spans for code in range(int(span[0], 16), int(span[-1], 16) + 1))


# Code points, because half of these characters read as another of them, or from right to left, in an editor.
# Left out: characters that a script borrows from, or writes much like, one that stands before it.
SCRIPTS: dict[str, dict[str, str]] = {
    "meta_train": {
        "latin": _expand(
            "0041-005A 0061-0062 0064-0068 006B 006D-006E 0070-0072 0074 0079 00C6 00DE 00E6 00FE "
            "014A 018F-0190 0194 01B1-01B2 01B7"
        ),
        "greek": _expand(
            "0393-0394 039E 03A3 03A6 03A8-03A9 03B1-03B2 03B4 03B6 03B8-03BE 03C2-03C4 03C6-03C7 03C9"
        ),
        "cyrillic": _expand(
            "0402 0404 0409-040B 040F 0414 0416-0417 0419 041B 0426-042F 0444 0462 0466 046A 046E 0474"
        ),
        "armenian": _expand(
            "0532-053B 053D-0541 0543-0547 0549-054C 054E 0550 0552 0554 0556 0562 0565 0567-0569 "
            "056C-056F 0571 0573-0574 0576-0577 0579-057B 057E 0583 0586"
        ),
        "georgian": _expand(
            "10A0-10AC 10AE-10B6 10B8 10BC-10C5 10D0-10DC 10DE-10E7 10E9-10EB 10ED 10EF-10F0"
        ),
        "canadian": _expand(
            "1401 1405 140A 1433 1438 143A 143C 1440 1444 1450 1467-146B 146F 1489 148D 1490 14A3 "
            "14A7 14C0 14C2 14C4 14C7 14D3 14D5 14D7 14DA 14ED 14EF 14F1 14F4 1510-1511 1513 1515 "
            "1526 1528 152A 152D 1542 1546 1548 154B 1553 1555 1557 1559 155E 1560 1564 1566 157F "
            "1581"
        ),
    },
    "meta_val": {
        "hebrew": _expand("05D0-05D2 05D4 05D6 05D8-05DA 05DC 05DE 05E0 05E2-05E9"),
        "lao": _expand(
            "0E81-0E82 0E84 0E87-0E88 0E8A 0E8D 0E94-0E97 0E99-0E9E 0EA1-0EA3 0EA5 0EA7 0EAA-0EAB 0EAD-0EAE"
        ),
    },
    "meta_test": {
        "tifinagh": _expand(
            "2D33 2D36 2D3A-2D44 2D46-2D48 2D4B-2D4D 2D50 2D52-2D53 2D56-2D58 2D5A-2D5C 2D5E 2D63-2D64"
        ),
        "arabic": _expand(
            "0621-0622 0624 0626 0628-062C 062E-0637 0639-063A 0641-0643 0645-064A 067E 0698 06A4 06AF"
        ),
        "nko": _expand("07CD-07D2 07D4 07D6-07DA 07DC-07DF 07E2-07E5"),
    },
}
"""Split to script to its characters."""

FACES = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-Oblique",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
)
"""Faces to draw from where they hold the character; all have Unicode's meaning for every code point."""
LATIN_FACES = ("cmr10", "cmb10", "cmss10", "cmti10", "cmtt10", "cmmi10")
"""Computer Modern, which is trusted for the letters A to Z and a to z alone."""

_MASK = 64
"""Side of the mask of a character and of the warped image, in pixels, before it shrinks to SIZE."""
_INK = 40
"""Longer side of a character in its mask, in pixels, before it is warped."""
_DRAW = 128
"""Font size at which a character is first drawn."""
_KNOTS = 5
"""Knots a side of the random fields (elastic flow, ink, paper)."""
_FIELDS = 4
"""Random fields an image: flow in x, flow in y, ink, paper."""
_MAX_TURN = 18.0
"""Degrees."""
_MAX_SHEAR = 0.35
_MAX_SCALE = 0.15
"""Logarithm of the scale of both sides; the same for the ratio of the sides."""
_MAX_ASPECT = 0.18
_MAX_SHIFT = 0.12
"""Fraction of half an image."""
_ELASTIC = 0.06
"""Deviation of the elastic flow, as a fraction of half an image."""


def class_names(split: str) -> tuple[str, ...]:
    """The classes of a split, sorted, for instance ``greek_U+03B1``.

    Raises:
        DataError: no such split.
    """
    if split not in SCRIPTS:
        raise DataError(f"no split {split!r} in glyphs: it has {', '.join(SCRIPTS)}")
    scripts = SCRIPTS[split].items()
    return tuple(sorted(f"{script}_U+{ord(char):04X}" for script, chars in scripts for char in chars))


def render(classes: Sequence[str], images_per_class: int, *, seed: int) -> Tensor:
    """Images of classes, [classes * images_per_class, 1, 32, 32] uint8, class by class.

    Each image depends on the seed, its class and its index alone, so asking for other classes
    or more images changes none.

    Raises:
        DataError: an unknown class.
    """
    if not classes or images_per_class < 1:
        return torch.empty(0, 1, SIZE, SIZE, dtype=torch.uint8)
    return torch.cat([_render_class(name, images_per_class, seed=seed) for name in classes])


def write_tree(path: Path, *, seed: int, images_per_class: int) -> Path:
    """Write all splits as a zip of PNGs, ``glyphs/<split>/<class>/<index>.png``; same seed, same bytes."""
    return write_zip(path, _tree_members(seed, images_per_class))


def write_zip(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """Write named files into an uncompressed zip without clock or half-written result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members:
            archive.writestr(_zip_info(name), content)
    return path


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """[height, width] or [height, width, 3] uint8 to the bytes of a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png", compress_level=1)
    return buffer.getvalue()


def _zip_info(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.create_system = 3  # Unix wherever this runs, or the bytes would differ between systems
    info.external_attr = 0o644 << 16
    return info


def _tree_members(seed: int, images_per_class: int) -> Iterator[tuple[str, bytes]]:
    for split in SCRIPTS:
        for name in class_names(split):
            images = render([name], images_per_class, seed=seed).squeeze(1).numpy()
            for index, pixels in enumerate(images):
                yield f"glyphs/{split}/{name}/{index:04d}.png", encode_png(pixels)


def _render_class(name: str, count: int, *, seed: int) -> Tensor:
    """[count, 1, 32, 32] uint8."""
    masks = _masks(_character(name))
    draws = [_draw(np.random.default_rng(derive_seed(seed, name, index))) for index in range(count)]
    faces = torch.tensor([int(draw.face * len(masks)) for draw in draws])
    fields = _fields(draws)
    ink = F.grid_sample(masks[faces], _grid(draws, fields[:, :2]), align_corners=False)
    ink = _stroke(ink, _column([draw.weight for draw in draws])) * (0.9 + 0.2 * fields[:, 2:3]).clamp(0.5, 1)
    ink = F.avg_pool2d(ink, 2)
    ink = ink.lerp(_box_blur(ink), _column([draw.blur for draw in draws]))
    paper = _column([draw.paper for draw in draws]) + 0.05 * F.avg_pool2d(fields[:, 3:4], 2)
    noise = torch.from_numpy(np.stack([draw.noise for draw in draws]))
    image = paper + ink * (_column([draw.ink for draw in draws]) - paper) + noise
    return (255 * image).round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True, eq=False)
class _Draw:
    """Everything random about one image."""

    face: float
    """Which face, as a fraction of those that hold the character."""
    affine: NDArray[np.float64]
    """[2, 3], from image to mask, as ``affine_grid`` takes it."""
    weight: float
    """Steps of thickening: 0 is the stroke as the face has it."""
    blur: float
    """How much of the box blur is mixed in, 0 to 1."""
    paper: float
    """Mean brightness of the paper, 0 to 1."""
    ink: float
    """Brightness of the ink, 0 to 1."""
    fields: NDArray[np.float64]
    """[fields, knots], standard normal."""
    noise: NDArray[np.float32]
    """[1, 32, 32], added to the pixels."""


def _draw(rng: np.random.Generator) -> _Draw:
    uniform = rng.uniform(size=12)
    grain = 0.01 + 0.03 * uniform[11]
    return _Draw(
        face=uniform[0],
        affine=_affine(2 * uniform[1:7] - 1),
        weight=2 * uniform[7],
        blur=0.7 * uniform[8],
        paper=0.80 + 0.15 * uniform[9],
        ink=0.02 + 0.33 * uniform[10],
        fields=rng.standard_normal((_FIELDS, _KNOTS * _KNOTS)),
        noise=(grain * rng.standard_normal((1, SIZE, SIZE), dtype=np.float32)).astype(np.float32),
    )


def _affine(spread: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation, shear, scale, aspect and two shifts, each in [-1, 1), to a [2, 3] map from image to mask."""
    turn, shear, scale, aspect, shift_x, shift_y = spread
    angle = np.deg2rad(_MAX_TURN * turn)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    size, stretch = 0.96 * np.exp(_MAX_SCALE * scale), np.exp(_MAX_ASPECT * aspect)
    slant = np.array([[1.0, _MAX_SHEAR * shear], [0.0, 1.0]])
    inverse = np.linalg.inv(rotation @ slant @ np.diag([size * stretch, size / stretch]))
    return np.hstack([inverse, inverse @ np.array([[_MAX_SHIFT * shift_x], [_MAX_SHIFT * shift_y]])])


def _column(values: Sequence[float]) -> Tensor:
    """[n, 1, 1, 1] float32."""
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1)


def _fields(draws: Sequence[_Draw]) -> Tensor:
    """Smooth random fields, [n, fields, 64, 64] float32, of about unit deviation.

    Summed in float64, where the rounding that depends on the batch's size is too small to reach a pixel.
    """
    knots = torch.from_numpy(np.stack([draw.fields for draw in draws]))
    return (knots @ _field_basis()).float().view(-1, _FIELDS, _MASK, _MASK)


@cache
def _field_basis() -> Tensor:
    """[knots, 64 * 64] float64: a Gaussian bump around each knot, scaled to unit variance a pixel."""
    pixels, knots = torch.linspace(-1, 1, _MASK).double(), torch.linspace(-1, 1, _KNOTS).double()
    bumps = torch.exp(-0.5 * ((pixels - knots[:, None]) * (_KNOTS - 1) / 2 / 0.8) ** 2)
    basis = torch.kron(bumps, bumps)
    return basis / basis.square().sum(0, keepdim=True).sqrt()


def _grid(draws: Sequence[_Draw], flow: Tensor) -> Tensor:
    """Where in the mask each pixel looks, [n, 64, 64, 2], from the affine maps and [n, 2, 64, 64] flow."""
    affine = torch.from_numpy(np.stack([draw.affine for draw in draws])).float()
    side = (torch.arange(_MASK) * 2 + 1) / _MASK - 1
    x, y = side.view(1, 1, -1), side.view(1, -1, 1)
    rows = [affine[:, i, 0].view(-1, 1, 1) * x + affine[:, i, 1].view(-1, 1, 1) * y for i in (0, 1)]
    shifted = [row - affine[:, i, 2].view(-1, 1, 1) + _ELASTIC * flow[:, i] for i, row in enumerate(rows)]
    return torch.stack(shifted, dim=-1)


def _stroke(weights: Tensor, steps: Tensor) -> Tensor:
    """Blend masks of rising thickness [n, 3, 64, 64] at [n, 1, 1, 1] steps in [0, 2] to [n, 1, 64, 64]."""
    middle = weights[:, :1].lerp(weights[:, 1:2], steps.clamp(0, 1))
    return middle.lerp(weights[:, 2:], (steps - 1).clamp(0, 1))


def _box_blur(images: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


def _character(name: str) -> str:
    """``latin_U+0041`` to A."""
    if not any(name in class_names(split) for split in SCRIPTS):
        raise DataError(f"no class {name!r} in glyphs; classes are named like latin_U+0041")
    return chr(int(name.partition("_U+")[2], 16))


@cache
def _masks(character: str) -> Tensor:
    """A character in every face that holds it and in three stroke weights, [faces, 3, 64, 64] in [0, 1]."""
    return torch.stack([_thickened(_mask(character, face), face) for face in _faces(character)])


def _thickened(mask: Tensor, face: str) -> Tensor:
    """[1, 64, 64] to three stroke weights [3, 64, 64]; less for a bold face, whose counters would close."""
    bold = "Bol" in face or face == "cmb10"
    return torch.cat(
        [F.max_pool2d(mask, 2 * step + 1, 1, step) for step in ((0, 0, 1) if bold else (0, 1, 2))]
    )


def _faces(character: str) -> list[str]:
    latin = LATIN_FACES if character.isascii() else ()
    return [face for face in FACES + latin if ord(character) in _coverage(face)]


def _mask(character: str, face: str) -> Tensor:
    """One character, centred and brought to the same longer side, [1, 64, 64] with ink 1."""
    drawn = Image.new("L", (3 * _DRAW, 2 * _DRAW))
    ImageDraw.Draw(drawn).text((_DRAW // 2, _DRAW // 4), character, font=_font(face), fill=255)
    box = drawn.getbbox()  # of the ink; the font's own box is larger for some glyphs
    if box is None:
        raise DataError(f"U+{ord(character):04X} draws nothing in {face}")
    drawn = drawn.crop(box)
    drawn = ImageOps.contain(drawn, (_INK, _INK), Image.Resampling.BILINEAR)
    mask = Image.new("L", (_MASK, _MASK))
    mask.paste(drawn, ((_MASK - drawn.width) // 2, (_MASK - drawn.height) // 2))
    return torch.from_numpy(np.array(mask, np.float32) / 255)[None]


def _font_path(face: str) -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"


@cache
def _font(face: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_font_path(face), _DRAW, layout_engine=ImageFont.Layout.BASIC)


@cache
def _coverage(face: str) -> frozenset[int]:
    """The code points that a face can draw."""
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(str(_font_path(face))).get_charmap())
