"""Who teaches on which images, in pools whose models take several shapes of input."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedfree.architectures import Architecture, InputSpec, build
from fedfree.codec import Contribution, encode_contribution, encode_weights
from fedfree.statement import PrivacyStatement
from server.config import InvertConfig, MetaLearnConfig, ServerConfig
from server.events import ignore
from server.learning import moves
from server.learning.memory import Corpus, to_bytes
from server.learning.meta_learn import DistillationTask
from server.learning.pool import Member, Pool
from server.learning.state import State, begin
from server.learning.teachers import Teachers, relational_tasks
from server.learning.trust import voices_of
from server.storage.store import ACCEPTED, Store
from server.verify.verify import verify_received

CPU = torch.device("cpu")
GREY = InputSpec(channels=1, height=16, width=16)
COLOUR = InputSpec(channels=3, height=20, width=20)
POOL = [GREY] * 2 + [COLOUR] * 3
INVERT = InvertConfig(models_per_iteration=5, images_per_model=12, steps=1, generator_width=4)


def make_state(path: Path, *, min_alike: int, max_teachers: int = 32, norm: str = "batch") -> State:
    store = Store(path)
    for seed, spec in enumerate(POOL):
        torch.manual_seed(seed)
        architecture = Architecture(norm=norm)
        network = build(architecture, num_classes=3, input=spec)
        contribution = Contribution(architecture, 3, spec, PrivacyStatement(), encode_weights(network))
        store.receive(encode_contribution(contribution), contribution.weights)
    verify_received(store, ignore)
    learn = MetaLearnConfig(
        min_alike=min_alike, max_teachers=max_teachers, compositions=10, relational_tasks=3, batch_size=8
    )
    return begin(Pool(store, store.ids(ACCEPTED), CPU), ServerConfig(threads=1, invert=INVERT, learn=learn))


def channels(teachers: Sequence[Teachers]) -> list[list[int]]:
    return [[member.input.channels for member in each.members] for each in teachers]


@pytest.mark.parametrize(
    ("min_alike", "max_teachers", "expected"),
    [
        (2, 32, [[1, 1], [3, 3, 3]]),
        (3, 32, [[1, 1, 3, 3, 3], [3, 3, 3]]),
        (1, 2, [[1], [3]]),
        (9, 32, [[1, 1, 3, 3, 3]] * 2),
    ],
)
def test_models_teach_on_images_of_their_shape_or_all_of_them_do(
    tmp_path: Path, min_alike: int, max_teachers: int, expected: list[list[int]]
) -> None:
    state = make_state(tmp_path, min_alike=min_alike, max_teachers=max_teachers)
    assert channels(state.teachers) == expected


def test_recovered_images_are_no_finer_and_no_more_coloured_than_their_models_take(tmp_path: Path) -> None:
    for task in moves.invert(make_state(tmp_path, min_alike=2), 0):
        assert task.images.shape[1:] == (3, 20, 20)
        is_grey = bool((task.images[:, 0] == task.images[:, 1]).all())
        assert is_grey == (task.member.input.channels == 1)


def test_teachers_are_shown_what_their_shape_gave_and_compositions_of_it(tmp_path: Path) -> None:
    state = make_state(tmp_path, min_alike=2)
    moves.ask_teachers(state, moves.invert(state, 0))
    grey, colour = state.teachers
    recovered, composed = state.config.invert.images_per_model, state.config.learn.compositions // 2
    assert [len(grey.corpus), len(colour.corpus)] == [2 * recovered + composed, 3 * recovered + composed]
    pixels = grey.corpus.rows["images"]
    assert torch.equal(pixels[:, 0], pixels[:, 2]) and not torch.equal(*colour.corpus.rows["images"][:2])


def test_models_without_batch_norm_are_shown_compositions_alone(tmp_path: Path) -> None:
    state = make_state(tmp_path, min_alike=2, norm="group")
    recovered = moves.invert(state, 0)
    moves.ask_teachers(state, recovered)
    grey, colour = state.teachers
    counts = [len(each.images) for each in recovered]
    composed = state.config.learn.compositions // 2
    assert [len(grey.corpus), len(colour.corpus)] == [sum(counts[:2]) + composed, sum(counts[2:]) + composed]
    pixels = grey.corpus.rows["images"]
    assert torch.equal(pixels[:, 0], pixels[:, 2]), "noise is no more coloured than the models' images either"
    shown = {tuple(image.flatten().tolist()) for image in colour.corpus.rows["images"]}
    ours = [to_bytes(task.images) for task in recovered if task.member.input.channels == 3]
    assert not any(tuple(image.flatten().tolist()) in shown for image in torch.cat(ours))


def test_teachers_that_were_shown_something_give_their_share_of_a_batch(tmp_path: Path) -> None:
    state, rng = make_state(tmp_path, min_alike=2), torch.Generator().manual_seed(0)
    config = MetaLearnConfig(relational_tasks=3, batch_size=4)
    assert relational_tasks(state.teachers, config, rng=rng) == []
    moves.ask_teachers(state, moves.invert(state, 0))
    unseen = Teachers(state.teachers[0].members, Corpus(4, CPU))
    tasks = relational_tasks([unseen, *state.teachers], config, rng=rng)
    assert [[(len(each.features), len(each.sizes)) for each in task.lessons] for task in tasks] == [
        [(2, 2), (2, 3)]
    ] * 3
    assert [len(task.images) for task in tasks] == [4, 4, 4]


def test_the_meta_learner_sees_patches_where_its_teachers_saw_none(tmp_path: Path) -> None:
    state = make_state(tmp_path, min_alike=9)
    moves.ask_teachers(state, moves.invert(state, 0))

    def first_task(**settings: float) -> DistillationTask:
        config = MetaLearnConfig(relational_tasks=1, batch_size=64, **settings)
        return relational_tasks(state.teachers, config, rng=torch.Generator().manual_seed(0))[0]

    clean, patched = first_task(), first_task(patched=0.5)
    assert torch.equal(clean.lessons[0].features, patched.lessons[0].features)
    differ = (clean.images != patched.images).flatten(1).any(1).float().mean()
    assert 0.2 < differ < 0.8
    assert torch.equal(clean.images, first_task(patched=0.0).images), "and none unless asked for"
    asked = ServerConfig.parse({"learn": {"patched": 0.5}}, origin="test")
    assert asked.sha256() != ServerConfig().sha256()


def test_how_much_teachers_count_survives_a_checkpoint(tmp_path: Path) -> None:
    state = make_state(tmp_path, min_alike=9)
    moves.ask_teachers(state, moves.invert(state, 0))
    again = make_state(tmp_path, min_alike=9)
    again.restore(state.tensors())
    for before, after in zip(state.teachers, again.teachers, strict=True):
        assert before.trusts() == after.trusts()


def test_teachers_of_one_organisation_share_one_vote(tmp_path: Path) -> None:
    teachers = make_state(tmp_path, min_alike=2).teachers[0]
    known = [replace(each, organisation="one") for each in teachers.members]
    assert [each.weight for each in replace(teachers, members=known).trusts()] == [0.5, 0.5]


def test_a_teacher_that_sees_only_brightness_counts_for_nothing(tmp_path: Path) -> None:
    state, rng = make_state(tmp_path, min_alike=9), torch.Generator().manual_seed(0)
    teachers = state.teachers[0]
    hostile = teachers.members[0]
    for module in hostile.network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight.fill_(1 / module.weight[0].numel())
    moves.ask_teachers(state, moves.invert(state, 0))
    weights = [each.weight for each in teachers.trusts()]
    assert weights[0] < 0.1 and min(weights[1:]) > 0.4
    (task,) = relational_tasks([teachers], MetaLearnConfig(relational_tasks=1, batch_size=4), rng=rng)
    (plain,) = relational_tasks(
        [teachers], MetaLearnConfig(relational_tasks=1, batch_size=4, robust=False), rng=rng
    )
    assert task.lessons[0].weights is not None and task.lessons[0].weights.tolist() == pytest.approx(weights)
    assert plain.lessons[0].weights is None


def test_one_organisation_with_most_of_the_models_does_not_decide_who_is_skilled() -> None:
    torch.manual_seed(0)
    organisations = [*"abcdef", *"x" * 8]
    network = build(Architecture(), num_classes=3, input=GREY)
    members = [
        Member(str(number), number, Architecture(), network, GREY, 3, CPU, each)
        for number, each in enumerate(organisations)
    ]
    numbers, classes = torch.arange(14).repeat_interleave(30), torch.arange(3).repeat(140)
    of_class = torch.nn.functional.one_hot(classes, network.feature_size)
    of_crowd = numbers[:, None] >= 6
    features = [
        # Each side tells apart what was recovered from its own models alone.
        of_class * (of_crowd == (number >= 6)) + 0.3 * torch.randn(of_class.shape)
        for number in range(14)
    ]
    corpus = Corpus(420, CPU)
    corpus.add(torch.zeros(420, 1, 16, 16), torch.cat(features, 1), torch.stack([numbers, classes], 1))
    weights = [each.weight for each in Teachers(members, corpus, origins=voices_of(organisations)).trusts()]
    assert weights[:6] == [1.0] * 6 and sum(weights[6:]) < 0.5
