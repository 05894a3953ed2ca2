"""ONNX: the same probabilities, for any number of images of any size, or a word why not."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

import fedfree
from client.adapting import export
from client.adapting.adapt import make_classifier
from client.adapting.classifier import (
    Calibration,
    Description,
    FewShotClassifier,
    Openness,
    write_classifier,
)
from client.adapting.export import export_onnx
from client.data.image_set import ImageSet
from client.data.loading import load_images
from fedfree.adaptation import Recipe
from fedfree.architectures import Architecture, InputSpec
from fedfree.codec import MetaLearner, Provenance
from fedfree.errors import ConfigError, FedFreeError, StorageError
from fedfree.host.images.formats import Fit

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the onnx extra")


def make(recipe: Recipe, channels: int = 3, openness: Openness | None = None) -> FewShotClassifier:
    description = Description(
        architecture=Architecture(),
        input=InputSpec(channels, 16, 16, mean=(0.4,) * channels, std=(0.2,) * channels),
        recipe=recipe,
        support={"owl": 2, "cat": 1, "ćmą": 3},
        calibration=Calibration(temperature=2.5, images=5, accuracy=0.8),
        openness=openness,
        meta_learner="ef" * 32,
        provenance=Provenance((), "cd" * 32, 7, "fedfree"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = FewShotClassifier(description)
        for name in ("centre", "means", "weights", "class_means"):
            if name in dict(classifier.named_buffers()):
                tensor = classifier.get_buffer(name)
                tensor.copy_(F.normalize(torch.randn(tensor.shape), dim=-1))
    return classifier


def run(path: Path, pixels: Tensor) -> NDArray[np.float32]:
    """Probabilities [batch, n_way] as onnxruntime gives them."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (probabilities,) = session.run(["probabilities"], {"pixels": pixels.numpy()})
    return probabilities  # type: ignore[no-any-return]


def metadata(path: Path) -> dict[str, str]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.get_modelmeta().custom_metadata_map  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("recipe", "channels"),
    [(Recipe(), 3), (Recipe(mirror=True), 3), (Recipe("ridge", mirror=True), 3), (Recipe("gradient", 1), 1)],
    ids=str,
)
def test_onnxruntime_gives_the_same_probabilities_at_any_size(
    tmp_path: Path, recipe: Recipe, channels: int
) -> None:
    classifier, path = make(recipe, channels), tmp_path / "classifier.onnx"
    assert export_onnx(classifier, path) < 1e-5
    for batch, height, width in (
        (1, 16, 16),
        (40, 16, 16),
        (3, 8, 8),
        (2, 70, 100),
        (2, 333, 500),
        (2, 16, 90),
    ):
        pixels = torch.rand(batch, channels, height, width)
        found = run(path, pixels)
        small = F.interpolate(pixels, (16, 16), mode="bilinear", antialias=True)
        np.testing.assert_allclose(found, classifier(small).numpy(), atol=1e-5)
        np.testing.assert_allclose(found, classifier(pixels).numpy(), atol=1e-5)
        np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    assert [each.name for each in tmp_path.iterdir()] == ["classifier.onnx"]
    assert b".py" not in path.read_bytes()


def test_the_file_says_what_it_expects_and_what_it_does_itself(tmp_path: Path) -> None:
    export_onnx(make(Recipe()), tmp_path / "classifier.onnx")
    said = metadata(tmp_path / "classifier.onnx")
    assert json.loads(said.pop("class_names")) == ["owl", "cat", "ćmą"]
    assert said == {
        "value_range": "0 to 1",
        "channel_order": "RGB",
        "not_square": "inside: an image that is not square is squeezed",
        "resize": "inside: any size is brought to 16 x 16, bilinear, antialiased",
        "normalisation": "inside: mean [0.4, 0.4, 0.4], standard deviation [0.2, 0.2, 0.2]",
        "calibrated": "true",
        "meta_learner_sha256": "ef" * 32,
        "fedfree_version": fedfree.__version__,
    }


def test_the_file_gives_the_similarity_that_none_of_these_is_decided_by(tmp_path: Path) -> None:
    classifier = make(Recipe("ridge"), openness=Openness(threshold=0.25, images=12))
    path, pixels = tmp_path / "classifier.onnx", torch.rand(3, 3, 20, 31)
    assert export_onnx(classifier, path) < 1e-5
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(["probabilities", "similarity"], {"pixels": pixels.numpy()})
    for values, expected in zip(found, classifier.judge(pixels), strict=True):
        np.testing.assert_allclose(values, expected.numpy(), atol=1e-5)
    assert metadata(path)["none_of_these_below"] == "0.25"


def photo(colour: tuple[int, int, int], seed: int) -> Image.Image:
    """128 x 96 pixels of one colour between white stripes as wide: shrunk to 16 x 16 by leaving out pixels,
    every other photo shows the stripes alone."""
    pixels = np.full((96, 128, 3), colour, np.uint8)
    for start in range(4):
        pixels[:, start + 4 * (seed % 2) :: 8] = 255
    return Image.fromarray(pixels - np.random.default_rng(seed).integers(0, 20, pixels.shape, np.uint8))


def test_large_photos_are_told_apart_as_well_as_by_the_clients_own_reading(
    tmp_path: Path, make_meta_learner: Callable[..., MetaLearner]
) -> None:
    colours = {"blue": (40, 40, 200), "green": (40, 200, 40), "grey": (100, 100, 100), "red": (200, 40, 40)}
    for name, colour in colours.items():
        (tmp_path / name).mkdir()
        for seed in range(12):
            photo(colour, seed).save(tmp_path / name / f"{seed:02}.png")
    small = load_images(tmp_path, size=16, fit="squeeze")
    support = ImageSet(small.images[::3], small.labels[::3], small.class_names)
    classifier = make_classifier(make_meta_learner(), support, fit="squeeze")
    export_onnx(classifier, tmp_path / "classifier.onnx")

    large = torch.stack([pil_to_tensor(Image.open(path)) for path in sorted(tmp_path.rglob("*.png"))]) / 255
    found = run(tmp_path / "classifier.onnx", large)
    np.testing.assert_allclose(
        found, classifier(small.images / 255).numpy(), atol=0.01
    )  # Pillow rounds to 1/255

    def accuracy(probabilities: NDArray[np.float32]) -> float:
        return float((probabilities.argmax(1) == small.labels.numpy()).mean())

    assert accuracy(found) == 1
    assert accuracy(run(tmp_path / "classifier.onnx", F.interpolate(large, (16, 16)))) < 0.9


def test_an_export_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_to_onnx", lambda _: b"")
    monkeypatch.setattr(export, "_difference", lambda *_: 0.01)
    with pytest.raises(FedFreeError, match=r"differ from PyTorch's by 1.0e-02"):
        export_onnx(make(Recipe()), tmp_path / "classifier.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_to_onnx", lambda _: pytest.fail("exported in vain"))
    with pytest.raises(StorageError, match=f"{tmp_path} is a folder where a file"):
        export_onnx(make(Recipe()), tmp_path)


def test_the_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "REQUIRED", ("onnx", "no_such_package"))
    with pytest.raises(ConfigError, match=r"no_such_package, .* pip install 'fedfree\[onnx\]'"):
        export_onnx(make(Recipe()), tmp_path / "classifier.onnx")


def test_the_command_prints_what_it_measured(
    tmp_path: Path, run_client: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_to_onnx", lambda _: b"onnx")
    monkeypatch.setattr(export, "_difference", lambda *_: 3e-7)
    write_classifier(make(Recipe()), tmp_path / "c.safetensors")
    status, printed, _ = run_client(
        "export", "--classifier", tmp_path / "c.safetensors", "--onnx", tmp_path / "c.onnx"
    )
    assert status == 0 and "(4 bytes)" in printed and "3.0e-07" in printed
    assert (tmp_path / "c.onnx").read_bytes() == b"onnx"


@pytest.mark.parametrize("fit", ["crop", "letterbox"])
def test_whoever_does_what_the_file_says_of_photos_that_are_not_square_gets_what_predict_gives(
    tmp_path: Path, make_meta_learner: Callable[..., MetaLearner], fit: Fit
) -> None:
    pictures = [photo(colour, seed) for colour in ((40, 40, 200), (200, 40, 40)) for seed in range(2)]
    for index, each in enumerate(pictures):
        (tmp_path / "images" / "ab"[index // 2]).mkdir(parents=True, exist_ok=True)
        each.save(tmp_path / "images" / "ab"[index // 2] / f"{index}.png")
    seen = load_images(tmp_path / "images", size=16, fit=fit)
    classifier = make_classifier(make_meta_learner(), seen, fit=fit)
    export_onnx(classifier, tmp_path / "classifier.onnx")
    assert metadata(tmp_path / "classifier.onnx")["not_square"].startswith(
        {
            "crop": "outside: cut the middle square out",
            "letterbox": "outside: pad an image that is not square with grey (0.5)",
        }[fit]
    )
    large = torch.stack([pil_to_tensor(each) for each in pictures]) / 255
    square = large[..., 16:112] if fit == "crop" else F.pad(large, (0, 0, 16, 16), value=0.5)
    found = run(tmp_path / "classifier.onnx", square)
    np.testing.assert_allclose(found, classifier(seen.images / 255).numpy(), atol=0.02)


def test_onnxruntime_reports_to_nobody_and_gives_this_machine_no_id(tmp_path: Path) -> None:
    environment = os.environ | {"HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    code = "import client.adapting.export, onnxruntime"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)
    assert not list(tmp_path.rglob("*onnxruntime*"))
