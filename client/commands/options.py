"""Options that several commands take."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from fedfree.architectures import Architecture

Data = Annotated[Path, typer.Option(help="Folder or zip of images, a folder a class.")]
Split = Annotated[str | None, typer.Option(help="meta_train, meta_val or meta_test where the data has them.")]
Cache = Annotated[
    Path | None,
    typer.Option(help="Folder for trained models (default: ~/.cache/fedfree/models).", show_default=False),
]
LedgerFile = Annotated[
    Path | None,
    typer.Option(
        "--ledger",
        help="The record of what was contributed (default: ~/.local/state/fedfree/ledger.sqlite).",
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Decides everything random.")]
ArchitectureName = Annotated[
    str | None,
    typer.Option(
        help="e.g. conv4, conv4-64-group, resnet10 (default: conv4; with --epsilon conv4-group).",
        show_default=False,
    ),
]
ImageSize = Annotated[int, typer.Option(help="Pixels a side; images are resized to it.")]
Flip = Annotated[
    bool | None,
    typer.Option(
        help="Whether a mirrored image still shows the same class (default: colour images only).",
        show_default=False,
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option(help="Passes over the images (default: 30).", show_default=False),
]
Delta = Annotated[float, typer.Option(help="Below one over the number of images.")]


def training(
    *,
    architecture: str | None,
    image_size: int,
    horizontal_flip: bool | None,
    epochs: int | None,
    epsilon: float,
    delta: float,
) -> dict[str, dict[str, Any]]:
    """The tables ``training`` and ``privacy`` of a configuration.

    Differential privacy has epochs of its own, and brings conv4-group by default.
    """
    is_dp = math.isfinite(epsilon)
    tables: dict[str, dict[str, Any]] = {
        "training": {
            "architecture": Architecture.parse(architecture or ("conv4-group" if is_dp else "conv4")),
            "image_size": image_size,
            "horizontal_flip": horizontal_flip,
        },
        "privacy": {"epsilon": epsilon, "delta": delta},
    }
    if epochs is not None:
        tables["privacy" if is_dp else "training"]["epochs"] = epochs
    return tables
