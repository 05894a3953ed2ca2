"""The learner's state on disk: a run that was killed goes on where it was last saved, to the same bytes."""

import os
from pathlib import Path

import safetensors
import safetensors.torch

from fedfree.codec import sha256
from server.learning.learner import Learner


class Checkpoint:
    """One file, for one configuration and one pool; a file of another run is passed over."""

    def __init__(self, path: Path | None, learner: Learner) -> None:
        self._path = path
        self._learner = learner
        self._run = sha256("\n".join([learner.config.sha256(), *learner.pool.ids]).encode())

    def restore(self) -> int:
        """Put the learner where it was last saved; returns the iterations done by then."""
        if self._path is None or not self._path.exists():
            return 0
        with safetensors.safe_open(self._path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("run") != self._run:
                return 0
            self._learner.restore({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        return int(metadata["iterations"])

    def save(self, iterations: int) -> None:
        """Write the state after so many iterations, whole or not at all."""
        if self._path is None:
            return
        state = self._learner.state()
        if not self._learner.team.leads:
            return
        partial = self._path.with_name(self._path.name + ".partial")
        tensors = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
        metadata = {"run": self._run, "iterations": str(iterations)}
        safetensors.torch.save_file(tensors, partial, metadata=metadata)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(self._path)
