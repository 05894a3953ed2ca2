"""How much each contribution counts, by evidence that a minority cannot turn."""

import pytest
import torch

from server.learning.trust import (
    Ground,
    by_direction,
    by_distance,
    by_head,
    by_sharing,
    by_skill,
    by_training,
    combine,
    head_skewness,
    heard,
    median_of_others,
    own_directions,
    own_ways,
    relations,
    skill,
    unit_rows,
    voices_of,
    weigh,
)


def noise(*size: int, seed: int) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def each_its_own(count: int) -> torch.Tensor:
    return torch.arange(count)


ONE_WITH_EIGHT = voices_of([*"abcdef", *"x" * 8])


def functions(count: int = 6, images: int = 60) -> list[torch.Tensor]:
    """Features that agree on what the images show and add something of their own, [images, 16] each."""
    common = noise(images, 16, seed=0)
    return [
        common @ noise(16, 16, seed=1 + each) + noise(images, 16, seed=50 + each) for each in range(count)
    ]


def test_the_median_of_others_is_that_of_the_rows_without_one() -> None:
    for count in (3, 4, 7, 8):
        rows = noise(count, 9, seed=count)
        expected = [torch.cat([rows[:each], rows[each + 1 :]]).quantile(0.5, dim=0) for each in range(count)]
        torch.testing.assert_close(median_of_others(rows), torch.stack(expected))


def test_skill_is_the_share_of_images_nearest_to_the_mean_of_the_others_of_their_class() -> None:
    classes = torch.arange(3).repeat(8)
    models = torch.tensor([5, 7]).repeat_interleave(12)
    apart = torch.eye(3)[classes] + 0.01 * noise(24, 3, seed=0)
    apart[12:] = noise(12, 3, seed=1)
    of_5, of_7 = skill(apart, models, classes).tolist()
    assert of_5 == 1.0 and of_7 < 0.8


def test_ordinary_skills_count_in_full_and_a_useless_one_not_at_all() -> None:
    factors = by_skill(torch.tensor([0.82, 0.8, 0.78, 0.73, 0.76, 0.5]), each_its_own(6)).factors
    assert factors[:5].eq(1).all() and factors[5] == 0


def test_a_model_that_sees_only_brightness_draws_the_mean_no_more() -> None:
    brightness = noise(60, 1, seed=9).expand(60, 16)
    related = torch.stack([relations(each) for each in (*functions(), brightness)])
    ground = by_distance(related, each_its_own(7))
    assert ground.factors[:6].eq(1).all() and ground.factors[6] == 0
    assert "times as far" in ground.words[6]


def test_permuted_rescaled_and_noisy_copies_share_one_vote() -> None:
    honest = functions()
    permuted = 3 * honest[0][:, torch.randperm(16)]
    noisy = honest[0] + 0.1 * noise(60, 16, seed=99)
    related = torch.stack([relations(each) for each in (*honest, permuted, noisy)])
    factors = by_sharing(own_ways(related, each_its_own(8)), each_its_own(8)).factors
    torch.testing.assert_close(factors[[0, 6, 7]], torch.full((3,), 1 / 3, dtype=torch.float64))
    assert factors[1:6].eq(1).all()


@pytest.mark.parametrize("own", [torch.eye(5), torch.empty(5, 0)], ids=["apart", "unknown"])
def test_the_models_of_one_organisation_share_one_vote_and_unknown_ones_do_not(own: torch.Tensor) -> None:
    factors = by_sharing(own, voices_of(["a", "b", "a", None, None])).factors
    assert factors.tolist() == [0.5, 1, 0.5, 1, 1]


def test_who_moves_against_the_others_does_not_count_and_who_moves_elsewhere_does() -> None:
    common, own = noise(1, 5000, seed=0), noise(8, 5000, seed=1)
    moved = torch.cat([common + 2 * own[:6], -common - 2 * own[6:7], 2 * own[7:]]).double()
    ground = by_direction(unit_rows(moved), torch.ones(8), each_its_own(8))
    assert ground.factors[:6].eq(1).all() and ground.factors[6] == 0 and ground.factors[7] == 1
    assert "against the others" in ground.words[6]


def test_only_words_that_take_something_away_are_said() -> None:
    first = Ground(torch.tensor([1.0, 0.5]), ["fine", "dull"])
    second = Ground(torch.tensor([1.0, 0.5]), ["fine", "loud"])
    whole, part = combine(2, [first, second])
    assert (whole.weight, whole.evidence) == (1.0, "")
    assert (part.weight, part.evidence) == (0.25, "dull; loud")


def test_honest_models_that_go_one_way_do_not_share_a_vote_and_copies_of_one_do() -> None:
    common, own = noise(1, 5000, seed=0), noise(8, 5000, seed=1)
    moved = torch.cat([3 * common + own[:6], own[6:7], own[6:7] + 0.1 * own[7:]]).double()
    factors = by_sharing(own_directions(unit_rows(moved), each_its_own(8)), each_its_own(8)).factors
    assert factors.tolist() == [1] * 6 + [0.5] * 2


def test_where_models_have_no_common_way_none_moves_against_it() -> None:
    apart = torch.full((4, 4), -0.3, dtype=torch.float64).fill_diagonal_(1)
    ground = by_direction(torch.linalg.cholesky(apart), torch.ones(4), each_its_own(4))
    assert ground.factors.eq(1).all()


def test_grounds_that_would_leave_nobody_leave_everybody() -> None:
    grounds = [Ground(torch.tensor(factors), ["", ""]) for factors in ([0.0, 1.0], [1.0, 0.0])]
    assert weigh(2, grounds).tolist() == [1, 1]


def test_a_head_with_few_large_weights_leans_to_them_and_one_of_two_classes_nowhere() -> None:
    head = torch.eye(5).repeat(1, 3) + 0.1 * noise(5, 15, seed=0)
    assert head_skewness(head) > 0.5 and head_skewness(-10 * head) < -0.5
    assert head_skewness(head) == pytest.approx(head_skewness(3 * head - 7))
    assert abs(head_skewness(noise(2, 40, seed=1))) < 1e-9 and head_skewness(torch.zeros(3, 4)) == 0


def trained_head(seed: int) -> torch.Tensor:
    return torch.eye(5).repeat(1, 80) + 0.1 * noise(5, 400, seed=seed)


def test_a_head_that_nobody_trained_does_not_count_among_those_of_its_kind_that_somebody_did() -> None:
    heads = [trained_head(seed) for seed in range(5)] + [noise(5, 400, seed=9), -trained_head(10)]
    ground = by_training(heads, ["conv4"] * 7, each_its_own(7))
    assert ground.factors.tolist() == [1, 1, 1, 1, 1, 0, 1]
    assert "as if nobody had trained it" in ground.words[5]


@pytest.mark.parametrize(
    ("heads", "kinds"),
    [
        ([*map(trained_head, range(4)), noise(5, 400, seed=9)], [*"aaaab"]),  # of another kind
        ([*map(trained_head, range(2)), noise(5, 400, seed=9)], [*"aaa"]),  # of which there are few
        ([noise(5, 400, seed=seed) for seed in range(5)], [*"aaaaa"]),  # where all are as they began
        ([noise(2, 400, seed=seed) for seed in range(5)], [*"aaaaa"]),  # of two classes
    ],
)
def test_of_a_head_that_cannot_be_held_against_others_nothing_is_said(
    heads: list[torch.Tensor], kinds: list[str]
) -> None:
    assert by_training(heads, kinds, each_its_own(len(heads))).factors.eq(1).all()


def test_a_head_turned_around_does_not_count_where_the_others_lean_one_way() -> None:
    ground = by_head(torch.tensor([0.8, 0.9, 0.4, 0.0, 1.2, -0.9]), each_its_own(6))
    assert ground.factors[:5].eq(1).all() and ground.factors[5] == 0
    assert "turned around" in ground.words[5]
    assert by_head(torch.tensor([0.05, -0.9, 0.02, 0.1, -0.1]), each_its_own(5)).factors.eq(1).all()


def test_a_voice_is_an_organisation_and_says_the_mean_of_its_models() -> None:
    voices = voices_of(["b", None, "a", "b", None])
    assert voices.tolist() == [0, 1, 2, 0, 3]
    said = heard(torch.tensor([[1.0, 4.0], [9.0, 9.0], [5.0, 5.0], [3.0, 0.0], [7.0, 7.0]]), voices)
    assert said.tolist() == [[2, 2], [9, 9], [5, 5], [7, 7]]
    single = noise(5, 7, seed=0)
    assert heard(single, torch.tensor([3, 4, 6, 8, 9])).equal(single), "nothing changes where each has one"


def test_one_organisation_with_most_of_the_models_is_not_the_measure_of_the_others() -> None:
    common, way = noise(60, 16, seed=500), noise(16, 16, seed=600)
    hostile = [common @ way + 0.3 * noise(60, 16, seed=700 + each) for each in range(8)]
    related = torch.stack([relations(each) for each in (*functions(), *hostile)])
    assert by_distance(related, each_its_own(14)).factors[:6].eq(0).all(), "were they eight organisations"
    assert by_distance(related, ONE_WITH_EIGHT).factors[:6].eq(1).all()
    shares = by_sharing(own_ways(related, ONE_WITH_EIGHT), ONE_WITH_EIGHT).factors
    assert shares.tolist() == [1] * 6 + [1 / 8] * 8


def test_nor_are_its_skills_heads_and_directions() -> None:
    skills = by_skill(torch.tensor([0.5, 0.52, 0.51, 0.5, 0.5, 0.49, *[1.0] * 8]), ONE_WITH_EIGHT)
    assert skills.factors[:6].eq(1).all()
    heads = by_head(torch.tensor([0.8, 0.9, 0.4, 0.5, 1.2, 0.7, *[-0.9] * 8]), ONE_WITH_EIGHT)
    assert heads.factors.tolist() == [1] * 6 + [0] * 8
    trained = [trained_head(seed) for seed in range(6)] + [noise(5, 400, seed=9)] * 8
    assert by_training(trained, ["conv4"] * 14, ONE_WITH_EIGHT).factors.tolist() == [1] * 6 + [0] * 8
    common, own = noise(1, 5000, seed=0), noise(14, 5000, seed=1)
    moved = unit_rows(torch.cat([common + 2 * own[:6], -common - 2 * own[6:]]).double())
    sharing = by_sharing(own_directions(moved, ONE_WITH_EIGHT), ONE_WITH_EIGHT)
    against = by_direction(moved, sharing.factors, ONE_WITH_EIGHT)
    assert against.factors.tolist() == [1] * 6 + [0] * 8
