"""``episodes.safetensors``: everyone's accuracy on each episode, by which two runs are compared in pairs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from pydantic import TypeAdapter
from torch import Tensor

from fedfree.errors import ConfigError
from fedfree.host.files import named, require_regular, write_file
from simulations.baselines.evaluate import Comparison
from simulations.reporting.words import printable

EPISODES = "episodes.safetensors"
_OF = "episodes"
_HASHES = TypeAdapter(dict[str, str])


@dataclass(frozen=True)
class Episodes:
    """What was measured on each episode of a run."""

    accuracies: Mapping[str, Mapping[str, Tensor]]
    """Name of the kind of episode, then of the competitor, to fractions [episodes] of all data sets."""
    sha256: Mapping[str, str]
    """Name of the kind of episode to what tells which episodes these were."""


def write_episodes(run: Path, domains: Mapping[str, Sequence[Comparison]]) -> None:
    """Keep the accuracies of an evaluation, by the name of each data set; raises StorageError."""
    tensors, hashes = dict[str, Tensor](), dict[str, list[str]]()
    for alike in zip(*domains.values(), strict=True):
        task = alike[0].spec.name
        hashes[task] = [each.episodes_sha256 for each in alike]
        for name in alike[0].accuracies:
            pooled = torch.cat([each.accuracies[name] for each in alike])
            tensors[f"{task}/{name}"] = pooled.float().contiguous()
    metadata = {_OF: json.dumps({task: " ".join(each) for task, each in hashes.items()})}
    write_file(run / EPISODES, safetensors.torch.save(tensors, metadata))


def read_episodes(run: Path) -> Episodes | None:
    """What :func:`write_episodes` kept; None where a run kept nothing, as those of earlier releases.

    Raises:
        ConfigError: the file is damaged.
    """
    path = run / EPISODES
    if not path.exists():
        return None
    accuracies: dict[str, dict[str, Tensor]] = {}
    with named(f"cannot read {path}"):
        require_regular(path)
    try:
        with named(f"cannot read {path}"), safetensors.safe_open(path, framework="pt") as file:
            hashes = _HASHES.validate_json((file.metadata() or {})[_OF])
            for key in file.keys():  # noqa: SIM118
                task, _, name = key.partition("/")
                accuracies.setdefault(task, {})[name] = _checked(key, file.get_tensor(key))
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        reason = printable(" ".join(str(error).split()))
        raise ConfigError(
            f"{path} is damaged: {reason}; remove it, and the run is compared unpaired"
        ) from error
    return Episodes(accuracies, hashes)


def _checked(key: str, tensor: Tensor) -> Tensor:
    """Accuracies as numbers of double precision; raises ValueError where they are none."""
    if tensor.ndim != 1 or len(tensor) < 2 or not tensor.is_floating_point() or not tensor.isfinite().all():
        raise ValueError(f"{key} holds no accuracy of each episode, but {tensor.dtype} {tuple(tensor.shape)}")
    return tensor.double()
