"""``fedfree-client``: what one organisation does on its own machine."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from client.adapt import evaluate
from client.config import ClientConfig
from client.contribute import MANIFEST, WEIGHTS, contribute
from fedfree.architectures import Architecture
from fedfree.cli import make_app, read_file, run_app
from fedfree.codec import contribution_id, decode_contribution, decode_meta_learner

app = make_app(
    "fedfree-client",
    "Train a classifier on your own images, see exactly what would be sent, measure what comes back.",
)

Data = Annotated[Path, typer.Option(help="Folder or zip of images, a folder a class.")]
Split = Annotated[str | None, typer.Option(help="meta_train, meta_val or meta_test where the data has them.")]
Cache = Annotated[Path, typer.Option(help="Folder for trained models.")]
Seed = Annotated[int, typer.Option(min=0, help="Decides everything random.")]


@app.command()
def pretrain(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for the contribution.")] = Path("contribution"),
    split: Split = None,
    architecture: Annotated[str, typer.Option(help="e.g. conv4, conv4-64-group, resnet10.")] = "conv4",
    image_size: Annotated[int, typer.Option(help="Pixels a side; images are resized to it.")] = 32,
    horizontal_flip: Annotated[
        bool | None,
        typer.Option(
            help="Whether a mirrored image still shows the same class (default: colour images only).",
            show_default=False,
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the images.")] = 12,
    cache: Cache = Path(".cache/fedfree/models"),
    seed: Seed = 0,
) -> None:
    """Train the classifier you would contribute, and write it to a folder. Nothing is sent."""
    values: dict[str, Any] = {
        "data": {"source": data, "split": split},
        "pretrain": {
            "architecture": Architecture.parse(architecture),
            "image_size": image_size,
            "horizontal_flip": horizontal_flip,
            "epochs": epochs,
        },
        "cache": cache,
        "seed": seed,
    }
    manifest, weights = contribute(ClientConfig.parse(values, origin="option"))
    out.mkdir(parents=True, exist_ok=True)
    (out / MANIFEST).write_bytes(manifest)
    (out / WEIGHTS).write_bytes(weights)
    console = Console(soft_wrap=True)
    console.print(
        f"wrote {out}/{MANIFEST} ({len(manifest)} bytes) and {out}/{WEIGHTS} ({len(weights)} bytes)"
    )
    _describe(out, console)


@app.command()
def inspect(contribution: Annotated[Path, typer.Argument(help="Folder written by pretrain.")]) -> None:
    """Show what a contribution says, field by field: this and the weights are all that would leave."""
    _describe(contribution, Console(soft_wrap=True))


def _describe(folder: Path, console: Console) -> None:
    manifest = read_file(folder / MANIFEST)
    contribution = decode_contribution(manifest, read_file(folder / WEIGHTS))
    for name, value in {
        "contribution": contribution_id(manifest),
        "architecture": contribution.architecture,
        "classes": contribution.num_classes,
        "input": contribution.input,
        "privacy status": contribution.privacy.status.value,
        "weights": f"{len(contribution.weights)} bytes of safetensors",
    }.items():
        console.print(f"{name:>15}  {value}", highlight=False, markup=False)


@app.command(name="evaluate")
def evaluate_command(
    meta_learner: Annotated[Path, typer.Argument(help="meta_learner.safetensors of a run.")],
    data: Data,
    split: Split = None,
    ways: Annotated[int, typer.Option(help="Classes an episode.")] = 5,
    episodes: Annotated[int, typer.Option(help="Few-shot tasks to draw from the images.")] = 600,
    seed: Seed = 0,
) -> None:
    """Measure a meta-learner on your own new classes, from one and from five images each."""
    manifest = read_file(meta_learner.with_name(f"{meta_learner.stem}.manifest.pb"))
    received = decode_meta_learner(manifest, read_file(meta_learner))
    source = {"source": data, "split": split}
    values = {
        "data": source,
        "evaluate": {"data": source, "n_way": ways, "episodes": episodes},
        "cache": Path(),
        "seed": seed,
    }
    for result in evaluate(received, ClientConfig.parse(values, origin="option")):
        line = f"{result.spec.n_way}-way {result.spec.n_shot}-shot: {result.accuracy} %"
        Console().print(f"{line} ({result.accuracy.episodes} episodes, not transductive)", highlight=False)


def main() -> None:
    """Console script."""
    run_app(app)
