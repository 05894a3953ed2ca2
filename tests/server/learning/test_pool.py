"""The pool: networks as they are needed, from wherever the models are kept."""

from collections.abc import Callable

import pytest
import torch

from fedfree.architectures import InputSpec
from fedfree.errors import FederationError
from server.learning import pool as pool_module
from server.learning.pool import Pool, common_input, number_shapes

GREY = InputSpec(channels=1, height=16, width=24)
COLOUR = InputSpec(channels=3, height=20, width=20, horizontal_flip=False)


def test_a_pool_holds_the_models_that_it_is_given_and_builds_each_when_it_is_asked_for(
    make_models: Callable[..., pool_module.Models],
) -> None:
    models = make_models((GREY, COLOUR, GREY))
    pool = Pool(models, ["2", "1"], torch.device("cpu"), torch.float64)
    assert [each.input for each in pool.descriptions()] == [GREY, COLOUR]
    assert models.built == []
    member = pool.member(0)
    assert (member.id, member.number, member.input, member.dtype) == ("2", 0, GREY, torch.float64)
    assert pool.member(0) is member and models.built == ["2"]
    assert not any(parameter.requires_grad for parameter in member.network.parameters())


def test_the_networks_used_last_stay_in_memory(
    make_models: Callable[..., pool_module.Models], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "CACHED_NETWORKS", 2)
    monkeypatch.setattr(pool_module, "CACHED_OF_MANY", 2)
    models = make_models()
    pool = models.pool()
    for number in (0, 1, 0, 2, 0, 1):
        pool.member(number)
    assert models.built == ["0", "1", "2", "1"]


def test_models_are_drawn_as_often_as_they_count(make_models: Callable[..., pool_module.Models]) -> None:
    pool, rng = make_models().pool(), torch.Generator().manual_seed(0)
    drawn = [[each.id for each in pool.sample(2, rng, {"1": 0.0, "2": 0.25})] for _ in range(200)]
    assert all(sorted(each) == ["0", "2"] for each in drawn)
    first = [each[0] for each in drawn]
    assert 20 < first.count("2") < 60, "a fifth of the time"


def test_fewer_models_than_the_quorum_are_refused(make_models: Callable[..., pool_module.Models]) -> None:
    pool = make_models().pool()
    pool.require(3)
    with pytest.raises(FederationError, match="3 accepted contributions, the quorum is 4"):
        pool.require(4)


def test_the_meta_learner_takes_the_most_channels_the_middle_size_and_mirrors_only_where_all_do() -> None:
    of_three = common_input([GREY, COLOUR, COLOUR], torch.arange(3))
    assert of_three == InputSpec(3, 20, 20, horizontal_flip=False)
    assert common_input([GREY, GREY], torch.arange(2)) == InputSpec(1, 24, 24, horizontal_flip=True)


def test_shapes_are_numbered_in_their_order_whatever_the_order_of_the_models() -> None:
    assert number_shapes([COLOUR, GREY, COLOUR]).tolist() == [1, 0, 1]
    normalised = InputSpec(channels=1, height=16, width=24, mean=(0.1,), horizontal_flip=False)
    assert number_shapes([GREY, normalised]).tolist() == [0, 0], "channels and size alone make a shape"
