"""What the three command lines share: a refusal is one line on standard error and an exit status."""

import logging
import os
import sys

import typer
from rich.console import Console
from rich.markup import escape

from fedfree.errors import FederationError, FedFreeError

WRONG_INPUT, FAILED = 2, 1


def make_app(name: str, help: str) -> typer.Typer:
    """A command line that shows its help without arguments, and leaves exceptions to :func:`run_app`."""
    return typer.Typer(
        name=name, help=help, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False
    )


def print_refusal(error: FedFreeError) -> None:
    """One line on standard error."""
    line = " ".join(str(error).split())
    Console(stderr=True, soft_wrap=True).print(f"[red]error:[/red] {escape(line)}")


def run_app(app: typer.Typer) -> None:
    """Run a command line; exit status 2 for wrong input, 1 for a federation that failed."""
    # gRPC would add lines of its own to the one of an error; it reads this when it is first imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    try:
        app()
    except FedFreeError as error:
        print_refusal(error)
        sys.exit(FAILED if isinstance(error, FederationError) else WRONG_INPUT)
