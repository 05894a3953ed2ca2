"""What the three command lines share: a refusal is one line on standard error and an exit status."""

import logging
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click
import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperCommand

from fedfree.errors import FederationError, FedFreeError

WRONG_INPUT, FAILED = 2, 1

Command = TypeVar("Command", bound=Callable[..., Any])


class _PlainCommand(TyperCommand):
    def get_help(self, ctx: click.Context) -> str:
        # typer escapes the bracket of a default for rich also where rich does not draw the help.
        return super().get_help(ctx).replace("\\[", "[")


class App(typer.Typer):
    """A command line that shows plain help, and leaves exceptions to :func:`run_app`."""

    def __init__(self, name: str | None = None, help: str | None = None) -> None:
        super().__init__(
            name=name,
            help=help,
            no_args_is_help=True,
            pretty_exceptions_enable=False,
            add_completion=False,
            rich_markup_mode=None,  # drawn by rich, help is twice as long
        )

    def command(self, name: str | None = None, **options: Any) -> Callable[[Command], Command]:
        """As ``typer.Typer.command``."""
        decorate: Callable[[Command], Command] = super().command(name, cls=_PlainCommand, **options)
        return decorate


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
