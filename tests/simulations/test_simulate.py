"""A federation of several data sets, and what is measured on each."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from fedfree.errors import ConfigError
from fedfree.host.lock import exclusive
from server.events import Event
from server.storage.run_directory import RunDirectory
from server.storage.store import ACCEPTED
from simulations.config import SimulationConfig
from simulations.reporting.result import ONE_FOR_ALL_NOTE
from simulations.reporting.summary import result_lines, result_table
from simulations.simulate import simulate

MakeTree = Callable[..., Path]
TINY = {
    "clients": 4,
    "image_sizes": "16,20",
    "classes_each": 3,
    "training": {"epochs": 1, "min_steps": 5, "threads": 1, "device": "cpu"},
    "server": {"iterations": 1, "threads": 1, "device": "cpu"},
    "episodes": 6,
    "n_way": 3,
    "n_query": 2,
}
TASKS = ("3way1shot", "3way5shot")


def test_a_federation_of_grey_and_coloured_images_of_two_sizes_is_measured_on_each(
    make_tree: MakeTree, tmp_path: Path
) -> None:
    grey, coloured = make_tree("grey"), make_tree("coloured", side=20, colour=True)
    paths = {"dataset": f"{grey},{coloured}", "cache": str(tmp_path / "cache")}
    config = SimulationConfig.parse(TINY | paths, origin="test")
    run = tmp_path / "run"
    events: list[Event] = []
    result = simulate(run, config, command="fedfree-sim run", on_event=events.append)

    measured = [event.values for event in events if (event.stage, event.kind) == ("evaluate", "progress")]
    of = measured[0]["of"]
    done = [int(values["done"]) for values in measured if values["of"] == of]
    assert len(done) == len(measured) == 2 * (1 + len(result["baselines"]) + config.clients)
    assert done == sorted(done) and done[-1] + 1 == of, "each of the models that are laid side by side"
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
    card = (run / "meta_learner.card.md").read_text()
    first = next(iter(result["few_shot"].values()))
    assert f"| meta-learner | {first['mean']:.1f} ± {first['ci95']:.1f} |" in card
    assert "Not measured" not in card and "12 episodes each" in card
    page = (run / "report.html").read_text()
    assert page.count('<table class="scores">') == 3
    assert "grey: accuracy on episodes of its new classes alone" in page


@pytest.mark.parametrize("held", [".", ".flwr"], ids=["a learner", "a simulation"])
def test_a_folder_in_which_another_process_works_is_refused_and_left_as_it_is(
    tmp_path: Path, held: str
) -> None:
    with exclusive(tmp_path / held), pytest.raises(ConfigError, match="another process runs in"):
        simulate(tmp_path, SimulationConfig(), command="fedfree-sim run")
    assert not any(path for path in tmp_path.iterdir() if not path.name.startswith("."))
