"""One whole federation: prepared, run, evaluated and written down."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedfree.host.files import write_file
from fedfree.host.lock import exclusive, require_free
from server.events import Event, OnEvent, ignore
from server.storage.run_directory import RunDirectory
from simulations.baselines.evaluate import evaluate
from simulations.baselines.table import TUNED
from simulations.config import SimulationConfig
from simulations.federation.engines import lacks_only_evaluation, run_engine
from simulations.federation.prepare import check_folder, prepare
from simulations.reporting import facts
from simulations.reporting.card import add_accuracy
from simulations.reporting.episodes import write_episodes
from simulations.reporting.pictures import synthetic_picture
from simulations.reporting.progress import Progress
from simulations.reporting.report import write_report
from simulations.reporting.result import write_result


def simulate(
    run: Path, config: SimulationConfig, *, command: str, on_event: OnEvent = ignore
) -> dict[str, Any]:
    """Run a federation into its directory with the progress shown, and return what ``result.json`` holds.

    Args:
        command: the command line that makes this run, for the report.
        on_event: told of everything beside the progress that is shown.
    """
    check_folder(run, config)
    with exclusive(run / ".flwr"):
        require_free(run)  # a learner of its own
        return _simulate(run, config, command, on_event)


def _simulate(run: Path, config: SimulationConfig, command: str, on_event: OnEvent) -> dict[str, Any]:
    commit = facts.commit()
    tuned: list[Mapping[str, object]] = []
    with Progress() as progress:

        def tell(event: Event) -> None:
            progress(event)
            on_event(event)
            if event.kind == TUNED:
                tuned.append(event.values)

        tell(Event("prepare", "started"))
        prepare(run, config)
        write_file(run / "command.txt", f"{command}\n".encode())
        if not lacks_only_evaluation(run):
            run_engine(run, config, on_event=tell)
        comparisons = evaluate(run, config, on_event=tell)
    write_episodes(run, comparisons)
    result = write_result(run, config, comparisons, progress.seconds, commit=commit, tuned=tuned)
    add_accuracy(RunDirectory(run), result)
    synthetic_picture(RunDirectory(run).read_recovered(), run / "synthetic.png")
    write_report(run)
    return result
