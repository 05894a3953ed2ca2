"""What a person at the terminal sees of a federation at its end: a table, and a few lines beneath it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from simulations.baselines.table import META_LEARNER
from simulations.reporting.scores import Row, Score, comparison, headline, task_label
from simulations.reporting.words import ABSENT, duration, printable


def result_table(result: Mapping[str, Any]) -> Table:
    """The comparison of a run, as a table for the terminal."""
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        caption="accuracy in %, gain of the meta-learner in points, ± 95 % interval",
        caption_justify="left",
    )
    table.add_column("")
    for name in result["few_shot"]:
        table.add_column(task_label(name), justify="right", no_wrap=True)
        table.add_column("gain", justify="right", no_wrap=True)
    domains = result.get("domains", {})
    for title, part in {"all data sets": result, **domains}.items() if domains else [("", result)]:
        _add_rows(table, title, comparison(part))
    return table


def _add_rows(table: Table, title: str, rows: Sequence[Row]) -> None:
    """The comparison on one data set, beneath its name where there are several."""
    if title:
        table.add_section()
        table.add_row(Text(printable(title), style="italic cyan"))
    for row in rows:
        style = "bold" if row.key == META_LEARNER else "dim" if row.is_reference else None
        cells = [cell for score in row.scores for cell in _cells(score, row.absent)]
        table.add_row(Text(printable(row.label)), *cells, style=style)


def _cells(score: Score | None, absent: str) -> tuple[Text, Text]:
    if score is None:
        return Text(absent), Text(ABSENT)
    style = {"better": "green", "worse": "red", "unclear": ""}[score.verdict]
    return Text(score.accuracy), Text(score.gained, style=style)


def result_lines(result: Mapping[str, Any]) -> list[str]:
    """The few lines beneath the table: how it was measured, from what, and in what time."""
    return [
        *([headline(result)] if result.get("share_closed") else []),
        *([f"Start: {start_words(result['start'])}."] if result.get("start") else []),
        *(f"Further start: {start_words(each)}." for each in result.get("further_starts", ())),
        *([f"{public_words(result['public_images'])}."] if result.get("public_images") else []),
        measured_words(result),
        f"Contributions: {contribution_counts(result)}.",
        _work(result),
    ]


def printed(result: Mapping[str, Any]) -> str:
    """The table and the lines as a terminal of 80 columns shows them, without its colours."""
    page = StringIO()
    console = Console(file=page, width=80, color_system=None, markup=False)
    console.print(result_table(result))
    for line in result_lines(result):
        console.print(line, highlight=False)
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines())


def start_words(start: Mapping[str, Any]) -> str:
    """Which start it was, for instance ``timm/resnet18 at 64 pixels, sha256 3f9c…, Apache-2.0, from …``."""
    return (
        f"{start['architecture']} at {start['image_size']} pixels, sha256 {start['sha256'][:12]}…, "
        f"{start['licence']}, from {printable(start['source'])}"
    )


def judged_words(judged: Mapping[str, Any]) -> str:
    """What is broadcast after learning from a start, and by which figures; empty where nothing was judged."""
    if "broadcast" not in judged:
        return ""
    what = {"learned": "what was learned", "average": "the average of the models"}[judged["broadcast"]]
    learned, average = (judged[f"{each}_on_synthetic_episodes"] for each in ("learned", "average"))
    return (
        f"{what}: on synthetic episodes across organisations, what was learned reads {learned:.1f} %, "
        f"the average {average:.1f} %"
    )


def public_words(public: Mapping[str, Any]) -> str:
    """What the server had beside recovered images."""
    shown = "" if public["shown"] == public["images"] else f" ({public['shown']:,} of them shown)"
    count, sha256 = f"{public['images']:,} public images{shown}", public["sha256"][:12]
    return f"{count}, sha256 {sha256}…, beside recovered images"


def measured_words(result: Mapping[str, Any]) -> str:
    """How the accuracies were measured, in one sentence."""
    return f"Measured over {_episodes(result)}, {_transductive(result)}."


def _episodes(result: Mapping[str, Any]) -> str:
    counts = {measured["episodes"] for measured in result["few_shot"].values()}
    mixed = ", an equal share of each data set" if result.get("domains") else ""
    return f"{' and '.join(f'{count:,}' for count in sorted(counts))} episodes each{mixed}"


def _transductive(result: Mapping[str, Any]) -> str:
    if any(measured["transductive"] for measured in result["few_shot"].values()):
        return "transductive: the queries of an episode were seen together"
    return "not transductive: every query was classified on its own"


def contribution_counts(result: Mapping[str, Any]) -> str:
    """For instance ``11 accepted, 1 quarantined, 0 failed``."""
    states = Counter(contribution["state"] for contribution in result.get("contributions", ()))
    return ", ".join(f"{states[state]} {state}" for state in ("accepted", "quarantined", "failed"))


def _work(result: Mapping[str, Any]) -> str:
    recovery, total = result.get("recovery"), sum(result.get("seconds", {}).values())
    whole = f"{duration(total)} in all."
    if not recovery:
        return whole
    return f"{recovery['images']:,} images recovered in {duration(recovery['seconds'])}; {whole}"
