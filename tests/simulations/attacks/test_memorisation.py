"""The memorisation check finds copies, and reads chance where there are none."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from fedfree.architectures import Architecture, InputSpec, build
from fedfree.codec import Contribution, encode_weights
from fedfree.statement import PrivacyStatement
from simulations.attacks.memorisation import (
    feature_distances,
    memorisation_check,
    pixel_distances,
    ssim,
    ssim_distances,
)
from simulations.attacks.pictures import pairs_picture


def noise(count: int, seed: int, channels: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, 16, 16), generator=generator).to(torch.uint8)


def witness() -> Contribution:
    torch.manual_seed(0)
    spec = InputSpec(channels=1, height=16, width=16)
    network = build(Architecture(), num_classes=2, input=spec)
    return Contribution(Architecture(), 2, spec, PrivacyStatement(), encode_weights(network))


MEASURES = {
    "pixels": pixel_distances,
    "SSIM": ssim_distances,
    "features": feature_distances(witness()),
}


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_is_like_itself_and_unlike_its_negative(channels: int) -> None:
    images = noise(5, seed=0, channels=channels).double() / 255
    assert torch.allclose(ssim(images, images).diagonal(), torch.ones(5, dtype=torch.float64))
    assert (ssim(images, 1 - images).diagonal() < 0).all()
    assert torch.allclose(ssim(images, images), ssim(images, images).T)


def test_flat_images_differ_in_luminance_alone() -> None:
    dark, bright = (torch.full((1, 1, 16, 16), value).double() for value in (0.25, 0.75))
    expected = (2 * 0.25 * 0.75 + 1e-4) / (0.25**2 + 0.75**2 + 1e-4)
    assert float(ssim(dark, bright)) == pytest.approx(expected, rel=1e-4)


def test_pixel_distance_is_the_root_mean_square() -> None:
    first, second = torch.zeros(1, 3, 16, 16), torch.full((2, 3, 16, 16), 0.5)
    assert pixel_distances(first, second).tolist() == [[pytest.approx(0.5), pytest.approx(0.5)]]


@pytest.mark.parametrize("measure", MEASURES)
def test_a_planted_copy_is_found(measure: str) -> None:
    synthetic, private, held_out = noise(12, seed=1), noise(40, seed=2), noise(40, seed=3)
    synthetic[7] = private[23]
    found = memorisation_check(
        synthetic,
        private,
        held_out,
        {measure: MEASURES[measure]},
        rng=torch.Generator().manual_seed(0),
    )[measure]
    assert found.closest[0][:2] == (7, 23)
    assert found.lowest_ratio < 0.01
    assert found.median_ratio == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("measure", MEASURES)
def test_without_copies_half_of_the_images_are_closer_to_either_side(measure: str) -> None:
    found = memorisation_check(
        noise(300, seed=4),
        noise(300, seed=5),
        noise(200, seed=6),
        {measure: MEASURES[measure]},
        rng=torch.Generator().manual_seed(0),
    )[measure]
    assert found.closer_to_private == pytest.approx(0.5, abs=0.2)
    assert found.median_ratio == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_closest_pairs_are_drawn(tmp_path: Path, channels: int) -> None:
    sets = [noise(6, seed, channels) for seed in range(3)]
    measures = {"pixels": pixel_distances, "SSIM": ssim_distances}
    found = memorisation_check(*sets, measures, pairs=3, rng=torch.Generator().manual_seed(0))
    pairs_picture(found, *sets, tmp_path / "pairs.png")
    with Image.open(tmp_path / "pairs.png") as picture:
        assert picture.width > picture.height > 200
