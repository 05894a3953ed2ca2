"""What the plots of all measurements have in common: colours that mean the same, and axes without clutter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


OURS, OTHER = "#0f766e", "#b45309"
"""What this project does, and what it is held against."""
GREY, LIGHT_GREY = "#5b636e", "#8a929c"
"""Of baselines and limits."""


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    from matplotlib.figure import Figure  # takes a second to import, and few commands draw

    return Figure(figsize=(width, height), layout="constrained")


def tidy(*panels: Axes, grid: Literal["x", "y"] | None = None) -> None:
    """Take away the frame's upper and right side; with ``grid``, draw faint lines across that axis."""
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        if grid is not None:
            axes.grid(axis=grid, alpha=0.3)
