"""``fedfree-server``: the server's work without a federation around it."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedfree.errors import ConfigError
from fedfree.host.channel import Address
from fedfree.host.cli import make_app, run_app
from fedfree.host.files import read_file, write_file
from fedfree.host.logs import log_to_stderr
from server import run as runs
from server.commands import deploying
from server.commands.options import JsonLines, MetricsAddress
from server.commands.status_table import contributions_table, status_table
from server.config import ServerConfig, preset
from server.doors.metrics import served
from server.doors.status import RunStatus
from server.doors.tokens import Tokens
from server.events import log_event
from server.storage.run_directory import RunDirectory
from server.storage.store import MANIFEST, WEIGHTS

app = make_app(
    "fedfree-server",
    "Learn a meta-learner from contributed models, and look into the store that holds them.",
)

token_app = make_app("token", "Who may come through the gRPC door: one token an organisation.")
app.add_typer(token_app, name="token")
app.add_typer(deploying.app)

Run = Annotated[Path, typer.Argument(help="Run directory.")]
RunOption = Annotated[Path, typer.Option("--store", help="Run directory.")]
Organisation = Annotated[str, typer.Argument(help="Name of an organisation.")]


@app.command()
def learn(
    run: Run,
    contribution: Annotated[
        list[Path] | None,
        typer.Option(help="Folder with manifest.pb and weights.safetensors; may be given several times."),
    ] = None,
    preset_name: Annotated[
        str, typer.Option("--preset", help="default, large (five times slower) or paper.")
    ] = "default",
    iterations: Annotated[
        int | None, typer.Option(min=1, help="Of the server (default: the preset's).")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Decides everything random.")] = 0,
    metrics: MetricsAddress = None,
    json_lines: JsonLines = False,
) -> None:
    """Verify contributions, invert them and write the meta-learner, all from files."""
    values = preset(preset_name).model_dump() | {"device": device, "seed": seed}
    if iterations is not None:
        values["iterations"] = iterations
    config = ServerConfig.parse(values, origin="option")
    run.mkdir(parents=True, exist_ok=True)
    write_file(run / "server.toml", config.to_toml().encode())
    directory = RunDirectory(run)
    store = directory.store()
    for folder in contribution or []:
        store.receive(read_file(folder / MANIFEST), read_file(folder / WEIGHTS))
    _learn(directory, metrics, json_lines)


@app.command()
def resume(run: Run, metrics: MetricsAddress = None, json_lines: JsonLines = False) -> None:
    """Learn from what a run's store holds, from its last checkpoint on; asks nobody (`up` does)."""
    _learn(RunDirectory(run), metrics, json_lines)


def _learn(directory: RunDirectory, metrics: str | None, json_lines: bool) -> None:
    log_to_stderr(json_lines=json_lines, run=directory.id)
    with served(directory, metrics):
        runs.learn(directory, on_event=log_event)
    typer.echo(f"wrote {directory.weights}")


@app.command()
def status(
    run: Run,
    contributions: Annotated[
        bool, typer.Option("--contributions", help="List every contribution as well.")
    ] = False,
) -> None:
    """Show how far a run is: contributions by state, iterations, losses, and the time left."""
    directory, console = RunDirectory(run), Console()
    console.print(status_table(RunStatus.read(directory)))
    if contributions:
        console.print(contributions_table(directory.store()))


@app.command()
def serve(
    store: RunOption,
    listen: Annotated[str, typer.Option(help="HOST:PORT; port 0 takes a free one.")] = "localhost:9443",
    certificate: Annotated[Path | None, typer.Option(help="The server's certificate chain, PEM.")] = None,
    key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    client_ca: Annotated[
        Path | None, typer.Option(help="Admit only clients with a certificate signed by this CA, PEM.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Without TLS; on addresses of this machine only.")
    ] = False,
    max_contributions: Annotated[int, typer.Option(help="Taken from one organisation.")] = 8,
    requests_per_minute: Annotated[int, typer.Option(help="Taken from one organisation.")] = 120,
    uploads_at_once: Annotated[int, typer.Option(help="Of all; more wait for their turn.")] = 32,
    upload_seconds: Annotated[float, typer.Option(help="An upload that takes longer is ended.")] = 900,
    grace_seconds: Annotated[
        float, typer.Option(help="How long uploads may still take once told to stop.")
    ] = 30,
    metrics: MetricsAddress = None,
    json_lines: JsonLines = False,
) -> None:
    """Receive contributions over gRPC and hand out the meta-learner; `learn` learns, beside it."""
    from server.doors import grpc_server as door
    from server.doors.grpc_service import Service
    from server.doors.limits import ServiceConfig

    if insecure and (certificate or key or client_ca):
        raise ConfigError("--insecure serves without TLS: leave out --certificate, --key and --client-ca")
    address = Address.parse(listen)
    values = {
        "max_contributions": max_contributions,
        "requests_per_minute": requests_per_minute,
        "uploads_at_once": uploads_at_once,
        "upload_seconds": upload_seconds,
        "grace_seconds": grace_seconds,
    }
    limits = ServiceConfig.parse(values, origin="option")
    tls = None if insecure else door.credentials(certificate, key, client_ca)
    run = _prepared(store)
    run.store().discard_leftovers()
    if not Tokens(run.tokens).organisations():
        typer.echo(f"nobody has a token yet: fedfree-server token add NAME --store {store}")
    log_to_stderr(json_lines=json_lines, run=run.id)
    service = Service(run, limits, on_event=run.recorded(log_event))
    listening = door.serve(
        service,
        address,
        tls,
        grace_seconds=limits.grace_seconds,
        on_ready=lambda at: typer.echo(f"listening on {at}"),
    )
    with served(run, metrics):
        asyncio.run(listening)


def _prepared(path: Path) -> RunDirectory:
    """A run directory, with the default configuration where it has none."""
    path.mkdir(parents=True, exist_ok=True)
    if not (path / "server.toml").exists():
        write_file(path / "server.toml", ServerConfig().to_toml().encode())
    return RunDirectory(path)


@token_app.command(name="add")
def token_add(organisation: Organisation, store: RunOption) -> None:
    """Make an organisation's token and print it, this once."""
    typer.echo(Tokens(_prepared(store).tokens).add(organisation))


@token_app.command(name="list")
def token_list(store: RunOption) -> None:
    """Name every organisation that has a token."""
    for organisation in Tokens(RunDirectory(store).tokens).organisations():
        typer.echo(organisation)


@token_app.command(name="revoke")
def token_revoke(organisation: Organisation, store: RunOption) -> None:
    """Forget an organisation's token: its next call is refused."""
    Tokens(RunDirectory(store).tokens).revoke(organisation)


def main() -> None:
    """Console script."""
    run_app(app)
