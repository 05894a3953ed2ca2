"""``pretrain``, ``pack``, ``inspect``, ``statement``, ``ledger``: what is contributed, and what it spends."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from client.commands.files import META_LEARNER, read_meta_learner
from client.commands.ledger_table import ledger_lines, ledger_table
from client.commands.options import LedgerFile, MetaLearnerFile
from client.commands.progress import ends_on_ctrl_c, shown_progress
from client.config import ClientConfig, or_if_colour
from client.data.finding import hash_images
from client.training.cache import HELD_OUT, MANIFEST, WEIGHTS
from client.training.ledger import open_ledger
from client.training.pack import accuracy_on, identify, read_checkpoint, to_contribution, to_network
from client.training.pretrain import Pretrained, pretrain_measured
from client.training.provenance import is_in, own_contributions
from client.training.statement import page
from fedfree import PROTOCOL_VERSION
from fedfree.architectures import Architecture, InputSpec
from fedfree.codec import Contribution, contribution_id, decode_contribution, encode_contribution, sha256
from fedfree.errors import ConfigError
from fedfree.host.cli import FAILED, App
from fedfree.host.files import read_file, require_writable, write_file, write_together
from fedfree.host.options import Chosen, configured

app = App()


PRETRAIN_FLAGS = {
    "data": "data.source",
    "split": "data.split",
    "start": "training.start",
    "fit": "data.fit",
    "architecture": "training.architecture",
    "image_size": "training.image_size",
    "epochs": "training.epochs",
    "epsilon": "privacy.epsilon",
    "delta": "privacy.delta",
    "epsilon_budget": "privacy.epsilon_budget",
    "initial_weights": "training.initial_weights",
    "initial_weights_public": "training.initial_weights_public",
    "threads": "training.threads",
    "cache": "cache",
    "ledger": "ledger",
    "seed": "seed",
}


@app.command(name="pretrain")
@configured(ClientConfig, PRETRAIN_FLAGS)
def pretrain_command(
    chosen: Chosen[ClientConfig],
    out: Annotated[Path, typer.Option(help="Folder for the contribution.")] = Path("contribution"),
) -> None:
    """Train the classifier you would contribute, and write it to a folder. Nothing is sent."""
    config = chosen.settings
    console = Console(soft_wrap=True, markup=False)
    require_writable(out / MANIFEST)
    with ends_on_ctrl_c(_left_behind(config)):
        done = _pretrain(config, console)
    _write(done, out, console)
    _describe(out, console)


def _pretrain(config: ClientConfig, console: Console) -> Pretrained:
    with shown_progress(console, lines=10) as observe:
        return pretrain_measured(
            config, observe=observe, tell=lambda line: console.print(line, highlight=False, markup=False)
        )


def _left_behind(config: ClientConfig) -> str:
    if not config.privacy.is_dp:
        return "no model was made, and nothing was written into the ledger"
    return (
        f"no model was made; a training that had begun stays in the ledger {config.ledger_path} as reserved, "
        "counts in full, and starting again counts once more"
    )


def _write(done: Pretrained, out: Path, console: Console) -> None:
    """The contribution, and beside its folder, so that it is not sent along, how well it does."""
    write_together({out / MANIFEST: done.manifest, out / WEIGHTS: done.weights})
    sizes = f"{out}/{MANIFEST} ({len(done.manifest)} bytes) and {out}/{WEIGHTS} ({len(done.weights)} bytes)"
    console.print(f"wrote {sizes}")
    if done.held_out_accuracy is not None:
        beside = out.parent / f"{out.resolve().name}.{HELD_OUT}"
        write_file(beside, f"{done.held_out_accuracy:.4f}\n".encode())
        console.print(f"wrote {beside}, which is yours and never sent")


@app.command()
def inspect(contribution: Annotated[Path, typer.Argument(help="Folder written by pretrain.")]) -> None:
    """Show what a contribution says, field by field: this and the weights are all that would leave."""
    _describe(contribution, Console(soft_wrap=True, markup=False))


@app.command()
def statement(contribution: Annotated[Path, typer.Argument(help="Folder written by pretrain.")]) -> None:
    """Print the privacy statement of a contribution: what is promised, what is not, what epsilon means."""
    typer.echo(page(*_read(contribution)))


@app.command(name="ledger")
def ledger_command(ledger: LedgerFile = None) -> None:
    """Show what was contributed, and what it spends together on the images it shares."""
    found = open_ledger(ledger)
    if not found.path.is_file():
        raise ConfigError(f"no ledger at {found.path}; name it with --ledger")
    console = Console(soft_wrap=True, markup=False)
    console.print(ledger_table(found))
    for line in ledger_lines(found):
        console.print(line, highlight=False)


@app.command(name="provenance")
def provenance_command(
    contribution: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders written by pretrain or pack (default: all that the ledger knows)."),
    ] = None,
    meta_learner: MetaLearnerFile = META_LEARNER,
    ledger: LedgerFile = None,
) -> None:
    """Tell whether a meta-learner says it used your contributions.

    Exit status 1 where one that you name is not, or none of the ledger's is. Nobody is asked.
    """
    provenance = read_meta_learner(meta_learner).provenance
    found = is_in(provenance, own_contributions(contribution or [], ledger))
    for identity, named in found.items():
        typer.echo(f"{identity} {'is' if named else 'is not'} in the provenance")
    typer.echo(f"{sum(found.values())} of the {len(provenance.contributions)} contributions there are yours")
    if not (all(found.values()) if contribution else any(found.values())):
        raise typer.Exit(FAILED)


def _read(folder: Path) -> tuple[bytes, Contribution]:
    manifest = read_file(folder / MANIFEST)
    return manifest, decode_contribution(manifest, read_file(folder / WEIGHTS))


def _describe(folder: Path, console: Console) -> None:
    manifest, contribution = _read(folder)
    for name, value in {
        "contribution": contribution_id(manifest),
        "protocol": f"version {PROTOCOL_VERSION}",
        **({"start": contribution.start} if contribution.start else {}),
        "architecture": contribution.architecture,
        "classes": contribution.num_classes,
        "input": contribution.input,
        "privacy status": contribution.privacy.status.value,
        "weights": f"{len(contribution.weights)} bytes of safetensors",
    }.items():
        console.print(f"{name:>15}  {value}", highlight=False, markup=False)
    typer.echo(f"\n{page(manifest, contribution)}")


@app.command()
def pack(
    model: Annotated[Path, typer.Argument(help="Your checkpoint: .safetensors, or what torch.save wrote.")],
    architecture: Annotated[
        str, typer.Option(help="As for pretrain, or e.g. torchvision/resnet18 for torchvision's networks.")
    ],
    classes: Annotated[int, typer.Option(help="Outputs of the classifier.")],
    image_size: Annotated[int, typer.Option(help="Pixels a side that it was trained on.")] = 32,
    channels: Annotated[int, typer.Option(help="3 for colour, 1 for grey images.")] = 3,
    mean: Annotated[str, typer.Option(help="One a channel, of pixels in 0…1: 0.49,0.46,0.41.")] = "0.5",
    std: Annotated[str, typer.Option(help="One a channel, likewise.")] = "0.5",
    horizontal_flip: Annotated[
        bool | None,
        typer.Option(help="Whether a mirrored image still shows the same class (default: of colour images)."),
    ] = None,
    check: Annotated[
        Path | None, typer.Option(help="Labelled images, a folder a class, in the order of the outputs.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="The images it was trained on; the ledger keeps their hashes.")
    ] = None,
    ledger: LedgerFile = None,
    out: Annotated[Path, typer.Option(help="Folder for the contribution.")] = Path("contribution"),
) -> None:
    """Turn a classifier trained elsewhere into a contribution, and show all that would leave."""
    chosen = Architecture.parse(architecture)
    input = InputSpec(
        channels=channels,
        height=image_size,
        width=image_size,
        mean=_numbers("--mean", mean, channels),
        std=_numbers("--std", std, channels),
        horizontal_flip=or_if_colour(horizontal_flip, channels),
    )
    console = Console(soft_wrap=True, highlight=False, markup=False)
    network, notes = to_network(read_checkpoint(model), chosen, num_classes=classes, input=input)
    for note in notes:
        console.print(f"note: {note}")
    if check is not None:
        accuracy = accuracy_on(network, check, num_classes=classes, input=input)
        console.print(f"accuracy on {check}: {accuracy:.1%} (chance is {1 / classes:.1%})")
    images, identity = hash_images(data) if data else frozenset[str](), identify(network)
    if not images:
        console.print(
            "note: the ledger does not know which images are in this model, so it counts for all, and no "
            "epsilon budget holds from now on; name them with --data"
        )
    contribution = to_contribution(network, chosen, num_classes=classes, input=input)
    files = {MANIFEST: encode_contribution(contribution), WEIGHTS: contribution.weights}
    open_ledger(ledger).pack(identity, images, contribution_id(files[MANIFEST]))
    console.print("what would be sent, and nothing else:")
    write_together({out / name: content for name, content in files.items()})
    for name, content in files.items():
        console.print(f"  {out / name}  {len(content)} bytes  sha256 {sha256(content)}")
    _describe(out, console)


def _numbers(option: str, text: str, channels: int) -> tuple[float, ...]:
    """One number a channel, from numbers with commas between them, or from one for all."""
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"{option} takes numbers with commas between them, got {text!r}") from error
    return numbers * channels if len(numbers) == 1 else numbers
