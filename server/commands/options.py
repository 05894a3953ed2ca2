"""Options that several commands take."""

from typing import Annotated

import typer

JsonLines = Annotated[bool, typer.Option("--json", help="Log one JSON object a line.")]
MetricsAddress = Annotated[
    str | None, typer.Option("--metrics", help="HOST:PORT on which Prometheus may ask for metrics.")
]
