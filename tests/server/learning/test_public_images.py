"""Public images: teachers see each once, and nothing else does."""

from collections.abc import Callable
from dataclasses import replace

import torch

from fedfree.architectures import InputSpec
from fedfree.codec import sha256
from server.config import ServerConfig
from server.learning.memory import to_bytes
from server.learning.moves import ask_teachers, invert, meta_learn
from server.learning.outcome import conclude
from server.learning.public_images import PublicImages
from server.learning.state import State, begin

MakeState = Callable[..., State]


def shades(count: int, *, channels: int = 1, size: int = 16) -> PublicImages:
    """Images of one shade each: 0, 1, …"""
    pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1)
    return PublicImages(pixels.expand(-1, channels, size, size).contiguous())


def of_one_shade(images: torch.Tensor) -> list[int]:
    """The shades of those [n, c, h, w] that have but one."""
    return [int(each.flatten()[0]) for each in images if each.min() == each.max()]


def test_a_turn_shows_the_next_ones_and_after_the_last_there_are_none() -> None:
    images = shades(5)
    turns = [to_bytes(images.turn(number, 2))[:, 0, 0, 0].tolist() for number in range(4)]
    assert turns == [[0, 1], [2, 3], [4], []]


def test_the_hash_is_of_the_pixels_and_their_order() -> None:
    assert shades(3).sha256 == shades(3).sha256
    others = [
        PublicImages(shades(3).pixels.flip(0)),
        shades(4),
        PublicImages(shades(3).pixels.view(3, 1, 8, 32)),
    ]
    assert len({each.sha256 for each in (shades(3), *others)}) == 4


def test_teachers_are_shown_public_images_and_nobody_else_is(make_state: MakeState) -> None:
    state = replace(make_state({"public_images": 2, "compositions": 0}), public_images=shades(3))
    recovered = invert(state, 0)
    before, remembered = state.rng.get_state(), state.memory.rows.added
    ask_teachers(state, recovered, iteration=0)
    corpus = state.teachers[0].corpus
    assert of_one_shade(corpus.rows["images"])[-2:] == [0, 1] and len(corpus) == 2 * 12 + 2
    ask_teachers(state, recovered, iteration=1)
    assert of_one_shade(corpus.rows["images"])[-1:] == [2] and len(corpus) == 2 * 2 * 12 + 3
    ask_teachers(state, recovered, iteration=2)
    assert len(corpus) == 3 * 2 * 12 + 3
    assert (state.memory.rows.added, len(state.validation)) == (remembered, 0)
    assert torch.equal(state.rng.get_state(), before)


def test_they_are_shown_from_the_end_of_the_warm_up_on(make_state: MakeState) -> None:
    state = replace(make_state({"public_images": 2}, warmup_iterations=1), public_images=shades(2))
    meta_learn(state, invert(state, 0), 0)
    assert len(state.teachers[0].corpus) == 0
    meta_learn(state, invert(state, 1), 1)
    assert of_one_shade(state.teachers[0].corpus.rows["images"])[-2:] == [0, 1]


def test_each_shape_of_input_gets_its_share_no_finer_and_no_more_coloured_than_its_own(
    make_models: Callable[..., object],
) -> None:
    inputs = [InputSpec(1, 16, 16), InputSpec(3, 32, 32)]
    config = ServerConfig.parse(
        {
            "device": "cpu",
            "invert": {"images_per_model": 6, "steps": 1, "generator_width": 2, "models_per_iteration": 2},
            "learn": {"public_images": 4, "compositions": 0, "memory_images": 100},
        },
        origin="test",
    )
    pixels = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    pixels[:, 0] = 120
    state = begin(make_models(inputs).pool(), config, PublicImages(pixels))  # type: ignore[attr-defined]
    invert(state, 0)
    ask_teachers(state, [], iteration=0)
    grey, coloured = (each.corpus.rows["images"][-2:] for each in state.teachers)
    assert grey.shape == coloured.shape == (2, 3, 32, 32)
    assert (grey == 40).all() and (coloured == pixels[:2]).all()


def test_what_is_broadcast_says_that_there_were_public_images(make_state: MakeState) -> None:
    without, state = make_state(), replace(make_state(), public_images=shades(3))
    for each in (without, state):
        invert(each, 0)
    said = conclude(state).meta_learner.provenance
    assert (said.public_images, said.public_images_sha256) == (3, shades(3).sha256)
    none = conclude(without).meta_learner.provenance
    assert (none.public_images, none.public_images_sha256) == (0, "")


def test_the_configurations_hash_counts_how_many_are_shown_only_where_somebody_chose_it() -> None:
    chosen, usual = (ServerConfig.parse({"learn": {"public_images": n}}, origin="test") for n in (7, 100))
    assert usual.sha256() == ServerConfig().sha256() != chosen.sha256()
    before = {"learn": {"public_images", "patched"}, "invert": {"inversion"}}
    assert usual.sha256() == sha256(usual.model_dump_json(exclude=before).encode())


def test_a_checkpoint_belongs_to_its_public_images(make_state: MakeState) -> None:
    states = [replace(make_state(), public_images=each) for each in (None, shades(2), shades(3))]
    assert len({each.fingerprint() for each in states}) == 3
    assert states[0].fingerprint() == make_state().fingerprint()
