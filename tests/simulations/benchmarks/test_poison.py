"""``fedfree-sim bench poison``: its plan, its cells in miniature, and its table against known answers."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from fedfree.adaptation import Recipe
from fedfree.episodes import Episode
from fedfree.errors import ConfigError
from simulations.benchmarks.poison import NOBODY, WITHOUT, Cell, Measured, measure, plan, trigger_rate
from simulations.benchmarks.poison_table import plot, table, values
from simulations.config import SimulationConfig

MakeTree = Callable[..., Path]
TASK = "5way1shot"


def configured(**changes: object) -> SimulationConfig:
    return SimulationConfig.checked({"clients": 12, **changes})


def test_each_attack_is_held_against_the_pool_without_the_hostile_ones_under_the_same_defence() -> None:
    cells = plan(configured(), attacks="noise", shares="one,30")
    assert {(cell.attack, cell.hostile) for cell in cells} == {
        (NOBODY, 0),
        *((WITHOUT, count) for count in (1, 4)),
        *(("noise", count) for count in (1, 4)),
    }
    for cell in cells:
        if cell.attack == "noise":
            assert cell.reference == Cell(WITHOUT, cell.hostile, cell.robust)
            assert cells.index(cell.reference) < cells.index(cell)
    assert Cell(NOBODY, 0, True).reference == Cell(NOBODY, 0, False)


def test_all_attacks_are_those_that_the_pool_allows() -> None:
    attacks = {cell.attack for cell in plan(configured(), attacks="all", shares="one")}
    assert {"backdoor", "adaptive", "permuted copies"} < attacks and "scaled difference" not in attacks
    mixed = configured(architectures=["conv4", "resnet10"])
    assert "permuted copies" not in {cell.attack for cell in plan(mixed, attacks="all", shares="one")}


@pytest.mark.parametrize(
    ("attacks", "shares", "complaint"),
    [
        ("sabotage", "30", "no attack 'sabotage' on this pool: use all, or some of random, "),
        ("scaled difference", "30", "no attack 'scaled difference'"),
        ("noise", "some", "expected percentages separated by commas, or one, got 'some'"),
        ("noise", "0", "got '0'"),
        ("noise", "95", "95 leaves 1 of 12 organisations honest"),
    ],
)
def test_what_cannot_be_measured_is_refused_by_name(attacks: str, shares: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        plan(configured(), attacks=attacks, shares=shares)


def test_several_starts_are_refused(start: Path) -> None:
    with pytest.raises(ConfigError, match="name one"):
        plan(configured(start=f"{start},{start}"), attacks="noise", shares="one")


def measured(attack: str, hostile: int, robust: bool, accuracies: Sequence[float]) -> Measured:
    counts = [] if attack in (NOBODY, WITHOUT) else [0.25 if robust else 1.0] * hostile
    return Measured(
        Cell(attack, hostile, robust),
        0,
        {TASK: accuracies},
        {TASK: [0.5, 0.7]},
        counts,
        [1.0, 1.0],
        [],
        ["too loud"] if attack == "noise" and not robust else [],
        1.0,
    )


CELLS = [
    measured(NOBODY, 0, False, [0.6, 0.8]),
    measured(NOBODY, 0, True, [0.5, 0.8]),
    measured(WITHOUT, 1, False, [0.6, 0.7]),
    measured(WITHOUT, 1, True, [0.6, 0.7]),
    measured("noise", 1, False, [0.4, 0.5]),
    measured("noise", 1, True, [0.6, 0.6]),
]


def test_what_an_attack_takes_is_lost_and_paired_over_the_episodes() -> None:
    made = table(CELLS, clients=3)
    lost = {(row["attack"], row["defence"]): row[f"lost_{TASK}"] for row in made.rows}
    assert lost["noise", "off"] == {"mean": pytest.approx(20), "ci95": pytest.approx(0)}
    assert lost["noise", "on"] == {"mean": pytest.approx(5), "ci95": pytest.approx(9.8)}
    assert lost[NOBODY, "on"]["mean"] == pytest.approx(5)  # type: ignore[index, call-overload]
    assert lost[NOBODY, "off"] is None and lost[WITHOUT, "on"] is None
    assert made.rows[4]["hostile"] == "1 of 3"
    assert [row["hostile_counts"] for row in made.rows] == [None, None, None, None, 1.0, 0.25]
    assert made.rows[0]["triggered"] == {"mean": pytest.approx(60), "ci95": pytest.approx(19.6)}
    assert "refused by VERIFY, noise: too loud" in made.notes
    assert "+20.0 ± 0.0" in made.texts[4]


def test_losses_are_drawn_off_beside_on() -> None:
    (axes,) = plot(CELLS).axes
    assert [bar.get_height() for bar in axes.patches] == [pytest.approx(20), pytest.approx(5)]


def test_the_numbers_of_a_cell_are_kept_with_intervals_in_the_place_of_episodes() -> None:
    kept = values(CELLS)["cells"][4]
    assert kept["cell"] == {"attack": "noise", "hostile": 1, "robust": False}
    assert kept["accuracies"][TASK]["mean"] == pytest.approx(45)


def test_a_mark_that_outshines_everything_sends_all_others_to_the_class_that_bears_it() -> None:
    clean = torch.eye(3).repeat_interleave(2, 0)
    episode = Episode(
        support=torch.tensor([0, 2, 4]),
        support_labels=torch.arange(3),
        query=torch.tensor([1, 3, 5]),
        query_labels=torch.arange(3),
    )
    assert trigger_rate(clean, clean, Recipe(), episode) == 0
    bearing = clean + torch.tensor([100.0, 0.0, 0.0])
    assert trigger_rate(clean, bearing, Recipe(), episode) == 1


def test_cells_that_are_there_are_not_run_again(tmp_path: Path, make_tree: MakeTree) -> None:
    config = tiny(tmp_path, make_tree("tree"))
    cells, told = plan(config, attacks="noise", shares="one"), list[str]()
    first = measure(tmp_path / "out", config, cells, told.append)
    (tmp_path / "out" / "noise-1-on.json").unlink()
    again = measure(tmp_path / "out", config, cells, told.append)
    assert [line.endswith("(was there)") for line in told[len(cells) :]] == [True] * 5 + [False]
    assert again[-1].accuracies == first[-1].accuracies and again[:-1] == first[:-1]
    assert [len(each.hostile_counts) for each in first] == [0, 0, 0, 0, 1, 1]
    assert [len(each.honest_counts) for each in first] == [4, 4, 3, 3, 3, 3]
    assert not any(each.refused for each in first)
    assert {each.name for each in (tmp_path / "out").iterdir() if each.is_dir()} == {"pool"}


def test_a_folder_of_other_federations_is_refused(tmp_path: Path, make_tree: MakeTree) -> None:
    config = tiny(tmp_path, make_tree("tree"))
    measure(tmp_path / "out", config, [], print)
    measure(tmp_path / "out", config, [Cell(NOBODY, 0, True)], lambda line: None)
    with pytest.raises(ConfigError, match="holds another federation"):
        measure(tmp_path / "out", config.model_copy(update={"episodes": 4}), [], lambda line: None)


def tiny(folder: Path, tree: Path) -> SimulationConfig:
    """A federation as small as one can be."""
    return SimulationConfig.checked(
        {
            "dataset": str(tree),
            "clients": 4,
            "n_query": 2,
            "episodes": 5,
            "cache": folder / "cache",
            "training": {"epochs": 1, "min_steps": 2, "image_size": 16, "threads": 1},
            "server": {
                "iterations": 1,
                "threads": 1,
                "invert": {"images_per_model": 10, "steps": 1},
                "learn": {"compositions": 4, "relational_tasks": 1, "batch_size": 8},
            },
        }
    )
