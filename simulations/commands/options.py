"""What the commands of ``fedfree-sim`` are given: options, and the configuration they amount to."""

import math
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from simulations.config import SimulationConfig


def option(help: str, *names: str, **kwargs: Any) -> Any:
    """An option whose help says itself what is the default."""
    return typer.Option(*names, help=help, show_default=False, **kwargs)


Out = Annotated[Path, typer.Option("--out", help="Folder for everything the run leaves.")]
Config = Annotated[Path | None, option("TOML file with any of these options; options given here win.")]
Dataset = Annotated[
    str | None,
    option(
        "glyphs, omniglot, cifar-fs, or the path of an image folder or zip; several, separated by commas, "
        "are dealt out in turn. (default: glyphs)"
    ),
]
Clients = Annotated[int | None, option("Organisations. (default: 12)")]
ClassesEach = Annotated[int | None, option("Private classes of each organisation. (default: 5)")]
ImagesPerClass = Annotated[int | None, option("Private images of each class, at most. (default: 480)")]
Partition = Annotated[
    str | None, option("How classes are dealt out: disjoint, overlapping or domain. (default: overlapping)")
]
Architectures = Annotated[
    str | None,
    option("Of the models, dealt out in turn, e.g. conv4,resnet10,conv4-64-group. (default: conv4)"),
]
Student = Annotated[str | None, option("Architecture of the meta-learner, e.g. resnet18. (default: conv4)")]
ImageSize = Annotated[
    str | None, option("Pixels a side that images are resized to, e.g. 32, or 32,64 in turn. (default: 32)")
]
Flip = Annotated[
    bool | None,
    option(
        "Whether a mirrored image still shows the same class (default: colour images only).",
        "--horizontal-flip/--no-horizontal-flip",
    ),
]
Epochs = Annotated[int | None, option("Of each organisation's training. (default: 30)")]
MinSteps = Annotated[
    int | None, option("Of each organisation's training, however few its images. (default: 300)")
]
RotationTask = Annotated[
    bool | None,
    option(
        "Whether models also learn to tell quarter turns (default: colour images only).",
        "--rotation-task/--no-rotation-task",
    ),
]
InitialWeights = Annotated[
    Path | None,
    option("Public safetensors that training begins from, see public-weights. (default: random weights)"),
]
Epsilon = Annotated[
    float | None,
    option("Train under differential privacy, spending at most this an image. (default: inf, not at all)"),
]
Delta = Annotated[float | None, option("Of the differential privacy. (default: 1e-5)")]
Preset = Annotated[str | None, option("default, or paper: the published method. (default: default)")]
Iterations = Annotated[int | None, option("Of the server. (default: the preset's)")]
Episodes = Annotated[int | None, option("Test episodes of each data set. (default: 600)")]
NWay = Annotated[int | None, option("Classes an episode. (default: 5)", "--ways")]
NQuery = Annotated[int | None, option("Query images a class and episode. (default: 15)", "--queries")]
Engine = Annotated[
    str | None, option("in-process, or flower: Flower's simulation runtime. (default: in-process)")
]
Device = Annotated[str | None, option("Of server and organisations: auto, cpu or cuda. (default: auto)")]
Threads = Annotated[int | None, option("CPU threads. (default: 2)")]
Seed = Annotated[int | None, option("Decides everything random. (default: 0)")]
Cache = Annotated[Path | None, option("Folder for data sets and trained models. (default: .cache/fedfree)")]


def read_config(path: Path | None, given: dict[str, Any]) -> SimulationConfig:
    """The file's values with the options given on top; differential privacy brings conv4-group by default."""
    values = SimulationConfig.read(path).model_dump(exclude_unset=True) if path else {}
    privacy = {name: given.pop(name) for name in ("epsilon", "delta") if given.get(name) is not None}
    values["privacy"] = values.get("privacy", {}) | privacy
    if math.isfinite(values["privacy"].get("epsilon", math.inf)):
        values.setdefault("architectures", "conv4-group")
    values |= {name: value for name, value in given.items() if value is not None}
    return SimulationConfig.parse(values, origin="option")


def typed_command() -> str:
    """The command line this process was started with."""
    return shlex.join(["fedfree-sim", *sys.argv[1:]])


_OPTIONS = {"n_way": "--ways", "n_query": "--queries"}
"""Fields whose option has another name."""


def run_command(run: Path, config: SimulationConfig) -> str:
    """The command line that makes this run anew."""
    words = ["fedfree-sim", "run"]
    for name, field in SimulationConfig.model_fields.items():
        value = getattr(config, name)
        if value != field.default and name != "privacy":
            words += _option_words(_OPTIONS.get(name, f"--{name.replace('_', '-')}"), value)
    if config.privacy.is_dp:
        words += ["--epsilon", f"{config.privacy.epsilon:g}", "--delta", f"{config.privacy.delta:g}"]
    return shlex.join([*words, "--out", str(run)])


def _option_words(name: str, value: object) -> list[str]:
    if isinstance(value, bool):
        return [name if value else name.replace("--", "--no-", 1)]
    return [name, ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
