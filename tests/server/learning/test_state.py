"""The state: begun from a seed, saved as named tensors, restored to go on the same."""

from collections.abc import Callable

import pytest
import torch

from server.learning.moves import invert, meta_learn
from server.learning.state import State

MakeState = Callable[..., State]
EVERYTHING = {"paths": 2, "replay_episodes": 1, "replay_ways": 2, "replay_queries": 1, "own_tasks": True}


def iterate(state: State, *iterations: int) -> None:
    for iteration in iterations:
        meta_learn(state, invert(state, iteration), iteration)


def assert_equal(state: State, other: State) -> None:
    ours, theirs = state.tensors(), other.tensors()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_state_is_what_its_seed_makes_it(make_state: MakeState) -> None:
    torch.manual_seed(1)
    state = make_state()
    torch.manual_seed(2)
    assert_equal(state, make_state())
    other = make_state(seed=1)
    ours, theirs = (each.meta_learner.get_parameter("blocks.0.0.weight") for each in (state, other))
    assert not torch.equal(ours, theirs)


def test_a_restored_state_goes_on_like_the_one_that_was_saved(make_state: MakeState) -> None:
    state, restored = make_state(EVERYTHING), make_state(EVERYTHING)
    iterate(state, 0, 1)
    restored.restore(state.tensors())
    assert restored.images_recovered == state.images_recovered == 48
    for each in (state, restored):
        iterate(each, 2)
    assert_equal(state, restored)


def test_saved_tensors_do_not_move_with_the_state(make_state: MakeState) -> None:
    state = make_state()
    saved = state.tensors()
    before = {name: tensor.clone() for name, tensor in saved.items()}
    iterate(state, 0)
    assert all(torch.equal(saved[name], before[name]) for name in saved)


def test_the_fingerprint_tells_configurations_apart_but_not_iterations(
    make_state: MakeState,
) -> None:
    state = make_state()
    begun = state.fingerprint()
    iterate(state, 0)
    assert state.fingerprint() == begun == make_state().fingerprint()
    assert len({make_state(**changes).fingerprint() for changes in ({}, {"seed": 1}, {"threads": 1})}) == 3


def test_a_checkpoint_of_another_release_does_not_fit(
    make_state: MakeState, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = make_state().fingerprint()
    monkeypatch.setattr("server.learning.state.this_release", lambda: "0.0.1")
    assert make_state().fingerprint() != begun
