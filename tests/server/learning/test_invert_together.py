"""Models adapted together against the slow and obvious way, one after the other."""

import copy
from functools import partial

import pytest
import torch

from fedfree.architectures import Architecture, InputSpec, build
from server.config import InvertConfig
from server.learning.generator import Generator
from server.learning.invert import Objective, RecoverEach, RecoveredTask, one_at_a_time, recover
from server.learning.invert_together import together
from server.learning.pool import Member

COLOUR = InputSpec(height=16, width=16)
GREY = InputSpec(channels=1, height=20, width=20, mean=(0.3,), std=(0.2,), horizontal_flip=False)
CPU = torch.device("cpu")
CONFIG = InvertConfig(steps=2, images_per_model=12, latent_size=4, generator_width=2, crop_padding=2)
POOL = (
    ("conv4", 3, COLOUR),
    ("conv4-32-group", 3, COLOUR),
    ("conv4", 3, COLOUR),
    ("conv4", 4, COLOUR),
    ("resnet10", 3, GREY),
    ("resnet10", 3, GREY),
)


def make_members() -> list[Member]:
    members = []
    for number, (name, classes, spec) in enumerate(POOL):
        torch.manual_seed(number)
        architecture = Architecture.parse(name)
        network = build(architecture, num_classes=classes, input=spec).double().requires_grad_(False)
        members.append(Member(str(number), number, architecture, network, spec, classes, CPU))
    return members


def run(recover_each: RecoverEach, adversarial_weight: float) -> tuple[Generator, list[RecoveredTask]]:
    torch.manual_seed(9)
    generator = Generator(latent_size=4, width=2, channels=3, image_size=16).double()
    meta_learner = build(Architecture(), num_classes=4, input=COLOUR).double()
    generator = copy.deepcopy(generator)
    tasks = recover(
        generator,
        torch.optim.SGD(generator.parameters(), lr=0.1),
        make_members(),
        Objective(CONFIG, meta_learner, COLOUR, adversarial_weight),
        rng=torch.Generator().manual_seed(3),
        recover_each=recover_each,
    )
    return generator, tasks


@pytest.mark.parametrize("adversarial_weight", [0.0, 1.0])
def test_models_adapted_together_give_what_they_give_one_at_a_time(adversarial_weight: float) -> None:
    check_alike(run(one_at_a_time, adversarial_weight), run(together, adversarial_weight))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of torch's own
def test_compiled_they_give_the_same() -> None:
    check_alike(run(one_at_a_time, 0.0), run(partial(together, compiled=True), 0.0))


def check_alike(
    slowly: tuple[Generator, list[RecoveredTask]], quickly: tuple[Generator, list[RecoveredTask]]
) -> None:
    (slow, expected), (fast, tasks) = slowly, quickly
    for theirs, ours in zip(expected, tasks, strict=True):
        assert theirs.member.id == ours.member.id
        torch.testing.assert_close(ours.images, theirs.images)
        torch.testing.assert_close(ours.loss, theirs.loss)
        assert torch.equal(ours.labels, theirs.labels) and ours.agreement == theirs.agreement
    for theirs_, ours_ in zip(slow.parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(ours_, theirs_)
