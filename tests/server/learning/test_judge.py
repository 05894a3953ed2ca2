"""What was learned from the mean of the models against the mean itself."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from fedfree.architectures import Architecture, InputSpec, build
from fedfree.codec import encode_tensors, sha256
from fedfree.start import LoadedStart, Start, body_of
from server.learning.invert import RecoveredTask
from server.learning.judge import HELD_OUT_EVERY, choose, part_held_out
from server.learning.merge import merge_into
from server.learning.moves import invert, meta_learn
from server.learning.outcome import conclude
from server.learning.pool import Models
from server.learning.state import State

GREY = InputSpec(channels=1, height=16, width=16)
MakeState = Callable[..., State]


@pytest.fixture
def state(
    make_state: MakeState, monkeypatch: pytest.MonkeyPatch, make_models: Callable[..., Models]
) -> State:
    """Of three models of three classes that began from one start: too few for the five ways of the replay."""
    network = build(Architecture(), num_classes=3, input=GREY)
    weights = encode_tensors(body_of(network.state_dict()))
    start = LoadedStart(Start(Architecture(), sha256(weights), GREY, "a test", "MIT"), weights)
    monkeypatch.setattr(type(make_models()), "start", start)
    return make_state()


def fill_validation(state: State) -> None:
    """Images of each class of each model: one shade a class, told apart by any network that sees shades."""
    for number in range(3):
        labels = torch.arange(60) % 3
        shades = (labels + 3 * number).float() / 9
        images = shades[:, None, None, None].expand(-1, 1, 16, 16) + 0.02 * torch.rand(60, 1, 16, 16)
        zero = torch.zeros(())
        task = RecoveredTask(state.pool.member(number), images.clamp(0, 1), labels, zero, zero)
        state.validation.add([task])
        state.memory.add([task])


def test_the_meta_learner_begins_as_the_mean_of_the_models(state: State) -> None:
    mean = build(Architecture(), num_classes=state.num_classes, input=GREY)
    merge_into(mean, state.pool)
    own = state.meta_learner.state_dict()
    assert all(own[name].equal(tensor) for name, tensor in body_of(mean.state_dict()).items())


def test_learning_leaves_the_statistics_of_the_start_alone(state: State) -> None:
    before = {n: t.clone() for n, t in state.meta_learner.state_dict().items()}
    for iteration in range(2):
        meta_learn(state, invert(state, iteration), iteration)
    after = state.meta_learner.state_dict()
    assert all(after[name].equal(before[name]) for name in before if "running" in name)
    assert not after["blocks.0.0.weight"].equal(before["blocks.0.0.weight"])


def test_of_each_class_one_image_in_five_is_kept_from_learning(state: State) -> None:
    labels = torch.arange(30) % 3
    task = RecoveredTask(
        state.pool.member(0), torch.arange(30.0).view(30, 1, 1, 1), labels, torch.zeros(()), torch.zeros(())
    )
    kept, judged = part_held_out(task)
    assert judged.labels.bincount().tolist() == [2, 2, 2] and 30 // 3 // HELD_OUT_EVERY == 2
    assert sorted([*kept.images.flatten().tolist(), *judged.images.flatten().tolist()]) == list(range(30))


def test_what_is_worse_than_the_mean_is_not_broadcast(state: State) -> None:
    fill_validation(state)
    with torch.no_grad():
        for parameter in state.meta_learner.parameters():
            parameter.zero_()  # blind: it gives chance
    chosen, judgement = choose(state)
    assert judgement is not None and not judgement.keeps_learned
    assert judgement.learned.mean < 40 < judgement.mean.mean
    mean = build(Architecture(), num_classes=state.num_classes, input=GREY)
    merge_into(mean, state.pool)
    assert body_of(chosen.state_dict())["blocks.0.0.weight"].equal(mean.state_dict()["blocks.0.0.weight"])
    assert conclude(state).judged()["broadcast"] == "average"


def test_what_is_better_than_the_mean_is_broadcast(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_validation(state)

    def blind(network: torch.nn.Module, pool: object, *, robust: bool) -> None:
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.zero_()

    monkeypatch.setattr("server.learning.judge.merge_into", blind)
    chosen, judgement = choose(state)
    assert judgement is not None and judgement.keeps_learned
    learned = state.meta_learner.state_dict()
    assert all(tensor.equal(learned[name]) for name, tensor in chosen.state_dict().items())
    assert conclude(state).judged()["broadcast"] == "learned"


def test_what_is_broadcast_lies_as_far_from_the_mean_as_is_configured(state: State) -> None:
    mean = body_of(copy.deepcopy(state.meta_learner.state_dict()))
    meta_learn(state, invert(state, 0), 0)
    learn = state.config.learn.model_copy(update={"broadcast_share": 0.25})
    chosen, _ = choose(replace(state, config=state.config.model_copy(update={"learn": learn})))
    weight = "blocks.0.0.weight"
    whole, part = (network.state_dict()[weight] - mean[weight] for network in (state.meta_learner, chosen))
    assert whole.abs().max() > 0
    torch.testing.assert_close(part, 0.25 * whole, rtol=1e-3, atol=1e-7)


def test_without_a_start_or_without_images_nothing_is_judged(make_state: MakeState, state: State) -> None:
    chosen, judgement = choose(state)
    learned = state.meta_learner.state_dict()
    assert judgement is None
    assert all(tensor.equal(learned[name]) for name, tensor in chosen.state_dict().items())
