"""Options that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[Path, typer.Option(help="Folder or zip of images, a folder a class.")]
Split = Annotated[str | None, typer.Option(help="meta_train, meta_val or meta_test where the data has them.")]
Cache = Annotated[Path, typer.Option(help="Folder for trained models.")]
LedgerFile = Annotated[Path, typer.Option("--ledger", help="The record of what was contributed.")]
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
    typer.Option(help="Passes over the images (default: 12; with --epsilon 30).", show_default=False),
]
