"""``init``, ``enroll`` and ``up``: a coordinator in a federation across machines."""

from pathlib import Path
from typing import Annotated

import typer

from fedfree.host.cli import App
from fedfree.host.logs import log_to_stderr
from fedfree.host.options import Chosen, configured
from fedfree.settings import Layer
from server.commands.options import JsonLines, MetricsAddress, PublicImagesFolder, StartFolders
from server.config import CollectConfig
from server.doors.deployment import Deployment, DeploymentConfig
from server.doors.deployment import init as init_deployment
from server.doors.metrics import served
from server.events import log_event

app = App()

Directory = Annotated[Path, typer.Argument(help="The coordinator's directory.")]


INIT_FLAGS = {name: name for name in CollectConfig.model_fields}


@app.command()
@configured(CollectConfig, INIT_FLAGS, under=Layer("init", {"organisations": 3}))
def init(
    chosen: Chosen[CollectConfig],
    directory: Directory,
    name: Annotated[list[str], typer.Option(help="Host name or IP address of this server; several times.")],
    listen: Annotated[str, typer.Option(help="HOST:PORT of the SuperLink.")] = DeploymentConfig().listen,
    start: StartFolders = None,
) -> None:
    """Make a certificate authority, a server certificate and commented configurations."""
    config = DeploymentConfig.parse({"listen": listen}, origin="--listen")
    deployment = init_deployment(directory, name, config, chosen.settings, starts=start or ())
    typer.echo(f"wrote {directory}; give {deployment.authority} to every organisation, and the key")
    typer.echo(f"{deployment.run.signing_key.public}, by which they know what this coordinator signed")


@app.command()
def enroll(
    name: Annotated[str, typer.Argument(help="What the organisation is called here.")],
    public_key: Annotated[Path, typer.Argument(help="Its node.key.pub.")],
    directory: Annotated[Path, typer.Option("--in", help="The coordinator's directory.")],
) -> None:
    """Let an organisation take part, also in a federation that runs already."""
    deployment = Deployment(directory)
    deployment.enroll(name, public_key)
    typer.echo(f"{name} may take part")
    typer.echo(f"this coordinator signs with the key {deployment.run.signing_key.public}: send that too")


@app.command()
def up(
    directory: Directory,
    start: StartFolders = None,
    public_images: PublicImagesFolder = None,
    metrics: MetricsAddress = None,
    json_lines: JsonLines = False,
) -> None:
    """Run the federation to its end; one that was cut off goes on where it was."""
    from server.doors.up import up as run_to_the_end

    deployment = Deployment(directory)
    if start:
        deployment.run.adopt_start(*start)
    log_to_stderr(json_lines=json_lines, run=deployment.run.id)
    if public_images:
        deployment.run.adopt_public_images(public_images)
    with served(deployment.run, metrics):
        run_to_the_end(deployment, log_event)
    typer.echo(f"wrote {deployment.run.weights}")
