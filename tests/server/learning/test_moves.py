"""Each move by itself: what it changes, and what it leaves alone."""

from collections.abc import Callable

import pytest
import torch

from server.learning.moves import ask_teachers, distil, invert, meta_learn, objective, replay, schedule
from server.learning.state import State
from server.learning.trust import Trust

MakeState = Callable[..., State]
REPLAY = {"replay_episodes": 1, "replay_ways": 2, "replay_queries": 1}


def changed(state: State, move: Callable[[], object]) -> set[str]:
    """The first words of the names of all tensors that a move changes."""
    before = state.tensors()
    move()
    after = state.tensors()
    return {
        name.split(".")[0]
        for name, tensor in after.items()
        if name not in before or not torch.equal(tensor, before[name])
    }


def test_inverting_moves_the_generator_and_fills_the_memory(make_state: MakeState) -> None:
    state = make_state()
    moved = changed(state, lambda: invert(state, 0))
    assert moved == {"generator", "generator_optimizer", "memory", "rng"}


def test_a_model_that_does_not_count_is_not_inverted(
    make_state: MakeState, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = make_state()
    ids = state.pool.ids
    monkeypatch.setattr(State, "doubted", lambda self: {ids[0]: Trust(0.0, "no use to others")})
    recovered = {task.member.id for iteration in range(4) for task in invert(state, iteration)}
    assert recovered and ids[0] not in recovered


def test_before_the_end_of_the_warm_up_nothing_is_remembered_and_nothing_learned(
    make_state: MakeState,
) -> None:
    state = make_state(warmup_iterations=1)
    moved = changed(state, lambda: meta_learn(state, invert(state, 0), 0))
    assert moved == {"generator", "generator_optimizer", "rng"}
    assert "memory" in changed(state, lambda: meta_learn(state, invert(state, 1), 1))


def test_asking_the_teachers_fills_their_corpus_alone(make_state: MakeState) -> None:
    state = make_state()
    recovered = invert(state, 0)
    assert changed(state, lambda: ask_teachers(state, recovered)) == {"corpus0", "rng"}
    assert len(state.teachers[0].corpus) == 2 * 12 + 4


def test_distilling_moves_the_meta_learner_and_its_projection(make_state: MakeState) -> None:
    state = make_state()
    recovered = invert(state, 0)
    ask_teachers(state, recovered)
    moved = changed(state, lambda: distil(state, recovered))
    assert moved == {"meta_learner", "projection0", "path0", "rng"}


def test_replaying_moves_the_meta_learner_alone(make_state: MakeState) -> None:
    state = make_state(REPLAY)
    invert(state, 0)
    assert changed(state, lambda: replay(state)) == {"meta_learner", "replay_optimizer", "rng"}


@pytest.mark.parametrize(("iteration", "share"), [(0, 1.0), (1, 0.853553), (2, 0.5), (3, 0.146447)])
def test_rates_fall_along_half_a_cosine(make_state: MakeState, iteration: int, share: float) -> None:
    state = make_state()
    schedule(state, iteration)
    rates = [each.param_groups[0]["lr"] for each in (*state.path_optimizers, state.replay_optimizer)]
    configured = state.config.learn.inner_learning_rate, state.config.learn.replay_learning_rate
    assert rates == pytest.approx([share * rate for rate in configured], rel=1e-5)
    assert state.generator_optimizer.param_groups[0]["lr"] == state.config.invert.outer_learning_rate


def test_the_adversarial_term_looks_at_the_meta_learner_as_it_stands(make_state: MakeState) -> None:
    state = make_state()
    assert objective(state, 0.5).meta_learner is state.meta_learner
    assert objective(state, 0.5).adversarial_weight == 0.5


def test_with_nothing_to_distil_the_replay_alone_teaches(make_state: MakeState) -> None:
    state = make_state(REPLAY | {"relational_tasks": 0})
    recovered = invert(state, 0)
    assert set(meta_learn(state, recovered, 0)) == {"inversion_loss", "inversion_agreement", "replay_loss"}
