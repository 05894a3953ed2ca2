"""The organisation's side as functions: the command line's numbers, and scikit-learn's methods."""

import copy
import doctest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import client.api
from client.adapting.adapt import evaluate as evaluate_configured
from client.adapting.adapt import make_classifier
from client.adapting.classifier import read_classifier, write_classifier
from client.api import FewShotClassifier, adapt, contribute, evaluate
from client.config import ClientConfig
from client.data.loading import load_images
from client.training.pretrain import pretrain
from fedfree.adaptation import Recipe
from fedfree.codec import MetaLearner, decode_contribution
from fedfree.errors import ConfigError, DataError
from fedfree.host.starts import write_start
from fedfree.start import LoadedStart

MakeMetaLearner = Callable[..., MetaLearner]
Images = NDArray[np.uint8]
Labels = NDArray[np.str_]
Shades = tuple[Images, Labels]

TINY: dict[str, Any] = {"image_size": 16, "epochs": 1, "min_steps": 5, "batch_size": 16, "threads": 1}


@pytest.fixture
def shades() -> Shades:
    """Sixty noisy images, [60, 3, 16, 16], of a red, a green and a blue class, not sorted by class."""
    random = np.random.default_rng(0)
    classes = np.arange(60) % 3
    images = random.integers(0, 60, (60, 3, 16, 16), dtype=np.uint8)
    images[np.arange(60), classes] += 150
    return images, np.array(["red", "green", "blue"])[classes]


def written(folder: Path, images: Images, labels: Labels) -> Path:
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / label / f"{index:02}.png")
    return folder


def configured(tmp_path: Path, shades: Shades, training: dict[str, Any], **more: Any) -> ClientConfig:
    data = {"source": written(tmp_path / "images", *shades)}
    values = {"data": data, "training": training, "cache": tmp_path / "cache", **more}
    return ClientConfig.parse(values, origin="test")


def test_a_contribution_is_the_one_that_pretrain_makes_of_files(tmp_path: Path, shades: Shades) -> None:
    from_files = decode_contribution(*pretrain(configured(tmp_path, shades, TINY, seed=3)))
    assert contribute(*shades, seed=3, **TINY) == from_files
    assert contribute(*shades, seed=4, **TINY).weights != from_files.weights


def test_so_is_one_from_a_start(
    tmp_path: Path, shades: Shades, make_start: Callable[..., LoadedStart]
) -> None:
    begun, start = make_start(channels=3), tmp_path / "start"
    write_start(start, begun.start, begun.weights)
    training = {"epochs": 1, "min_steps": 3, "threads": 1}
    from_files = decode_contribution(
        *pretrain(configured(tmp_path, shades, {**training, "start": str(start)}))
    )
    assert contribute(*shades, start=start, **training) == from_files
    assert from_files.start == begun.start.sha256


def test_a_contribution_leaves_no_trace_on_disk(tmp_path: Path, shades: Shades) -> None:
    contribute(*shades, **TINY)
    assert not list(tmp_path.parent.glob(f"{tmp_path.name}*/**/*"))


def test_what_a_contribution_cannot_be_made_with_is_refused(shades: Shades) -> None:
    with pytest.raises(ConfigError, match=r"epsilon 3.0 has to be counted in the organisation's ledger"):
        contribute(*shades, epsilon=3.0, **TINY)
    with pytest.raises(ConfigError, match="contribute: epoch"):
        contribute(*shades, epoch=3)
    with pytest.raises(ConfigError, match="trained head needs a start"):
        contribute(*shades, trained="head")
    with pytest.raises(DataError, match="60 images, 59 labels"):
        contribute(shades[0], shades[1][1:])
    with pytest.raises(DataError, match="at least 2 classes"):
        contribute(shades[0], ["red"] * 60)


@pytest.mark.parametrize("recipe", [Recipe(), Recipe("ridge"), Recipe("gradient", steps=1)], ids=str)
def test_a_classifier_is_the_one_that_adapt_makes_of_files(
    tmp_path: Path, shades: Shades, make_meta_learner: MakeMetaLearner, recipe: Recipe
) -> None:
    images, labels = shades[0][:9], shades[1][:9]
    meta_learner = make_meta_learner(recipe)
    support = load_images(written(tmp_path / "support", images, labels), size=16, channels=3)
    expected = make_classifier(meta_learner, support)
    classifier = adapt(meta_learner, images, labels)
    assert classifier.classes_.tolist() == list(expected.class_names) == ["blue", "green", "red"]
    with torch.no_grad():
        probabilities = expected(torch.from_numpy(shades[0]) / 255).numpy()
    np.testing.assert_allclose(classifier.predict_proba(shades[0]), probabilities, atol=1e-6)
    write_classifier(classifier.classifier_, tmp_path / "classifier")
    assert read_classifier(tmp_path / "classifier").description == expected.description


def test_accuracy_is_what_the_command_line_measures(
    tmp_path: Path, shades: Shades, make_meta_learner: MakeMetaLearner
) -> None:
    data = {"source": written(tmp_path / "new", *shades)}
    episodes = {"data": data, "n_way": 3, "n_query": 5, "episodes": 20}
    config = configured(tmp_path, shades, {"threads": 1}, evaluate=episodes, seed=2)
    one_shot, five_shot = evaluate_configured(make_meta_learner(), config)
    for n_shot, expected in ((1, one_shot), (5, five_shot)):
        measured = evaluate(
            make_meta_learner(), *shades, n_way=3, n_shot=n_shot, n_query=5, episodes=20, seed=2
        )
        assert measured == expected.accuracy
    with pytest.raises(DataError, match="a 5-way episode needs 5 classes"):
        evaluate(make_meta_learner(), *shades)


def test_probabilities_predictions_and_score_belong_together(
    shades: Shades, make_meta_learner: MakeMetaLearner
) -> None:
    classifier = FewShotClassifier(make_meta_learner()).fit(*shades)
    probabilities, predicted = classifier.predict_proba(shades[0]), classifier.predict(shades[0])
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    assert predicted.tolist() == classifier.classes_[probabilities.argmax(1)].tolist()
    assert classifier.score(*shades) == (predicted == shades[1]).mean() > 0.9
    assert classifier.score(shades[0], ["unknown"] * 60) == 0
    assert np.array_equal(classifier.predict(shades[0][::-1]), predicted[::-1]), "each on its own"


def test_predicted_classes_are_the_values_that_were_given(
    shades: Shades, make_meta_learner: MakeMetaLearner
) -> None:
    for values in ([7, 10, 8], [("a", 1), ("b", 2), ("c", 3)], [False, True, True]):
        labels = [values[index % 3] for index in range(60)]
        predicted = adapt(make_meta_learner(), shades[0], labels).predict(shades[0])
        assert set(predicted.tolist()) <= set(values)
        assert np.mean([one == other for one, other in zip(predicted.tolist(), labels, strict=True)]) > 0.6


def test_an_image_of_no_class_is_told(shades: Shades, make_meta_learner: MakeMetaLearner) -> None:
    two = shades[1] != "blue"
    classifier = adapt(make_meta_learner(), shades[0][two], shades[1][two])
    told = classifier.none_of_these(shades[0])
    assert told[~two].mean() > told[two].mean()
    tuned = adapt(make_meta_learner(Recipe("gradient", steps=1)), shades[0][two], shades[1][two])
    with pytest.raises(ConfigError, match="with head gradient and 1 steps every image"):
        tuned.none_of_these(shades[0])


def test_it_is_copied_by_its_parameters_as_scikit_learn_does(
    shades: Shades, make_meta_learner: MakeMetaLearner
) -> None:
    fitted = FewShotClassifier(make_meta_learner()).fit(*shades)
    clone = type(fitted)(**copy.deepcopy(fitted.get_params()))
    with pytest.raises(ConfigError, match="call fit"):
        clone.predict(shades[0])
    assert np.array_equal(clone.fit(*shades).predict(shades[0]), fitted.predict(shades[0]))
    other = make_meta_learner(Recipe("ridge"))
    assert clone.set_params(meta_learner=other) is clone and clone.meta_learner is other
    with pytest.raises(ConfigError, match="no such parameter: depth"):
        clone.set_params(depth=3)


def test_scikit_learn_cross_validates_it(shades: Shades, make_meta_learner: MakeMetaLearner) -> None:
    selection = pytest.importorskip("sklearn.model_selection", reason="needs scikit-learn")
    scores = selection.cross_val_score(FewShotClassifier(make_meta_learner()), *shades, cv=3)
    assert len(scores) == 3 and scores.min() > 0.8


def test_the_examples_in_the_docstrings_hold(shades: Shades, make_meta_learner: MakeMetaLearner) -> None:
    known = {"images": shades[0], "labels": shades[1], "meta_learner": make_meta_learner()}
    told = doctest.testmod(client.api, extraglobs=known)
    assert told.attempted >= 8 and told.failed == 0


@pytest.mark.parametrize(
    "wrong", [{"episodes": 0}, {"episodes": 1e9}, {"n_way": "a"}, {"n_shot": 1.5}, {"seed": None}]
)
def test_a_number_that_is_not_whole_is_refused_with_its_name(
    wrong: dict[str, Any], shades: Shades, make_meta_learner: MakeMetaLearner
) -> None:
    (name,) = wrong
    with pytest.raises(ConfigError, match=f"{name} is a whole number from"):
        evaluate(make_meta_learner(), *shades, **wrong)


def test_a_seed_that_is_no_number_is_refused(shades: Shades) -> None:
    with pytest.raises(ConfigError, match="seed is a whole number from 0 on, got 'x'"):
        contribute(*shades, seed="x", **TINY)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [None, "meta_learner.safetensors", Path("meta_learner.safetensors")])
def test_what_is_no_meta_learner_is_refused(wrong: Any, shades: Shades) -> None:
    for refuse in (adapt, evaluate):
        with pytest.raises(ConfigError, match="expected a meta-learner"):
            refuse(wrong, *shades)
