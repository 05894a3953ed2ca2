"""``fedfree-client``: what one organisation does on its own machine."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.cells import cell_len
from rich.console import Console

from client.adapt import evaluate, make_classifier
from client.audit_report import print_audit, shown_progress, write_audit
from client.classifier import FewShotClassifier, read_classifier, write_classifier
from client.config import ClientConfig
from client.contribute import MANIFEST, WEIGHTS, contribute
from client.data import load_images
from client.export import export_onnx
from client.pack import accuracy_on, read_checkpoint, to_contribution, to_network
from client.predict import Prediction
from client.predict import predict as predict_all
from client.rehearse import rehearse as run_rehearsal
from fedfree import PROTOCOL_VERSION
from fedfree.architectures import Architecture, InputSpec
from fedfree.cli import WRONG_INPUT, make_app, print_refusal, read_file, run_app, write_file
from fedfree.codec import (
    MetaLearner,
    contribution_id,
    decode_contribution,
    decode_meta_learner,
    encode_contribution,
    sha256,
)
from fedfree.errors import ConfigError, FedFreeError

app = make_app(
    "fedfree-client",
    "Contribute a classifier of your own images, see exactly what would be sent, measure and use what "
    "comes back.",
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
        "protocol": f"version {PROTOCOL_VERSION}",
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
    received = _read_meta_learner(meta_learner)
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


def _read_meta_learner(weights: Path) -> MetaLearner:
    manifest = read_file(weights.with_name(f"{weights.stem}.manifest.pb"))
    return decode_meta_learner(manifest, read_file(weights))


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
    flip: Annotated[
        bool | None,
        typer.Option(
            help="Whether a mirrored image still shows the same class (default: colour images only).",
            show_default=False,
        ),
    ] = None,
    check: Annotated[
        Path | None, typer.Option(help="Labelled images, a folder a class, in the order of the outputs.")
    ] = None,
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
        horizontal_flip=channels == 3 if flip is None else flip,
    )
    console = Console(soft_wrap=True, highlight=False, markup=False)
    network, notes = to_network(read_checkpoint(model), chosen, num_classes=classes, input=input)
    for note in notes:
        console.print(f"note: {note}")
    if check is not None:
        accuracy = accuracy_on(network, check, num_classes=classes, input=input)
        console.print(f"accuracy on {check}: {accuracy:.1%} (chance is {1 / classes:.1%})")
    contribution = to_contribution(network, chosen, num_classes=classes, input=input)
    files = {MANIFEST: encode_contribution(contribution), WEIGHTS: contribution.weights}
    console.print("what would be sent, and nothing else:")
    for name, data in files.items():
        write_file(out / name, data)
        console.print(f"  {out / name}  {len(data)} bytes  sha256 {sha256(data)}")
    _describe(out, console)


def _numbers(option: str, text: str, channels: int) -> tuple[float, ...]:
    """One number a channel, from numbers with commas between them, or from one for all."""
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"{option} takes numbers with commas between them, got {text!r}") from error
    return numbers * channels if len(numbers) == 1 else numbers


@app.command()
def adapt(
    meta_learner: Annotated[Path, typer.Option(help="meta_learner.safetensors, its manifest beside it.")],
    support: Annotated[Path, typer.Option(help="Folder or zip of labelled images, a folder a class.")],
    split: Split = None,
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("classifier.safetensors"),
) -> None:
    """Turn a meta-learner into a classifier for your own classes, from one image each or more."""
    received = _read_meta_learner(meta_learner)
    input = received.input
    images = load_images(support, split=split, size=input.height, channels=input.channels)
    classifier = make_classifier(received, images)
    write_classifier(classifier, out)
    _report(classifier)
    typer.echo(f"wrote {out} ({out.stat().st_size} bytes)")


def _report(classifier: FewShotClassifier) -> None:
    support, calibration = classifier.description.support, classifier.description.calibration
    for row in _aligned([("class", "images"), *((name, str(count)) for name, count in support.items())]):
        typer.echo(row)
    if calibration is None:
        typer.echo("not calibrated: no class has two images, so none could be left out")
    else:
        typer.echo(
            f"leave-one-out accuracy {calibration.accuracy:.1%} ({calibration.images} of "
            f"{sum(support.values())} images), calibration temperature {calibration.temperature:.2f}"
        )


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows of a table, the cells of each column padded to one width."""
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()


Classifier = Annotated[Path, typer.Option(help="What adapt wrote.")]


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images at any depth.")],
    classifier: Classifier = Path("classifier.safetensors"),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    top: Annotated[int, typer.Option(min=1, help="So many of the likeliest classes.")] = 1,
) -> None:
    """Classify images, each on its own; exit status 2 where one of them could not be read."""
    loaded = read_classifier(classifier)
    unreadable: list[FedFreeError] = []
    predictions = predict_all(loaded, images, top=top, on_unreadable=unreadable.append)
    calibrated = loaded.description.calibration is not None
    for line in _as_json(predictions, calibrated) if as_json else _as_table(predictions, calibrated):
        typer.echo(line)
    for error in unreadable:
        print_refusal(error)
    if unreadable:
        raise typer.Exit(WRONG_INPUT)


def _as_json(predictions: Iterable[Prediction], calibrated: bool) -> Iterator[str]:
    for prediction in predictions:
        ranking = [{"class": name, "probability": round(value, 6)} for name, value in prediction.ranking]
        yield json.dumps(
            {"image": str(prediction.image), **ranking[0], "calibrated": calibrated, "ranking": ranking}
        )


def _as_table(predictions: Iterable[Prediction], calibrated: bool) -> Iterator[str]:
    rows = [
        (str(prediction.image).encode(errors="replace").decode(), name, f"{value:.3f}")
        for prediction in predictions
        for name, value in prediction.ranking
    ]
    if rows:
        yield from _aligned(
            [("image", "class", f"probability{'' if calibrated else ' (not calibrated)'}"), *rows]
        )


@app.command()
def export(
    onnx: Annotated[Path, typer.Option(help="The file to write.")],
    classifier: Classifier = Path("classifier.safetensors"),
) -> None:
    """Write a classifier as ONNX, from pixels to calibrated probabilities, and check it with onnxruntime."""
    difference = export_onnx(read_classifier(classifier), onnx)
    typer.echo(f"wrote {onnx} ({onnx.stat().st_size} bytes)")
    typer.echo(f"largest difference of a probability between PyTorch and onnxruntime: {difference:.1e}")


@app.command()
def rehearse(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for the shadows and rehearsal.json.")] = Path("rehearsal"),
    shadows: Annotated[int, typer.Option(help="Models to train, each on a half of the images.")] = 16,
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
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    seed: Seed = 0,
) -> None:
    """Attack models trained as yours would be, before you contribute one. Nothing is sent."""
    values: dict[str, Any] = {
        "data": {"source": data, "split": split},
        "pretrain": {
            "architecture": Architecture.parse(architecture),
            "image_size": image_size,
            "horizontal_flip": horizontal_flip,
            "epochs": epochs,
            "threads": threads,
        },
        "cache": out / "shadows",
        "seed": seed,
    }
    console = Console(soft_wrap=True)
    with shown_progress(console) as observe:
        plan, finding = run_rehearsal(
            ClientConfig.parse(values, origin="option"), shadows=shadows, observe=observe
        )
    write_audit(out / "rehearsal.json", plan, [finding])
    print_audit(Console(), plan, [finding])
    console.print(f"wrote {out / 'rehearsal.json'}", highlight=False)


def main() -> None:
    """Console script."""
    run_app(app)
