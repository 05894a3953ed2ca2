"""The cases of ``bench quality`` as a table, with what may be concluded from them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from simulations.baselines.table import BASELINES, BEST_SINGLE, DENSE, POOLED, PUBLIC_START
from simulations.benchmarks.quality import DEFAULT, DOMAINS, MIXTURE, growth
from simulations.command_line import run_command
from simulations.reporting.record import ACCURACY, GAIN, Cell, Column, Row, Table
from simulations.reporting.scores import Score, task_label
from simulations.reporting.summary import printed
from simulations.series import Measured, Run, accuracy_cell, provenance

MARGIN = 2.0
"""Points that another kind of pool may be below its reference."""
BEST, AVERAGE, SIDE_BY_SIDE = BEST_SINGLE, "parameter_average", "pool_concatenation"


@dataclass(frozen=True)
class Check:
    """A sentence about two or more cases, with whether it holds."""

    claim: str
    holds: bool

    def __str__(self) -> str:
        return f"{self.claim}: {'yes' if self.holds else 'NO'}"


def checks(measured: Sequence[Measured]) -> list[Check]:
    """The comparisons that the measured cases allow."""
    by_case = {each.case: each for each in measured}
    found = []
    for case in ("architectures", "groupnorm"):
        if {case, DEFAULT} <= by_case.keys():
            found += _no_worse(by_case[case], by_case[DEFAULT])
    for mixture, alone in ((DOMAINS, "domain"), (MIXTURE, "start")):
        for domain in by_case[mixture].domains if mixture in by_case else ():
            if f"{alone}-{domain}" in by_case:
                found += _no_worse(by_case[mixture], by_case[f"{alone}-{domain}"], domain)
    for each in measured:
        found += _above_average(each)
    return found + _rising(growth(measured))


def _no_worse(case: Measured, reference: Measured, domain: str | None = None) -> list[Check]:
    where = f" on {domain}" if domain else ""
    found = []
    for task in case.tasks:
        difference = case.score(task, domain).mean - reference.score(task).mean
        claim = (
            f"{case.case} at most {MARGIN:g} points below {reference.case}{where}, {task_label(task)} "
            f"({difference:+.1f})"
        )
        found.append(Check(claim, difference >= -MARGIN))
    return found


def _above_average(case: Measured) -> list[Check]:
    """From a start, nothing worse than the average of the models may come out."""
    found = []
    for task in case.tasks if case.config.start else ():
        average = case.baseline(AVERAGE, task)
        if average is not None and average.gain is not None and average.gain_ci95 is not None:
            claim = f"{case.case} not below the parameter average, {task_label(task)} ({average.gained})"
            found.append(Check(claim, average.gain + average.gain_ci95 >= 0))
    return found


def _rising(curve: Sequence[Measured]) -> list[Check]:
    found = []
    for task in curve[0].tasks if len(curve) > 1 else ():
        means = [each.score(task).mean for each in curve]
        steps = ", ".join(
            f"{each.models():g} models {mean:.1f}" for each, mean in zip(curve, means, strict=True)
        )
        claim = f"accuracy rises with the pool, {task_label(task)} ({steps})"
        found.append(Check(claim, all(before < after for before, after in pairwise(means))))
    return found


COLUMNS = (
    Column(key="case", title="case"),
    Column(key="models", title="models", format="{:g}"),
    Column(key="shots", title="shots"),
    Column(key="meta_learner", title="meta-learner", format=ACCURACY),
    Column(key="each_seed", title="each seed", format="{:.1f}"),
    *(
        Column(key=name, title=BASELINES[name].label, format=ACCURACY)
        for name in ("random_init", PUBLIC_START, BEST)
    ),
    Column(key="gain", title="gain over best single", format=GAIN),
    Column(key=AVERAGE, title=BASELINES[AVERAGE].label, format=ACCURACY),
    Column(key=DENSE, title=BASELINES[DENSE].label, format=ACCURACY),
    Column(key=SIDE_BY_SIDE, title="side by side (reference)", format=ACCURACY),
    Column(key=POOLED, title="pooled data (reference)", format=ACCURACY),
    Column(key="share_closed", title="share of the way to pooled, %", format=ACCURACY),
    Column(key="server_minutes", title="server min", format="{:.1f}"),
)
SHOWN = ("random_init", PUBLIC_START, BEST, AVERAGE, DENSE, SIDE_BY_SIDE, POOLED)
OPTIONAL = frozenset(("random_init", PUBLIC_START, AVERAGE, DENSE, POOLED, "share_closed"))
"""Columns that are left out where no case has them."""


def table(measured: Sequence[Measured]) -> Table:
    """One row for each case and kind of episode, and for each data set where there are several."""
    rows = []
    for each in measured:
        for domain in (None, *each.domains):
            rows += [_row(each, task, domain) for task in each.tasks]
    columns = tuple(
        each for each in COLUMNS if each.key not in OPTIONAL or any(row[each.key] is not None for row in rows)
    )
    notes = [provenance(each) for each in measured] + [str(check) for check in checks(measured)]
    return Table("Few-shot accuracy of whole federations", columns, tuple(rows), tuple(notes))


def _row(measured: Measured, task: str, domain: str | None) -> Row:
    best = measured.baseline(BEST, task, domain)
    return {
        "case": f"{measured.case}: {domain}" if domain else measured.case,
        "models": measured.models(),
        "shots": task_label(task),
        "meta_learner": accuracy_cell(measured.score(task, domain)),
        "each_seed": measured.accuracies(task, domain),
        **{name: accuracy_cell(measured.baseline(name, task, domain)) for name in SHOWN},
        "gain": _gain_cell(best),
        "share_closed": accuracy_cell(measured.share(task, domain)),
        "server_minutes": round(measured.server_minutes(), 2),
    }


def _gain_cell(score: Score | None) -> Cell:
    if score is None or score.gain is None or score.gain_ci95 is None:
        return None
    return {"mean": round(score.gain, 4), "ci95": round(score.gain_ci95, 4)}


def values(measured: Sequence[Measured]) -> dict[str, object]:
    """Everything the table shows, as numbers."""
    return {
        "rows": [_case_values(each) for each in measured],
        "checks": [{"claim": check.claim, "holds": check.holds} for check in checks(measured)],
    }


def _case_values(measured: Measured) -> dict[str, object]:
    domains = {domain: _accuracy_values(measured, domain) for domain in measured.domains}
    return {
        "case": measured.case,
        "models": measured.models(),
        "seeds": [run.config.seed for run in measured.runs],
        **_accuracy_values(measured, None),
        **({"domains": domains} if domains else {}),
        "server_minutes": round(measured.server_minutes(), 2),
        "runs": [_run_values(run) for run in measured.runs],
    }


def _accuracy_values(measured: Measured, domain: str | None) -> dict[str, Any]:
    few_shot = {
        task: _score_values(measured.score(task, domain)) | {"seeds": measured.accuracies(task, domain)}
        for task in measured.tasks
    }
    baselines = {name: _baseline_values(measured, name, domain) for name in BASELINES}
    shares = {task: share for task in measured.tasks if (share := measured.share(task, domain))}
    return {
        "few_shot": few_shot,
        "baselines": {name: each for name, each in baselines.items() if each},
        **({"share_closed": {task: _score_values(each) for task, each in shares.items()}} if shares else {}),
    }


def _baseline_values(measured: Measured, name: str, domain: str | None) -> dict[str, Any]:
    scores = {task: measured.baseline(name, task, domain) for task in measured.tasks}
    return {task: _score_values(score) for task, score in scores.items() if score is not None}


def _score_values(score: Score) -> dict[str, float]:
    return {name: round(value, 2) for name, value in asdict(score).items() if value is not None}


def only_printed(measured: Sequence[Measured]) -> dict[str, str]:
    """What `fedfree-sim run` prints at the end of the only run; empty of several."""
    runs = [run for each in measured for run in each.runs]
    return {"printed": printed(runs[0].result)} if len(runs) == 1 else {}


def _run_values(run: Run) -> dict[str, object]:
    kept = ("seed", "seconds", "commit", "finished", "hardware", "versions")
    return {"command": run_command(run.folder, run.config)} | {name: run.result[name] for name in kept}
