"""How learning went, drawn: what every iteration reported, as lines that need no library."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from server.doors.status import NOT_LOSSES
from server.events import Event

CURVES = {
    "inversion_loss": (
        "Inversion loss",
        "How far recovered images are from what their model asks for; lower is closer.",
    ),
    "inversion_agreement": (
        "Inversion agreement",
        "Share of recovered images that their model assigns to the intended class.",
    ),
    "distillation_loss": (
        "Distillation loss",
        "How far the meta-learner is from the models that teach it; lower is closer.",
    ),
    "replay_loss": (
        "Replay loss",
        "The meta-learner's loss on episodes whose classes come from different models.",
    ),
}
"""Value of a learn event to its title and what it says, in the order shown."""

MAX_POINTS = 200
"""Of one curve; of more iterations every second, third, … is drawn."""
ROWS = 12
"""Of the table that says the same in numbers."""
WIDTH, HEIGHT = 320.0, 130.0
_MARGIN = 6.0


@dataclass(frozen=True)
class Curve:
    """One learning curve, in a drawing of WIDTH by HEIGHT."""

    title: str
    meaning: str
    summary: str
    """For whoever does not see the drawing."""
    points: str
    """Of an SVG polyline."""
    low: str
    high: str
    """Least and largest value."""
    first: int
    last: int
    """Iterations."""


def series(events: Iterable[Event]) -> dict[str, dict[int, float]]:
    """What the learn stage reported at every iteration: name of a value to iteration to value."""
    found: dict[str, dict[int, float]] = {}
    last = 0
    for event in events:
        if (event.stage, event.kind) != ("learn", "progress") or "iteration" not in event.values:
            continue
        iteration = int(event.values["iteration"])
        if iteration <= last:
            # The log of a run that was started again holds what was lost of the earlier attempt too.
            found = {name: _before(iteration, values) for name, values in found.items()}
        last = iteration
        for name, value in event.values.items():
            if name not in NOT_LOSSES and not isinstance(value, str) and math.isfinite(value):
                found.setdefault(name, {})[iteration] = float(value)
    order = [name for name in CURVES if name in found] + [name for name in found if name not in CURVES]
    return {name: found[name] for name in order if found[name]}


def _before(iteration: int, values: Mapping[int, float]) -> dict[int, float]:
    return {place: value for place, value in values.items() if place < iteration}


def titled(name: str) -> tuple[str, str]:
    """Title of a curve and what it says, by the name of its value."""
    return CURVES.get(name, (name.replace("_", " ").capitalize(), ""))


def drawn(found: Mapping[str, Mapping[int, float]]) -> list[Curve]:
    """A curve for every value of :func:`series`."""
    return [_curve(*titled(name), values) for name, values in found.items()]


def _curve(title: str, meaning: str, values: Mapping[int, float]) -> Curve:
    iterations, heights = list(values), list(values.values())
    first, last, low, high = iterations[0], iterations[-1], min(heights), max(heights)
    points = [
        f"{_along(at, first, last, WIDTH):.1f},{HEIGHT - _along(values[at], low, high, HEIGHT):.1f}"
        for at in _thinned(iterations, MAX_POINTS)
    ]
    summary = (
        f"{title} from {heights[0]:.3g} at iteration {first} to {heights[-1]:.3g} at iteration {last}, "
        f"least {low:.3g}, largest {high:.3g}"
    )
    return Curve(title, meaning, summary, " ".join(points), f"{low:.3g}", f"{high:.3g}", first, last)


def _along(value: float, low: float, high: float, length: float) -> float:
    """Place of a value within a margin; in the middle where there is but one."""
    share = (value - low) / (high - low) if high > low else 0.5
    return _MARGIN + share * (length - 2 * _MARGIN)


def in_numbers(found: Mapping[str, Mapping[int, float]]) -> list[list[str]]:
    """Rows of a table: some iterations, the first and the last among them, with each value there."""
    iterations = sorted({at for values in found.values() for at in values})
    return [
        [f"{at:,}", *(f"{values[at]:.4g}" if at in values else "" for values in found.values())]
        for at in _thinned(iterations, ROWS)
    ]


def _thinned(items: Sequence[int], at_most: int) -> list[int]:
    """At most so many of them, evenly, with the first and the last."""
    if len(items) <= at_most:
        return list(items)
    return [items[round(place * (len(items) - 1) / (at_most - 1))] for place in range(at_most)]
