"""An organisation's images, a meta-learner on its disk, and its command line."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from fedfree.adaptation import Recipe
from fedfree.architectures import Architecture, InputSpec, build
from fedfree.codec import MetaLearner, Provenance, encode_meta_learner, encode_weights
from tests.programs import RunProgram

WriteImages = Callable[[Path, dict[str, int]], Path]
MakeMetaLearner = Callable[..., MetaLearner]


@pytest.fixture
def write_images() -> WriteImages:
    """Colour images of 16 pixels a side, ``counts`` of each class, its classes told apart by their shade."""

    def write(root: Path, counts: dict[str, int]) -> Path:
        generator = torch.Generator().manual_seed(sum(counts.values()))
        for label, (name, count) in enumerate(counts.items()):
            (root / name).mkdir(parents=True)
            for index in range(count):
                pixels = torch.randint(0, 60, (16, 16, 3), generator=generator) + 60 * label
                Image.fromarray(pixels.to(torch.uint8).numpy()).save(root / name / f"{index}.png")
        return root

    return write


@pytest.fixture
def make_meta_learner() -> MakeMetaLearner:
    """A meta-learner that has learned nothing, for 16 x 16 pixels."""

    def make(recipe: Recipe | None = None, architecture: str = "conv4", channels: int = 3) -> MetaLearner:
        spec, parsed = InputSpec(channels, 16, 16), Architecture.parse(architecture)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = build(parsed, num_classes=5, input=spec)
        provenance = Provenance(("ab" * 32,), "cd" * 32, 7, "fedfree")
        return MetaLearner(parsed, 5, spec, recipe or Recipe(), provenance, encode_weights(network))

    return make


@pytest.fixture
def meta_learner_path(tmp_path: Path, make_meta_learner: MakeMetaLearner) -> Path:
    """A run's two files, of which the weights are named."""
    meta_learner = make_meta_learner()
    path = tmp_path / "run" / "meta_learner.safetensors"
    path.parent.mkdir()
    path.write_bytes(meta_learner.weights)
    path.with_name("meta_learner.manifest.pb").write_bytes(encode_meta_learner(meta_learner))
    return path


@pytest.fixture
def run_client(run_program: RunProgram) -> RunProgram:
    """``fedfree-client`` with arguments: its exit status, output, and errors, never a traceback."""
    return partial(run_program, "client")
