"""``evaluate``, ``adapt``, ``predict``, ``export``: what an organisation does with the meta-learner."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.cells import cell_len
from rich.console import Console

from client.adapting.adapt import evaluate, make_classifier
from client.adapting.classifier import FewShotClassifier, read_classifier, write_classifier
from client.adapting.export import export_onnx
from client.adapting.predict import Prediction
from client.adapting.predict import predict as predict_all
from client.commands.files import META_LEARNER, read_meta_learner
from client.commands.options import FIT, Data, LimitsFile, MetaLearnerFile, Split, Square
from client.config import ClientConfig, DataConfig
from client.data.loading import load_configured
from client.limits import read_limits
from fedfree.errors import FedFreeError
from fedfree.host.cli import WRONG_INPUT, App, print_refusal
from fedfree.host.images.passed_over import readable

app = App()

NONE_OF_THESE = "none of these"


@app.command(name="evaluate")
def evaluate_command(
    data: Data,
    meta_learner: MetaLearnerFile = META_LEARNER,
    split: Split = None,
    fit: Square = FIT,
    ways: Annotated[int, typer.Option(help="Classes an episode.")] = 5,
    episodes: Annotated[int, typer.Option(help="Few-shot tasks to draw from the images.")] = 600,
    seed: Annotated[int, typer.Option(min=0, help="Of the episodes.")] = 0,
    limits: LimitsFile = None,
) -> None:
    """Measure a meta-learner on your own new classes, from one and from five images each."""
    received = read_meta_learner(meta_learner, read_limits(limits))
    source = {"source": data, "split": split, "fit": fit}
    values = {
        "data": source,
        "evaluate": {"data": source, "n_way": ways, "episodes": episodes},
        "cache": Path(),
        "seed": seed,
    }
    for result in evaluate(received, ClientConfig.parse(values, origin="option")):
        line = f"{result.spec.n_way}-way {result.spec.n_shot}-shot: {result.accuracy} %"
        Console(markup=False).print(
            f"{line} ({result.accuracy.episodes} episodes, not transductive)", highlight=False
        )


@app.command()
def adapt(
    support: Annotated[Path, typer.Option(help="Folder or zip of labelled images, a folder a class.")],
    meta_learner: MetaLearnerFile = META_LEARNER,
    split: Split = None,
    fit: Square = FIT,
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("classifier.safetensors"),
    limits: LimitsFile = None,
) -> None:
    """Turn a meta-learner into a classifier for your own classes, from one image each or more."""
    received = read_meta_learner(meta_learner, read_limits(limits))
    input = received.input
    data = DataConfig(source=support, split=split, fit=fit)
    images = load_configured(data, size=input.height, channels=input.channels)
    classifier = make_classifier(received, images, fit=fit)
    write_classifier(classifier, out)
    _report(classifier)
    typer.echo(f"wrote {out} ({out.stat().st_size} bytes)")


def _report(classifier: FewShotClassifier) -> None:
    support, calibration = classifier.description.support, classifier.description.calibration
    for row in _aligned(
        [("class", "images"), *((readable(name), str(count)) for name, count in support.items())]
    ):
        typer.echo(row)
    if calibration is None:
        how = "calibrated beforehand" if classifier.calibrated else "not calibrated"
        typer.echo(f"{how}: no class has two images, so none could be left out")
    else:
        typer.echo(
            f"leave-one-out accuracy {calibration.accuracy:.1%} ({calibration.images} of "
            f"{sum(support.values())} images), calibration temperature {calibration.temperature:.2f}"
        )
    if openness := classifier.description.openness:
        known = f"{openness.images} images left out" if openness.images else "a share fixed beforehand"
        typer.echo(f"none of these: similarity to the nearest class below {openness.threshold:.3f} ({known})")


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
    for line in _as_json(predictions, loaded) if as_json else _as_table(predictions, loaded, top):
        typer.echo(line)
    for error in unreadable:
        print_refusal(error)
    if unreadable:
        raise typer.Exit(WRONG_INPUT)


def _as_json(predictions: Iterable[Prediction], classifier: FewShotClassifier) -> Iterator[str]:
    openness = classifier.description.openness
    for prediction in predictions:
        ranking = [{"class": name, "probability": round(value, 6)} for name, value in prediction.ranking]
        line = {
            "image": str(prediction.image),
            **ranking[0],
            "calibrated": classifier.calibrated,
            "ranking": ranking,
            "none_of_these": prediction.none_of_these,
            "similarity": None if prediction.similarity is None else round(prediction.similarity, 6),
            "threshold": None if openness is None else round(openness.threshold, 6),
        }
        yield json.dumps(line)


def _as_table(predictions: Iterable[Prediction], classifier: FewShotClassifier, top: int) -> Iterator[str]:
    rows = [row for prediction in predictions for row in _table_rows(prediction, classifier)[:top]]
    if rows:
        note = "" if classifier.calibrated else " (not calibrated)"
        yield from _aligned([("image", "class", f"probability{note}"), *rows])


def _table_rows(prediction: Prediction, classifier: FewShotClassifier) -> list[tuple[str, str, str]]:
    """The ranking; before it, of an image that is none of these, that."""
    image = readable(str(prediction.image))
    rows = [(image, readable(name), f"{value:.3f}") for name, value in prediction.ranking]
    openness = classifier.description.openness
    if openness and prediction.none_of_these:
        reason = f"similarity {prediction.similarity:.3f}, below {openness.threshold:.3f}"
        rows.insert(0, (image, NONE_OF_THESE, reason))
    return rows


@app.command()
def export(
    onnx: Annotated[Path, typer.Option(help="The file to write.")],
    classifier: Classifier = Path("classifier.safetensors"),
) -> None:
    """Write a classifier as ONNX, from pixels of any size to probabilities, checked with onnxruntime."""
    difference = export_onnx(read_classifier(classifier), onnx)
    typer.echo(f"wrote {onnx} ({onnx.stat().st_size} bytes)")
    typer.echo(f"largest difference of a probability between PyTorch and onnxruntime: {difference:.1e}")
