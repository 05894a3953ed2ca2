"""A meta-learner becomes a classifier: exactly the shared recipe, from any number of classes and images."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from client.adapting import adapt as adaptation
from client.adapting.adapt import evaluate, leave_one_out, make_classifier
from client.adapting.classifier import read_classifier, write_classifier
from client.adapting.openness import measure_openness
from client.config import ClientConfig
from client.data.image_set import to_input
from client.data.loading import load_images
from fedfree.adaptation import HEADS, Recipe, adapt, unit_roots
from fedfree.architectures import Architecture, InputSpec, build
from fedfree.codec import MetaLearner
from fedfree.errors import ContributionError

WriteImages = Callable[[Path, dict[str, int]], Path]
MakeMetaLearner = Callable[..., MetaLearner]

RECIPES = [
    Recipe(),
    Recipe(mirror=True),
    Recipe("ridge"),
    Recipe("ridge", mirror=True),
    Recipe(steps=1),
    Recipe("gradient", steps=2),
]
COUNTS = {"cat": 3, "gnu": 1, "owl": 2}


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
@pytest.mark.parametrize("architecture", ["conv4", "resnet10-group"])
def test_the_stored_classifier_is_the_shared_recipe_on_the_same_images(
    tmp_path: Path,
    write_images: WriteImages,
    make_meta_learner: MakeMetaLearner,
    recipe: Recipe,
    architecture: str,
) -> None:
    meta_learner = make_meta_learner(recipe, architecture)
    support = load_images(write_images(tmp_path / "support", COUNTS), size=16)
    queries = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    write_classifier(make_classifier(meta_learner, support), tmp_path / "classifier.safetensors")
    stored = read_classifier(tmp_path / "classifier.safetensors")

    inputs = to_input(support.images, meta_learner.input)
    adapted = adapt(meta_learner.network(), recipe, inputs, support.labels, n_way=3)
    expected = adapted.logits(to_input(queries, meta_learner.input)).detach()
    torch.testing.assert_close(stored.logits(queries / 255), expected)
    calibration = stored.description.calibration
    assert calibration is not None and calibration.images == 5
    torch.testing.assert_close(stored(queries / 255), (expected / calibration.temperature).softmax(1))
    assert stored.description.support == COUNTS


@dataclass(frozen=True)
class FirstFeatures:
    """A head of another kind: the class whose images' mean of one feature is nearest."""

    heights: Tensor
    temperature: float

    def logits(self, features: Tensor) -> Tensor:
        return -(features[:, :1] - self.heights).abs() / self.temperature


def first_features(features: Tensor, labels: Tensor, *, n_way: int, temperature: float) -> FirstFeatures:
    members = torch.nn.functional.one_hot(labels, n_way).to(features.dtype)
    return FirstFeatures((features[:, 0] @ members) / members.sum(0), temperature)


@pytest.mark.parametrize("steps", [0, 1])
def test_a_head_that_joins_the_table_is_stored_and_read_like_the_others(
    tmp_path: Path,
    write_images: WriteImages,
    make_meta_learner: MakeMetaLearner,
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
) -> None:
    monkeypatch.setitem(HEADS, "first_features", first_features)
    recipe = Recipe("first_features", steps=steps, mirror=True)
    meta_learner = make_meta_learner(recipe)
    support = load_images(write_images(tmp_path / "support", COUNTS), size=16)
    write_classifier(make_classifier(meta_learner, support), tmp_path / "classifier.safetensors")
    stored = read_classifier(tmp_path / "classifier.safetensors")

    inputs = to_input(support.images, meta_learner.input)
    adapted = adapt(meta_learner.network(), recipe, inputs, support.labels, n_way=3)
    torch.testing.assert_close(stored.logits(support.images / 255), adapted.logits(inputs).detach())
    assert "heights" in stored.state_dict() and stored.description.calibration is not None


def test_a_class_with_one_image_each_leaves_the_recipe_as_it_is(
    tmp_path: Path, write_images: WriteImages, make_meta_learner: MakeMetaLearner
) -> None:
    support = load_images(write_images(tmp_path / "support", {"cat": 1, "gnu": 1}), size=16)
    classifier = make_classifier(make_meta_learner(), support)
    assert classifier.description.calibration is None
    pixels = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(classifier(pixels), classifier.logits(pixels).softmax(1))


def test_the_ridge_head_is_calibrated_from_one_image_a_class_too(
    tmp_path: Path, write_images: WriteImages, make_meta_learner: MakeMetaLearner
) -> None:
    support = load_images(write_images(tmp_path / "support", {"cat": 1, "gnu": 1}), size=16)
    for recipe, calibrated in ((Recipe("ridge"), True), (Recipe("ridge", temperature=0.2), False)):
        classifier = make_classifier(make_meta_learner(recipe), support)
        assert classifier.calibrated == calibrated and classifier.description.calibration is None
        assert classifier.temperature == 1


def test_what_is_none_of_these_is_judged_by_the_features_that_the_head_was_fitted_to(
    tmp_path: Path, write_images: WriteImages, make_meta_learner: MakeMetaLearner
) -> None:
    support = load_images(write_images(tmp_path / "support", COUNTS), size=16)
    queries = torch.rand(4, 3, 16, 16)
    meta_learner = make_meta_learner(Recipe("ridge", mirror=True))
    inputs, asked = to_input(support.images, meta_learner.input), meta_learner.input.normalise(queries)
    features, queried = (
        adaptation.extract_features(meta_learner.network(), images, Recipe(mirror=True))
        for images in (inputs, asked)
    )
    openness, means = measure_openness(features, support.labels, n_way=3)
    classifier = make_classifier(meta_learner, support)
    assert classifier.description.openness == openness
    probabilities, similarity = classifier.judge(queries)
    torch.testing.assert_close(probabilities, classifier(queries))
    torch.testing.assert_close(similarity, (unit_roots(queried) @ means.T).amax(1))
    torch.testing.assert_close(classifier.judge(queries[:1])[1], similarity[:1])
    stepped = make_classifier(make_meta_learner(Recipe(steps=1)), support)
    assert stepped.description.openness is None


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_each_image_with_company_is_predicted_by_a_classifier_that_never_saw_it(recipe: Recipe) -> None:
    torch.manual_seed(0)
    network = build(Architecture(), num_classes=3, input=InputSpec(1, 16, 16))
    inputs, labels = torch.rand(6, 1, 16, 16), torch.tensor([0, 0, 1, 2, 2, 2])
    logits, left_out = leave_one_out(network, recipe, inputs, labels, n_way=3)
    assert left_out.tolist() == [0, 0, 2, 2, 2]
    for row, index in zip(logits, [0, 1, 3, 4, 5], strict=True):
        others = [each for each in range(6) if each != index]
        adapted = adapt(network, recipe, inputs[others], labels[others], n_way=3)
        torch.testing.assert_close(row, adapted.logits(inputs[index : index + 1])[0].detach())


def test_of_many_images_evenly_spaced_ones_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptation, "MAX_REFITS", 4)
    network = build(Architecture(), num_classes=2, input=InputSpec(1, 16, 16))
    labels = torch.tensor([0] * 10 + [1] * 10)
    logits, left_out = leave_one_out(network, Recipe(), torch.rand(20, 1, 16, 16), labels, n_way=2)
    assert left_out.tolist() == [0, 0, 1, 1] and logits.shape == (4, 2)


def test_of_more_images_fewer_are_left_out_where_a_fit_takes_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptation, "SOLVED_IMAGES", 120)
    monkeypatch.setattr(adaptation, "MAX_READAPTATIONS", 2)
    network = build(Architecture(), num_classes=2, input=InputSpec(1, 16, 16))
    for images, expected in ((10, 10), (20, 6), (100, 2)):
        labels = (torch.arange(images) >= images // 2).long()
        _, left_out = leave_one_out(network, Recipe("ridge"), torch.rand(images, 1, 16, 16), labels, n_way=2)
        assert len(left_out) == expected


def test_a_recipe_that_diverges_makes_no_classifier(
    tmp_path: Path, write_images: WriteImages, make_meta_learner: MakeMetaLearner
) -> None:
    support = load_images(write_images(tmp_path / "support", {"cat": 1, "gnu": 1}), size=16)
    with pytest.raises(ContributionError, match="holds NaN or infinity"):
        make_classifier(make_meta_learner(Recipe("gradient", steps=30, learning_rate=99)), support)


def test_one_grey_image_among_coloured_ones_does_not_make_evaluate_blind_to_colour(
    tmp_path: Path, make_meta_learner: MakeMetaLearner
) -> None:
    for name, colour in (("blue", (60, 60, 255)), ("red", (134, 60, 60))):  # equally bright
        (tmp_path / name).mkdir()
        for index in range(20):
            mode, shade = ("L", 82) if (name, index) == ("blue", 0) else ("RGB", colour)
            Image.new(mode, (16, 16), shade).save(tmp_path / name / f"{index:02}.png")
    data = {"source": tmp_path}
    values = {"data": data, "evaluate": {"data": data, "n_way": 2, "episodes": 20}, "cache": tmp_path}
    results = evaluate(make_meta_learner(), ClientConfig.parse(values, origin="test"))
    assert min(result.accuracy.mean for result in results) > 90
