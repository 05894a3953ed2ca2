"""``start``: the public weights that a federation begins from, shown before anything is trained from them."""

from pathlib import Path
from typing import Annotated

import typer

from fedfree.host.cli import App
from fedfree.host.starts import read_start, start_lines

start_app = App("start", "The public weights that a federation begins from.")
app = App()
app.add_typer(start_app)


@start_app.command()
def show(start: Annotated[Path, typer.Argument(help="Folder written by fedfree-server start make.")]) -> None:
    """Show what a start says, after checking its weights."""
    for label, value in start_lines(*read_start(start)):
        typer.echo(f"{label:>15}  {value}")
