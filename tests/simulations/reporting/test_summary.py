"""The table at the end of a run, and the lines beneath it."""

import io
from collections.abc import Mapping

from rich.console import Console

from simulations.reporting.summary import judged_words, result_lines, result_table


def result() -> dict[str, object]:
    def measured(mean: float) -> dict[str, float]:
        return {"mean": mean, "ci95": 0.61, "gain": 48.2 - mean, "gain_ci95": 0.93}

    few_shot = {"mean": 48.2, "ci95": 0.84, "episodes": 600, "transductive": False}
    states = ["accepted"] * 3 + ["quarantined"]
    return {
        "few_shot": {"5way1shot": few_shot, "10way1shot": few_shot | {"mean": 33.3}},
        "baselines": {
            "pool_concatenation": {"5way1shot": measured(50.5), "10way1shot": measured(35.5)},
            "best_single_model": {"5way1shot": measured(41.5), "10way1shot": measured(28.5)},
            "random_init": {"5way1shot": measured(31.6), "10way1shot": measured(19.6)},
        },
        "contributions": [{"state": state} for state in states],
        "recovery": {"images": 24000, "seconds": 88.1},
        "seconds": {"learn": 100.0, "evaluate": 20.0},
    }


def printed(values: Mapping[str, object]) -> list[str]:
    console = Console(file=io.StringIO(), width=120, _environ={})
    console.print(result_table(values))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue().splitlines()


def row_of(label: str) -> str:
    (line,) = [line for line in printed(result()) if line.startswith(label)]
    return line


def test_the_table_shows_accuracies_and_gains_with_their_intervals() -> None:
    assert "48.2 ± 0.8" in row_of("meta-learner")
    assert "41.5 ± 0.6" in row_of("best single model")
    assert "+6.7 ± 0.9" in row_of("best single model")
    assert "−2.3 ± 0.9" in row_of("all models side by side")


def test_the_table_has_a_column_for_each_kind_of_episode_in_order() -> None:
    header = " ".join(printed(result()))
    assert header.index("5-way 1-shot") < header.index("10-way 1-shot")


def test_the_table_marks_a_missing_parameter_average() -> None:
    assert row_of("parameter average").count("—") == 4


def test_the_lines_beneath_the_table_tell_how_it_was_measured() -> None:
    assert result_lines(result()) == [
        "Measured over 600 episodes each, not transductive: every query was classified on its own.",
        "Contributions: 3 accepted, 1 quarantined, 0 failed.",
        "24,000 images recovered in 1 min 28 s; 2 min 00 s in all.",
    ]


def test_what_is_broadcast_is_said_with_its_figures() -> None:
    figures = {"learned_on_synthetic_episodes": 82.14, "average_on_synthetic_episodes": 77.2}
    words = judged_words({"broadcast": "average", **figures})
    assert words.startswith("the average of the models: ")
    assert words.endswith("what was learned reads 82.1 %, the average 77.2 %")
    assert judged_words({"broadcast": "learned", **figures}).startswith("what was learned: ")
    assert judged_words({}) == ""
