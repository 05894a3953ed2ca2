"""The classifier's file: whole, and refused where anything in it was changed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from client.adapting.classifier import (
    DESCRIPTION,
    DIGEST,
    Calibration,
    Description,
    FewShotClassifier,
    read_classifier,
    write_classifier,
)
from fedfree.adaptation import Recipe
from fedfree.architectures import Architecture, InputSpec
from fedfree.codec import Provenance, encode_weights, sha256
from fedfree.errors import ConfigError, FedFreeError

PROVENANCE = Provenance(("ab" * 32,), "cd" * 32, 7, "fedfree")


def make(recipe: Recipe | None = None) -> FewShotClassifier:
    return FewShotClassifier(
        Description(
            architecture=Architecture(),
            input=InputSpec(1, 16, 16, mean=(0.25,), horizontal_flip=False),
            recipe=recipe or Recipe(),
            support={"owl": 2, "cat": 1, "ćmą": 3},
            calibration=Calibration(temperature=1.5, images=5, accuracy=0.8),
            meta_learner="ef" * 32,
            provenance=PROVENANCE,
        )
    )


def write_changed(
    path: Path,
    *,
    change: Callable[[dict[str, Tensor]], object] = lambda _: None,
    sign: bool = True,
    **description: object,
) -> Path:
    """A file with other tensors or another description, its hash made right where ``sign`` says so."""
    classifier = make()
    tensors = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    change(tensors)
    values = json.loads(classifier.description.model_dump_json()) | description
    text = json.dumps({name: value for name, value in values.items() if value != "leave out"})
    digest = sha256(text.encode() + safetensors.torch.save(dict(tensors))) if sign else "00" * 32
    path.write_bytes(safetensors.torch.save(tensors, {DESCRIPTION: text, DIGEST: digest}))
    return path


@pytest.mark.parametrize("recipe", [Recipe(), Recipe("ridge"), Recipe("gradient", 3)], ids=str)
def test_what_is_written_is_read(tmp_path: Path, recipe: Recipe) -> None:
    written = make(recipe)
    write_classifier(written, tmp_path / "deep" / "classifier.safetensors")
    read = read_classifier(tmp_path / "deep" / "classifier.safetensors")
    assert read.description == written.description
    assert read.class_names == ("owl", "cat", "ćmą")
    assert encode_weights(read) == encode_weights(written)
    assert not read.network.training
    assert ("network.head.weight" in read.state_dict()) == (recipe.head == "gradient")


def test_a_signed_copy_is_read_so_that_the_refusals_below_have_their_own_reason(tmp_path: Path) -> None:
    assert read_classifier(write_changed(tmp_path / "copy")).description == make().description


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda tensors: tensors.pop("means"), r"missing \['means'\]"),
        (lambda tensors: tensors.update(backdoor=torch.zeros(1)), r"unexpected \['backdoor'\]"),
        (lambda tensors: tensors.update(means=torch.zeros(2, 32)), r"must be float32 \[3, 32\]"),
        (lambda tensors: tensors.update(centre=torch.zeros(32).half()), "got float16"),
        (lambda tensors: tensors["centre"].fill_(torch.nan), "'centre' holds NaN"),
        (lambda tensors: tensors["network.blocks.0.1.running_var"].fill_(-1), "negative variance"),
    ],
)
def test_other_tensors_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], object], reason: str
) -> None:
    with pytest.raises(FedFreeError, match=reason):
        read_classifier(write_changed(tmp_path / "changed", change=change))


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("format", 2, "format"),
        ("architecture", {"id": "transformer9000"}, "unknown architecture 'transformer9000'"),
        ("architecture", {"id": "conv4", "code": "import os"}, "code"),
        ("input", {"channels": 7}, "1 or 3 channels"),
        ("recipe", {"head": "oracle"}, "unknown adaptation head"),
        ("support", {"owl": 2}, "2 to 10000 classes"),
        ("support", {"owl": 2, "cat": 0, "ćmą": 3}, "support.cat"),
        ("calibration", {"temperature": 0, "images": 1, "accuracy": 1}, "calibration.temperature"),
        ("calibration", {"temperature": float("nan"), "images": 1, "accuracy": 1}, "calibration.temperature"),
        ("openness", {"threshold": 1.5, "images": 3}, "openness.threshold"),
        ("openness", {"threshold": 0.5, "images": 3}, r"missing \['class_means'\]"),
        ("meta_learner", "../../etc", "meta_learner"),
        ("provenance", "leave out", "provenance"),
        ("executable", "payload", "executable"),
        ("fit", "stretch", "fit"),
    ],
)
def test_another_description_is_refused(tmp_path: Path, name: str, value: object, reason: str) -> None:
    with pytest.raises(FedFreeError, match=reason):
        read_classifier(write_changed(tmp_path / "changed", **{name: value}))


def test_a_classifier_of_a_release_that_squeezed_photos_squeezes_them(tmp_path: Path) -> None:
    assert read_classifier(write_changed(tmp_path / "old", fit="leave out")).description.fit == "squeeze"
    assert read_classifier(write_changed(tmp_path / "new", fit="letterbox")).description.fit == "letterbox"


def test_a_file_from_before_openness_never_says_none_of_these(tmp_path: Path) -> None:
    read = read_classifier(write_changed(tmp_path / "old", openness="leave out"))
    assert read.description.openness is None and "class_means" not in read.state_dict()


def test_a_value_that_is_possible_but_was_changed_is_refused_too(tmp_path: Path) -> None:
    path = tmp_path / "classifier.safetensors"
    write_classifier(make(), path)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"owl", b"elk"))
    with pytest.raises(FedFreeError, match="was changed: its sha256 differs"):
        read_classifier(path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(FedFreeError, match="was changed: its sha256 differs"):
        read_classifier(path)


@pytest.mark.parametrize("metadata", [None, {DESCRIPTION: "{"}, {DESCRIPTION: "[" * 100_000}, {"other": "x"}])
def test_safetensors_without_a_description_are_no_classifier(
    tmp_path: Path, metadata: dict[str, str] | None
) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(safetensors.torch.save(make().state_dict(), metadata))
    with pytest.raises(FedFreeError, match="no adapted classifier"):
        read_classifier(path)


def test_a_file_that_is_absent_or_no_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(b"no tensors at all")
    for name, reason in (
        ("noise", "not valid safetensors"),
        ("nowhere", "no such file"),
        (".", "is a folder"),
    ):
        with pytest.raises(FedFreeError, match=reason):
            read_classifier(tmp_path / name)


def test_a_file_of_another_kind_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "meta_learner.safetensors"
    path.write_bytes(b"years of work")
    with pytest.raises(
        ConfigError, match=r"meta_learner\.safetensors is there, and is nothing that this command"
    ):
        write_classifier(make(), path)
    assert path.read_bytes() == b"years of work"


def test_a_classifier_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    for _ in range(2):
        write_classifier(make(), tmp_path / "classifier.safetensors")
    assert read_classifier(tmp_path / "classifier.safetensors")


@pytest.mark.parametrize("key", [*Description.model_fields, "height", "temperature"])
def test_a_flipped_bit_in_a_key_says_that_the_file_is_damaged(tmp_path: Path, key: str) -> None:
    path = tmp_path / "classifier.safetensors"
    write_classifier(make(), path)
    whole, name = path.read_bytes(), f'\\"{key}\\"'.encode()
    assert name in whole
    path.write_bytes(whole.replace(name, name[:2] + bytes([name[2] ^ 1]) + name[3:]))
    with pytest.raises(
        FedFreeError, match=r"is damaged, was changed, or is of another release .*adapt again"
    ):
        read_classifier(path)
