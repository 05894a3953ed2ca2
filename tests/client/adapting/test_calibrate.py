"""One temperature: found again where it is known, and modest where little is known."""

import pytest
import torch

from client.adapting.calibrate import TEMPERATURES, calibrate


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_a_known_temperature_is_recovered(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(5000, 6, generator=generator)
    labels = logits.div(temperature).softmax(1).multinomial(1, generator=generator).squeeze(1)
    assert calibrate(logits, labels).temperature == pytest.approx(temperature, rel=0.08)


def test_calibrated_confidence_is_the_accuracy() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = 4 * torch.randn(5000, 3, generator=generator)
    labels = logits.div(2).softmax(1).multinomial(1, generator=generator).squeeze(1)
    found = calibrate(logits, labels)
    confidence = logits.div(found.temperature).softmax(1).amax(1).mean()
    assert found.accuracy == float((logits.argmax(1) == labels).double().mean())
    assert float(confidence) == pytest.approx(found.accuracy, abs=0.02)


def test_a_handful_of_images_predicted_correctly_claims_no_certainty() -> None:
    logits = torch.tensor([[4.0, 0.0], [0.0, 4.0]])
    found = calibrate(logits, torch.tensor([0, 1]))
    assert found.accuracy == 1 and found.images == 2
    assert 0.8 < float(logits[0].div(found.temperature).softmax(0).max()) < 0.9


def test_logits_worse_than_guessing_become_almost_equal_probabilities() -> None:
    logits = torch.tensor([[4.0, 0.0], [0.0, 4.0]])
    assert calibrate(logits, torch.tensor([1, 0])).temperature == float(TEMPERATURES.max())


def test_logits_calibrated_beforehand_stay_so_until_many_images_say_otherwise() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = 3 * torch.randn(5000, 5, generator=generator)
    labels = logits.div(2).softmax(1).multinomial(1, generator=generator).squeeze(1)
    few = calibrate(logits[:4], logits[:4].argmax(1), near_one=True)
    assert few.temperature == pytest.approx(1, abs=0.1)
    assert calibrate(logits, labels, near_one=True).temperature == pytest.approx(2, rel=0.08)
