"""The share of the way that a federation closes, against ways of which it is known."""

import pytest
import torch
from torch import Tensor

from simulations.baselines.share import share_closed


def fractions(seed: int, mean: float, spread: float = 0.1) -> Tensor:
    noise = torch.randn(600, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return mean + spread * noise


def test_whoever_is_always_in_the_middle_closes_half_of_the_way_without_doubt() -> None:
    begin, end = fractions(0, 0.4), fractions(1, 0.8)
    found = {"ours": (begin + end) / 2, "public_start": begin, "pooled_data": end}
    share = share_closed(found, "ours")
    assert share is not None and share.origin == "public_start"
    assert (share.mean, share.ci95) == (pytest.approx(50), pytest.approx(0, abs=1e-6))


def test_the_interval_is_that_of_drawing_the_episodes_again() -> None:
    found = {
        "ours": fractions(0, 0.6),
        "best_single_model": fractions(1, 0.5),
        "pooled_data": fractions(2, 0.7),
    }
    share = share_closed(found, "ours")
    assert share is not None and share.origin == "best_single_model"
    again = torch.Generator().manual_seed(3)
    drawn = []
    for _ in range(2000):
        rows = torch.randint(600, (600,), generator=again)
        ours, begin, end = (found[name][rows].mean() for name in found)
        drawn.append(100 * float((ours - begin) / (end - begin)))
    assert share.mean == pytest.approx(sum(drawn) / len(drawn), abs=0.3)
    assert share.ci95 == pytest.approx(1.96 * float(torch.tensor(drawn).std()), rel=0.07)


def test_without_pooled_data_or_any_way_to_it_there_is_no_share() -> None:
    begin = fractions(0, 0.5)
    assert share_closed({"ours": begin, "public_start": begin}, "ours") is None
    found = {"ours": begin, "public_start": begin, "pooled_data": fractions(1, 0.5)}
    assert share_closed(found, "ours") is None
