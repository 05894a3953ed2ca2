"""ONNX: the same probabilities, for any number of images, or a word why not."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from client.adapting import export
from client.adapting.classifier import Calibration, Description, FewShotClassifier, write_classifier
from client.adapting.export import export_onnx
from fedfree.adaptation import Recipe
from fedfree.architectures import Architecture, InputSpec
from fedfree.codec import Provenance
from fedfree.errors import ConfigError, FedFreeError

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the onnx extra")


def make(recipe: Recipe, channels: int = 3) -> FewShotClassifier:
    description = Description(
        architecture=Architecture(),
        input=InputSpec(channels, 16, 16, mean=(0.4,) * channels, std=(0.2,) * channels),
        recipe=recipe,
        support={"owl": 2, "cat": 1, "ćmą": 3},
        calibration=Calibration(temperature=2.5, images=5, accuracy=0.8),
        meta_learner="ef" * 32,
        provenance=Provenance((), "cd" * 32, 7, "fedfree"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = FewShotClassifier(description)
        if recipe.head == "nearest_mean":
            classifier.centre.normal_()
            classifier.means.copy_(torch.nn.functional.normalize(torch.randn(3, 32), dim=1))
    return classifier


@pytest.mark.parametrize(
    ("recipe", "channels"), [(Recipe(), 3), (Recipe(mirror=True), 3), (Recipe("gradient", 1), 1)], ids=str
)
def test_onnxruntime_gives_the_same_probabilities(tmp_path: Path, recipe: Recipe, channels: int) -> None:
    classifier, path = make(recipe, channels), tmp_path / "classifier.onnx"
    assert export_onnx(classifier, path) < 1e-5
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for batch in (1, 3, 40):
        pixels = torch.rand(batch, channels, 16, 16)
        (found,) = session.run(["probabilities"], {"pixels": pixels.numpy()})
        np.testing.assert_allclose(found, classifier(pixels).numpy(), atol=1e-5)
        np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    names = session.get_modelmeta().custom_metadata_map["class_names"]
    assert json.loads(names) == ["owl", "cat", "ćmą"]
    assert [each.name for each in tmp_path.iterdir()] == ["classifier.onnx"]
    assert b".py" not in path.read_bytes()


def test_an_export_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_to_onnx", lambda _: b"")
    monkeypatch.setattr(export, "_difference", lambda *_: 0.01)
    with pytest.raises(FedFreeError, match=r"differ from PyTorch's by 1.0e-02"):
        export_onnx(make(Recipe()), tmp_path / "classifier.onnx")
    assert list(tmp_path.iterdir()) == []


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
