"""``start``: the public weights that a federation begins from, fetched and shown before training."""

from pathlib import Path
from typing import Annotated

import typer

from client.commands.options import LimitsFile
from client.commands.remote import (
    CA,
    DOOR,
    Certificate,
    CoordinatorKey,
    Insecure,
    Key,
    TokenFile,
    connected,
    trusted,
)
from client.limits import read_limits
from fedfree.codec import short
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


@start_app.command()
def fetch(
    from_: Annotated[str, typer.Argument(metavar="HOST:PORT", help=DOOR)],
    out: Annotated[Path, typer.Option(help="Folder for the start.")] = Path("start"),
    accept_licence: Annotated[
        list[str] | None, typer.Option(help="A licence you have read and take responsibility for.")
    ] = None,
    sha256: Annotated[
        str, typer.Option(help="First digits of the start to fetch, where the federation has several.")
    ] = "",
    coordinator_key: CoordinatorKey = None,
    limits: LimitsFile = None,
    ca: CA = None,
    token_file: TokenFile = None,
    cert: Certificate = None,
    key: Key = None,
    insecure: Insecure = False,
) -> None:
    """Fetch the federation's start, going on where an attempt was cut off; one that is there is compared."""
    allowed = read_limits(limits)
    trust = trusted(from_, coordinator_key)
    with connected(from_, ca, token_file, cert, key, insecure, trust) as remote:
        start = remote.fetch_start(out, sha256, accepted=accept_licence or (), limits=allowed)
        others = [each[:12] for each in remote.run().starts if each != start.sha256]
    also = f"; it has others, which --sha256 names: {', '.join(others)}" if others else ""
    typer.echo(f"{out} holds the federation's start {short(start.sha256)} ({start.architecture}){also}")
