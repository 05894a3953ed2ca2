"""The report of a run: one HTML file that needs nothing else, made from what the run directory holds."""

import base64
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fedfree.host.files import read_file, write_file
from server.doors.curves import series, titled
from server.events import Event
from server.storage.run_directory import RunDirectory
from simulations.baselines.table import BASELINES, BEST_SINGLE, META_LEARNER, POOLED, PUBLIC_START
from simulations.reporting.pictures import synthetic_picture
from simulations.reporting.runs import command_of, read_events
from simulations.reporting.scores import Row, Score, comparison, headline, task_label
from simulations.reporting.shape import Reported, read_result
from simulations.reporting.summary import contribution_counts, judged_words, public_words, start_words
from simulations.reporting.words import ABSENT, duration

_WIDTH, _HEIGHT = 340.0, 190.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 42.0, 330.0, 12.0, 162.0
"""Of a learning curve's plot area, in the units of its drawing."""


@dataclass(frozen=True)
class Bar:
    """One bar of a chart; lengths in percent of the chart's width."""

    label: str
    role: str
    """``ours``, ``baseline`` or ``reference``: how it is coloured."""
    text: str
    length: float
    whisker_start: float = 0.0
    whisker_length: float = 0.0


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class BarChart:
    """Bars from zero, on one scale."""

    title: str
    bars: tuple[Bar, ...]
    ticks: tuple[Tick, ...]
    chance: float
    """Place of the accuracy of guessing, in percent of the width; 0 where there is none."""


@dataclass(frozen=True)
class Curve:
    """One learning curve, in the units of its drawing."""

    title: str
    meaning: str
    summary: str
    points: tuple[tuple[float, float], ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def write_report(run: Path) -> Path:
    """Write ``report.html`` into a run directory and return its path.

    Reads ``result.json``, ``events.jsonl``, ``config.toml``, ``synthetic.png`` and, where there is one,
    ``command.txt``.
    """
    path = run / "report.html"
    write_file(path, render("report.html.j2", _context(run)).encode())
    return path


def _picture(run: Path) -> bytes:
    """``synthetic.png``, drawn again where somebody took it away."""
    path = run / "synthetic.png"
    if not path.exists():
        synthetic_picture(RunDirectory(run).read_recovered(), path)
    return read_file(path)


def render(template: str, context: Mapping[str, Any]) -> str:
    """A page from one of the templates beside this file; whatever it shows is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"duration": duration, "task_label": task_label}
    return environment.get_template(template).render(context)


def _context(run: Path) -> dict[str, Any]:
    result = read_result(run / "result.json", Reported)
    config = (run / "config.toml").read_text(encoding="utf-8")
    rows = comparison(result)
    return {
        "result": result,
        "dataset": ", ".join(Path(each.strip()).name for each in result["dataset"].split(",")),
        "domains": {name: comparison(each) for name, each in result.get("domains", {}).items()},
        "tasks": [task_label(name) for name in result["few_shot"]],
        "rows": rows,
        "labels": {name: baseline.label for name, baseline in BASELINES.items()},
        "transductive": any(measured["transductive"] for measured in result["few_shot"].values()),
        "absent": ABSENT,
        "gaps": any(score is None for row in rows for score in row.scores if row.absent == ABSENT),
        "headline": headline(result),
        "start": start_words(result["start"]) if result.get("start") else "",
        "further_starts": [start_words(each) for each in result.get("further_starts", ())],
        "judged": judged_words(result.get("judged", {})),
        "public_images": public_words(result["public_images"]) if result.get("public_images") else "",
        "best": best_baselines(rows),
        "verdict": verdict_chart(result, rows),
        "charts": bar_charts(result, rows),
        "queries": _find(tomllib.loads(config), "n_query"),
        "curves": curves(read_events(run)),
        "picture": base64.b64encode(_picture(run)).decode(),
        "counts": contribution_counts(result),
        "accepted": sum(each["state"] == "accepted" for each in result["contributions"]),
        "privacy": _privacy(result["contributions"]),
        "organisation_tasks": _organisation_tasks(result.get("organisations") or []),
        "organisation_episodes": _organisation_episodes(result.get("organisations") or []),
        "stages": stage_bars(result["seconds"]),
        "total_seconds": sum(result["seconds"].values()),
        "command": command_of(run),
        "config": config,
        "plot": {"width": _WIDTH, "height": _HEIGHT, "left": _LEFT, "right": _RIGHT, "bottom": _BOTTOM},
    }


def _find(config: Mapping[str, Any], key: str) -> object:
    """The first value of a key anywhere in the tables of a configuration, or None."""
    if key in config:
        return config[key]
    found = (_find(table, key) for table in config.values() if isinstance(table, dict))
    return next((value for value in found if value is not None), None)


def _privacy(contributions: Sequence[Mapping[str, Any]]) -> Counter[str]:
    """Privacy statuses of the contributions that arrived."""
    return Counter(each["privacy"] for each in contributions if each["state"] != "failed")


def _organisation_tasks(organisations: Sequence[Mapping[str, Any]]) -> list[str]:
    """Kinds of episodes that organisations measured, in the order of their first mention."""
    return list(dict.fromkeys(_task(each) for one in organisations for each in one["results"]))


def _organisation_episodes(organisations: Sequence[Mapping[str, Any]]) -> str:
    counts = {each["episodes"] for one in organisations for each in one["results"]}
    return " or ".join(f"{count:,}" for count in sorted(counts))


def _task(measured: Mapping[str, Any]) -> str:
    return f"{measured['n_way']}way{measured['n_shot']}shot"


def best_baselines(rows: Sequence[Row]) -> list[tuple[Row, Score] | None]:
    """For each kind of episode the best baseline that could be broadcast, where any was measured."""
    ours, *others = [row for row in rows if not row.is_reference]
    best = []
    for task in range(len(ours.scores)):
        measured = [(row, score) for row in others if (score := row.scores[task]) is not None]
        best.append(max(measured, key=lambda each: each[1].mean, default=None))
    return best


ALTERNATIVES = {
    PUBLIC_START: "the public network alone",
    BEST_SINGLE: "the best organisation alone",
    META_LEARNER: "together: this meta-learner",
    POOLED: "all images in one place",
}
"""What somebody who decides chooses between, and how that is called for them."""


def verdict_chart(result: Mapping[str, Any], rows: Sequence[Row]) -> BarChart | None:
    """Alone, together, pooled, in the first kind of episodes; None where there is nothing to choose from."""
    by_key = {row.key: row for row in rows}
    named = [
        (label, _role(row), score)
        for key, label in ALTERNATIVES.items()
        if (row := by_key.get(key)) and (score := row.scores[0])
    ]
    return accuracy_chart(next(iter(result["few_shot"])), named) if len(named) > 1 else None


def bar_charts(result: Mapping[str, Any], rows: Sequence[Row]) -> list[BarChart]:
    """One chart of accuracies for each kind of episode, all on the same scale."""
    top = max(score.mean + score.ci95 for row in rows for score in row.scores if score is not None)
    return [
        accuracy_chart(
            name,
            [(row.label, _role(row), score) for row in rows if (score := row.scores[index]) is not None],
            top=top,
        )
        for index, name in enumerate(result["few_shot"])
    ]


def accuracy_chart(
    task: str, named: Sequence[tuple[str, str, Score]], *, top: float | None = None
) -> BarChart:
    """Accuracies on one kind of episodes as bars from zero.

    Args:
        named: label, role and accuracy of each bar.
        top: highest accuracy that the scale has to hold; by default that of these bars.
    """
    ticks = _ticks(0.0, top or max(score.mean + score.ci95 for _, _, score in named))
    scale = 100 / ticks[-1]
    bars = tuple(_accuracy_bar(label, role, score, scale) for label, role, score in named)
    axis = tuple(Tick(value * scale, f"{value:g}") for value in ticks)
    return BarChart(task_label(task), bars, axis, _chance(task) * scale)


def _role(row: Row) -> str:
    return "ours" if row.key == META_LEARNER else "reference" if row.is_reference else "baseline"


def _accuracy_bar(label: str, role: str, score: Score, scale: float) -> Bar:
    low, high = max(0.0, score.mean - score.ci95), score.mean + score.ci95
    return Bar(label, role, score.accuracy, score.mean * scale, low * scale, (high - low) * scale)


def _chance(name: str) -> float:
    """Accuracy of guessing, in percent; 0 where the name of the task does not tell."""
    ways = name.partition("way")[0]
    return 100 / int(ways) if ways.isdigit() else 0.0


def stage_bars(seconds: Mapping[str, float]) -> list[Bar]:
    """Time by stage, in the order of the run."""
    longest = max(seconds.values(), default=0.0) or 1.0
    return [
        Bar(stage, "baseline", duration(spent), 100 * spent / longest) for stage, spent in seconds.items()
    ]


def curves(events: Iterable[Event]) -> list[Curve]:
    """What the learn stage reported at every iteration, one curve a value."""
    return [_curve(*titled(name), values) for name, values in series(events).items()]


def _curve(title: str, meaning: str, values: Mapping[int, float]) -> Curve:
    iterations, heights = list(values), list(values.values())
    y_ticks = _ticks(min(heights), max(heights))
    x_ticks = [tick for tick in _ticks(0, iterations[-1]) if tick <= iterations[-1]]
    places = tuple(
        (_along(x, 0, iterations[-1], _LEFT, _RIGHT), _along(y, y_ticks[0], y_ticks[-1], _BOTTOM, _TOP))
        for x, y in values.items()
    )
    return Curve(
        title,
        meaning,
        f"{title} from {heights[0]:.3g} at iteration {iterations[0]} "
        f"to {heights[-1]:.3g} at iteration {iterations[-1]}",
        places,
        tuple(Tick(_along(tick, 0, iterations[-1], _LEFT, _RIGHT), f"{tick:g}") for tick in x_ticks),
        tuple(Tick(_along(tick, y_ticks[0], y_ticks[-1], _BOTTOM, _TOP), f"{tick:g}") for tick in y_ticks),
    )


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers that enclose a range; at least two."""
    if low == high:
        low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
    from matplotlib.ticker import MaxNLocator  # as in plots.new_figure

    values = [float(value) for value in MaxNLocator(nbins=4).tick_values(low, high)]
    below = [value for value in values if value <= low][-1:]
    above = [value for value in values if value >= high][:1]
    return below + [value for value in values if low < value < high] + above


def _along(value: float, low: float, high: float, start: float, end: float) -> float:
    return round(start + (value - low) / (high - low) * (end - start), 1)
