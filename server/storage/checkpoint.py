"""A run's state on disk, as named tensors: a run that was killed goes on where it was last saved."""

import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from fedfree.errors import StorageError
from fedfree.host.files import named, replacing

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """What was saved last."""

    iterations: int
    """Done by then."""
    contributions: Sequence[str]
    """Ids of those that it was learned from."""
    tensors: Mapping[str, Tensor]


def read_checkpoint(path: Path, run: str) -> Checkpoint | None:
    """What was saved last, by the run with this hash; None where there is nothing of use.

    A file that is damaged, be it by one bit, or of another run is passed over, with a warning in the log:
    the contributions are all there, and learning can begin again.
    """
    if not path.exists():
        return None
    try:
        metadata, tensors = _read(path)
        if metadata.get("run") == run:
            return Checkpoint(int(metadata["iterations"]), json.loads(metadata["contributions"]), tensors)
        reason = "it belongs to another configuration, other contributions or another version"
    except (safetensors.SafetensorError, StorageError, KeyError, ValueError) as error:
        reason = f"it is damaged ({error})"
    log.warning(
        "passed over the checkpoint %s: %s; learning begins again from the contributions", path, reason
    )
    return None


def learned_from(path: Path) -> Sequence[str] | None:
    """Ids of the contributions that a checkpoint was learned from; None where nobody can say."""
    try:
        contributions: list[str] = json.loads(_read(path)[0]["contributions"])
        return contributions
    except (safetensors.SafetensorError, StorageError, KeyError, ValueError):
        return None


def write_checkpoint(
    path: Path, run: str, iterations: int, tensors: Mapping[str, Tensor], contributions: Sequence[str] = ()
) -> None:
    """Save what the run with this hash comes to after so many iterations, whole or not at all.

    Args:
        contributions: ids of those that it was learned from.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    saved = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {
        "run": run,
        "iterations": str(iterations),
        "contributions": json.dumps(list(contributions)),
    }
    metadata["sha256"] = _digest(metadata, saved)
    with named(f"cannot write {path}"), replacing(path) as partial:
        try:
            safetensors.torch.save_file(saved, partial, metadata=metadata)
        except safetensors.SafetensorError as error:
            raise _of_the_system(error) from error


def _of_the_system(error: safetensors.SafetensorError) -> OSError:
    """What the system said, which safetensors repeats in words of its own: `… (os error 28)`."""
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error))


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors, as they were written; raises ValueError where they are not."""
    with named(f"cannot read {path}"), safetensors.safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata() or {})
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if metadata.pop("sha256", None) != _digest(metadata, tensors):
        raise ValueError("its content does not have the sha256 that it states")
    return metadata, tensors


def _digest(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """Hexadecimal SHA-256 of everything in a checkpoint."""
    hashed = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name, tensor in sorted(tensors.items()):
        hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        hashed.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()
