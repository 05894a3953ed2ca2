"""DP-SGD: what is refused, what the noise is, what is spent, and that no seed repeats it."""

import copy
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from client.config import PrivacyConfig, TrainingConfig
from client.data.image_set import ImageSet
from client.training.fit import Untrained, initialise
from client.training.privacy import (
    check_private,
    composed_epsilon,
    dp_sgd,
    os_entropy_generator,
    plan,
    take_step,
    train_privately,
)
from fedfree.accounting import run_epsilon
from fedfree.architectures import Architecture, build
from fedfree.errors import PrivacyError
from fedfree.statement import DpSgd

CONFIG = TrainingConfig(architecture=Architecture(norm="group"), image_size=16, threads=1)
PRIVACY = PrivacyConfig(epsilon=8, batch_size=16, averaging=0)
RUN = DpSgd(noise_multiplier=2.0, sampling_rate=0.5, steps=4)


@pytest.fixture
def images() -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (32, 1, 16, 16), dtype=torch.uint8, generator=generator)
    return ImageSet(pixels, torch.arange(32) % 2, ("a", "b"))


@pytest.fixture
def untrained(images: ImageSet) -> Untrained:
    return initialise(images, CONFIG, seed=0)


def weights(network: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def frozen_batch_norm() -> nn.Module:
    norm = nn.BatchNorm2d(4)
    for parameter in norm.parameters():
        parameter.requires_grad = False
    return norm.train()


@pytest.mark.parametrize(
    ("norm", "name"),
    [
        (nn.BatchNorm2d(4), "BatchNorm2d"),
        (nn.BatchNorm2d(4, affine=False), "BatchNorm2d"),
        (nn.BatchNorm2d(4, affine=False, track_running_stats=False), "BatchNorm2d"),
        (frozen_batch_norm(), "BatchNorm2d"),
        (nn.SyncBatchNorm(4), "SyncBatchNorm"),
        (nn.InstanceNorm2d(4, track_running_stats=True), "InstanceNorm2d"),
    ],
)
def test_norms_that_see_the_batch_are_refused_by_name_with_the_remedy(norm: nn.Module, name: str) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), norm)
    with pytest.raises(PrivacyError, match=rf"1 \({name}\) couples the images of a batch; use conv4-group"):
        check_private(network)


def test_a_buffer_is_refused_by_name() -> None:
    network = nn.Linear(2, 2)
    network.register_buffer("counts", torch.zeros(1))
    with pytest.raises(PrivacyError, match="counts is a buffer"):
        check_private(network)


@pytest.mark.parametrize("name", ["conv4-group", "conv4-64-group", "resnet10-group"])
def test_group_norm_networks_pass(name: str, untrained: Untrained) -> None:
    check_private(build(Architecture.parse(name), num_classes=2, input=untrained.input))


def test_a_batch_that_opacus_would_divide_by_nothing_is_refused() -> None:
    one = PRIVACY.model_copy(update={"batch_size": 1})
    with pytest.raises(
        PrivacyError, match="batches of 1 of 49 images would be divided by nothing: use a larger"
    ):
        plan(49, one, epochs=1)
    assert plan(48, one, epochs=1).steps == 48


def test_a_delta_that_allows_publishing_an_image_is_refused() -> None:
    with pytest.raises(PrivacyError, match=r"delta 0.01 is not below 1/100"):
        plan(100, PRIVACY.model_copy(update={"delta": 0.01}), epochs=2)


def test_a_plan_spends_little_less_than_its_target_and_never_more() -> None:
    run = plan(100, PRIVACY.model_copy(update={"batch_size": 30}), epochs=2)
    assert (run.sampling_rate, run.steps) == (0.25, 8)
    assert 7.97 < composed_epsilon([run], PRIVACY.delta) <= 8


def test_an_epsilon_too_small_for_any_noise_is_refused_and_the_smallest_works() -> None:
    tiny = PRIVACY.model_copy(update={"epsilon": 0.001})
    with pytest.raises(PrivacyError, match=r"epsilon 0\.001 at delta 1e-05 cannot") as refused:
        plan(100, tiny, epochs=2)
    smallest = float(str(refused.value).split("use epsilon ")[1].split()[0])
    run = plan(100, PRIVACY.model_copy(update={"epsilon": smallest}), epochs=2)
    assert composed_epsilon([run], PRIVACY.delta) <= smallest < 0.1


@pytest.mark.parametrize("noise_multiplier", [0.7, 1.1, 5.0])
@pytest.mark.parametrize(("sampling_rate", "steps"), [(0.01, 500), (0.1, 200), (1.0, 10)])
def test_epsilon_agrees_with_another_accountant(
    noise_multiplier: float, sampling_rate: float, steps: int
) -> None:
    run = DpSgd(noise_multiplier, sampling_rate, steps)
    ours, theirs = composed_epsilon([run], 1e-5), run_epsilon(run, 1e-5)
    assert theirs < ours < theirs + 0.02


def test_equal_runs_compose_as_one_longer_run_and_cost_less_than_their_sum() -> None:
    once, thrice = composed_epsilon([RUN], 1e-5), composed_epsilon([RUN] * 3, 1e-5)
    assert thrice == composed_epsilon([DpSgd(RUN.noise_multiplier, RUN.sampling_rate, 3 * RUN.steps)], 1e-5)
    assert once < thrice < 3 * once


def test_the_operating_system_fills_the_whole_state_of_a_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    words = np.random.default_rng(0).integers(0, 2**32, 624, dtype=np.uint32)
    monkeypatch.setattr("os.urandom", lambda size: words.tobytes()[:size])
    drawn = torch.empty(1000, dtype=torch.int64).random_(0, 2**31, generator=os_entropy_generator())
    oracle = np.random.MT19937()
    oracle.state = {"bit_generator": "MT19937", "state": {"key": words, "pos": 624}}
    assert np.array_equal(drawn.numpy(), oracle.random_raw(2000)[1::2].astype(np.int64) % 2**31)


def test_two_runs_with_one_seed_differ(images: ImageSet) -> None:
    first, second = (initialise(images, CONFIG, seed=0) for _ in range(2))
    assert torch.equal(weights(first.network), weights(second.network))
    for untrained in (first, second):
        spent = train_privately(untrained, images, PRIVACY, RUN, crop_padding=2)
        assert spent == composed_epsilon([RUN], PRIVACY.delta)
    assert (weights(first.network) - weights(second.network)).abs().median() > 0.1


def test_repeatable_noise_repeats_the_model_and_is_never_called_private(images: ImageSet) -> None:
    trained = []
    for _ in range(2):
        seeds = iter(range(3))
        untrained = initialise(images, CONFIG, seed=0)
        spent = train_privately(
            untrained,
            images,
            PRIVACY,
            RUN,
            crop_padding=2,
            entropy=lambda seeds=seeds: torch.Generator().manual_seed(next(seeds)),
        )
        assert spent == math.inf
        trained.append(weights(untrained.network))
    assert torch.equal(*trained)


def test_the_trained_network_holds_parameters_only_and_no_hooks(
    images: ImageSet, untrained: Untrained
) -> None:
    train_privately(untrained, images, PRIVACY, RUN, crop_padding=2)
    network = untrained.network
    assert set(network.state_dict()) == {name for name, _ in network.named_parameters()}
    assert not any(module._backward_hooks or module._forward_hooks for module in network.modules())


def test_an_empty_batch_takes_a_step_of_noise_of_the_right_size(
    images: ImageSet, untrained: Untrained
) -> None:
    """Gradients of nothing are zero; what is added has deviation rate · σ · C / expected batch size."""
    privacy = PRIVACY.model_copy(update={"learning_rate": 0.5, "max_grad_norm": 3.0})
    before = weights(untrained.network)
    with dp_sgd(untrained.network, images, privacy, RUN, os_entropy_generator) as (engine, optimizer, _):
        take_step(untrained.network, optimizer, torch.zeros(0, 1, 16, 16), torch.zeros(0, dtype=torch.int64))
        assert engine.accountant.history == [(RUN.noise_multiplier, RUN.sampling_rate, 1)]
    noise = (weights(untrained.network) - before) / (0.5 * RUN.noise_multiplier * 3.0 / 16)
    count = len(noise)
    assert count > 25_000
    assert abs(noise.mean()) < 5 / math.sqrt(count)
    assert abs(noise.std() - 1) < 5 / math.sqrt(2 * count)
    assert abs((noise.abs() > 1.959964).float().mean() - 0.05) < 5 * math.sqrt(0.05 * 0.95 / count)


def test_batches_are_poisson_samples(images: ImageSet, untrained: Untrained) -> None:
    with dp_sgd(untrained.network, images, PRIVACY, RUN, os_entropy_generator) as (_, _, batches):
        sizes = torch.tensor(
            [float(len(labels)) for _, (_, labels) in zip(range(400), batches, strict=False)]
        )
    assert abs(sizes.mean() - 16) < 5 * math.sqrt(8 / 400)
    assert abs(sizes.var() - 8) < 5 * 8 * math.sqrt(2 / 400)


def test_without_noise_and_clipping_a_step_is_plain_sgd(
    images: ImageSet, untrained: Untrained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.training.privacy.IMAGES_AT_ONCE", 5)
    plain = copy.deepcopy(untrained.network)
    inputs, labels = images.images[:16].float() / 255, images.labels[:16]
    with dp_sgd(untrained.network, images, PRIVACY, RUN, os_entropy_generator) as (_, optimizer, _):
        optimizer.noise_multiplier, optimizer.max_grad_norm = 0.0, 1e9
        take_step(untrained.network, optimizer, inputs, labels)
    F.cross_entropy(plain(inputs), labels).backward()
    torch.optim.SGD(plain.parameters(), lr=PRIVACY.learning_rate).step()
    torch.testing.assert_close(weights(untrained.network), weights(plain), rtol=1e-4, atol=1e-5)


def test_one_image_moves_a_step_by_no_more_than_the_clipping_norm(
    images: ImageSet, untrained: Untrained
) -> None:
    before = weights(untrained.network)
    privacy = PRIVACY.model_copy(update={"max_grad_norm": 0.01})
    with dp_sgd(untrained.network, images, privacy, RUN, os_entropy_generator) as (_, optimizer, _):
        optimizer.noise_multiplier = 0.0
        take_step(untrained.network, optimizer, images.images[:1].float(), images.labels[:1])
    assert (weights(untrained.network) - before).norm() * 16 == pytest.approx(0.01, rel=1e-3)


@pytest.mark.slow
def test_opacus_leaves_the_root_logger_as_it_was() -> None:
    code = (
        "import logging; from client.training.privacy import composed_epsilon; "
        "from fedfree.statement import DpSgd; "
        "before = logging.root.level, logging.root.handlers[:]; "
        "composed_epsilon([DpSgd(1.0, 0.5, 2)], 1e-5); "
        "assert before == (logging.root.level, logging.root.handlers), logging.root.handlers"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
