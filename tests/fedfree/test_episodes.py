"""Episodes and intervals."""

import math

import pytest
import torch

from fedfree.episodes import EpisodeSpec, mean_and_ci95, sample_episode
from fedfree.errors import DataError

LABELS = torch.arange(8).repeat(20)[torch.randperm(160, generator=torch.Generator().manual_seed(0))]
SPEC = EpisodeSpec(n_way=5, n_shot=3, n_query=7)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_an_episode_has_the_shape_asked_for() -> None:
    episode = sample_episode(LABELS, SPEC, generator=generator())
    assert episode.support_labels.bincount().tolist() == [3] * 5
    assert episode.query_labels.bincount().tolist() == [7] * 5
    assert SPEC.name == "5way3shot"


def test_support_and_query_share_classes_but_no_image() -> None:
    episode = sample_episode(LABELS, SPEC, generator=generator())
    drawn = torch.cat([episode.support, episode.query])
    assert len(drawn.unique()) == len(drawn)
    support_classes = LABELS[episode.support].view(5, 3)
    query_classes = LABELS[episode.query].view(5, 7)
    assert (support_classes == support_classes[:, :1]).all()
    assert (query_classes == support_classes[:, :1]).all()
    assert len(support_classes[:, 0].unique()) == 5


def test_the_same_seed_gives_the_same_episode_and_another_does_not() -> None:
    first, again, other = (sample_episode(LABELS, SPEC, generator=generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.query, again.query)
    assert not torch.equal(first.query, other.query)


def test_classes_and_images_are_drawn_uniformly() -> None:
    draws = generator()
    counts = torch.zeros(160)
    for _ in range(2000):
        counts[sample_episode(LABELS, EpisodeSpec(2, 1, 1), generator=draws).support] += 1
    expected = 2000 * 2 / 160
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    assert chi_squared < 159 + 4 * math.sqrt(2 * 159)


def test_more_ways_than_classes_is_refused_with_the_numbers() -> None:
    with pytest.raises(DataError, match=r"needs 9 classes of at least 2 images .* got 8 of 8"):
        sample_episode(LABELS, EpisodeSpec(9, 1, 1), generator=generator())


def test_more_images_than_a_tensor_counts_is_refused() -> None:
    with pytest.raises(DataError, match="got 0 of 8 classes"):
        sample_episode(LABELS, EpisodeSpec(2, 1, 2**63 - 1), generator=generator())


def test_more_images_than_a_class_has_is_refused() -> None:
    with pytest.raises(DataError, match="got 0 of 8 classes"):
        sample_episode(LABELS, EpisodeSpec(2, 6, 15), generator=generator())


def test_the_interval_is_1_96_standard_errors() -> None:
    accuracy = mean_and_ci95([0.2, 0.4, 0.6, 0.8])
    deviation = math.sqrt((0.09 + 0.01 + 0.01 + 0.09) / 3)
    assert accuracy.mean == pytest.approx(50)
    assert accuracy.ci95 == pytest.approx(100 * 1.96 * deviation / 2)
    assert accuracy.episodes == 4


def test_the_interval_covers_the_truth_95_times_in_a_hundred() -> None:
    samples = torch.rand(2000, 200, generator=generator(), dtype=torch.float64)
    hits = sum(abs(each.mean - 50) < each.ci95 for each in map(mean_and_ci95, samples))
    assert 0.935 < hits / 2000 < 0.965


def test_one_episode_has_no_interval() -> None:
    with pytest.raises(DataError, match="at least 2 episodes"):
        mean_and_ci95([0.5])
