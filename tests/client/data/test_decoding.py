"""From bytes to pixels: which formats, which colours, how large, and what is refused with which word."""

import random
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from client.data import decoding
from client.data.decoding import UndecodableError, channels_of, decode, to_array
from client.data.formats import FORMATS

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
    image = decode(content, size=size)
    return to_array(image, size, channels_of(image))


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


def test_a_photograph_of_108_megapixels_is_read_at_reduced_size() -> None:
    content = encode(picture(900, 1200).resize((12000, 9000)), "JPEG")
    image = decode(content, size=84)
    assert image.size == (1500, 1125)
    small = to_array(decode(encode(picture(900, 1200), "PNG")), 84, 1).astype(int)
    assert np.abs(to_array(image, 84, 1) - small).max() <= 3


def test_a_large_image_of_a_format_that_cannot_be_reduced_is_read_whole() -> None:
    content = encode(Image.new("L", (12000, 9000), 77), "PNG", compress_level=1)
    assert decode(content, size=84).size == (12000, 9000)


def test_an_image_up_to_the_limit_of_whole_ones_is_decoded_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encode(picture(600, 800), "JPEG")
    whole = pixels_of(content)
    assert decode(content, size=16).size == (800, 600)
    monkeypatch.setattr(decoding, "WHOLE_PIXELS", 600 * 800)
    assert np.array_equal(pixels_of(content), whole)
    monkeypatch.setattr(decoding, "WHOLE_PIXELS", 600 * 800 - 1)
    assert decode(content, size=16).size == (100, 75)
    assert decode(content).size == (800, 600)
    assert decode(content, size=400).size == (800, 600)


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
