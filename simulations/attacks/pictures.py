"""The pictures of an audit: receiver operating curves, and the closest pairs of images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from client.rehearsing.attacks import Roc
from simulations.attacks.memorisation import LABEL, Nearness
from simulations.reporting.plots import new_figure
from simulations.reporting.tables import write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOWEST_RATE = 1e-3


def roc_picture(curves: Mapping[str, Roc], path: Path) -> None:
    """Write log-log curves by name as ``path`` with .png and with .svg."""
    figure = new_figure(6.4, 5.2)
    axes = figure.add_subplot(xscale="log", yscale="log", xlim=(LOWEST_RATE, 1), ylim=(LOWEST_RATE, 1))
    axes.plot([LOWEST_RATE, 1], [LOWEST_RATE, 1], "--", color="grey", linewidth=1, label="guessing")
    for name, curve in curves.items():
        style = "-" if "canaries" in name else ":"
        axes.step(curve.false_positive_rates, curve.true_positive_rates, style, where="post", label=name)
    axes.set(
        xlabel="false-positive rate",
        ylabel="true-positive rate",
        title="Membership inference (LiRA online)\nan attack that fails is not evidence of safety",
    )
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small", loc="lower right")
    for suffix in (".png", ".svg"):
        write_figure(path.with_suffix(suffix), figure)


def pairs_picture(
    found: Mapping[str, Nearness], synthetic: Tensor, private: Tensor, held_out: Tensor, path: Path
) -> None:
    """Write the closest pairs of each measure as a PNG: synthetic, nearest private, nearest held-out.

    Args:
        synthetic: uint8 [images, channels, size, size], as all three were given to the check.
    """
    rows = max(len(each.closest) for each in found.values())
    figure = new_figure(3.6 * len(found), 1.15 * rows + 0.9)
    figure.suptitle(LABEL, fontsize=10)
    for part, (name, nearness) in zip(
        figure.subfigures(1, len(found), squeeze=False)[0], found.items(), strict=True
    ):
        part.suptitle(f"closest by {name}", fontsize=9)
        grid = part.subplots(rows, 3, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for line, indices in zip(grid, nearness.closest, strict=False):
            for axes, images, index in zip(line, (synthetic, private, held_out), indices, strict=True):
                _show(axes, images[index])
        for axes, title in zip(grid[0], ("synthetic", "nearest\nprivate", "nearest\nheld-out"), strict=True):
            axes.set_title(title, fontsize=8)
    write_figure(path, figure)


def _show(axes: Axes, image: Tensor) -> None:
    pixels = image.permute(1, 2, 0).numpy()
    axes.imshow(np.repeat(pixels, 3, 2) if pixels.shape[2] == 1 else pixels, interpolation="nearest")
