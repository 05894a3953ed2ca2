"""What ε comes to, against figures computed elsewhere (2,400 images, batches of 256, 20 epochs, δ = 1e-5)."""

import math

import pytest
from scipy.stats import norm

from fedfree.accounting import consequences, run_epsilon
from fedfree.statement import DpSgd


@pytest.mark.parametrize(
    ("noise_multiplier", "epsilon", "rate", "repeated", "shuffled", "person"),
    [
        (5.5078125, 1, 0.020, (1.4, 2.4, 3.5), 3.4, (2.1, 6.1, 14)),
        (2.1875, 3, 0.051, (4.4, 7.3, 11.1), 10.3, (6.7, 21, 55)),
        (1.1309814453125, 8, 0.20, (11.7, 20, 31), 24.0, (19, 65, 185)),
    ],
)
def test_the_table_of_consequences(
    noise_multiplier: float,
    epsilon: float,
    rate: float,
    repeated: tuple[float, ...],
    shuffled: float,
    person: tuple[float, ...],
) -> None:
    run = DpSgd(noise_multiplier, 0.1, 200)
    numbers = consequences(run, 1e-5)
    assert epsilon - 0.03 < run_epsilon(run, 1e-5) < epsilon
    assert numbers.true_positive_rate == pytest.approx(rate, rel=0.03)
    assert numbers.repeated == pytest.approx(repeated, rel=0.03)
    assert numbers.without_amplification == pytest.approx(shuffled, rel=0.02)
    assert numbers.person == pytest.approx(person, rel=0.02)


def test_one_step_on_everything_is_the_gaussian_mechanism() -> None:
    """Balle, Wang 2018, theorem 8, and the trade-off curve of Dong, Roth, Su 2019, section 2.3."""
    sigma = 1.5
    epsilon = run_epsilon(DpSgd(sigma, 1.0, 1), 1e-5)
    near, far = norm.cdf(0.5 / sigma - epsilon * sigma), norm.cdf(-0.5 / sigma - epsilon * sigma)
    assert near - math.exp(epsilon) * far == pytest.approx(1e-5, rel=0.02)
    bound = norm.cdf(norm.ppf(0.01) + 1 / sigma)
    assert consequences(DpSgd(sigma, 1.0, 1), 1e-5).true_positive_rate == pytest.approx(bound, rel=0.01)


def test_a_person_in_full_batches_has_that_many_times_the_sensitivity() -> None:
    """Ten images under σ = 10 are one under σ = 1."""
    person = consequences(DpSgd(10.0, 1.0, 3), 1e-5).person[2]
    assert person == pytest.approx(run_epsilon(DpSgd(1.0, 1.0, 3), 1e-5), rel=0.01)


def test_numbers_meant_to_exhaust_the_memory_still_have_an_answer() -> None:
    assert run_epsilon(DpSgd(0.1, 1.0, 100_000), 1e-5) > 1e6
