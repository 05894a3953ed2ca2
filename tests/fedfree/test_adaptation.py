"""The recipe: every head, any N and K, never transductive."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fedfree.adaptation import HEADS, RIDGE, SHARPENING, Recipe, adapt, nearest_mean, ridge, unit_roots
from fedfree.architectures import Architecture, Classifier, InputSpec, build
from fedfree.errors import ContributionError, DataError, ExtensionError

INPUT = InputSpec(channels=1, height=16, width=16)
RECIPES = [
    Recipe(head="nearest_mean"),
    Recipe(head="nearest_mean", steps=2),
    Recipe(head="nearest_mean", steps=1, mirror=True),
    Recipe(head="ridge"),
    Recipe(head="ridge", steps=1, mirror=True),
    Recipe(head="gradient", steps=2),
]


def make_network(norm: str = "batch") -> Classifier:
    torch.manual_seed(0)
    return build(Architecture(norm=norm), num_classes=5, input=INPUT)


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_query_is_predicted_the_same_whatever_the_other_queries_are(recipe: Recipe, norm: str) -> None:
    network = make_network(norm).double()  # a larger batch may be summed in another order
    support, labels = torch.rand(6, 1, 16, 16).double(), torch.arange(6) % 3
    adapted = adapt(network, recipe, support, labels, n_way=3)
    query = torch.rand(1, 1, 16, 16).double()
    others, stranger = torch.rand(7, 1, 16, 16).double(), 100 * torch.randn(7, 1, 16, 16).double()
    alone = adapted.logits(query)
    torch.testing.assert_close(adapted.logits(torch.cat([query, others]))[:1], alone)
    torch.testing.assert_close(adapted.logits(torch.cat([stranger, query]))[-1:], alone)


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
@pytest.mark.parametrize(("n_way", "n_shot"), [(2, 1), (3, 5), (7, 1)])
def test_any_number_of_ways_and_shots_gives_logits_a_way(recipe: Recipe, n_way: int, n_shot: int) -> None:
    labels = torch.arange(n_way).repeat_interleave(n_shot)
    adapted = adapt(make_network(), recipe, torch.rand(len(labels), 1, 16, 16), labels, n_way=n_way)
    assert adapted.logits(torch.rand(4, 1, 16, 16)).shape == (4, n_way)


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_adapting_leaves_the_network_as_it_was(recipe: Recipe) -> None:
    network = make_network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    adapt(network, recipe, torch.rand(4, 1, 16, 16), torch.tensor([0, 0, 1, 1]), n_way=2)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_one_gradient_step_is_plain_gradient_descent() -> None:
    network, images, labels = make_network(), torch.rand(10, 1, 16, 16), torch.arange(10) % 5
    adapted = adapt(network, Recipe(head="gradient", steps=1, learning_rate=0.5), images, labels, n_way=5)
    F.cross_entropy(network(images), labels).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(adapted.parameters[name], parameter - 0.5 * parameter.grad)


def test_gradient_steps_lower_the_loss_on_the_support_set() -> None:
    network, images, labels = make_network(), torch.rand(10, 1, 16, 16), torch.arange(10) % 5
    losses = []
    for steps in (0, 10, 20):
        adapted = adapt(network, Recipe("gradient", steps, 0.5), images, labels, n_way=5)
        losses.append(float(F.cross_entropy(adapted.logits(images), labels).detach()))
    assert losses == sorted(losses, reverse=True)


def test_nearest_mean_finds_the_class_whose_direction_from_the_centre_is_closest() -> None:
    support = torch.tensor([[0.0, 2.0], [2.0, 0.0], [0.0, -2.0]])
    head = nearest_mean(support, torch.tensor([0, 1, 2]), n_way=3, temperature=1.0)
    queries = torch.tensor([[0.1, 1.0], [5.0, 0.1], [0.2, -9.0]])
    assert head.logits(queries).argmax(1).tolist() == [0, 1, 2]
    assert head.logits(queries).abs().max() <= 1


def test_the_loss_after_adaptation_reaches_the_networks_parameters() -> None:
    network, images, labels = make_network(), torch.rand(4, 1, 16, 16), torch.tensor([0, 0, 1, 1])
    for recipe in RECIPES:
        network.zero_grad()
        adapted = adapt(network, recipe, images, labels, n_way=2)
        F.cross_entropy(adapted.logits(images), labels).backward()
        gradient = network.get_parameter("blocks.0.0.weight").grad
        assert gradient is not None and gradient.abs().sum() > 0


def test_a_class_without_support_images_is_refused() -> None:
    with pytest.raises(DataError, match="each of the 3 classes"):
        adapt(make_network(), Recipe(), torch.rand(2, 1, 16, 16), torch.tensor([0, 2]), n_way=3)


def test_an_unknown_head_is_refused() -> None:
    with pytest.raises(ContributionError, match="unknown adaptation head 'oracle'"):
        Recipe(head="oracle")


def test_an_image_and_its_mirror_image_are_one_where_the_recipe_says_so() -> None:
    network, labels = make_network(), torch.arange(6) % 3
    support, queries = torch.rand(6, 1, 16, 16), torch.rand(4, 1, 16, 16)
    adapted = adapt(network, Recipe(mirror=True), support, labels, n_way=3)
    torch.testing.assert_close(adapted.logits(queries.flip(3)), adapted.logits(queries))
    features, queried = (
        (network.features(images) + network.features(images.flip(3))) / 2 for images in (support, queries)
    )
    head = nearest_mean(features, labels, n_way=3, temperature=0.1)
    torch.testing.assert_close(adapted.logits(queries), head.logits(queried))


@pytest.mark.parametrize("name", ["mirror", "levels"])
def test_what_a_head_is_fitted_to_is_refused_where_gradients_adapt_it(name: str) -> None:
    with pytest.raises(
        ContributionError, match=f"head gradient fits nothing to features: set {name} to false"
    ):
        Recipe("gradient", 1, **{name: True})


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_where_gradients_are_off_the_recipe_is_the_same(recipe: Recipe) -> None:
    network, images, labels = make_network(), torch.rand(4, 1, 16, 16), torch.tensor([0, 0, 1, 1])
    expected = adapt(network, recipe, images, labels, n_way=2).logits(images)
    with torch.no_grad():
        torch.testing.assert_close(adapt(network, recipe, images, labels, n_way=2).logits(images), expected)


def test_a_large_support_set_gives_the_means_of_all_its_features() -> None:
    network, images, labels = make_network(), torch.rand(150, 1, 16, 16), torch.arange(150) % 3
    adapted = adapt(network, Recipe(), images, labels, n_way=3)
    head = nearest_mean(network.features(images), labels, n_way=3, temperature=0.1)
    assert adapted.head is not None
    torch.testing.assert_close(adapted.head.means, head.means)


def reference_ridge(
    features: NDArray[np.float64], labels: NDArray[np.int64], n_way: int
) -> NDArray[np.float64]:
    """Unit directions [n_way, size], by ordinary least squares with the penalty as further rows."""

    def unit(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return values / np.linalg.norm(values, axis=1, keepdims=True)

    spread = unit(features)
    roots = unit(spread / np.sqrt(np.abs(spread) + 1e-3))
    centre = np.mean([roots[labels == way].mean(0) for way in range(n_way)], axis=0)
    weight = np.sqrt([len(labels) / n_way / (labels == label).sum() for label in labels])[:, None]
    inputs = np.vstack([weight * unit(roots - centre), np.sqrt(RIDGE) * np.eye(features.shape[1])])
    targets = np.vstack([weight * (np.eye(n_way)[labels] - 1 / n_way), np.zeros((features.shape[1], n_way))])
    return unit(np.linalg.lstsq(inputs, targets, rcond=None)[0].T)


@pytest.mark.parametrize("size", [8, 60], ids=["more images than features", "fewer"])
def test_ridge_is_weighted_least_squares_with_a_penalty(size: int) -> None:
    labels = torch.tensor([0] * 12 + [1] * 3 + [2])
    features = torch.randn(16, size, generator=torch.Generator().manual_seed(0)).double()
    head = ridge(features, labels, n_way=3, temperature=0.1)
    expected = reference_ridge(features.numpy(), labels.numpy(), 3)
    torch.testing.assert_close(F.normalize(head.weights, dim=1), torch.from_numpy(expected))
    torch.testing.assert_close(head.weights.norm(dim=1), torch.full((3,), (16 / 25) ** SHARPENING).double())


def test_ridge_from_one_image_of_two_classes_is_the_nearer_image() -> None:
    stream = torch.Generator().manual_seed(1)
    support, queries = torch.rand(2, 30, generator=stream), torch.rand(50, 30, generator=stream)
    head = ridge(support, torch.tensor([0, 1]), n_way=2, temperature=0.1)
    nearer = torch.cdist(unit_roots(queries), unit_roots(support)).argmin(1)
    assert 0 < nearer.sum() < 50 and torch.equal(head.logits(queries).argmax(1), nearer)


def test_ridge_tells_correlated_classes_apart_better_than_their_means_do() -> None:
    stream = torch.Generator().manual_seed(2)
    labels = torch.arange(5).repeat_interleave(5)
    means, nuisance = torch.randn(5, 64, generator=stream), 4 * torch.randn(3, 64, generator=stream)

    def draw(of: Tensor) -> Tensor:
        shared = torch.randn(len(of), 3, generator=stream) @ nuisance
        return means[of] + shared + 0.3 * torch.randn(len(of), 64, generator=stream)

    support, asked = draw(labels), labels.repeat(20)
    queries = draw(asked)
    found, plain = (
        fit(support, labels, n_way=5, temperature=0.1).logits(queries).argmax(1).eq(asked).float().mean()
        for fit in (ridge, nearest_mean)
    )
    assert found > plain + 0.2


def test_a_class_with_more_images_is_not_predicted_more_often() -> None:
    stream = torch.Generator().manual_seed(3)
    shots, asked = torch.tensor([1, 1, 5, 5, 10]), torch.arange(5).repeat(20)
    labels, shares, skewed = torch.arange(5).repeat_interleave(shots), torch.zeros(5), torch.zeros(5)
    for _ in range(40):
        means = torch.randn(5, 200, generator=stream)
        support, queries = (
            means[of] + 2 * torch.randn(len(of), 200, generator=stream) for of in (labels, asked)
        )
        head = ridge(support, labels, n_way=5, temperature=0.1)
        without = replace(head, offsets=torch.zeros(5))
        shares += head.logits(queries).argmax(1).bincount(minlength=5) / 4000
        skewed += without.logits(queries).argmax(1).bincount(minlength=5) / 4000
    assert skewed[:2].max() < 0.1 and skewed[4] > 0.3
    torch.testing.assert_close(shares, torch.full((5,), 0.2), atol=0.04, rtol=0)


def test_where_all_classes_have_as_many_images_nothing_is_offset() -> None:
    features = torch.rand(12, 30, generator=torch.Generator().manual_seed(5))
    head = ridge(features, torch.arange(3).repeat(4), n_way=3, temperature=0.1)
    torch.testing.assert_close(head.offsets, torch.zeros(3), atol=1e-6, rtol=0)


def test_ridge_has_a_finite_gradient_where_features_are_zero_and_works_under_bfloat16() -> None:
    features = torch.randn(10, 20, generator=torch.Generator().manual_seed(4)).relu().requires_grad_()
    labels = torch.arange(10) % 2
    F.cross_entropy(ridge(features, labels, n_way=2, temperature=0.1).logits(features), labels).backward()
    assert features.grad is not None and features.grad.isfinite().all() and features.grad.abs().max() > 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        head = ridge(features.detach().bfloat16(), labels, n_way=2, temperature=0.1)
    exact = ridge(features.detach(), labels, n_way=2, temperature=0.1)
    assert head.weights.dtype == torch.float32
    torch.testing.assert_close(head.weights, exact.weights, atol=0.02, rtol=0)


@dataclass(frozen=True)
class _Fixed:
    gives: Any

    def logits(self, features: Tensor) -> Any:
        return self.gives


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (None, "the head 'own' gave a NoneType: expected a dataclass"),
        (_Fixed(None), "the head 'own' gave logits NoneType"),
        (_Fixed(torch.zeros(2, 4)), r"gave logits \[2, 4\]: expected \[2, 3\]"),
        (_Fixed(torch.full((2, 3), torch.nan)), "gave logits that are not finite"),
    ],
)
def test_a_head_of_ones_own_that_is_none_is_named(
    monkeypatch: pytest.MonkeyPatch, head: object, said: str
) -> None:
    monkeypatch.setitem(HEADS, "own", lambda features, labels, *, n_way, temperature: head)
    with pytest.raises(ExtensionError, match=said):
        Recipe(head="own").fit_head(torch.ones(3, 8), torch.arange(3), n_way=3)


def test_a_head_of_ones_own_that_raises_is_named_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HEADS, "own", lambda *_, **__: {}["a"])
    with pytest.raises(ExtensionError, match=r"the head 'own' failed at .*test_adaptation.py:\d+: KeyError"):
        Recipe(head="own").fit_head(torch.ones(3, 8), torch.arange(3), n_way=3)
