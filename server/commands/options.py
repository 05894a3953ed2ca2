"""Options that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

JsonLines = Annotated[bool, typer.Option("--json", help="Log one JSON object a line.")]
StartFolders = Annotated[
    list[Path] | None,
    typer.Option(
        "--start",
        help="Public start that the run begins from, for good: a folder of start make. Several times: "
        "organisations choose, and the meta-learner begins from the first.",
    ),
]
PublicImagesFolder = Annotated[
    Path | None,
    typer.Option(help="Public photos without labels, shown to the models for good: a folder or zip."),
]
MetricsAddress = Annotated[
    str | None, typer.Option("--metrics", help="HOST:PORT on which Prometheus may ask for metrics.")
]
PAGE_ADDRESS = "localhost:8765"
"""Where `status --serve` listens unless told otherwise."""
