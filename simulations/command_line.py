"""What a simulation is called with: flags, and the command line that makes a run anew."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from fedfree.host.options import Flags, command_line
from simulations.config import SimulationConfig

Out = Annotated[Path, typer.Option("--out", help="Folder of the run.")]

FLAGS: Flags = {
    "dataset": "dataset",
    "clients": "clients",
    "classes_each": "classes_each",
    "images_per_class": "images_per_class",
    "start": "start",
    "public_images": "public_images",
    "architectures": "architectures",
    "image_size": "training.image_size",
    "epochs": "training.epochs",
    "epsilon": "privacy.epsilon",
    "preset": "server.preset",
    "iterations": "server.iterations",
    "student": "server.architecture",
    "episodes": "episodes",
    "engine": "engine",
    "device": ("training.device", "server.device"),
    "threads": ("training.threads", "server.threads"),
    "seed": "seed",
    "cache": "cache",
}
"""What is used often enough to be worth a flag; everything else goes through ``--set``."""


def flags(*names: str) -> Flags:
    """Some of FLAGS, by name."""
    return {name: FLAGS[name] for name in names}


def typed_command() -> str:
    """The command line this process was started with."""
    return shlex.join(["fedfree-sim", *sys.argv[1:]])


def run_command(run: Path, config: SimulationConfig) -> str:
    """The command line that makes this run anew, without the file that its settings may have come from."""
    return command_line(["fedfree-sim", "run"], config, FLAGS) + f" --out {shlex.quote(str(run))}"
