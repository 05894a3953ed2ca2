"""The table of ``fedfree-sim list``: a line a run."""

import re
from collections.abc import Sequence
from pathlib import Path

from simulations.reporting.record import ACCURACY, Cell, Column, Row, Table
from simulations.reporting.runs import FAILED, UNREADABLE, FoundRun
from simulations.reporting.scores import task_label
from simulations.reporting.words import printable


def list_table(runs: Sequence[FoundRun], folder: Path) -> Table:
    """What each run was, how far it is, and how good its meta-learner.

    Args:
        folder: as seen from which the runs are named.
    """
    tasks = sorted({task for run in runs if run.result for task in run.result["few_shot"]}, key=_by_size)
    columns = [
        *(Column(key=key, title=key) for key in ("run", "data", "clients", "start", "preset", "state")),
        *(Column(key=task, title=task_label(task), format=ACCURACY) for task in tasks),
        Column(key="date", title="date"),
    ]
    notes = tuple(
        f"{_name(run, folder)}: {run.state_words}" for run in runs if run.state in (FAILED, *UNREADABLE)
    )
    return Table("Runs", tuple(columns), tuple(_row(run, folder, tasks) for run in runs), notes)


def _name(run: FoundRun, folder: Path) -> str:
    return printable(str(run.folder.relative_to(folder) if run.folder != folder else folder))


def _by_size(task: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", task)))


def _row(run: FoundRun, folder: Path, tasks: Sequence[str]) -> Row:
    few_shot = run.result["few_shot"] if run.result else {}
    scores: dict[str, Cell] = {
        task: {name: few_shot[task][name] for name in ("mean", "ci95")} if task in few_shot else ""
        for task in tasks
    }
    own = {
        "run": _name(run, folder),
        "data": _names(run.setting("dataset")),
        "clients": run.setting("clients") or "",
        "start": _names(run.setting("start") or ("random" if run.settings else "")),
        "preset": run.setting("server.preset") or "",
        "state": run.state if run.state in (FAILED, *UNREADABLE) else run.state_words,
        "date": run.date,
    }
    return {key: printable(str(value)) for key, value in own.items()} | scores


def _names(listed: object) -> str:
    """Of data sets and starts, without the folders they lie in."""
    return ",".join(Path(each.strip()).name for each in str(listed or "").split(","))
