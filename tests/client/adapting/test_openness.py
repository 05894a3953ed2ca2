"""None of these: known images pass, far ones do not, whatever else is asked."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from client.adapting.openness import ENOUGH, measure_openness
from fedfree.adaptation import unit_roots

STREAM = torch.Generator().manual_seed(0)
CLASSES = 3 * torch.randn(8, 64, generator=STREAM) + 2


def draw(labels: Tensor) -> Tensor:
    """Features [images, 64] of Gaussian classes; negative values too, as some networks give."""
    return CLASSES[labels] + 2 * torch.randn(len(labels), 64, generator=STREAM)


def similarity(features: Tensor, means: Tensor) -> Tensor:
    return (unit_roots(features) @ means.T).amax(1)


def test_about_95_percent_of_known_images_pass_and_far_ones_do_not() -> None:
    labels, accepted, refused = torch.arange(4).repeat_interleave(6), [], []
    for _ in range(20):
        openness, means = measure_openness(draw(labels), labels, n_way=4)
        assert openness.images == 24
        accepted.append(similarity(draw(labels.repeat(5)), means) >= openness.threshold)
        refused.append(similarity(draw(4 + labels.repeat(5)), means) < openness.threshold)
    assert float(torch.cat(accepted).float().mean()) == pytest.approx(0.95, abs=0.05)
    assert torch.cat(refused).float().mean() > 0.99


def test_from_one_image_a_class_far_images_do_not_pass_either() -> None:
    labels = torch.arange(4)
    openness, means = measure_openness(draw(labels), labels, n_way=4)
    assert openness.images == 0
    assert (similarity(draw(labels.repeat(20)), means) >= openness.threshold).all()
    assert (similarity(-draw(labels.repeat(20)), means) < openness.threshold).float().mean() > 0.9


def test_an_image_is_left_out_of_its_own_class_mean() -> None:
    features, labels = draw(torch.tensor([0] * ENOUGH + [1])), torch.tensor([0] * ENOUGH + [1])
    roots, scores = unit_roots(features), []
    for index in range(ENOUGH):
        kept = [other for other in range(ENOUGH) if other != index]
        means = F.normalize(torch.stack([roots[kept].mean(0), roots[-1]]), dim=1)
        scores.append((roots[index] @ means.T).max())
    expected = torch.stack(scores).mean() - 1.645 * torch.stack(scores).std()
    openness, means = measure_openness(features, labels, n_way=2)
    assert openness.threshold == pytest.approx(float(expected), abs=1e-5) and openness.images == ENOUGH
    torch.testing.assert_close(means, F.normalize(torch.stack([roots[:-1].mean(0), roots[-1]]), dim=1))
