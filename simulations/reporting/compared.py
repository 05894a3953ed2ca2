"""The page that compares several runs: one HTML file that needs nothing else."""

from pathlib import Path
from typing import Any

from fedfree.host.files import refuse_foreign, write_file
from simulations.baselines.table import META_LEARNER
from simulations.reporting.comparing import ComparedRuns, Difference
from simulations.reporting.report import BarChart, accuracy_chart, render
from simulations.reporting.scores import Score, task_label
from simulations.reporting.words import ABSENT


def write_comparison(compared: ComparedRuns, out: Path) -> Path:
    """Write the page; raises ConfigError where it cannot be written, or another kind of file is there."""
    refuse_foreign(out, b"<title>FedFREE")
    write_file(out, render("comparison.html.j2", _context(compared)).encode())
    return out


def _context(compared: ComparedRuns) -> dict[str, Any]:
    return {
        "names": compared.names,
        "runs": compared.runs,
        "tables": [(task_label(task), _rows(compared, task)) for task in compared.tasks],
        "charts": [_chart(compared, task) for task in compared.tasks],
        "settings": compared.settings,
        "circumstances": compared.circumstances,
        "notes": compared.notes(),
        "absent": ABSENT,
    }


def _rows(
    compared: ComparedRuns, task: str
) -> list[tuple[str, bool, list[tuple[Score | None, Score | None]]]]:
    """Of each competitor: label, whether it is the meta-learner, and each run's accuracy and difference."""
    numbers = range(len(compared.runs))
    return [
        (
            label,
            key == META_LEARNER,
            [
                (compared.score(i, task, key), _as_gain(compared.difference(i, task, key) if i else None))
                for i in numbers
            ],
        )
        for key, label in compared.competitors.items()
    ]


def _as_gain(difference: Difference | None) -> Score | None:
    """A difference as what a table shows beneath an accuracy."""
    return Score(0.0, 0.0, difference.mean, difference.ci95) if difference else None


def _chart(compared: ComparedRuns, task: str) -> BarChart:
    """The meta-learners of all runs on one kind of episodes."""
    scores = [compared.score(number, task, META_LEARNER) for number in range(len(compared.runs))]
    named = [(name, score) for name, score in zip(compared.names, scores, strict=True) if score is not None]
    return accuracy_chart(
        task, [(name, "ours" if not at else "baseline", score) for at, (name, score) in enumerate(named)]
    )
