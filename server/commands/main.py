"""``fedfree-server``: the server's work without a federation around it."""

import asyncio
import signal
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedfree.codec import decode_meta_learner, sha256
from fedfree.errors import ConfigError
from fedfree.host.channel import Address
from fedfree.host.cli import App, run_app
from fedfree.host.files import read_file, write_once
from fedfree.host.logs import log_to_stderr
from fedfree.host.options import Chosen, configured
from fedfree.settings import Layer, value_at
from server import run as runs
from server.commands import deploying, starting
from server.commands.options import PAGE_ADDRESS, JsonLines, MetricsAddress, PublicImagesFolder, StartFolders
from server.commands.status_table import contributions_table, status_table
from server.config import ServerConfig
from server.doors.limits import ServiceConfig
from server.doors.metrics import served
from server.doors.status import RunStatus
from server.doors.tokens import Tokens
from server.events import doubted, log_event
from server.removal import remove
from server.storage.run_directory import RunDirectory
from server.storage.store import MANIFEST, WEIGHTS

app = App(
    "fedfree-server",
    "Learn a meta-learner from contributed models, and look into the store that holds them.",
    is_program=True,
)

token_app = App("token", "Who may come through the gRPC door: one token an organisation.")
app.add_typer(token_app, name="token")
app.add_typer(deploying.app)
key_app = App("key", "The key by which what is handed out is signed.")
app.add_typer(key_app, name="key")
app.add_typer(starting.app)

Run = Annotated[Path, typer.Argument(help="Run directory.")]
RunOption = Annotated[Path, typer.Option("--store", help="Run directory.")]
Organisation = Annotated[str, typer.Argument(help="Name of an organisation.")]
ExpiresDays = Annotated[
    float | None,
    typer.Option(min=0.001, max=3650, help="Refuse it after so many days (default: when it is revoked)."),
]


LEARN_FLAGS = {
    "preset": "preset",
    "iterations": "iterations",
    "device": "device",
    "threads": "threads",
    "seed": "seed",
}


@app.command()
@configured(ServerConfig, LEARN_FLAGS)
def learn(
    chosen: Chosen[ServerConfig],
    run: Run,
    contribution: Annotated[
        list[Path] | None,
        typer.Option(help="Folder with manifest.pb and weights.safetensors; may be given several times."),
    ] = None,
    start: StartFolders = None,
    public_images: PublicImagesFolder = None,
    metrics: MetricsAddress = None,
    json_lines: JsonLines = False,
) -> None:
    """Verify contributions, invert them and write the meta-learner, all from files.

    A run that has a server.toml is learned as that says.
    """
    if start:
        chosen = chosen.over(Layer("--start", {"preset": "start"}))
    directory = _prepared(run, chosen)
    with directory.held():
        if start:
            directory.adopt_start(*start)
        store = directory.store()
        for folder in contribution or []:
            store.receive(read_file(folder / MANIFEST), read_file(folder / WEIGHTS))
        _learn(directory, metrics, json_lines, public_images)


@app.command()
def resume(run: Run, metrics: MetricsAddress = None, json_lines: JsonLines = False) -> None:
    """Learn from what a run's store holds, from its last checkpoint on; asks nobody (`up` does)."""
    directory = RunDirectory(run)
    with directory.held():
        _learn(directory, metrics, json_lines)


@app.command()
def retrain(
    run: Run,
    without: Annotated[
        list[str],
        typer.Option(help="Id of a contribution, or how it begins, to leave out for good; several times."),
    ],
    why: Annotated[str, typer.Option(help="The reason, kept beside the contribution.")],
    by: Annotated[str | None, typer.Option(help="Who removes it (default: this user).")] = None,
    metrics: MetricsAddress = None,
    json_lines: JsonLines = False,
) -> None:
    """Remove contributions, and learn again from a state that did not use them.

    From now on nothing that was learned from them is handed out: the published meta-learner, recovered
    images and checkpoint are deleted, and they lie in quarantine, never used again. As every model teaches
    from the first iteration, learning nearly always begins anew. What comes out equals to the byte what a
    run gives that never had them.
    """
    directory = RunDirectory(run)
    with directory.held():
        removed = remove(directory, without, why, directory.recorded(log_event), by=by)
        _learn(directory, metrics, json_lines)
    manifest = read_file(directory.manifest)
    learned = decode_meta_learner(manifest, read_file(directory.weights))
    typer.echo(f"meta-learner {sha256(manifest)}, learned from")
    for identity in learned.provenance.contributions:
        typer.echo(f"  {identity}")
    for identity in removed:
        typer.echo(f"without {identity}")


def _learn(
    directory: RunDirectory, metrics: str | None, json_lines: bool, public_images: Path | None = None
) -> None:
    log_to_stderr(json_lines=json_lines, run=directory.id)
    if public_images:
        directory.adopt_public_images(public_images)
    with served(directory, metrics):
        runs.learn_held(directory, on_event=log_event)
    typer.echo(f"wrote {directory.weights}")


@app.command()
def status(
    run: Run,
    contributions: Annotated[
        bool, typer.Option("--contributions", help="List every contribution as well.")
    ] = False,
    serve: Annotated[
        bool, typer.Option("--serve", help="Serve it as a page that follows the run, until Ctrl-C.")
    ] = False,
    listen: Annotated[
        str | None,
        typer.Option(
            help=f"HOST:PORT of the page, on this machine (default: {PAGE_ADDRESS}); port 0 takes a free one."
        ),
    ] = None,
) -> None:
    """Show how far a run is: contributions by state, iterations, losses, and the time left."""
    directory, console = RunDirectory(run), Console(markup=False)
    if serve:
        _serve_page(directory, Address.parse(listen or PAGE_ADDRESS))
        return
    if listen:
        raise ConfigError(f"--listen {listen} is for the page: give --serve as well")
    console.print(status_table(RunStatus.read(directory)))
    if contributions:
        console.print(contributions_table(directory.store(), doubted(directory.read_events())))


def _serve_page(directory: RunDirectory, listen: Address) -> None:
    from server.doors import page

    told_to_end = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told_to_end.set())
    with page.served(directory.path, listen) as at:
        typer.echo(f"the page is at http://{at}/ (Ctrl-C ends it)")
        told_to_end.wait()


SERVE_FLAGS = {
    name: name
    for name in (
        "max_contributions",
        "requests_per_minute",
        "uploads_at_once",
        "upload_seconds",
        "grace_seconds",
    )
}


@app.command()
@configured(ServiceConfig, SERVE_FLAGS)
def serve(
    chosen: Chosen[ServiceConfig],
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
    start: StartFolders = None,
    public_images: PublicImagesFolder = None,
    metrics: MetricsAddress = None,
    json_lines: JsonLines = False,
) -> None:
    """Receive contributions over gRPC and hand out the meta-learner; `learn` learns, beside it."""
    from server.doors import grpc_server as door
    from server.doors.grpc_service import Service

    if insecure and (certificate or key or client_ca):
        raise ConfigError("--insecure serves without TLS: leave out --certificate, --key and --client-ca")
    address = Address.parse(listen)
    tls = None if insecure else door.credentials(certificate, key, client_ca)
    run = _prepared(store)
    with run.door_held():
        if start:
            run.adopt_start(*start)
        run.require_preset()
        run.store().discard_leftovers()
        if not Tokens(run.tokens).organisations():
            typer.echo(f"nobody has a token yet: fedfree-server token add NAME --store {store}")
        log_to_stderr(json_lines=json_lines, run=run.id)
        if public_images:
            run.adopt_public_images(public_images)
        service = Service(run, chosen.settings, on_event=run.recorded(log_event))
        with served(run, metrics):
            listening = door.serve(
                service,
                address,
                tls,
                grace_seconds=chosen.settings.grace_seconds,
                on_ready=lambda at: typer.echo(
                    f"listening on {at}\nsigns with the key {run.signing_key.public}"
                ),
            )
            asyncio.run(listening)


def _prepared(path: Path, chosen: Chosen[ServerConfig] | None = None) -> RunDirectory:
    """A run directory, with a configuration where it has none; one that is there is never replaced.

    Raises:
        ConfigError: it says something else than a person asks for now.
    """
    file = path / "server.toml"
    if not file.exists():
        settings = chosen.settings if chosen else ServerConfig()
        write_once(file, settings.to_commented_toml().encode())
    directory = RunDirectory(path)
    if chosen is not None:
        _require_alike(directory, chosen)
    return directory


def _require_alike(directory: RunDirectory, chosen: Chosen[ServerConfig]) -> None:
    """Raise ConfigError where a run's configuration says something else than a person asks for now."""
    written, asked = directory.config().plain(), chosen.settings.plain()
    for name in sorted(chosen.given):
        here, there = value_at(asked, name), value_at(written, name)
        if here != there:
            raise ConfigError(
                f"{chosen.origins[name]} asks for {name} = {here}, and {directory.server_toml} says {there}: "
                "edit the file, or choose another folder"
            )


@token_app.command(name="add")
def token_add(organisation: Organisation, store: RunOption, expires_days: ExpiresDays = None) -> None:
    """Make an organisation's token and print it, this once; send it with what `key show` prints."""
    typer.echo(Tokens(_prepared(store).tokens).add(organisation, expires_days=expires_days))


@token_app.command(name="rotate")
def token_rotate(organisation: Organisation, store: RunOption, expires_days: ExpiresDays = None) -> None:
    """Print a new token in the place of an organisation's old one, which is refused from now on."""
    typer.echo(Tokens(RunDirectory(store).tokens).rotate(organisation, expires_days=expires_days))


@token_app.command(name="list")
def token_list(store: RunOption) -> None:
    """Name every organisation that has a token, and when it expires."""
    now = datetime.now(UTC)
    for organisation, expires in Tokens(RunDirectory(store).tokens).expiries().items():
        word = "" if expires is None else f"  {'expired' if expires <= now else 'expires'} {expires:%Y-%m-%d}"
        typer.echo(organisation + word)


@token_app.command(name="revoke")
def token_revoke(organisation: Organisation, store: RunOption) -> None:
    """Forget an organisation's token: its next call is refused."""
    Tokens(RunDirectory(store).tokens).revoke(organisation)


@key_app.command(name="show")
def key_show(store: RunOption) -> None:
    """Print the public key, which organisations pin."""
    typer.echo(RunDirectory(store).signing_key.public)


@key_app.command(name="rotate")
def key_rotate(store: RunOption) -> None:
    """Take a new key, signed by the old one: whoever knows that one follows by itself."""
    old, new = RunDirectory(store).signing_key.rotate()
    typer.echo(f"{old} is replaced by\n{new}")


def main() -> None:
    """Console script."""
    run_app(app)
