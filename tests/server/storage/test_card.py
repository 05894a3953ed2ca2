"""Beside a meta-learner lies a card, for people."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fedfree.adaptation import Recipe
from fedfree.architectures import Architecture, InputSpec, build
from fedfree.codec import MetaLearner, Provenance, encode_weights, sha256
from fedfree.start import LoadedStart
from server.config import ServerConfig
from server.storage.card import NOT_MEASURED, model_card
from server.storage.run_directory import RunDirectory

INPUT = InputSpec(channels=3, height=16, width=16)


def meta_learner(**changes: object) -> MetaLearner:
    weights = encode_weights(build(Architecture(), num_classes=5, input=INPUT))
    provenance = Provenance(("a" * 64, "b" * 64), "c" * 64, 7, "fedfree 0.1.0", **changes)  # type: ignore[arg-type]
    return MetaLearner(Architecture(), 5, INPUT, Recipe(), provenance, weights)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    (tmp_path / "server.toml").write_text(ServerConfig().to_toml())
    return RunDirectory(tmp_path)


def test_a_card_lies_beside_what_is_published_and_goes_with_it(run: RunDirectory) -> None:
    manifest = run.write_meta_learner(meta_learner())
    card = run.card.read_text()
    assert sha256(manifest) in card and NOT_MEASURED in card
    assert "It began from random weights." in card
    run.withdraw_meta_learner()
    assert not run.card.exists()


def test_it_names_what_was_learned_from_by_hash_and_the_public_images() -> None:
    learned = meta_learner(public_images=12, public_images_sha256="d" * 64)
    card = model_card(learned, "e" * 64, None)
    for known in ("a" * 64, "b" * 64, "c" * 64, "d" * 64, "e" * 64, "12 that its coordinator named"):
        assert known in card
    assert "public images" not in model_card(meta_learner(), "e" * 64, None)


def test_it_names_the_start_with_its_licence(make_start: Callable[..., LoadedStart]) -> None:
    start = make_start().start
    card = model_card(meta_learner(), "e" * 64, start)
    assert f"license: {start.licence.lower()}\n" in card
    assert start.sha256 in card and start.source in card and str(start.architecture) in card
