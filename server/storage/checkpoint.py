"""A run's state on disk, as named tensors: a run that was killed goes on where it was last saved."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from fedfree.errors import StorageError
from fedfree.host.files import named, replacing

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """What was saved last."""

    iterations: int
    """Done by then."""
    tensors: Mapping[str, Tensor]


def read_checkpoint(path: Path, run: str) -> Checkpoint | None:
    """What was saved last, by the run with this hash; None where there is nothing of use.

    A file that is damaged or of another run is passed over, with a warning in the log: the contributions
    are all there, and learning can begin again.
    """
    if not path.exists():
        return None
    try:
        with named(f"cannot read {path}"), safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("run") == run:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return Checkpoint(int(metadata["iterations"]), tensors)
        reason = "it belongs to another configuration, other contributions or another version"
    except (safetensors.SafetensorError, StorageError, KeyError, ValueError) as error:
        reason = f"it is damaged ({error})"
    log.warning(
        "passed over the checkpoint %s: %s; learning begins again from the contributions", path, reason
    )
    return None


def write_checkpoint(path: Path, run: str, iterations: int, tensors: Mapping[str, Tensor]) -> None:
    """Save what the run with this hash comes to after so many iterations, whole or not at all.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    saved = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"run": run, "iterations": str(iterations)}
    with named(f"cannot write {path}"), replacing(path) as partial:
        safetensors.torch.save_file(saved, partial, metadata=metadata)
