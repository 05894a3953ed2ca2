"""BELL against plain distillation and against the paper's Theorem 1."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedfree.adaptation import Recipe
from fedfree.architectures import Architecture, Classifier, InputSpec, build
from fedfree.seeding import make_generator
from server.config import MetaLearnConfig
from server.learning.invert import RecoveredTask
from server.learning.memory import Memory
from server.learning.meta_learn import (
    DistillationTask,
    Lesson,
    align,
    can_replay,
    distillation_loss,
    lesson_loss,
    projection_loss,
    relational_loss,
    replay_episodes,
    replay_members,
    side_by_side,
    task_loss,
    walk,
)
from server.learning.pool import Member
from server.learning.teachers import teacher_features

INPUT = InputSpec(channels=1, height=16, width=16, horizontal_flip=False)
CPU = torch.device("cpu")
ZERO = torch.tensor(0.0)
CONFIG = MetaLearnConfig(own_tasks=True, relational_tasks=0)


def make_network(seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    return build(Architecture(), num_classes=3, input=INPUT)


def make_member(seed: int, classes: int = 3) -> Member:
    torch.manual_seed(seed)
    network = build(Architecture(), num_classes=classes, input=INPUT).requires_grad_(False)
    return Member(f"member-{seed}", seed, Architecture(), network, INPUT, classes, CPU)


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_distilling_a_network_into_itself_costs_nothing() -> None:
    logits = torch.randn(20, 5, generator=rng())
    assert distillation_loss(logits, logits, temperature=2.0).abs() < 1e-6


def test_distillation_is_the_scaled_divergence_of_softened_outputs() -> None:
    logits, teacher = torch.randn(2, 20, 5, generator=rng())
    expected = 9 * F.kl_div(
        (logits / 3).log_softmax(1),
        (teacher / 3).log_softmax(1),
        log_target=True,
        reduction="batchmean",
    )
    torch.testing.assert_close(distillation_loss(logits, teacher, temperature=3.0), expected)


def test_relations_are_learned_up_to_rotation_and_scale_of_the_features() -> None:
    features = torch.randn(30, 8, generator=rng())
    rotation, _ = torch.linalg.qr(torch.randn(8, 8, generator=rng()))
    meta_learner, teacher = side_by_side(5 * features @ rotation + 2, [8]), side_by_side(features, [8])
    assert relational_loss(meta_learner, teacher, temperature=0.1).abs() < 1e-5
    assert relational_loss(meta_learner.roll(1, 0), teacher, temperature=0.1) > 0.1


def test_a_projection_is_compared_with_each_teacher_by_itself_whatever_its_scale() -> None:
    features = torch.randn(30, 8, generator=rng())
    teachers, centred = side_by_side(features, [3, 5]), features - features.mean(0)
    scaled = centred * torch.tensor([7.0] * 3 + [0.1] * 5)
    assert projection_loss(scaled, teachers, [3, 5]).abs() < 1e-6
    half = torch.cat([centred[:, :3], -centred[:, 3:]], dim=1)
    torch.testing.assert_close(projection_loss(half, teachers, [3, 5]), torch.tensor(1.0))


def test_relational_targets_are_the_mean_of_the_teachers_own_cosine_similarities() -> None:
    members = [make_member(0), make_member(1), make_member(2)]
    images = torch.rand(12, 1, 16, 16, generator=rng())
    vectors = side_by_side(teacher_features(members, images), [32, 32, 32])
    cosines = []
    for member in members:
        features = member.network.features(INPUT.normalise(images))
        features = F.normalize(features - features.mean(0), dim=1)
        cosines.append(features @ features.T)
    torch.testing.assert_close(vectors @ vectors.T, torch.stack(cosines).mean(0), rtol=1e-4, atol=1e-5)


def test_one_task_and_a_full_outer_step_is_plain_distillation() -> None:
    meta_learner, teacher = make_network(0), make_network(1)
    images = torch.rand(16, 1, 16, 16, generator=rng())
    task = DistillationTask(images, teacher_logits=teacher(INPUT.normalise(images)).detach())
    plain = copy.deepcopy(meta_learner)
    align(meta_learner, [torch.optim.SGD(meta_learner.parameters(), lr=0.1)], [task], INPUT, CONFIG)

    assert task.teacher_logits is not None
    plain.train()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    distillation_loss(plain(INPUT.normalise(images)), task.teacher_logits, 1.0).backward()
    optimizer.step()
    for ours, theirs in zip(meta_learner.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_smaller_outer_rate_goes_that_share_of_the_way() -> None:
    teacher, images = make_network(1), torch.rand(16, 1, 16, 16, generator=rng())
    task = DistillationTask(images, teacher_logits=teacher(INPUT.normalise(images)).detach())
    ends = []
    for rate in (1.0, 0.25):
        meta_learner = make_network(0)
        config = CONFIG.model_copy(update={"outer_rate": rate})
        align(meta_learner, [torch.optim.SGD(meta_learner.parameters(), lr=0.1)], [task], INPUT, config)
        ends.append(meta_learner.get_parameter("blocks.0.0.weight").detach())
    start = make_network(0).get_parameter("blocks.0.0.weight").detach()
    torch.testing.assert_close(ends[1] - start, 0.25 * (ends[0] - start))


def test_several_paths_start_at_the_same_point_and_meet_at_the_mean_of_their_ends() -> None:
    teacher, images = make_network(1), torch.rand(2, 16, 1, 16, 16, generator=rng())
    tasks = [
        DistillationTask(part, teacher_logits=teacher(INPUT.normalise(part)).detach()) for part in images
    ]

    def walked(tasks: list[DistillationTask], paths: int) -> Tensor:
        meta_learner = make_network(0)
        optimizers = [torch.optim.SGD(meta_learner.parameters(), lr=0.1) for _ in range(paths)]
        align(meta_learner, optimizers, tasks, INPUT, CONFIG)
        return meta_learner.get_parameter("blocks.0.0.weight").detach()

    mean = (walked(tasks[:1], 1) + walked(tasks[1:], 1)) / 2
    torch.testing.assert_close(walked(tasks, 2), mean)


class Quadratic(nn.Module):
    """A network whose only parameter is the point at which quadratic losses are taken."""

    def __init__(self, point: Tensor) -> None:
        super().__init__()
        self.point = nn.Parameter(point.clone())


@pytest.mark.parametrize("rate", [1e-2, 1e-3])
def test_the_outer_step_holds_the_gradient_of_the_inner_product_of_the_tasks_gradients(rate: float) -> None:
    """FREE, Theorem 1, for L_i(φ) = ½ (φ - c_i)ᵀ A_i (φ - c_i), whose Hessians A_i are constant.

    Over both orders, E[φ - φ'] / α = ḡ₁ + ḡ₂ - α/2 ∇(ḡ₁ · ḡ₂), and here exactly so.
    """
    hessians = torch.tensor([[[2.0, 0.5], [0.5, 1.0]], [[1.0, -0.3], [-0.3, 3.0]]], dtype=torch.float64)
    centres = torch.tensor([[1.0, 0.0], [0.0, -2.0]], dtype=torch.float64)
    start = torch.tensor([0.7, 0.4], dtype=torch.float64)

    def loss(model: Quadratic, task: int) -> Tensor:
        offset = model.point - centres[task]
        return 0.5 * offset @ hessians[task] @ offset

    steps = []
    for order in ((0, 1), (1, 0)):
        model = Quadratic(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        walk(optimizer, [partial(loss, model, task) for task in order])
        steps.append((start - model.point.detach()) / rate)
    gradients = [hessians[task] @ (start - centres[task]) for task in (0, 1)]
    inner_product_gradient = hessians[0] @ gradients[1] + hessians[1] @ gradients[0]
    expected = gradients[0] + gradients[1] - rate / 2 * inner_product_gradient
    torch.testing.assert_close(torch.stack(steps).mean(0), expected, rtol=1e-9, atol=1e-9)


def make_memory() -> Memory:
    memory = Memory(1000, CPU)
    tasks = [
        RecoveredTask(
            make_member(seed), torch.rand(40, 1, 16, 16, generator=rng()), torch.arange(40) % 2, ZERO, ZERO
        )
        for seed in range(4)
    ]
    memory.add(tasks)
    return memory


def test_replay_episodes_take_each_class_from_another_model() -> None:
    memory, stream = make_memory(), rng()
    for _ in range(20):
        members, labels = replay_members(memory, rng=stream)
        assert torch.equal(memory.models[members], labels)
        for model in labels.unique():
            assert len(memory.classes[members[labels == model]].unique()) == 1


@pytest.mark.parametrize(("ways", "queries", "enough"), [(4, 19, True), (5, 19, False), (4, 20, False)])
def test_replay_waits_for_enough_models_and_images(ways: int, queries: int, enough: bool) -> None:
    config = CONFIG.model_copy(update={"replay_ways": ways, "replay_queries": queries})
    assert can_replay(make_memory(), config) == enough


def test_replay_lowers_the_loss_on_the_memorys_episodes() -> None:
    memory, meta_learner = make_memory(), make_network()
    memory.rows["images"].copy_(memory.models.view(-1, 1, 1, 1) * 40 + memory.rows["images"] // 4)
    config = CONFIG.model_copy(update={"replay_episodes": 2, "replay_ways": 3, "replay_queries": 5})
    optimizer, stream = torch.optim.Adam(meta_learner.parameters(), lr=3e-3), rng()
    losses = [
        replay_episodes(meta_learner, optimizer, memory, Recipe(), INPUT, config, rng=stream)
        for _ in range(12)
    ]
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])


def test_the_task_loss_reaches_the_meta_learner_and_no_teacher() -> None:
    member, meta_learner = make_member(1), make_network(0)
    images = torch.rand(8, 1, 16, 16, generator=make_generator(0))
    task = DistillationTask(images, lessons=(Lesson(teacher_features([member], images), (32,)),))
    task_loss(meta_learner.train(), task, INPUT, CONFIG).backward()
    gradient = meta_learner.get_parameter("blocks.0.0.weight").grad
    assert gradient is not None and gradient.abs().sum() > 0
    assert all(parameter.grad is None for parameter in member.network.parameters())


def test_the_meta_learner_learns_the_relations_of_several_teachers() -> None:
    members, meta_learner = [make_member(1), make_member(2)], make_network(0)
    images = torch.rand(24, 1, 16, 16, generator=rng())
    task = DistillationTask(images, lessons=(Lesson(teacher_features(members, images), (32, 32)),))
    optimizer = torch.optim.Adam(meta_learner.parameters(), lr=3e-3)
    losses = [align(meta_learner, [optimizer], [task], INPUT, CONFIG) for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]


def test_lessons_share_the_statistics_of_one_batch_and_are_judged_apart() -> None:
    members, meta_learner = [make_member(1), make_member(2)], make_network(0).train()
    images = torch.rand(12, 1, 16, 16, generator=rng())
    taught = [teacher_features([member], part) for member, part in zip(members, images.split(6), strict=True)]
    lessons = tuple(Lesson(features, (32,)) for features in taught)
    loss = task_loss(meta_learner, DistillationTask(images, lessons=lessons), INPUT, CONFIG)
    parts = meta_learner.features(INPUT.normalise(images)).split(6)
    apart = [lesson_loss(part, lesson, CONFIG) for part, lesson in zip(parts, lessons, strict=True)]
    torch.testing.assert_close(loss, sum(apart) / 2)


def test_a_projection_is_learned_along_with_the_meta_learner() -> None:
    members, meta_learner, projection = [make_member(1), make_member(2)], make_network(0), nn.Linear(32, 64)
    images = torch.rand(24, 1, 16, 16, generator=rng())
    task = DistillationTask(
        images, lessons=(Lesson(teacher_features(members, images), (32, 32), projection),)
    )
    config = CONFIG.model_copy(update={"projection_weight": 1.0})
    optimizer = torch.optim.Adam([*meta_learner.parameters(), *projection.parameters()], lr=3e-3)
    losses = [
        align(meta_learner, [optimizer], [task], INPUT, config, projections=[projection]) for _ in range(60)
    ]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.slow
def test_compiled_losses_lead_to_the_same_meta_learner() -> None:
    members = [make_member(1), make_member(2)]
    for member in members:
        member.network.double()
    images = torch.rand(24, 1, 16, 16, generator=rng(), dtype=torch.float64)
    task = DistillationTask(images, lessons=(Lesson(teacher_features(members, images), (32, 32)),))
    meta_learners = []
    for compiled in (False, True):
        meta_learner = make_network(0).double()
        optimizer = torch.optim.SGD(meta_learner.parameters(), lr=0.1)
        align(meta_learner, [optimizer], [task] * 3, INPUT, CONFIG, compiled=compiled)
        meta_learners.append(meta_learner.get_parameter("blocks.0.0.weight").detach())
    torch.testing.assert_close(*meta_learners, rtol=1e-3, atol=1e-5)
    moved = (meta_learners[0] - make_network(0).get_parameter("blocks.0.0.weight")).abs().mean()
    assert moved > 2e-3


def test_a_network_without_weight_adds_nothing_and_equal_weights_are_the_plain_mean() -> None:
    features = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    alone = side_by_side(features[:, :3], [3])
    weighted = side_by_side(features, [3, 5], torch.tensor([0.5, 0.0]))
    torch.testing.assert_close(weighted @ weighted.T, alone @ alone.T)
    equal = side_by_side(features, [3, 5], torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(equal, side_by_side(features, [3, 5]))
