"""``start``: the public weights that a federation begins from, made and shown."""

from pathlib import Path
from typing import Annotated

import typer

from fedfree.host.cli import App
from fedfree.host.options import Chosen, configured
from fedfree.host.public_weights import make_start
from fedfree.host.starts import StartConfig, read_start, start_lines, write_start

app = App("start", "The public weights that a federation begins from.")

FLAGS = {name: name for name in StartConfig.model_fields}


@app.command()
@configured(StartConfig, FLAGS)
def make(
    chosen: Chosen[StartConfig],
    name: Annotated[
        str | None, typer.Argument(help="timm/<model>, torchvision/<model> or efficientnet-lite0.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the start.")] = Path("start"),
) -> None:
    """Make a start from public weights by name, or from a file of your own, and show it."""
    start, weights = make_start(name, chosen.settings)
    write_start(out, start, weights)
    for label, value in start_lines(start, weights, accepted=chosen.settings.accept_licence):
        typer.echo(f"{label:>15}  {value}")
    typer.echo(f"wrote {out}")


@app.command()
def show(start: Annotated[Path, typer.Argument(help="Folder written by start make.")]) -> None:
    """Show what a start says, after checking its weights."""
    for label, value in start_lines(*read_start(start)):
        typer.echo(f"{label:>15}  {value}")
