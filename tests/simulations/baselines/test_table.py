"""The baselines, each against an answer that is known, and that the table is the one place to add one."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from client.adapting.adapt import sample_episodes
from client.data.image_set import ImageSet
from fedfree.adaptation import Recipe
from fedfree.architectures import Architecture, InputSpec, build
from fedfree.codec import Contribution, MetaLearner, Provenance, decode_contribution, encode_weights
from fedfree.episodes import EpisodeSpec
from fedfree.errors import ExtensionError
from fedfree.start import LoadedStart
from fedfree.statement import PrivacyStatement
from server.config import ServerConfig
from simulations.baselines import evaluate
from simulations.baselines.table import (
    Available,
    Baseline,
    Measure,
    NewClasses,
    parameter_average,
    pool_concatenation,
    public_start,
    random_init,
)
from simulations.config import SimulationConfig
from simulations.reporting import scores

INPUT = InputSpec(channels=1, height=16, width=16)
CONFIG = SimulationConfig(n_way=2, n_query=2, server=ServerConfig(device="cpu"))
CONV4 = Architecture()


def model(seed: int, architecture: Architecture = CONV4) -> Contribution:
    torch.manual_seed(seed)
    network = build(architecture, num_classes=3, input=INPUT)
    return Contribution(architecture, 3, INPUT, PrivacyStatement(), encode_weights(network))


def available(*models: Contribution) -> Available:
    learned = MetaLearner(
        models[0].architecture, 3, INPUT, Recipe(), Provenance((), "", 0, ""), models[0].weights
    )
    return Available(CONFIG, learned, models, ())


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[torch.nn.Module]:
    """The networks that baselines ask to be measured."""
    networks: list[torch.nn.Module] = []
    monkeypatch.setattr(Available, "measure", lambda _, network, input: networks.append(network))
    return networks


def test_the_average_of_a_model_and_itself_is_that_model(measured: list[torch.nn.Module]) -> None:
    parameter_average(available(model(0), model(0)))
    for name, value in model(0).network().state_dict().items():
        assert torch.equal(measured[0].state_dict()[name], value), name


def test_the_average_of_two_models_lies_in_their_middle(measured: list[torch.nn.Module]) -> None:
    first, second = model(0), model(1)
    parameter_average(available(first, second))
    found, states = measured[0].state_dict(), [each.network().state_dict() for each in (first, second)]
    assert torch.allclose(found["head.weight"], (states[0]["head.weight"] + states[1]["head.weight"]) / 2)


def test_models_of_different_shapes_have_no_average() -> None:
    assert parameter_average(available(model(0), model(0, Architecture("resnet10")))) is None


def test_models_that_differ_in_whether_images_may_be_mirrored_have_an_average(
    measured: list[torch.nn.Module],
) -> None:
    first = model(0)
    parameter_average(available(first, replace(first, input=replace(INPUT, horizontal_flip=True))))
    assert torch.equal(measured[0].state_dict()["head.weight"], first.network().state_dict()["head.weight"])


def test_the_public_start_is_measured_as_it_is_and_random_weights_are_not(
    measured: list[torch.nn.Module], make_start: Callable[..., LoadedStart]
) -> None:
    begun = replace(available(model(0)), starts=[make_start()])
    assert random_init(begun) is None and public_start(available(model(0))) is None
    public_start(begun)
    for name, value in make_start().body.items():
        assert torch.equal(measured[0].state_dict()[name], value), name


def test_what_was_trained_from_a_start_is_filled_up_from_it(
    measured: list[torch.nn.Module],
    make_start: Callable[..., LoadedStart],
    contribute_from: Callable[..., tuple[bytes, bytes]],
) -> None:
    start = make_start()
    models = [decode_contribution(*contribute_from(start, seed)) for seed in (0, 1)]
    parameter_average(replace(available(*models), starts=[start]))
    found, states = measured[0].state_dict(), [each.network(start.body).state_dict() for each in models]
    untouched, trained = "blocks.0.0.weight", "blocks.3.0.weight"
    assert torch.equal(found[untouched], start.body[untouched])
    assert torch.allclose(found[trained], (states[0][trained] + states[1][trained]) / 2)


def test_a_model_beside_itself_is_as_good_as_alone() -> None:
    images = ImageSet(
        torch.randint(0, 255, (12, 1, 16, 16), dtype=torch.uint8), torch.arange(12) // 4, ("a", "b", "c")
    )
    spec = EpisodeSpec(2, 1, 2)
    episodes = [sample_episodes(images.labels, spec, 20, seed=0)]
    (alone,) = pool_concatenation(available(model(0)))(NewClasses(images, episodes))
    (twice,) = pool_concatenation(available(model(0), model(0)))(NewClasses(images, episodes))
    assert torch.equal(alone, twice)


def test_progress_counts_a_baseline_of_all_models_as_that_many() -> None:
    competitors = dict.fromkeys(
        ["meta_learner", "pool_concatenation"], parameter_average(available(model(0)))
    )
    asked = evaluate._asked_networks(competitors, models=3)
    assert asked == {"meta_learner": 1, "pool_concatenation": 3}


def test_a_baseline_that_is_added_to_the_table_is_measured_and_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    added = {
        "always_right": Baseline("always right", lambda _: lambda new: [torch.ones(len(new.episodes))]),
        "absent": Baseline("absent here", lambda _: None, is_reference=True),
    }
    monkeypatch.setattr(evaluate, "BASELINES", added)
    assert list(evaluate._competitors(available(model(0)))) == ["meta_learner", "always_right"]
    monkeypatch.setattr(scores, "BASELINES", added)
    measured = {"5way1shot": {"mean": 40.0, "ci95": 0.6}}
    rows = scores.comparison({"few_shot": measured, "baselines": {"always_right": measured}})
    labels = ["meta-learner", "always right", "absent here (reference: cannot be broadcast)"]
    assert [row.label for row in rows] == labels
    assert [row.scores[0] is not None for row in rows] == [True, True, False]


def _failing(available: Available) -> Measure:
    raise ZeroDivisionError("no images")


def test_a_baseline_of_ones_own_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "BASELINES", {"mine": Baseline("mine", _failing)})
    with pytest.raises(ExtensionError, match=r"the baseline 'mine' failed at .*ZeroDivisionError: no images"):
        evaluate._competitors(available(model(0)))


@pytest.mark.parametrize("given", [None, 0.5, [], [0.5], [torch.ones(3)]])
def test_a_baseline_that_gives_no_accuracy_for_each_episode_is_named(given: object) -> None:
    images = ImageSet(torch.zeros(12, 1, 16, 16, dtype=torch.uint8), torch.arange(12) // 4, ("a", "b", "c"))
    episodes = [sample_episodes(images.labels, EpisodeSpec(2, 1, 2), 2, seed=0)]
    with pytest.raises(
        ExtensionError, match=r"the baseline 'mine' gave accuracies .*expected tensors \[\[2\]\]"
    ):
        evaluate._measured("mine", lambda new: given, NewClasses(images, episodes))  # type: ignore[arg-type,return-value]
