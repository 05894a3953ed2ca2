"""An inversion of one's own: chosen by its name, and in the place of FIVE."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from fedfree.codec import sha256
from fedfree.errors import ConfigError, ExtensionError
from server.config import InvertConfig, ServerConfig
from server.learning.inversions import INVERSIONS
from server.learning.invert import Objective
from server.learning.moves import invert
from server.learning.pool import Member
from server.learning.state import State

MakeState = Callable[..., State]
Given = Sequence[tuple[Tensor, Tensor]]


def shades(members: Sequence[Member], objective: Objective, rngs: Sequence[torch.Generator]) -> Given:
    """Of each class one colour image of 20 pixels in the shade that the model's stream draws."""
    drawn = [torch.rand(each.num_classes, generator=rng) for each, rng in zip(members, rngs, strict=True)]
    return [(each[:, None, None, None].expand(-1, 3, 20, 20), torch.arange(len(each))) for each in drawn]


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch, make_state: MakeState) -> Callable[..., State]:
    """A state that recovers by a function, which is in the table under the name ``own``."""

    def make(inversion: Callable[..., Given] = shades) -> State:
        monkeypatch.setitem(INVERSIONS, "own", inversion)
        changes = {"inversion": "own", "models_per_iteration": 2, "batch_norm_weight": 0.0}
        return make_state(invert=InvertConfig.parse(changes, origin="test"))

    return make


def test_what_an_inversion_of_ones_own_gives_is_what_is_learned_from(choose: Callable[..., State]) -> None:
    state = choose()
    generator = {name: value.clone() for name, value in state.generator.state_dict().items()}
    tasks = invert(state, 0)
    assert len(tasks) == 2 and len(state.memory) == 6
    for task in tasks:
        assert task.images.shape == (3, 1, 16, 16) and task.labels.tolist() == [0, 1, 2]
        assert torch.allclose(task.images, task.images[:, :, :1, :1].expand_as(task.images), atol=1e-6)
        with torch.no_grad():
            said = task.member.network(task.member.input.normalise(task.images)).argmax(1)
        assert task.agreement == (said == task.labels).float().mean()
    for name, value in state.generator.state_dict().items():
        assert torch.equal(value, generator[name]), name


def test_it_draws_from_the_streams_of_the_run(choose: Callable[..., State]) -> None:
    first, again = ([each.images for each in invert(choose(), 0)] for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (torch.tensor([0, 1, 3]), "labels from 0 to 3 for a model of 3 classes"),
        (torch.tensor([0, 1]), r"images \[3, 1, 16, 16\] and torch.int64 labels \[2\]"),
        (torch.tensor([0.0, 1.0, 2.0]), r"torch.float32 labels \[3\]"),
    ],
)
def test_what_are_no_labelled_images_ends_the_run_with_what_was_expected(
    choose: Callable[..., State], labels: Tensor, said: str
) -> None:
    state = choose(lambda members, objective, rngs: [(torch.rand(3, 1, 16, 16), labels)] * len(members))
    with pytest.raises(ExtensionError, match=said):
        invert(state, 0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda *_: None, "the inversion 'own' gave a NoneType for 2 models"),
        (lambda *_: [], "gave 0 pairs for 2 models"),
        (lambda *_: [None, None], "gave NoneType for a model: expected two tensors"),
        (lambda *_: [(1, 2)] * 2, r"gave \['int', 'int'\] for a model"),
        (lambda *_: 1 / 0, r"the inversion 'own' failed at .*test_inversions.py:\d+: ZeroDivisionError"),
        (lambda *_: [(torch.rand(3, 7, 16, 16), torch.arange(3))] * 2, "expected .images, 1 or 3 channels"),
    ],
)
def test_an_inversion_that_fails_is_named_with_what_it_did(
    choose: Callable[..., State], given: Callable[..., Given], said: str
) -> None:
    with pytest.raises(ExtensionError, match=said):
        invert(choose(given), 0)


def test_an_unknown_name_is_refused_with_the_known_ones_before_anything_runs() -> None:
    with pytest.raises(ConfigError) as refused:
        ServerConfig.parse({"invert": {"inversion": "pixel"}}, origin="server.toml")
    expected = "server.toml: invert.inversion: no such inversion: use one of meta-generator (got 'pixel')"
    assert str(refused.value) == expected


def test_the_configurations_hash_counts_the_inversion_only_where_it_is_another_than_five(
    choose: Callable[..., State],
) -> None:
    usual, own = ServerConfig(), ServerConfig(invert=choose().config.invert)
    before = {"learn": {"public_images", "patched"}, "invert": {"inversion"}}
    assert usual.sha256() == sha256(usual.model_dump_json(exclude=before).encode()) != own.sha256()
