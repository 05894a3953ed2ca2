"""``fedfree-sim results``: measurements become the tables of the documentation."""

from pathlib import Path
from typing import Annotated

import typer

from fedfree.host.cli import App
from simulations.commands.reference import write_page
from simulations.reporting.published import publish, write_documents
from simulations.reporting.tables import tell

app = App("results", "Publish what benchmarks left: its JSON, and the tables made from it.")

Root = Annotated[Path, typer.Option(help="Folder of the clone.")]


@app.command()
def add(
    files: Annotated[list[Path], typer.Argument(help="JSON files that benchmarks left.")],
    root: Root = Path(),
) -> None:
    """Take measurements among the published ones, and write the documents anew."""
    for file in files:
        tell(f"wrote {publish(file, root)}")
    write(root)


@app.command()
def write(root: Root = Path()) -> None:
    """Write the tables of README and docs from simulations/results, and docs/configuration.md."""
    for document in (*write_documents(root), write_page(root)):
        tell(f"wrote {document}")
