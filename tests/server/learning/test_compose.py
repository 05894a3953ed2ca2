"""Compositions of recovered images."""

import torch

from server.learning.compose import LARGEST_PATCH, PATCH_CELLS, compose, noise, patch

IMAGES = torch.rand(20, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_compositions_have_the_shape_and_range_of_the_images() -> None:
    composed = compose(IMAGES, 7, rng=rng())
    assert composed.shape == (7, 3, 16, 16)
    assert composed.min() >= 0 and composed.max() <= 1


def test_the_same_seed_composes_the_same_and_another_does_not() -> None:
    assert torch.equal(compose(IMAGES, 7, rng=rng(1)), compose(IMAGES, 7, rng=rng(1)))
    assert not torch.equal(compose(IMAGES, 7, rng=rng(1)), compose(IMAGES, 7, rng=rng(2)))


def test_a_composition_of_plain_images_holds_only_their_shades_and_edges_between_them() -> None:
    shades = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 32, 32)
    composed = compose(shades, 50, rng=rng())
    plain = (composed < 1e-3) | (composed > 1 - 1e-3)
    assert plain.float().mean() > 0.7
    assert ((composed.amin((1, 2, 3)) < 0.1) & (composed.amax((1, 2, 3)) > 0.9)).float().mean() > 0.8


def test_compositions_join_pieces_of_several_images() -> None:
    colours = torch.eye(3).view(3, 3, 1, 1).expand(3, 3, 32, 32)
    composed = compose(colours, 50, rng=rng())
    joined = (composed.mean((2, 3)) > 0.05).sum(1)
    assert (joined >= 2).float().mean() > 0.9


def test_noise_falls_off_as_one_over_f_in_random_colours() -> None:
    made = noise(200, 3, 32, rng=rng())
    assert made.shape == (200, 3, 32, 32)
    assert made.min() >= 0 and made.max() <= 1
    amplitude = torch.fft.rfft2(made).abs().square().mean((0, 1)).sqrt()
    assert 3 < amplitude[0, 2] / amplitude[0, 8] < 5, "four times the frequency, a quarter of the amplitude"
    colours = made.mean((2, 3))
    assert colours.std(0).min() > 0.15 and (colours[:, 0] - colours[:, 2]).std() > 0.05
    assert noise(4, 1, 16, rng=rng()).shape == (4, 1, 16, 16)
    assert torch.equal(noise(4, 3, 16, rng=rng(1)), noise(4, 3, 16, rng=rng(1)))


def test_a_patch_covers_one_small_square_of_few_colours_anywhere_and_leaves_the_rest() -> None:
    plain = torch.full((2000, 3, 32, 32), 0.123)
    patched = patch(plain, 1.0, rng=rng())
    covered = (patched != plain).any(1)
    rows, columns = covered.any(2), covered.any(1)
    assert torch.equal(covered, rows[:, :, None] & columns[:, None, :]), "rectangles"
    sides = torch.stack([rows.sum(1), columns.sum(1)])
    assert sides.min() >= 2 and sides.max() <= LARGEST_PATCH * 32 + 1
    assert covered.any(0).float().mean() > 0.98, "anywhere, edges included"
    colours = [image[:, where].unique(dim=1).shape[1] for image, where in zip(patched, covered, strict=True)]
    assert max(colours) == PATCH_CELLS**2 and min(colours) == 1


def test_so_many_images_are_patched_and_the_seed_decides_which() -> None:
    plain = torch.full((1000, 1, 16, 16), 0.123)
    patched = patch(plain, 0.25, rng=rng(1))
    share = (patched != plain).flatten(1).any(1).float().mean()
    assert 0.2 < share < 0.3
    assert torch.equal(patched, patch(plain, 0.25, rng=rng(1)))
    assert torch.equal(patch(plain, 0.0, rng=rng()), plain)
