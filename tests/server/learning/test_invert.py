"""FIVE against gradients written by hand."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from fedfree.architectures import Architecture, Classifier, InputSpec, build
from server.config import InvertConfig
from server.learning.generator import Generator
from server.learning.invert import (
    Loss,
    Objective,
    adapt_generator,
    augment,
    batch_norm_distance,
    inversion_loss,
    kl_divergence,
    recover,
)
from server.learning.pool import Member

INPUT = InputSpec(channels=1, height=16, width=16, horizontal_flip=False)
CPU = torch.device("cpu")
PLAIN = InvertConfig(
    steps=1,
    models_per_iteration=1,
    images_per_model=6,
    latent_size=4,
    generator_width=2,
    batch_norm_weight=0.0,
    crop_padding=0,
)


def make_member(*, classes: int = 3, norm: str = "batch", seed: int = 0) -> Member:
    torch.manual_seed(seed)
    network = opinionated(build(Architecture(norm=norm), num_classes=classes, input=INPUT))
    network.requires_grad_(False)
    return Member(f"member-{seed}", seed, Architecture(norm=norm), network, INPUT, classes, CPU)


def objective(config: InvertConfig = PLAIN, adversarial_weight: float = 0.0) -> Objective:
    return Objective(config, make_meta_learner(), INPUT, adversarial_weight)


def loss_of(
    member: Member, labels: torch.Tensor, stream: torch.Generator, adversarial_weight: float = 0.0
) -> Loss:
    objective_ = objective(adversarial_weight=adversarial_weight)
    return partial(inversion_loss, labels=labels, member=member, objective=objective_, rng=stream)


def opinionated(network: Classifier) -> Classifier:
    """Scale the head so that random images fall into all classes, as a trained network's do."""
    images = torch.rand(200, 1, 16, 16, generator=rng())
    with torch.no_grad():
        logits = network(INPUT.normalise(images))
        network.head.weight /= logits.std(0).mean()
        network.head.bias -= network(INPUT.normalise(images)).mean(0)
    return network


def make_generator() -> Generator:
    torch.manual_seed(1)
    return Generator(latent_size=4, width=2, channels=1, image_size=16)


def make_meta_learner() -> Classifier:
    torch.manual_seed(2)
    return opinionated(build(Architecture(), num_classes=3, input=INPUT))


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_kl_of_a_distribution_with_itself_is_zero_and_with_another_is_not() -> None:
    logits = torch.randn(50, 7, generator=rng())
    assert kl_divergence(logits, logits + 3).abs().max() < 1e-6
    assert (kl_divergence(logits, logits.roll(1, 0)) > 0).all()


def test_kl_has_its_textbook_value() -> None:
    p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.9, 0.1]])
    assert kl_divergence(p.log(), q.log()).item() == pytest.approx(0.5108256, abs=1e-6)


def test_one_inner_step_is_adams_first_step_against_the_hand_written_gradient() -> None:
    member, generator = make_member(), make_generator()
    latent, labels = torch.randn(6, 4, generator=rng()), torch.arange(6) % 3
    adapted, moved = adapt_generator(generator, latent, loss_of(member, labels, rng()), PLAIN)

    latent_variable = latent.clone().requires_grad_(True)
    loss = F.cross_entropy(member.network(INPUT.normalise(generator(latent_variable))), labels)
    by_hand = torch.autograd.grad(loss, [*generator.parameters(), latent_variable])
    rates = [PLAIN.inner_learning_rate] * (len(by_hand) - 1) + [PLAIN.latent_learning_rate]
    before = [*generator.parameters(), latent]
    after = [*adapted.parameters(), moved]
    for start, gradient, rate, end in zip(before, by_hand, rates, after, strict=True):
        step = rate * gradient / (gradient.abs() + 1e-8)  # Adam's first step, bias corrected
        torch.testing.assert_close(end, start - step, rtol=1e-3, atol=1e-6)


def test_the_outer_gradient_is_the_sum_of_the_gradients_at_the_adapted_generators() -> None:
    members = [make_member(seed=0), make_member(seed=5)]
    generator = make_generator()
    start = copy.deepcopy(generator)
    optimizer = torch.optim.SGD(generator.parameters(), lr=0.5)
    recover(generator, optimizer, members, objective(), rng=rng())

    seeds = torch.randint(2**62, (2,), generator=rng()).tolist()
    expected = [torch.zeros_like(parameter) for parameter in start.parameters()]
    for member, seed in zip(members, seeds, strict=True):
        stream = torch.Generator().manual_seed(seed)
        latent, labels = torch.randn(6, 4, generator=stream), torch.arange(6) % 3
        adapted, moved = adapt_generator(start, latent, loss_of(member, labels, stream), PLAIN)
        loss = F.cross_entropy(member.network(INPUT.normalise(adapted(moved))), labels)
        for total, gradient in zip(
            expected, torch.autograd.grad(loss, list(adapted.parameters())), strict=True
        ):
            total += gradient
    for before, after, gradient in zip(start.parameters(), generator.parameters(), expected, strict=True):
        torch.testing.assert_close(after, before - 0.5 * gradient, rtol=1e-4, atol=1e-6)


def test_inversion_raises_the_share_of_images_the_model_takes_for_the_class_asked_for() -> None:
    member, generator = make_member(), make_generator()
    config = PLAIN.model_copy(update={"images_per_model": 60, "inner_learning_rate": 0.02})
    agreement = [
        recover(
            generator,
            torch.optim.SGD(generator.parameters(), lr=0.0),
            [member],
            objective(config.model_copy(update={"steps": steps, "latent_learning_rate": 0.1})),
            rng=rng(),
        )[0].agreement
        for steps in (1, 30)
    ]
    assert agreement[1] > 0.9 > agreement[0]


def test_the_adversarial_term_counts_only_images_on_whose_class_both_agree() -> None:
    member, meta_learner = make_member(), make_meta_learner()
    images, labels = torch.rand(20, 1, 16, 16, generator=rng()), torch.arange(20) % 3
    teacher, other = (network(INPUT.normalise(images)) for network in (member.network, meta_learner))
    agree = teacher.argmax(1) == other.argmax(1)
    assert 0 < agree.sum() < 20
    with_term, without = (loss_of(member, labels, rng(), weight)(images)[0] for weight in (1.0, 0.0))
    difference = with_term - without
    torch.testing.assert_close(difference, -(kl_divergence(teacher, other) * agree).mean())


def test_batch_norm_distance_is_zero_for_the_statistics_it_was_trained_with() -> None:
    layer = torch.nn.BatchNorm2d(3, momentum=None)
    images = torch.rand(8, 3, 5, 5, generator=rng())
    layer(images)
    correction = images.numel() / 3
    layer.running_var *= (correction - 1) / correction
    with batch_norm_distance(layer.eval()) as distances:
        layer(images)
        layer(images + 1)
    assert distances[0] < 1e-5
    assert distances[1] == pytest.approx(3**0.5, rel=1e-4)


def test_models_without_batch_norm_can_be_inverted() -> None:
    config = PLAIN.model_copy(update={"batch_norm_weight": 1.0})
    generator = make_generator()
    members = [make_member(norm="group")]
    task = recover(
        generator, torch.optim.Adam(generator.parameters()), members, objective(config), rng=rng()
    )[0]
    assert task.images.shape == (6, 1, 16, 16)
    assert task.images.min() >= 0 and task.images.max() <= 1


def test_augmentation_shifts_and_mirrors_only_where_allowed() -> None:
    images = torch.rand(4, 1, 16, 16, generator=rng())
    stream = rng()
    seen = {augment(images, 0, True, stream).numpy().tobytes() for _ in range(20)}
    assert seen == {images.numpy().tobytes(), images.flip(3).numpy().tobytes()}
    assert torch.equal(augment(images, 0, False, stream), images)
    shifted = {augment(images, 2, False, stream).numpy().tobytes() for _ in range(200)}
    assert len(shifted) == 25
