"""Options that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[Path, typer.Option(help="Folder or zip of images, a folder a class.")]
Split = Annotated[str | None, typer.Option(help="meta_train, meta_val or meta_test where the data has them.")]
LedgerFile = Annotated[
    Path | None,
    typer.Option(
        "--ledger",
        help="The record of what was contributed (default: ~/.local/state/fedfree/ledger.sqlite).",
        show_default=False,
    ),
]
