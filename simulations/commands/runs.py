"""``fedfree-sim list``, ``show``, ``compare`` and ``report``: what runs left, looked at afterwards."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fedfree.host.cli import App
from simulations.reporting.compared import write_comparison
from simulations.reporting.comparing import ComparedRuns, as_plain, score_table, settings_table
from simulations.reporting.listing import list_table
from simulations.reporting.report import write_report
from simulations.reporting.runs import FoundRun, find_runs, open_finished, open_run
from simulations.reporting.summary import result_lines, result_table
from simulations.reporting.tables import make_console, tell
from simulations.reporting.tables import show as show_table
from simulations.reporting.words import printable

app = App()

Runs = Annotated[list[Path], typer.Argument(help="Folders of finished runs; the first is compared with.")]


@app.command("list")
def list_runs(
    folder: Annotated[Path, typer.Argument(help="Folder that holds runs, at any depth.")] = Path("runs"),
) -> None:
    """List the runs in a folder: what each was, how far it is, and how good."""
    runs, foreign = find_runs(folder)
    if runs:
        show_table(list_table(runs, folder), make_console())
    else:
        tell(f"no run in {folder}")
    if foreign:
        tell(f"no runs: {', '.join(str(each) for each in foreign)}")


@app.command("show")
def show_run(run: Annotated[Path, typer.Argument(help="Folder of a run.")]) -> None:
    """Show what a run found, or how far it is and how it goes on."""
    found = open_run(run)
    if found.result is not None:
        show_result(found.folder, found.result)
        return
    tell(f"{run}: {found.state_words}")
    if line := _how_to_go_on(found):
        tell(line)


def show_result(run: Path, result: Mapping[str, Any]) -> None:
    """What a person sees at the end of a run."""
    console = Console(markup=False)
    console.print(result_table(result))
    for line in result_lines(result):
        console.print(line, markup=False)
    console.print(printable(f"report: {run / 'report.html'}"), markup=False)


def _how_to_go_on(run: FoundRun) -> str:
    if run.state == "running" or not run.command:
        return ""
    return f"the same command goes on from there: {run.command}"


@app.command("compare")
def compare_runs(
    runs: Runs,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare runs: what was set differently, and the difference that it made, in pairs where that can be."""
    compared = ComparedRuns([open_finished(run) for run in runs])
    if as_json:
        typer.echo(json.dumps(as_plain(compared), indent=2, ensure_ascii=False))
        return
    console = make_console()
    show_table(score_table(compared), console)
    console.print()
    show_table(settings_table(compared), console)


@app.command("report")
def report_runs(
    runs: Runs,
    out: Annotated[Path, typer.Option("--out", help="HTML file to write, of several runs.")] = Path(
        "comparison.html"
    ),
) -> None:
    """Write the report of one run anew, or one page that compares several."""
    found = [open_finished(run) for run in runs]
    page = write_report(found[0].folder) if len(found) == 1 else write_comparison(ComparedRuns(found), out)
    tell(f"wrote {page}")
