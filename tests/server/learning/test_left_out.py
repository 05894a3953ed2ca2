"""One model may not spoil a run: what is not finite of it is left out, and never published."""

from collections.abc import Callable, Sequence

import pytest
import torch

from fedfree.architectures import Architecture, Classifier, InputSpec
from fedfree.errors import FederationError
from server.config import MetaLearnConfig
from server.learning import invert as inversion
from server.learning.invert import Recovery
from server.learning.meta_learn import distillation_loss
from server.learning.moves import distil, invert, meta_learn
from server.learning.outcome import conclude
from server.learning.pool import Member, common_classes, common_input
from server.learning.state import State
from server.learning.teachers import affordable, appoint
from server.learning.trust import voices_of

MakeState = Callable[..., State]


def spoil(network: Classifier) -> None:
    """Features that a half-precision number cannot hold, and gradients that nothing can."""
    with torch.no_grad():
        network.get_parameter("blocks.3.1.weight").fill_(1e30)


def spoil_gradients(monkeypatch: pytest.MonkeyPatch, spoiled: str) -> None:
    """Of one model the gradient that the meta-generator would follow is not finite."""

    def recover(
        generator: object, members: Sequence[Member], objective: object, rngs: object
    ) -> Sequence[Recovery]:
        recovered = inversion.one_at_a_time(generator, members, objective, rngs)  # type: ignore[arg-type]
        for each in recovered:
            if each.task.member.id == spoiled:
                each.gradients[0].fill_(torch.inf)
        return recovered

    monkeypatch.setattr("server.learning.moves._way_to_recover", lambda state: recover)


def test_a_model_whose_gradients_are_not_finite_moves_no_generator_and_is_named(
    make_state: MakeState, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_gradients(monkeypatch, "1")
    state = make_state(invert=make_state().config.invert.model_copy(update={"models_per_iteration": 3}))
    recovered = invert(state, 0)
    assert sorted(task.member.id for task in recovered) == ["0", "2"]
    assert state.left_out == {"1"}
    assert set(state.memory.models.tolist()) == {0, 2}
    assert all(parameter.isfinite().all() for parameter in state.generator.parameters())


def test_with_every_model_spoiled_nothing_is_learned_and_nothing_breaks(
    make_state: MakeState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inversion, "_is_finite", lambda recovery: False)
    state = make_state({"own_tasks": True})
    assert meta_learn(state, invert(state, 0), 0) == {}
    assert len(state.left_out) == 2
    with pytest.raises(FederationError, match="no model gave back anything finite"):
        conclude(state)


def test_features_that_cannot_be_remembered_are_left_out_and_the_rest_teach(
    make_state: MakeState,
) -> None:
    state, undisturbed = make_state(), make_state()
    spoil(state.pool.member(1).network)
    for iteration in range(2):
        meta_learn(state, invert(state, iteration), iteration)
    corpus = state.teachers[0].corpus.rows["features"]
    assert "1" in state.left_out and "0" not in state.left_out
    assert corpus.isfinite().all()
    conclude(state)
    meta_learn(undisturbed, invert(undisturbed, 0), 0)
    assert not undisturbed.left_out


def test_outputs_that_are_not_finite_teach_nothing(make_state: MakeState) -> None:
    state = make_state({"own_tasks": True, "relational_tasks": 0})
    recovered = invert(state, 0)
    with torch.no_grad():
        recovered[0].member.network.head.bias.fill_(torch.inf)
    distil(state, recovered)
    assert state.left_out == {recovered[0].member.id}
    assert all(parameter.isfinite().all() for parameter in state.meta_learner.parameters())


@pytest.mark.parametrize("name", ["blocks.0.0.weight", "blocks.2.1.running_mean", "head.bias"])
def test_what_is_not_finite_is_never_published(make_state: MakeState, name: str) -> None:
    state = make_state()
    conclude(state)
    with torch.no_grad():
        state.meta_learner.state_dict()[name].flatten()[0] = torch.nan
    with pytest.raises(FederationError, match=f"not finite \\({name}\\), so nothing is published"):
        conclude(state)


def test_finite_weights_that_compute_nothing_finite_are_never_published(make_state: MakeState) -> None:
    state = make_state()
    with torch.no_grad():
        for block in range(4):
            state.meta_learner.get_parameter(f"blocks.{block}.1.weight").fill_(1e30)
    with pytest.raises(FederationError, match="its features on noise"):
        conclude(state)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [([5] * 24, 5), ([5, 20, 5], 20), ([*[5] * 23, 10_000], 20), ([3, 2, 4], 4), ([7], 7)],
)
def test_one_model_does_not_decide_how_many_classes_everybody_gets(counts: list[int], expected: int) -> None:
    assert common_classes(counts, torch.arange(len(counts))) == expected


def test_nor_does_one_organisation_that_sent_most_of_the_models() -> None:
    voices = voices_of([*"abcde", *"x" * 8])
    assert common_classes([*[5] * 5, *[10_000] * 8], voices) == 20
    sides = [InputSpec(3, side, side) for side in (*[32] * 5, *[512] * 8)]
    assert common_input(sides, voices).height == 32


def test_a_teacher_with_more_classes_teaches_the_first_ones() -> None:
    torch.manual_seed(0)
    own, teacher = torch.randn(4, 5), torch.randn(4, 9)
    assert torch.equal(distillation_loss(own, teacher, 2.0), distillation_loss(own, teacher[:, :5], 2.0))


def test_a_model_of_huge_images_or_features_is_not_asked_about_every_image() -> None:
    def member(side: int, features: int, organisation: str | None = None) -> Member:
        network, input = Classifier(), InputSpec(1, side, side)
        network.feature_size = features
        return Member("", 0, Architecture(), network, input, 3, torch.device("cpu"), organisation)

    small, mobile = [member(32, 128) for _ in range(4)], member(84, 1280)
    wide, large = member(32, 32_768), member(512, 512)
    assert affordable([*small, mobile, wide, large]) == [*small, mobile]
    assert affordable([wide, wide, small[0]]) == [wide, wide, small[0]]
    assert affordable([large, large, small[0]]) == [large, large, small[0]]
    of_one = [member(512, 512, "x") for _ in range(8)]
    assert affordable([*small, *of_one]) == small, "one organisation does not decide what is large"
    config = MetaLearnConfig(projection_weight=0)
    (teachers,) = appoint([small], 128, config, origins=torch.arange(4), everywhere=[mobile, wide, large])
    assert teachers.members == [*small, mobile], "nor is such a mean of a further start's models"
