"""The recipe: both heads, any N and K, never transductive."""

import pytest
import torch
import torch.nn.functional as F

from fedfree.adaptation import Recipe, adapt, nearest_mean
from fedfree.architectures import Architecture, Classifier, InputSpec, build
from fedfree.errors import ContributionError, DataError

INPUT = InputSpec(channels=1, height=16, width=16)
RECIPES = [
    Recipe(head="nearest_mean"),
    Recipe(head="nearest_mean", steps=2),
    Recipe(head="nearest_mean", steps=1, mirror=True),
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


def test_mirror_images_are_refused_where_gradients_adapt_the_head() -> None:
    with pytest.raises(ContributionError, match="head gradient knows no mirror images"):
        Recipe(head="gradient", steps=1, mirror=True)


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
