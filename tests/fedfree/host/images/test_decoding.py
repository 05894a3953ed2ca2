"""From bytes to pixels: which formats, which colours, how large, and what is refused with which word."""

import random
import subprocess
import sys
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fedfree.host.images import decoding
from fedfree.host.images.decoding import (
    FITS,
    UndecodableError,
    _open,
    _reasons_named,
    _upright,
    decode_square,
    look_at,
    read_header,
    to_array,
)
from fedfree.host.images.formats import FORMATS, Fit

RED, BLUE = (200, 0, 0), (0, 0, 200)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def half_red_half_blue(side: int = 32) -> Image.Image:
    image = Image.new("RGB", (side, side), RED)
    image.paste(BLUE, (side // 2, 0, side, side))
    return image


def picture(height: int, width: int) -> Image.Image:
    """Soft shapes, as photographs have."""
    rows, columns = np.mgrid[0:height, 0:width]
    values = 128 + 60 * np.sin(columns / width * 9) + 60 * np.cos(rows / height * 7)
    return Image.fromarray(values.astype(np.uint8))


def pixels_of(content: bytes, size: int = 16) -> NDArray[np.uint8]:
    return decode_square(content, size, look_at(content)[1])


def decode(content: bytes) -> Image.Image:
    """Whole, whatever it is for."""
    with _reasons_named():
        return _upright(_open(content))


def red_left_quarter() -> Image.Image:
    """Twice as wide as high."""
    image = Image.new("RGB", (40, 20), BLUE)
    image.paste(RED, (0, 0, 10, 20))
    return image


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_that_is_read_gives_the_image(kind: str) -> None:
    if kind == "AVIF" and "AVIF" not in Image.registered_extensions().values():
        pytest.skip("needs a Pillow with AVIF")
    seen = to_array(decode(encode(half_red_half_blue(), kind)), 32, 3).astype(int)
    wanted = np.asarray(half_red_half_blue()).transpose(2, 0, 1)
    assert np.abs(seen - wanted)[:, :, [4, 27]].max() < 12


@pytest.mark.parametrize("kind", ["ICO", "TGA", "PCX", "JPEG2000", "EPS"])
def test_formats_beyond_the_list_are_refused_whatever_their_name(kind: str) -> None:
    with pytest.raises(UndecodableError, match="of no known image format: PNG, JPEG, WEBP"):
        decode(encode(half_red_half_blue(), kind))


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP"])
def test_of_several_frames_the_first_is_read(kind: str) -> None:
    frames = [Image.new("RGB", (20, 20), colour) for colour in (RED, BLUE)]
    content = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.abs(to_array(decode(content), 1, 3).flatten().astype(int) - RED).max() < 12


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "TIFF"])
def test_an_image_stands_upright_where_its_metadata_turn_it(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    seen = to_array(decode(encode(half_red_half_blue(), kind, exif=exif)), 32, 3)
    assert seen[0, 4].min() > 150 and seen[2, 27].min() > 150


def test_the_upright_first_picture_of_a_telephones_jpeg_with_several_is_read() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    more = Image.new("RGB", (64, 64), (0, 200, 0))
    content = encode(half_red_half_blue(64), "MPO", exif=exif, save_all=True, append_images=[more])
    for size in (32, 16):  # as it is, and decoded at half its sides
        seen = decode_square(content, size, 3)
        assert seen[0, 2].min() > 150 and seen[2, -3].min() > 150


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("side", [16, 20, 33, 100])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_square_image_is_plainly_resized_whatever_the_fit(fit: Fit, side: int, mode: str) -> None:
    noise = np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8)
    image = Image.fromarray(noise).convert(mode)
    plain = np.asarray(image.resize((20, 20), Image.Resampling.BILINEAR))
    seen = to_array(image, 20, len(mode), fit)
    assert np.array_equal(seen, plain[None] if mode == "L" else plain.transpose(2, 0, 1))


def test_of_a_wide_image_the_middle_is_cut_out_with_its_shapes() -> None:
    seen = to_array(red_left_quarter(), 16, 3)
    assert (seen.reshape(3, -1).T == BLUE).all()
    turned = red_left_quarter().transpose(Image.Transpose.ROTATE_90)
    assert (to_array(turned, 16, 3).reshape(3, -1).T == BLUE).all()


def test_a_letterbox_holds_all_of_an_image_with_its_shapes_between_bars_of_grey() -> None:
    seen = to_array(red_left_quarter(), 40, 3, "letterbox")
    wanted = np.full((3, 40, 40), 128, np.uint8)
    wanted[:, 10:30] = np.asarray(red_left_quarter()).transpose(2, 0, 1)
    assert np.array_equal(seen, wanted)
    assert np.array_equal(to_array(Image.new("L", (3, 999), 7), 16, 1, "letterbox")[0, :, 7], [7] * 16)
    assert to_array(Image.new("L", (3, 999), 7), 16, 1, "letterbox")[0, :, [6, 8]].min() == 128


def test_a_squeezed_image_is_distorted_as_releases_before_did() -> None:
    seen = to_array(red_left_quarter(), 20, 3, "squeeze")
    assert seen[0, :, :4].min() == 200 and seen[0, :, 6:].max() == 0
    plain = red_left_quarter().resize((20, 20), Image.Resampling.BILINEAR)
    assert np.array_equal(seen, np.asarray(plain).transpose(2, 0, 1))


def test_an_image_is_turned_before_its_middle_is_cut_out() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = Image.new("RGB", (80, 40), BLUE)
    wide.paste(RED, (20, 0, 40, 40))  # the left half of the middle, which is the upper half once turned
    seen = decode_square(encode(wide, "WEBP", lossless=True, exif=exif), 16, 3)
    assert (seen[0, :7] == 200).all() and (seen[2, 9:] == 200).all()


def test_transparency_is_laid_on_white_in_every_format_that_has_it() -> None:
    clear = Image.new("RGBA", (20, 20), (9, 9, 9, 0))
    for kind in ("PNG", "WEBP", "TIFF", "GIF"):
        assert to_array(decode(encode(clear, kind)), 20, 3).min() == 255, kind


def test_deep_greyscale_is_scaled_to_eight_bits() -> None:
    deep = Image.fromarray(np.full((20, 20), 25600, np.uint16))
    for kind in ("PNG", "TIFF", "PPM"):
        assert pixels_of(encode(deep, kind), 20).tolist() == [[[100] * 20] * 20], kind


@pytest.mark.parametrize(("kind", "word"), [(np.float32, "fractions"), (np.int32, "32-bit numbers")])
def test_numbers_without_a_known_scale_are_refused(kind: type, word: str) -> None:
    content = encode(Image.fromarray(np.full((20, 20), 1_000_000, kind)), "TIFF")
    with pytest.raises(UndecodableError, match=rf"{word} of no known scale: save it with 8 or 16 bits"):
        pixels_of(content)


@pytest.fixture
def decoded_sizes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Width and height of every image that is decoded from now on, in the file's orientation."""
    sizes = []

    def upright(image: Image.Image) -> Image.Image:
        sizes.append(image.size)
        return _upright(image)

    monkeypatch.setattr(decoding, "_upright", upright)
    return sizes


@pytest.mark.parametrize(
    ("shape", "size", "fit", "decoded"),
    [
        ((3000, 4000), 128, "crop", (500, 375)),
        ((3000, 4000), 224, "crop", (1000, 750)),
        ((3000, 4000), 224, "squeeze", (1000, 750)),
        ((3000, 4000), 224, "letterbox", (500, 375)),  # the longer side decides: 500 is twice 224
        ((9000, 12000), 84, "crop", (1500, 1125)),
        ((800, 3000), 128, "crop", (1500, 400)),
        ((500, 3000), 128, "crop", (3000, 500)),  # half of the shorter side is not twice 128
        ((5, 4000), 64, "letterbox", (1000, 2)),  # no side is asked to vanish
    ],
)
def test_a_large_jpeg_is_decoded_at_reduced_size_to_no_less_than_twice_the_side_that_decides(
    shape: tuple[int, int],
    size: int,
    fit: Fit,
    decoded: tuple[int, int],
    decoded_sizes: list[tuple[int, int]],
) -> None:
    decode_square(encode(Image.new("L", shape[::-1], 77), "JPEG"), size, 1, fit)
    assert decoded_sizes == [decoded]


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_jpeg_decoded_at_reduced_size_looks_as_one_decoded_whole(fit: Fit, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(picture(1500, 2000), "JPEG", exif=exif, quality=95)
    whole = to_array(decode(content), 84, 1, fit).astype(int)
    assert np.abs(decode_square(content, 84, 1, fit) - whole).max() <= 3


def test_a_photograph_of_12_megapixels_takes_a_small_part_of_its_memory() -> None:
    content = encode(picture(3000, 4000).convert("RGB"), "JPEG")
    code = (
        "import resource, sys; from fedfree.host.images.decoding import decode_square\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "content, before = sys.stdin.buffer.read(), peak()\n"
        "decode_square(content, 128, 3); print(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=content, capture_output=True, check=True)
    assert int(done.stdout) < 3000 * 4000 * 3 / 2


def test_a_large_image_of_a_format_that_cannot_be_reduced_is_read_whole(
    decoded_sizes: list[tuple[int, int]],
) -> None:
    content = encode(Image.new("L", (12000, 9000), 77), "PNG", compress_level=1)
    assert (decode_square(content, 84, 1) == 77).all()
    assert decoded_sizes == [(12000, 9000)]


def test_an_image_above_the_limit_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Image.MAX_IMAGE_PIXELS
    for limit in (399, 150):
        monkeypatch.setattr(decoding, "MAX_PIXELS", limit)
        with pytest.raises(UndecodableError, match=f"more than {limit} pixels, .*scale it down"):
            decode(encode(picture(20, 20), "PNG"))
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", FORMATS)
def test_a_damaged_image_is_read_or_refused_and_never_breaks_the_reader(kind: str) -> None:
    if kind == "AVIF" and "AVIF" not in Image.registered_extensions().values():
        pytest.skip("needs a Pillow with AVIF")
    whole, chance = encode(half_red_half_blue(), kind), random.Random(0)
    for _ in range(150):
        content = bytearray(whole[: chance.randrange(1, len(whole) + 1)])
        content[chance.randrange(len(content))] = chance.randrange(256)
        try:
            assert pixels_of(bytes(content)).shape[1:] == (16, 16)
        except UndecodableError as error:
            assert str(error)


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1), ("LA", 1), ("P", 3), ("RGBA", 3)])
def test_sides_and_channels_are_known_without_decoding(
    mode: str, channels: int, decoded_sizes: list[tuple[int, int]]
) -> None:
    assert look_at(encode(Image.new(mode, (40, 20)), "PNG")) == (20, channels)
    assert decoded_sizes == []


@pytest.mark.parametrize(
    ("orientation", "turned", "sides"), [(1, False, (40, 20)), (3, True, (40, 20)), (6, True, (20, 40))]
)
@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_a_header_tells_the_upright_size_and_whether_the_image_is_turned(
    kind: str, orientation: int, turned: bool, sides: tuple[int, int]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(Image.new("RGB", (40, 20)), kind, exif=exif)
    header = read_header(content)
    assert ((header.width, header.height), header.is_turned, header.is_grey) == (sides, turned, False)
    assert decode(content).size == sides


def test_a_header_tells_what_is_stored_without_colours() -> None:
    assert read_header(encode(Image.new("L", (4, 4)), "PNG")).is_grey
    assert not read_header(encode(Image.new("P", (4, 4)), "PNG")).is_grey
    with pytest.raises(UndecodableError):
        read_header(b"no")
