"""``init`` and ``up``: an organisation's node in a federation across machines."""

from pathlib import Path
from typing import Annotated

import typer

from client.commands.remote import CoordinatorKey
from client.doors.flower_node import Node, NodeConfig
from client.doors.flower_node import init as init_node
from client.doors.flower_node import up as keep_up
from fedfree.host.cli import App
from fedfree.host.logs import log_to_stderr

app = App()

Directory = Annotated[Path, typer.Argument(help="The organisation's directory.")]
JsonLines = Annotated[bool, typer.Option("--json", help="Log one JSON object a line.")]


@app.command()
def init(
    directory: Directory,
    server: Annotated[str, typer.Option(help="HOST:PORT of the coordinator.")],
    ca: Annotated[Path, typer.Option(help="The coordinator's ca.crt.")],
    data: Annotated[Path, typer.Option(help="Folder or zip of images, a folder a class.")],
    coordinator_key: CoordinatorKey = None,
) -> None:
    """Make an organisation's key and its commented configurations."""
    config = NodeConfig.parse({"server": server}, origin="--server")
    node = init_node(directory, config, ca, data, coordinator_key=coordinator_key)
    typer.echo(
        f"wrote {directory}; look through {node.client_toml}, and send {node.key}.pub to the coordinator"
    )


@app.command()
def up(directory: Directory, json_lines: JsonLines = False) -> None:
    """Take part in the federation, until told to end (Ctrl-C or SIGTERM)."""
    log_to_stderr(json_lines=json_lines)
    keep_up(Node(directory))
