"""One data set in a federation or several: who gets what."""

import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from fedfree.architectures import Architecture
from fedfree.errors import ConfigError, DataError
from fedfree.settings import merge
from server.storage.run_directory import RunDirectory
from simulations.config import SimulationConfig
from simulations.federation.datasets import partition
from simulations.federation.prepare import organisation_configs, prepare, read_organisations, server_config
from simulations.federation.splits import check_splits, find_datasets

MakeTree = Callable[..., Path]


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
    configs = organisation_configs(Path("run"), config, find_datasets(config))
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
    configs = organisation_configs(Path("run"), config, find_datasets(config))
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
    configs = organisation_configs(Path("run"), mixed, find_datasets(mixed))
    assert [each.data for each in configs[1::2]] == [
        each.data for each in organisation_configs(Path("run"), alone, find_datasets(alone))
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


def test_what_a_person_changed_in_a_prepared_directory_stays(make_tree: MakeTree, tmp_path: Path) -> None:
    run, config = tmp_path / "run", tiny(dataset=str(make_tree("only")), clients=2, image_sizes="16")
    prepare(run, config)
    server, organisation = run / "server.toml", run / "organisations" / "0.toml"
    server.write_text(server.read_text().replace("iterations = 1", "iterations = 7"))
    organisation.write_text(organisation.read_text().replace("epochs = 1", "epochs = 9"))
    prepare(run, config)
    assert RunDirectory(run).config().iterations == 7
    assert [each.training.epochs for each in read_organisations(run, config)] == [9, 1]


def test_a_directory_that_a_release_without_one_of_the_settings_made_is_continued(
    make_tree: MakeTree, tmp_path: Path
) -> None:
    run, options = tmp_path / "run", {"dataset": str(make_tree("only")), "clients": 2, "image_sizes": "16"}
    prepare(run, tiny(**options))
    written = run / "config.toml"
    earlier = written.read_text().replace("patched = 0.0\n", "")
    assert earlier != written.read_text()
    written.write_text(earlier)
    prepare(run, tiny(**options))
    assert written.read_text() == earlier
    with pytest.raises(ConfigError, match=r"differs in server\.learn\.patched"):
        prepare(run, tiny(**options, server={"learn": {"patched": 0.1}}))


def test_every_organisation_pins_the_key_that_the_coordinator_signs_with(
    make_tree: MakeTree, tmp_path: Path
) -> None:
    run, config = tmp_path / "run", tiny(dataset=str(make_tree("only")), clients=2, image_sizes="16")
    prepare(run, config)
    keys = [each.coordinator_key for each in read_organisations(run, config)]
    assert keys == [RunDirectory(run).signing_key.public] * 2


def test_a_preparation_that_was_killed_is_finished_with_the_same_options_and_refused_with_others(
    make_tree: MakeTree, tmp_path: Path
) -> None:
    run, config = tmp_path / "run", tiny(dataset=str(make_tree("only")), clients=2, image_sizes="16")
    prepare(run, config)
    whole = {path: path.read_bytes() for path in run.rglob("*.toml")}
    (run / "config.toml").unlink()
    (run / "organisations" / "1.toml").unlink()
    with pytest.raises(ConfigError, match=r"server\.toml is there already and is not what these options"):
        prepare(run, config.model_copy(update={"clients": 3}))
    prepare(run, config)
    assert {path: path.read_bytes() for path in run.rglob("*.toml")} == whole


@pytest.mark.parametrize("names", [(), ("readme.txt",), ("../outside/a.png",)])
def test_a_data_set_without_a_class_says_so_and_what_was_passed_over(
    tmp_path: Path, names: Sequence[str]
) -> None:
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    passed_over = "; passed over 1 " if names else ""
    with pytest.raises(
        DataError, match=rf"^no classes in .*images.zip: expected <class>/<image>.*{passed_over}"
    ):
        check_splits(tmp_path / "images.zip", SimulationConfig())
