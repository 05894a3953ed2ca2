"""What a GPU computes, against the same on the CPU."""

import math
from pathlib import Path

import pytest
import safetensors.torch
import torch

from client.adapting.adapt import extract_features
from client.config import PrivacyConfig, TrainingConfig
from client.data.image_set import ImageSet
from client.training.fit import fit, initialise
from client.training.privacy import dp_sgd, os_entropy_generator, plan, take_step, train_privately
from fedfree.adaptation import Recipe
from fedfree.architectures import Architecture, InputSpec, build
from fedfree.codec import Contribution, encode_contribution, encode_weights
from fedfree.statement import DpSgd, PrivacyStatement
from server.config import ServerConfig
from server.pipeline import run
from server.storage.store import Store

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here"),
]
INPUT = InputSpec(channels=1, height=16, width=16)
GPU = torch.device("cuda")


@pytest.fixture
def images() -> ImageSet:
    """Two classes told apart by their shade."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 2
    pixels = torch.randint(0, 100, (64, 1, 16, 16), generator=rng) + 120 * labels.view(-1, 1, 1, 1)
    return ImageSet(pixels.to(torch.uint8), labels, ("dark", "light"))


def learn(path: Path, config: ServerConfig) -> dict[str, torch.Tensor]:
    store = Store(path)
    for seed, name in enumerate(("conv4", "conv4", "conv4-32-group", "resnet10")):
        torch.manual_seed(seed)
        architecture = Architecture.parse(name)
        network = build(architecture, num_classes=3, input=INPUT)
        contribution = Contribution(architecture, 3, INPUT, PrivacyStatement(), encode_weights(network))
        store.receive(encode_contribution(contribution), contribution.weights)
    return safetensors.torch.load(run(store, config).meta_learner.weights)


def small(device: str) -> ServerConfig:
    values = {
        "device": device,
        "precision": "float64",
        "threads": 1,
        "iterations": 3,
        "invert": {"models_per_iteration": 3, "images_per_model": 12, "steps": 2, "generator_width": 2},
        "learn": {"batch_size": 8, "compositions": 7, "relational_tasks": 4, "own_tasks": True},
    }
    return ServerConfig.parse(values, origin="test")


def test_the_server_learns_the_same_on_both_devices(tmp_path: Path) -> None:
    cpu, gpu = (learn(tmp_path / device, small(device)) for device in ("cpu", "cuda"))
    for name, tensor in cpu.items():
        torch.testing.assert_close(gpu[name], tensor, rtol=1e-4, atol=1e-5)


def test_a_model_is_trained_on_the_gpu_and_leaves_it(images: ImageSet) -> None:
    config = TrainingConfig(image_size=16, device="cuda", rotation_task=True, min_steps=40)
    trained = fit(images, config, seed=0)
    assert trained.held_out_accuracy == 1.0
    assert trained.network.device.type == "cpu"


def test_private_training_on_the_gpu_spends_what_was_planned(images: ImageSet) -> None:
    privacy = PrivacyConfig(epsilon=8, batch_size=32, delta=1e-3)
    weights = []
    for _ in range(2):
        untrained = initialise(images, TrainingConfig(architecture=Architecture(norm="group")), seed=0)
        planned = plan(len(images), privacy, epochs=4)
        spent = train_privately(untrained, images, privacy, planned, crop_padding=2, device="cuda")
        assert math.isfinite(spent) and spent <= 8
        weights.append(torch.cat([each.detach().flatten() for each in untrained.network.parameters()]))
    assert weights[0].device.type == "cpu"
    assert not torch.equal(*weights)


def test_noise_on_the_gpu_is_of_the_right_size(images: ImageSet) -> None:
    privacy = PrivacyConfig(epsilon=8, batch_size=16, learning_rate=0.5, max_grad_norm=3.0)
    run_planned = DpSgd(noise_multiplier=2.0, sampling_rate=0.25, steps=4)
    config = TrainingConfig(architecture=Architecture(norm="group"), image_size=16)
    network = initialise(images, config, seed=0).network.to(GPU)
    before = torch.cat([each.detach().flatten() for each in network.parameters()])
    with dp_sgd(network, images, privacy, run_planned, os_entropy_generator) as (_, optimizer, _):
        nothing = torch.zeros(0, 1, 16, 16, device=GPU), torch.zeros(0, dtype=torch.int64, device=GPU)
        take_step(network, optimizer, *nothing)
    after = torch.cat([each.detach().flatten() for each in network.parameters()])
    noise = (after - before) / (0.5 * 2.0 * 3.0 / 16)
    assert abs(noise.mean()) < 5 / math.sqrt(len(noise))
    assert abs(noise.std() - 1) < 5 / math.sqrt(2 * len(noise))


def test_features_are_those_of_the_cpu() -> None:
    torch.manual_seed(0)
    network = build(Architecture(), num_classes=2, input=INPUT).double()
    inputs = torch.randn(100, 1, 16, 16, dtype=torch.float64)
    expected = extract_features(network, inputs, Recipe(mirror=True))
    features = extract_features(network.to(GPU), inputs, Recipe(mirror=True))
    torch.testing.assert_close(features, expected)
