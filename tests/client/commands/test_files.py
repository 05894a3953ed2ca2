"""A meta-learner is found by its weights, or by the folder that holds them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from client.commands.files import META_LEARNER, manifest_beside, read_meta_learner
from client.limits import LimitsConfig
from fedfree.adaptation import Recipe
from fedfree.architectures import Architecture, InputSpec, build
from fedfree.codec import MetaLearner, Provenance, encode_meta_learner, encode_weights
from fedfree.errors import ConfigError, TooMuchError


def test_a_meta_learner_is_read_from_its_file_and_from_the_folder_of_a_run(tmp_path: Path) -> None:
    spec = InputSpec(channels=1, height=16, width=16)
    network = build(Architecture(), num_classes=2, input=spec)
    provenance = Provenance(("ab" * 32,), "cd" * 32, 0, "a test")
    written = MetaLearner(Architecture(), 2, spec, Recipe(), provenance, encode_weights(network))
    path = tmp_path / META_LEARNER
    with pytest.raises(ConfigError, match=f"no meta-learner at {path}"):
        read_meta_learner(tmp_path)
    path.write_bytes(written.weights)
    manifest_beside(path).write_bytes(encode_meta_learner(written))
    assert read_meta_learner(path) == read_meta_learner(tmp_path) == written


def test_a_meta_learner_that_asks_for_more_than_the_limits_is_refused_before_its_weights_are_read(
    meta_learner_path: Path,
) -> None:
    exactly = LimitsConfig(image_size=16, recipe_steps=0)
    assert read_meta_learner(meta_learner_path, exactly) == read_meta_learner(meta_learner_path)
    manifest = manifest_beside(meta_learner_path)
    manifest.write_bytes(encode_meta_learner(_of_many_steps()))
    meta_learner_path.write_bytes(b"unread")
    with pytest.raises(TooMuchError, match=r"asks for 6 steps, and 5 is the most.* limits\.recipe_steps"):
        read_meta_learner(meta_learner_path, LimitsConfig(recipe_steps=5))


def _of_many_steps() -> MetaLearner:
    spec, provenance = InputSpec(1, 16, 16), Provenance((), "cd" * 32, 0, "a test")
    return MetaLearner(Architecture(), 2, spec, Recipe("gradient", steps=6), provenance, b"")


@pytest.mark.parametrize("command", ["adapt", "evaluate"])
def test_whoever_adapts_a_meta_learner_holds_it_to_the_limits_of_a_file(
    tmp_path: Path,
    meta_learner_path: Path,
    write_images: Callable[..., Path],
    run_client: Callable[..., tuple[int, str, str]],
    command: str,
) -> None:
    manifest_beside(meta_learner_path).write_bytes(encode_meta_learner(_of_many_steps()))
    (tmp_path / "client.toml").write_text("[limits]\nrecipe_steps = 5\n")
    images = write_images(tmp_path / "images", {"a": 2, "b": 2})
    data = "--support" if command == "adapt" else "--data"
    options = ("--meta-learner", meta_learner_path, "--limits", tmp_path / "client.toml")
    status, _, error = run_client(command, data, images, *options)
    assert (status, error.count("\n")) == (2, 1)
    assert "asks for 6 steps, and 5 is the most here" in error
