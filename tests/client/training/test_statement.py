"""The page that has to be signed: every item, the numbers of this contribution, and no claim beyond them."""

import dataclasses
import re

import pytest
import torch

from client.training.statement import page
from fedfree.architectures import Architecture, InputSpec, build
from fedfree.codec import Contribution, encode_contribution, encode_weights, sha256
from fedfree.statement import (
    Composition,
    DifferentialPrivacy,
    DpSgd,
    InitialWeights,
    PrivacyStatement,
    PrivacyStatus,
)

SPENT = DifferentialPrivacy(
    epsilon=7.9951,
    delta=1e-5,
    run=DpSgd(1.1309814453125, 0.1, 200),
    max_grad_norm=1.0,
    images=2400,
    images_rounded_to=100,
    accountant="prv",
    software="opacus 1.6.0",
    composition=Composition(11.667, 2, 1, 12.0),
)


def printed(privacy: PrivacyStatement) -> str:
    torch.manual_seed(0)
    spec = InputSpec(channels=1, height=16, width=16)
    architecture = Architecture(norm="group")
    weights = encode_weights(build(architecture, num_classes=3, input=spec))
    contribution = Contribution(architecture, 3, spec, privacy, weights)
    text = page(encode_contribution(contribution), contribution)
    assert sha256(weights) in text
    assert max(map(len, text.splitlines())) <= 100
    return " ".join(text.split())


def test_a_statement_under_differential_privacy_holds_every_item_and_its_own_numbers() -> None:
    text = printed(PrivacyStatement(PrivacyStatus.DP, SPENT, InitialWeights("ab" * 32, public=True)))
    for item in (
        "status DP",
        "trust The organisation adds the noise itself",
        "not covered The number of classes",
        "unit One image",
        "neighbours Add or remove one",
        "spent epsilon 7.996 at delta 1e-05",
        "1/2400 (rounded down to a multiple of 100)",
        "Noise multiplier 1.13098, sampling rate 0.1, 200 steps, gradients clipped to norm 1.",
        "sampling Poisson",
        "from shuffled images gives epsilon 24.",
        "tuning Not covered",
        "2 contributions under differential privacy",
        "at most epsilon 11.667",
        "1 more were made without differential privacy",
        "refuses to go above 12.",
        "not cryptographic",
        "no layer couples the images of a batch",
        "Public, as the organisation declares",
        "with 1% false alarms, finds at most 20.2 %",
        "contributed 2 / 5 / 10 times: epsilon 11.7 / 20.1 / 31.3.",
        "A person with 2 / 5 / 10 images among them: epsilon 18.8 / 65.3 / 185.",
    ):
        assert item in text


def test_a_statement_of_status_none_promises_nothing() -> None:
    text = printed(PrivacyStatement())
    assert "status none. Nothing limits what this model gives away" in text
    assert "epsilon" not in text


@pytest.mark.parametrize("privacy", [PrivacyStatement(), PrivacyStatement(PrivacyStatus.DP, SPENT)])
def test_no_word_claims_more_than_was_done(privacy: PrivacyStatement) -> None:
    assert not re.search(r"\b(private|safe|anonym\w*|guarante\w*)\b", printed(privacy), re.IGNORECASE)


def test_few_images_are_not_counted_to_the_reader() -> None:
    text = printed(PrivacyStatement(PrivacyStatus.DP, dataclasses.replace(SPENT, images=0)))
    assert "one over the number of images is above 1/100" in text
