"""A meta-learner is found by its weights, or by the folder that holds them."""

from pathlib import Path

import pytest

from client.commands.files import META_LEARNER, manifest_beside, read_meta_learner
from fedfree.adaptation import Recipe
from fedfree.architectures import Architecture, InputSpec, build
from fedfree.codec import MetaLearner, Provenance, encode_meta_learner, encode_weights
from fedfree.errors import ConfigError


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
