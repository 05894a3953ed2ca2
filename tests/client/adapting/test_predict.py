"""The organisation's commands on images of its own: adapt, then predict, each image on its own."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from client.adapting.classifier import Openness, read_classifier, write_classifier
from client.adapting.predict import Prediction, predict
from client.commands.adapting import _as_table
from client.data.image_set import to_input
from client.data.loading import load_images
from fedfree.adaptation import adapt
from fedfree.codec import MetaLearner
from fedfree.host.images.formats import Fit
from tests.programs import RunProgram

WriteImages = Callable[[Path, dict[str, int]], Path]

COUNTS = {"cat": 3, "gnu": 1, "owl": 2}


@pytest.fixture
def classifier(
    tmp_path: Path, meta_learner_path: Path, write_images: WriteImages, run_client: RunProgram
) -> Path:
    path = tmp_path / "classifier.safetensors"
    support = write_images(tmp_path / "support", COUNTS)
    status, _, err = run_client(
        "adapt", "--meta-learner", meta_learner_path, "--support", support, "--out", path
    )
    assert (status, err) == (0, "")
    return path


@pytest.fixture
def queries(tmp_path: Path, write_images: WriteImages) -> Path:
    return write_images(tmp_path / "queries", {"cat": 2, "gnu": 2, "owl": 2})


def refuse(error: Exception) -> None:
    raise error


def all_of(path: Path, *images: Path, top: int = 3) -> list[Prediction]:
    return list(predict(read_classifier(path), images, top=top, on_unreadable=refuse))


def test_adapt_reports_counts_accuracy_and_calibration(
    tmp_path: Path, meta_learner_path: Path, write_images: WriteImages, run_client: RunProgram
) -> None:
    support, out = write_images(tmp_path / "support", COUNTS), tmp_path / "c.safetensors"
    command = ("adapt", "--meta-learner", meta_learner_path, "--out", out, "--support")
    status, printed, _ = run_client(*command, support)
    lines = printed.splitlines()
    assert status == 0
    assert [line.split() for line in lines[:4]] == [
        ["class", "images"], ["cat", "3"], ["gnu", "1"], ["owl", "2"]
    ]  # fmt: skip
    calibration = read_classifier(out).description.calibration
    assert calibration is not None
    assert f"leave-one-out accuracy {calibration.accuracy:.1%} (5 of 6 images)" in lines[4]
    assert f"calibration temperature {calibration.temperature:.2f}" in lines[4]


def test_adapt_says_where_nothing_could_be_calibrated(
    tmp_path: Path, meta_learner_path: Path, write_images: WriteImages, run_client: RunProgram
) -> None:
    support, out = write_images(tmp_path / "single", {"cat": 1, "gnu": 1}), tmp_path / "c.safetensors"
    status, printed, _ = run_client(
        "adapt", "--meta-learner", meta_learner_path, "--support", support, "--out", out
    )
    assert status == 0 and "not calibrated: no class has two images" in printed
    _, printed, _ = run_client("predict", "--classifier", out, support)
    assert "probability (not calibrated)" in printed


def test_the_commands_give_what_the_shared_recipe_gives(
    classifier: Path, queries: Path, tmp_path: Path, make_meta_learner: Callable[..., MetaLearner]
) -> None:
    meta_learner = make_meta_learner()
    support, asked = load_images(tmp_path / "support", size=16), load_images(queries, size=16)
    inputs = to_input(support.images, meta_learner.input)
    adapted = adapt(meta_learner.network(), meta_learner.recipe, inputs, support.labels, n_way=3)
    logits = adapted.logits(to_input(asked.images, meta_learner.input)).detach()
    expected = (logits / read_classifier(classifier).temperature).softmax(1)
    predictions = all_of(classifier, queries)
    assert [each.image.parent.name for each in predictions] == ["cat", "cat", "gnu", "gnu", "owl", "owl"]
    for prediction, row in zip(predictions, expected, strict=True):
        named = dict(prediction.ranking)
        torch.testing.assert_close(torch.tensor([named[name] for name in COUNTS]), row)
        assert list(named.values()) == sorted(named.values(), reverse=True)


def test_an_image_is_predicted_the_same_whatever_else_is_asked(classifier: Path, queries: Path) -> None:
    together = {each.image: dict(each.ranking) for each in all_of(classifier, queries)}
    assert len(together) == 6
    for image, expected in together.items():
        (alone,) = all_of(classifier, image)
        assert dict(alone.ranking) == pytest.approx(expected, abs=1e-6)


def test_a_zip_is_predicted_as_the_folder_it_was_made_of(classifier: Path, queries: Path) -> None:
    zipped = Path(shutil.make_archive(str(queries), "zip", queries))
    from_zip, from_folder = all_of(classifier, zipped), all_of(classifier, queries)
    assert [each.image for each in from_zip] == [
        zipped / each.image.relative_to(queries) for each in from_folder
    ]
    assert [each.ranking for each in from_zip] == [each.ranking for each in from_folder]


def test_json_gives_an_object_a_line(classifier: Path, queries: Path, run_client: RunProgram) -> None:
    status, printed, _ = run_client("predict", "--classifier", classifier, "--json", "--top", 2, queries)
    lines = [json.loads(line) for line in printed.splitlines()]
    assert status == 0 and len(lines) == 6
    for line in lines:
        assert line["class"] in COUNTS and line["calibrated"] is True
        assert line["ranking"][0] == {"class": line["class"], "probability": line["probability"]}
        assert len(line["ranking"]) == 2


def test_none_of_these_is_said_where_no_class_mean_is_near_enough(
    classifier: Path, queries: Path, run_client: RunProgram
) -> None:
    strict = read_classifier(classifier)
    strict.description = strict.description.model_copy(update={"openness": Openness(threshold=1, images=0)})
    write_classifier(strict, classifier)
    image = queries / "cat" / "0.png"
    _, printed, _ = run_client("predict", "--classifier", classifier, "--json", "--top", 2, image)
    said = json.loads(printed)
    assert said["none_of_these"] is True and said["threshold"] == 1 and 0 < said["similarity"] < 1
    assert said["class"] == said["ranking"][0]["class"] and len(said["ranking"]) == 2
    _, printed, _ = run_client("predict", "--classifier", classifier, image)
    assert len(printed.splitlines()) == 2
    assert f"none of these  similarity {said['similarity']:.3f}, below 1.000" in printed
    _, printed, _ = run_client("predict", "--classifier", classifier, "--top", 2, image)
    assert [said["class"] in line for line in printed.splitlines()[1:]] == [True, True]


def test_a_classifier_that_never_says_none_of_these_says_so(
    classifier: Path, queries: Path, run_client: RunProgram
) -> None:
    old = read_classifier(classifier)
    old.description = old.description.model_copy(update={"openness": None})
    del old.class_means
    write_classifier(old, classifier)
    _, printed, _ = run_client("predict", "--classifier", classifier, "--json", queries)
    for line in map(json.loads, printed.splitlines()):
        assert line["none_of_these"] is False and line["similarity"] is None is line["threshold"]


def test_the_table_is_aligned(classifier: Path, queries: Path, run_client: RunProgram) -> None:
    (queries / "cat" / "ćmą 猫.png").write_bytes((queries / "cat" / "0.png").read_bytes())
    _, printed, _ = run_client("predict", "--classifier", classifier, queries / "cat", "--top", 9)
    header, *rows = printed.splitlines()
    assert header.split() == ["image", "class", "probability"]
    assert len(rows) == 9
    plain = [row for row in rows if "猫" not in row]
    assert {row.index("0.", header.index("class")) for row in plain} == {header.index("probability")}
    (first, *_) = [row for row in rows if "猫" in row]
    assert first.index("0.", header.index("class") - 1) == header.index("probability") - 1


def test_what_cannot_be_read_is_named_and_the_others_are_predicted(
    classifier: Path, queries: Path, tmp_path: Path, run_client: RunProgram
) -> None:
    (queries / "cat" / "0.png").write_bytes(b"no image at all")
    (tmp_path / "empty").mkdir()
    paths = (tmp_path / "empty", queries, tmp_path / "nowhere.png")
    status, printed, err = run_client("predict", "--classifier", classifier, "--json", *paths)
    assert status == 2 and len(printed.splitlines()) == 5
    lines = err.splitlines()
    assert len(lines) == 3 and all(line.startswith("error: ") for line in lines)
    for line, word in zip(lines, ["empty", "0.png", "nowhere.png"], strict=True):
        assert word in line


@pytest.mark.parametrize(
    ("counts", "word"), [({"cat": 3}, "at least 2 classes"), ({}, "no such file or folder")]
)
def test_adapt_refuses_a_support_set_in_one_line(
    tmp_path: Path,
    meta_learner_path: Path,
    write_images: WriteImages,
    run_client: RunProgram,
    counts: dict[str, int],
    word: str,
) -> None:
    support = write_images(tmp_path / "support", counts)
    status, _, err = run_client("adapt", "--meta-learner", meta_learner_path, "--support", support)
    assert status == 2 and word in err and len(err.splitlines()) == 1


def test_a_place_that_cannot_be_written_is_refused_in_one_line(
    tmp_path: Path, meta_learner_path: Path, write_images: WriteImages, run_client: RunProgram
) -> None:
    support = write_images(tmp_path / "support", COUNTS)
    command = ("adapt", "--meta-learner", meta_learner_path, "--support", support, "--out")
    for out in (tmp_path, meta_learner_path / "below"):
        status, _, err = run_client(*command, out)
        assert status == 2 and "cannot write" in err and len(err.splitlines()) == 1


def test_a_file_that_is_no_classifier_is_refused_in_one_line(
    queries: Path, meta_learner_path: Path, run_client: RunProgram
) -> None:
    status, printed, err = run_client("predict", "--classifier", meta_learner_path, queries)
    assert (status, printed) == (2, "") and "no adapted classifier" in err and len(err.splitlines()) == 1


def test_evaluate_and_adapt_take_the_meta_learner_alike_by_default_where_fetch_puts_it(
    tmp_path: Path,
    meta_learner_path: Path,
    write_images: WriteImages,
    run_client: RunProgram,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = write_images(tmp_path / "images", {"cat": 20, "gnu": 20})
    commands = (
        ("evaluate", "--ways", 2, "--episodes", 2, "--data", images),
        ("adapt", "--out", tmp_path / "classifier.safetensors", "--support", images),
    )
    for command in commands:
        monkeypatch.chdir(tmp_path)
        assert run_client(*command, "--meta-learner", meta_learner_path)[0] == 0
        status, _, err = run_client(*command)
        assert status == 2 and err.startswith("error: no meta-learner at meta_learner.safetensors")
        assert "fedfree-client fetch" in err and "--meta-learner" in err
        monkeypatch.chdir(meta_learner_path.parent)
        assert run_client(*command)[0] == 0


@pytest.mark.parametrize("fit", [None, "letterbox", "squeeze"])
def test_photos_are_predicted_as_those_that_were_adapted_to(
    tmp_path: Path, meta_learner_path: Path, run_client: RunProgram, fit: Fit | None
) -> None:
    """Photos of several sizes and shapes, one lying on its side until its EXIF tag turns it."""
    turned = Image.Exif()
    turned[0x0112] = 6
    shapes = [((60, 20), None), ((20, 60), None), ((300, 140), None), ((90, 40), turned)]
    generator = np.random.default_rng(0)
    for name in ("cat", "gnu"):
        (tmp_path / "support" / name).mkdir(parents=True)
        for index, ((width, height), exif) in enumerate(shapes):
            pixels = generator.integers(0, 256, (height, width, 3), np.uint8)
            path = tmp_path / "support" / name / f"{index}.jpg"
            Image.fromarray(pixels).save(path, **({"exif": exif} if exif else {}))
    out, said = tmp_path / "c.safetensors", ("--fit", fit) if fit else ()
    command = ("--meta-learner", meta_learner_path, "--support", tmp_path / "support", "--out", out)
    status, _, err = run_client("adapt", *command, *said)
    assert (status, err) == (0, "")
    classifier = read_classifier(out)
    assert classifier.description.fit == (fit or "crop")
    support = load_images(tmp_path / "support", size=16, fit=fit or "crop").images
    for prediction, wanted in zip(all_of(out, tmp_path / "support"), classifier(support / 255), strict=True):
        assert dict(prediction.ranking) == pytest.approx(
            dict(zip(classifier.class_names, wanted.tolist(), strict=True)), abs=1e-5
        )


def test_a_hostile_class_or_file_name_is_shown_in_one_line(classifier: Path) -> None:
    hostile = Prediction(Path("a\x1b[2J\n.png"), (("b\x1b[31m\nc", 0.5),))
    _, row = _as_table([hostile], read_classifier(classifier), top=1)
    assert row.split() == ["a?[2J?.png", "b?[31m?c", "0.500"]
