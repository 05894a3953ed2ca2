"""One federation or several data sets in it: who gets what, and what is measured on each."""

import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from fedfree.architectures import Architecture
from fedfree.errors import ConfigError
from fedfree.settings import merge
from server.storage.run_directory import RunDirectory
from server.storage.store import ACCEPTED
from simulations.config import SimulationConfig
from simulations.federation.datasets import partition
from simulations.federation.prepare import find_domains, organisation_configs, server_config
from simulations.federation.simulate import simulate
from simulations.reporting.progress import result_lines, result_table
from simulations.reporting.result import ONE_FOR_ALL_NOTE

MakeTree = Callable[..., Path]
TASKS = ("3way1shot", "3way5shot")


SMALLEST = {
    "classes_each": 3,
    "training": {"epochs": 1, "min_steps": 5, "threads": 1, "device": "cpu"},
    "server": {"iterations": 1, "threads": 1, "device": "cpu"},
    "episodes": 6,
    "n_way": 3,
    "n_query": 2,
}


def tiny(**changes: object) -> SimulationConfig:
    return SimulationConfig.parse(merge(SMALLEST, changes), origin="test")


def listed(*paths: Path) -> str:
    return ",".join(map(str, paths))


def test_organisations_of_one_data_set_get_architectures_in_turn_and_their_own_draw_of_classes(
    make_tree: MakeTree,
) -> None:
    source = make_tree("only")
    config = tiny(dataset=str(source), clients=5, architectures="conv4,resnet10", image_sizes="16")
    configs = organisation_configs(Path("run"), config, find_domains(config))
    assert [each.training.architecture.id for each in configs] == [
        "conv4",
        "resnet10",
        "conv4",
        "resnet10",
        "conv4",
    ]
    shares = partition(
        [f"meta_train{label}" for label in range(5)],
        organisations=5,
        classes_each=3,
        how="overlapping",
        seed=0,
    )
    assert [each.data.classes for each in configs] == shares


def test_data_sets_are_dealt_in_turn_and_each_gets_every_architecture(make_tree: MakeTree) -> None:
    sources = [make_tree("a"), make_tree("b", side=20), make_tree("c")]
    config = tiny(
        dataset=listed(*sources), clients=12, architectures="conv4,resnet10", image_sizes="16,20", seed=3
    )
    configs = organisation_configs(Path("run"), config, find_domains(config))
    assert [each.data.source for each in configs] == sources * 4
    assert [each.training.image_size for each in configs] == [16, 20, 16] * 4
    pairs = Counter((each.data.source.name, each.training.architecture.id) for each in configs)
    assert set(pairs.values()) == {2} and len(pairs) == 6
    for each in configs:
        assert each.evaluate is not None and each.evaluate.data.source == each.data.source
    assert len({each.seed for each in configs}) == 12


def test_an_organisation_of_a_mix_holds_the_classes_it_would_hold_in_its_data_set_alone(
    make_tree: MakeTree,
) -> None:
    first, second = make_tree("a"), make_tree("b")
    mixed = tiny(dataset=listed(first, second), clients=6, image_sizes="16")
    alone = tiny(dataset=str(second), clients=3, image_sizes="16")
    configs = organisation_configs(Path("run"), mixed, find_domains(mixed))
    assert [each.data for each in configs[1::2]] == [
        each.data for each in organisation_configs(Path("run"), alone, find_domains(alone))
    ]


def test_the_student_is_the_servers_architecture() -> None:
    assert server_config(tiny(server={"architecture": "resnet18"})).architecture == Architecture("resnet18")
    assert server_config(tiny()).architecture == Architecture("conv4")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset": "a/x.zip,b/x.zip"}, "different names"),
        ({"dataset": "a.zip,,b.zip"}, "separated by commas"),
        ({"dataset": "a.zip,b.zip,c.zip", "clients": 2}, "2 clients are too few for 3 data sets"),
        ({"dataset": "a.zip,b.zip", "image_sizes": "16,32,64"}, "each of 2 data sets, got 3"),
        ({"image_sizes": "16,x"}, "image_sizes"),
    ],
)
def test_data_sets_that_cannot_be_dealt_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny(**changes)


def test_a_configuration_is_read_back_from_its_file(tmp_path: Path) -> None:
    config = tiny(
        dataset="a.zip,b.zip",
        image_sizes="16,20",
        server={"architecture": "resnet18"},
        architectures="conv4,resnet10",
        cache=str(tmp_path / "cache"),
    )
    (tmp_path / "config.toml").write_text(config.to_toml())
    assert SimulationConfig.read(tmp_path / "config.toml") == config


def test_a_federation_of_grey_and_coloured_images_of_two_sizes_is_measured_on_each(
    make_tree: MakeTree, tmp_path: Path
) -> None:
    grey, coloured = make_tree("grey"), make_tree("coloured", side=20, colour=True)
    config = tiny(
        dataset=listed(grey, coloured), clients=4, image_sizes="16,20", cache=str(tmp_path / "cache")
    )
    run = tmp_path / "run"
    result = simulate(run, config, command="fedfree-sim run")

    store = RunDirectory(run).store()
    inputs = [store.describe(identity).input for identity in store.ids(ACCEPTED)]
    assert sorted((each.channels, each.height) for each in inputs) == [(1, 16), (1, 16), (3, 20), (3, 20)]

    assert result == json.loads((run / "result.json").read_text())
    assert list(result["domains"]) == ["grey", "coloured"]
    assert result["baseline_notes"]["best_single_model"] == ONE_FOR_ALL_NOTE
    for task in TASKS:
        own = [domain["few_shot"][task] for domain in result["domains"].values()]
        assert [each["episodes"] for each in own] == [6, 6]
        assert result["few_shot"][task]["episodes"] == 12
        mean = sum(each["mean"] for each in own) / 2
        assert result["few_shot"][task]["mean"] == pytest.approx(mean, abs=0.011)
    assert all(
        domain["baselines"].keys() == result["baselines"].keys() for domain in result["domains"].values()
    )
    assert [len(each["results"]) for each in result["organisations"]] == [2, 2, 2, 2]

    console = Console(file=io.StringIO(), width=120, _environ={})
    console.print(result_table(result))
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    assert printed.index("all data sets") < printed.index("grey") < printed.index("coloured")
    assert printed.count("best single model") == 3
    assert "12 episodes each, an equal share of each data set" in result_lines(result)[0]
    page = (run / "report.html").read_text()
    assert page.count('<table class="scores">') == 3
    assert "grey: accuracy on episodes of its new classes alone" in page
