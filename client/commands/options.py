"""Options that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

from client.config import DataConfig
from fedfree.host.images.formats import Fit

Data = Annotated[Path, typer.Option(help="Folder or zip of images, a folder a class.")]
Split = Annotated[str | None, typer.Option(help="meta_train, meta_val or meta_test where the data has them.")]
FIT: Fit = DataConfig.model_fields["fit"].default
Square = Annotated[
    Fit,
    typer.Option("--fit", help=(DataConfig.model_fields["fit"].description or "").partition("\n\n")[0]),
]
LedgerFile = Annotated[
    Path | None,
    typer.Option(
        "--ledger",
        help="The record of what was contributed (default: ~/.local/state/fedfree/ledger.sqlite).",
        show_default=False,
    ),
]
LimitsFile = Annotated[
    Path | None,
    typer.Option(
        "--limits",
        help="TOML file whose table [limits] says what the coordinator may ask of this machine, such as "
        "client.toml (default: the defaults).",
        show_default=False,
    ),
]
MetaLearnerFile = Annotated[Path, typer.Option(help="What fetch wrote, its manifest beside it; or a folder.")]
