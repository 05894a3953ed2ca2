"""How the three command lines end: a refusal is one line on standard error and an exit status."""

import logging
import sys

import typer
from rich.console import Console
from rich.markup import escape

from fedfree.errors import FederationError, FedFreeError

WRONG_INPUT, FAILED = 2, 1


def run_app(app: typer.Typer) -> None:
    """Run a command line; exit status 2 for wrong input, 1 for a federation that failed."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    try:
        app()
    except FedFreeError as error:
        line = " ".join(str(error).split())
        Console(stderr=True, soft_wrap=True).print(f"[red]error:[/red] {escape(line)}")
        sys.exit(FAILED if isinstance(error, FederationError) else WRONG_INPUT)
