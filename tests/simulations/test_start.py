"""Federations that begin from a public start."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fedfree.errors import ConfigError, FedFreeError
from fedfree.host.public_weights import LITE0
from fedfree.host.starts import StartConfig, load_start, write_start
from fedfree.settings import merge
from fedfree.start import LoadedStart, Start
from server.storage.run_directory import RunDirectory
from server.storage.store import ACCEPTED
from simulations.baselines.table import BASELINES, DENSE
from simulations.config import SimulationConfig
from simulations.federation import splits, starts
from simulations.federation.prepare import prepare, read_organisations
from simulations.federation.splits import find_datasets
from simulations.federation.starts import find_start
from simulations.reporting.summary import result_lines
from simulations.simulate import simulate

MakeTree = Callable[..., Path]
TINY = {
    "clients": 4,
    "classes_each": 3,
    "partition": "overlapping",
    "training": {"epochs": 1, "min_steps": 3, "threads": 1, "device": "cpu"},
    "server": {
        "iterations": 1,
        "threads": 1,
        "device": "cpu",
        "invert": {"models_per_iteration": 2, "images_per_model": 12, "steps": 1, "generator_width": 4},
        "learn": {"compositions": 4, "relational_tasks": 1, "batch_size": 8},
    },
    "episodes": 6,
    "n_way": 3,
    "n_query": 2,
}


def tiny(start: Path, *further: Path, **changes: object) -> SimulationConfig:
    listed = ", ".join(map(str, (start, *further)))
    values = TINY | {"start": listed, "cache": str(start.parent / "cache")}
    return SimulationConfig.parse(merge(values, changes), origin="test")


def test_a_federation_of_grey_and_coloured_images_from_one_start_is_compared_with_everything(
    make_tree: MakeTree, tmp_path: Path, start: Path
) -> None:
    grey, coloured = make_tree("grey"), make_tree("coloured", side=20, colour=True)
    run = tmp_path / "run"
    result = simulate(run, tiny(start, dataset=f"{grey},{coloured}"), command="fedfree-sim run")

    store = RunDirectory(run).store()
    models = [store.describe(identity) for identity in store.ids(ACCEPTED)]
    loaded = load_start(start)
    assert {each.start for each in models} == {loaded.start.sha256} and len(models) == 4
    assert {(each.input.channels, each.input.height) for each in models} == {(3, 16)}

    assert result == json.loads((run / "result.json").read_text())
    for part in (result, *result["domains"].values()):
        assert list(part["baselines"]) == [
            "public_start",
            "parameter_average",
            "best_single_model",
            "pool_concatenation",
            "pooled_data",
        ]
    assert result["start"]["sha256"] == loaded.start.sha256
    assert "conv4-32-batch at 16 pixels" in "\n".join(result_lines(result))
    page = (run / "report.html").read_text()
    assert "public start, frozen" in page and loaded.start.source in page
    assert len(list((tmp_path / "cache" / "pooled").iterdir())) == 2
    assert "nobody may train it" in page
    assert not result["domains"]["grey"]["baselines"].keys() - BASELINES.keys()


def test_everybody_is_told_the_start_and_the_server_its_preset(
    make_tree: MakeTree, tmp_path: Path, start: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = make_tree("tree")
    monkeypatch.chdir(tmp_path)
    config = tiny(Path("start"), dataset=str(tree))
    prepare(tmp_path / "run", config)
    organisations = read_organisations(tmp_path / "run", config)
    assert {each.training.start for each in organisations} == {start}
    assert {each.training.image_size for each in organisations} == {16}
    directory = RunDirectory(tmp_path / "run")
    assert directory.config().preset == "start"
    assert directory.start_sha256() == load_start(start).start.sha256


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": "conv4,resnet10"}, "architectures is resnet10-batch, and the start's is conv4"),
        ({"training": {"architecture": "resnet10"}}, "training.architecture is resnet10"),
        (
            {"image_sizes": "16,32", "dataset": "a,b"},
            "image_sizes is 32, and the start's is 16: leave it out",
        ),
        ({"training": {"image_size": 64}}, "training.image_size is 64, and the start's is 16"),
        ({"training": {"start": "elsewhere"}}, "training.start is decided by start in a simulation"),
        ({"server": {"preset": "default"}}, "use preset start"),
    ],
)
def test_what_contradicts_the_start_is_refused(start: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(FedFreeError, match=words):
        tiny(start, **changes)


@pytest.mark.parametrize("start", ["nowhere", "timm/no_such_network"])
def test_a_start_that_there_is_not_is_named(start: str) -> None:
    with pytest.raises(FedFreeError, match=start):
        SimulationConfig.parse({"start": start}, origin="test")


def test_public_weights_are_made_once_for_each_image_size(
    tmp_path: Path, make_start: Callable[..., LoadedStart], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def make(name: str, config: StartConfig) -> tuple[Start, bytes]:
        asked.append((name, config.image_size))
        return make_start().start, make_start().weights

    monkeypatch.setattr(starts, "make_start", make)

    def folder(size: int) -> Path | None:
        values = {"start": LITE0, "training": {"image_size": size}, "cache": str(tmp_path)}
        return find_start(SimulationConfig.parse(values, origin="test"))

    assert folder(64) == folder(64) == tmp_path / "starts" / "efficientnet-lite0-64"
    folder(96)
    assert asked == [(LITE0, 64), (LITE0, 96)]


def test_a_start_that_cannot_be_had_is_told_before_any_data_set_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splits, "resolve", lambda *_, **__: pytest.fail("made a data set"))
    values = {"start": "torchvision/resnet18", "cache": str(tmp_path)}
    with pytest.raises(ConfigError, match="licence"):
        find_datasets(SimulationConfig.parse(values, origin="test"))


def test_weights_without_a_stated_licence_are_refused_with_the_way_to_state_one(tmp_path: Path) -> None:
    values = {"start": "torchvision/resnet18", "cache": str(tmp_path)}
    with pytest.raises(ConfigError, match="say --licence; or make the start with fedfree-server start make"):
        find_start(SimulationConfig.parse(values, origin="test"))


def test_organisations_take_several_starts_in_turn_and_the_baselines_are_those_of_the_first(
    make_tree: MakeTree, tmp_path: Path, start: Path, make_start: Callable[..., LoadedStart]
) -> None:
    other = make_start(1, architecture="conv4-64-group", channels=3)
    write_start(tmp_path / "other", other.start, other.weights)
    config = tiny(start, tmp_path / "other", dataset=str(make_tree("tree", colour=True)))
    result = simulate(tmp_path / "run", config, command="fedfree-sim run")

    organisations = read_organisations(tmp_path / "run", config)
    assert [each.training.start for each in organisations] == [start, tmp_path / "other"] * 2
    names = ["conv4-32-batch", "conv4-64-group"]
    assert [str(each.training.architecture) for each in organisations] == names * 2
    store = RunDirectory(tmp_path / "run").store()
    models = [store.contribution(identity) for identity in store.ids(ACCEPTED)]
    first = load_start(start)
    assert sorted(each.start for each in models) == sorted(2 * [first.start.sha256, other.start.sha256])

    assert list(result["baselines"]) == [name for name in list(BASELINES)[1:] if name != DENSE]
    assert result["start"]["sha256"] == first.start.sha256
    assert [each["sha256"] for each in result["further_starts"]] == [other.start.sha256]
    assert "Further start: conv4-64-group at 16 pixels" in "\n".join(result_lines(result))
    assert "Further start" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(("further", "words"), [("", "names nothing beside a comma"), ("nowhere", "nowhere")])
def test_one_of_several_starts_that_there_is_not_is_named(start: Path, further: str, words: str) -> None:
    with pytest.raises(FedFreeError, match=words):
        SimulationConfig.parse({"start": f"{start},{further}"}, origin="test")
