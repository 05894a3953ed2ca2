"""Attacks against theory, the bound on ε against published vectors and its own promise."""

import math

import numpy as np
import pytest
import torch

from client.rehearsing.attacks import (
    audit_epsilon,
    epsilon_lower_bound,
    exposure,
    lira_offline,
    lira_online,
    membership_scores,
    roc,
)

DELTA = 1e-5


def normal_cdf(value: float) -> float:
    return (1 + math.erf(value / math.sqrt(2))) / 2


def test_the_score_is_the_log_odds_of_the_label() -> None:
    logits = torch.randn(50, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    labels = torch.arange(50) % 5
    probability = logits.softmax(1)[torch.arange(50), labels]
    expected = (probability / (1 - probability)).log().numpy()
    np.testing.assert_allclose(membership_scores(logits, labels), expected, rtol=1e-9)


def test_the_score_does_not_overflow_where_the_probability_is_one() -> None:
    score = membership_scores(torch.tensor([[900.0, -900.0, -900.0]]), torch.tensor([0]))
    assert score[0] == pytest.approx(1800 - math.log(2))


def test_the_curve_of_a_perfect_attack_goes_through_the_corner() -> None:
    curve = roc(np.array([3.0, 2.0, 1.0, 0.0]), np.array([True, True, False, False]))
    assert curve.area == 1
    assert curve.true_positive_rate(0.0) == 1


def test_equal_evidence_is_worth_as_much_as_guessing() -> None:
    curve = roc(np.zeros(10), np.arange(10) < 3)
    assert curve.area == 0.5
    assert curve.true_positive_rate(0.5) == 0


def test_the_area_is_the_share_of_pairs_in_the_right_order() -> None:
    random = np.random.default_rng(0)
    evidence, members = random.integers(0, 8, 60).astype(float), random.random(60) < 0.4
    differences = evidence[members][:, None] - evidence[~members][None]
    pairs = (differences > 0).mean() + (differences == 0).mean() / 2
    assert roc(evidence, members).area == pytest.approx(pairs)


def test_a_weight_is_worth_so_many_copies() -> None:
    random = np.random.default_rng(1)
    evidence, members, counts = random.normal(size=30), random.random(30) < 0.5, random.integers(0, 4, 30)
    weighted = roc(evidence, members, counts.astype(float))
    copied = roc(evidence.repeat(counts), members.repeat(counts))
    assert weighted.area == pytest.approx(copied.area)
    assert weighted.true_positive_rate(0.2) == pytest.approx(copied.true_positive_rate(0.2))


def draw_scores(gap: float, *, models: int, images: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """φ of images that differ in difficulty, each higher by ``gap`` deviations in models that hold it."""
    random = np.random.default_rng(seed)
    members = random.random((models, images)) < 0.5
    difficulty = random.normal(scale=4, size=images)
    return difficulty + gap * members + random.normal(size=(models, images)), members


@pytest.mark.parametrize("models", [16, 80], ids=["one variance", "a variance an image"])
def test_lira_online_has_the_true_positive_rate_that_theory_predicts(models: int) -> None:
    scores, members = draw_scores(2.0, models=models, images=24_000 // models)
    found = exposure(lira_online(scores, members), members)
    # Estimated means blur the likelihood ratio: on the average the mean of models / 2 shadows a side.
    gap = 2.0 / math.sqrt(1 + 2 / models)
    z = 2.326348
    assert found.tpr_at_1_percent is not None
    assert found.tpr_at_1_percent.value == pytest.approx(1 - normal_cdf(z - gap), abs=0.05)
    assert found.auc.value == pytest.approx(normal_cdf(gap / math.sqrt(2)), abs=0.015)


def test_lira_sees_what_the_loss_threshold_misses() -> None:
    scores, members = draw_scores(2.0, models=16, images=1000)
    areas = [roc(evidence, members).area for evidence in (scores, lira_offline(scores, members))]
    areas.append(roc(lira_online(scores, members), members).area)
    assert areas[0] < 0.65 < 0.85 < areas[1] <= areas[2]


def test_without_leakage_every_attack_guesses() -> None:
    scores, members = draw_scores(0.0, models=16, images=1500)
    for attack in (lira_online, lira_offline):
        found = exposure(attack(scores, members), members)
        assert found.auc.value == pytest.approx(0.5, abs=0.015)
        assert found.auc.low < 0.5 < found.auc.high


def test_an_image_that_all_shadows_hold_speaks_for_neither_side() -> None:
    scores, members = draw_scores(2.0, models=6, images=40)
    members[:, 0] = True
    assert (lira_online(scores, members)[:, 0] == 0).all()
    assert (lira_offline(scores, members)[:, 0] == 0).all()


def test_rates_that_too_few_others_can_resolve_are_left_out() -> None:
    scores, members = draw_scores(1.0, models=4, images=900)
    enough = exposure(scores, members)
    assert enough.others >= 1000 and enough.tpr_at_0_1_percent is not None
    fewer = exposure(scores[:, :450], members[:, :450])
    assert fewer.others < 1000 and fewer.tpr_at_0_1_percent is None
    assert fewer.tpr_at_1_percent is not None
    fewest = exposure(scores[:, :40], members[:, :40])
    assert fewest.others < 100 and fewest.tpr_at_1_percent is None


def test_the_interval_has_the_width_that_theory_gives_to_an_area() -> None:
    scores, members = draw_scores(0.0, models=1, images=2000)
    found = exposure(scores, members, samples=400)
    n, m = found.members, found.others
    deviation = math.sqrt((n + m + 1) / (12 * n * m))
    assert found.auc.high - found.auc.low == pytest.approx(2 * 1.96 * deviation, rel=0.2)


@pytest.mark.parametrize(
    ("canaries", "guesses", "right", "expected"),
    [
        (100, 50, 45, 1.3928),
        (1000, 100, 95, 2.1652),
        (1000, 1000, 600, 0.2972),
        (1000, 20, 20, 1.7913),
        (500, 500, 300, 0.2514),
        (90, 30, 29, 1.7440),
        (240, 60, 57, 1.9509),
    ],
)
def test_the_lower_bound_on_epsilon_has_its_published_values(
    canaries: int, guesses: int, right: int, expected: float
) -> None:
    assert epsilon_lower_bound(canaries, guesses, right, delta=DELTA) == pytest.approx(expected, abs=6e-5)


@pytest.mark.parametrize(("canaries", "ceiling"), [(50, 2.1), (100, 2.8), (480, 4.4), (2400, 5.9)])
def test_the_ceiling_grows_slowly_with_the_canaries(canaries: int, ceiling: float) -> None:
    found = epsilon_lower_bound(canaries, canaries // 2, canaries // 2, delta=DELTA)
    assert found == pytest.approx(ceiling, abs=0.05)


def test_no_right_guess_refutes_nothing() -> None:
    assert epsilon_lower_bound(100, 50, 0, delta=DELTA) == 0
    assert epsilon_lower_bound(100, 50, 25, delta=DELTA) == 0


@pytest.mark.parametrize("models", [1, 16])
def test_without_leakage_hardly_any_audit_finds_an_epsilon(models: int) -> None:
    random = np.random.default_rng(3)
    alarms = 0
    for _ in range(300):
        members = random.random((models, 100)) < 0.5
        alarms += audit_epsilon(random.random((models, 100)), members, delta=DELTA).epsilon > 0
    assert alarms <= 0.07 * 300


def test_randomised_response_is_not_accused_of_more_than_it_leaks() -> None:
    random = np.random.default_rng(4)
    epsilon, alarms = 1.0, 0
    for _ in range(300):
        members = random.random((1, 200)) < 0.5
        told = np.where(random.random((1, 200)) < 1 / (1 + math.exp(-epsilon)), members, ~members)
        alarms += audit_epsilon(told + 0.1 * random.random((1, 200)), members, delta=DELTA).epsilon > epsilon
    assert alarms <= 0.07 * 300


@pytest.mark.parametrize("models", [1, 9, 16])
def test_a_model_that_leaks_everything_reaches_the_ceiling(models: int) -> None:
    members = np.random.default_rng(5).permuted(np.tile(np.arange(100) < 60, (models, 1)), axis=1)
    bound = audit_epsilon(members.astype(float), members, delta=DELTA)
    assert bound.epsilon == bound.ceiling > 2
    if models == 1:
        assert bound.ceiling == epsilon_lower_bound(100, 50, 50, delta=DELTA)
