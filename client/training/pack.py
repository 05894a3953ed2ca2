"""PACK: a classifier that was trained elsewhere, turned into a contribution on its owner's machine.

The only place where a pickled checkpoint is opened: the owner's own, and as plain tensors.
"""

import random
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from client.data.image_set import to_input
from client.data.loading import load_images
from fedfree.architectures import Architecture, Classifier, InputSpec, TorchvisionClassifier, build
from fedfree.codec import Contribution, encode_weights, fill_network
from fedfree.errors import ConfigError, ContributionError, DataError
from fedfree.statement import PrivacyStatement

NESTED_UNDER = ("state_dict", "model_state_dict", "model")
"""Keys under which training programs keep the state dict in their checkpoints."""
WRAPPERS = re.compile(r"^((module|_orig_mod|model)\.)+")
"""What DataParallel, torch.compile and Lightning put before every name."""
COUNTER = "num_batches_tracked"
"""BatchNorm's count of training steps. No prediction needs it, and it hints at the number of images."""
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
"""Heads of torchvision's GoogLeNet and Inception that serve their training alone."""
BATCH = 64

Tensors = Mapping[str, Tensor]


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The state dict in a .safetensors file, or in a checkpoint that ``torch.save`` wrote.

    Raises:
        ConfigError: the file cannot be read.
        ContributionError: it holds no state dict, or more than tensors; nothing in it is executed.
    """
    found = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickled(path)
    for key in NESTED_UNDER:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not any(isinstance(value, Tensor) for value in found.values()):
        raise ContributionError(
            f"no state dict in {path}, nor under {', '.join(NESTED_UNDER)}: "
            "save one with torch.save(model.state_dict(), path)"
        )
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.layout is not torch.strided:
            raise ContributionError(f"the state dict in {path} holds {name!r}, which is no dense tensor")
    return {WRAPPERS.sub("", name): tensor for name, tensor in found.items()}


def _read_safetensors(path: Path) -> object:
    try:
        return safetensors.torch.load_file(path)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except safetensors.SafetensorError as error:
        raise ContributionError(f"{path} is not valid safetensors: {error}") from error


def _read_pickled(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on formats: a file is opened or refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # a broken pickle may raise anything
        unsafe = re.search(r"GLOBAL (\S+)", str(error))
        what = f"holds more than tensors ({unsafe[1]})" if unsafe else "is no checkpoint of plain tensors"
        raise ContributionError(
            f"{path} {what}, so it is not opened: save the tensors alone, "
            "torch.save(model.state_dict(), path)"
        ) from error


def to_network(
    tensors: Tensors, architecture: Architecture, *, num_classes: int, input: InputSpec
) -> tuple[Classifier, list[str]]:
    """Our network with an owner's tensors, under our names or torchvision's.

    Returns:
        The network in evaluation mode, and notes on what was changed, for the owner to read.

    Raises:
        ContributionError: tensors that are missing, superfluous, of another shape, or not finite.
    """
    network = build(architecture, num_classes=num_classes, input=input)
    expected = network.state_dict()
    names = _names_in(tensors, network)
    notes = [f"converted {text} to float32" for text in sorted(_other_precisions(tensors))]
    found = {
        names.get(name, name): tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
        if not name.endswith(COUNTER) and not name.startswith(AUXILIARY)
    }
    found |= {name: tensor for name, tensor in expected.items() if name.endswith(COUNTER)}
    if any(name.startswith(AUXILIARY) for name in tensors):
        notes.append("left the auxiliary heads out: no prediction uses them")
    if "head.bias" not in found:
        found["head.bias"] = expected["head.bias"].zero_()
        notes.append("the last layer has no bias: zeros are packed")
    _check_names(found, expected, names, architecture)
    _check_shapes(found, expected, names, architecture)
    fill_network(network, found, str(architecture))
    return network, notes


def _names_in(tensors: Tensors, network: Classifier) -> dict[str, str]:
    """From names in the checkpoint to names in our network, where they differ."""
    if not isinstance(network, TorchvisionClassifier) or any(name.startswith("network.") for name in tensors):
        return {}
    names = {name.removeprefix("network."): name for name in network.state_dict()}
    for part in ("weight", "bias"):
        del names[f"head.{part}"]
        names[f"{network.head_name}.{part}"] = f"head.{part}"
    return names


def _other_precisions(tensors: Tensors) -> set[str]:
    dtypes = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    return {str(dtype).removeprefix("torch.") for dtype in dtypes - {torch.float32}}


def _check_names(
    found: Tensors, expected: Tensors, names: Mapping[str, str], architecture: Architecture
) -> None:
    theirs = {ours: name for name, ours in names.items()}
    missing = sorted(theirs.get(name, name) for name in expected.keys() - found.keys())
    extra = sorted(theirs.get(name, name) for name in found.keys() - expected.keys())
    if not missing and not extra:
        return
    remedy = "name the architecture it was trained as with --architecture"
    if "layer1.0.conv1.weight" in found:
        remedy = "these are torchvision's names: say --architecture torchvision/resnet18, or which it is"
    raise ContributionError(
        f"the checkpoint is no {architecture}: missing {', '.join(missing[:3]) or 'nothing'} "
        f"({len(missing)} in all), unexpected {', '.join(extra[:3]) or 'nothing'} ({len(extra)} in all); "
        f"{remedy}"
    )


def _check_shapes(
    found: Tensors, expected: Tensors, names: Mapping[str, str], architecture: Architecture
) -> None:
    theirs = {ours: name for name, ours in names.items()}
    wrong = [name for name in expected if found[name].shape != expected[name].shape]
    if not wrong:
        return
    listed = "; ".join(
        f"{theirs.get(name, name)} is {list(found[name].shape)}, expected {list(expected[name].shape)}"
        for name in wrong[:3]
    )
    raise ContributionError(
        f"the checkpoint does not fit {architecture} ({len(wrong)} tensors): {listed}; "
        f"{_remedy(wrong, found, expected)}"
    )


def _remedy(wrong: Sequence[str], found: Tensors, expected: Tensors) -> str:
    """What to change on the command line for tensors of the wrong shape."""
    if set(wrong) - {"head.weight", "head.bias"}:
        return "--architecture, --channels or --image-size is another than it was trained with"
    if found["head.weight"].ndim != 2:
        return "a network whose last layer is not linear cannot be packed"
    if "head.bias" in wrong:
        return f"it has {len(found['head.bias'])} outputs, so say --classes {len(found['head.bias'])}"
    return "--image-size is another than it was trained with"


@torch.no_grad()
def accuracy_on(network: Classifier, folder: Path, *, num_classes: int, input: InputSpec) -> float:
    """Fraction of labelled images that the network classifies correctly.

    Args:
        folder: or zip; its classes in sorted order are the outputs, as in torchvision's ``ImageFolder``.

    Raises:
        DataError: images that cannot be read, or another number of classes.
    """
    images = load_images(folder, size=input.height, channels=input.channels)
    if images.num_classes != num_classes:
        raise DataError(
            f"{folder} has {images.num_classes} classes, the checkpoint {num_classes} outputs: "
            "check it on a folder of exactly the classes it was trained on"
        )
    correct = 0
    for pixels, labels in zip(images.images.split(BATCH), images.labels.split(BATCH), strict=True):
        correct += int((network(to_input(pixels, input)).argmax(1) == labels).sum())
    return correct / len(images)


def to_contribution(
    network: Classifier, architecture: Architecture, *, num_classes: int, input: InputSpec
) -> Contribution:
    """What would be sent: the outputs in a new random order, so that it says nothing of their names."""
    state = network.state_dict()
    order = random.SystemRandom().sample(range(num_classes), num_classes)
    state.update({name: state[name][order] for name in ("head.weight", "head.bias")})
    network.load_state_dict(state)
    return Contribution(
        architecture=architecture,
        num_classes=num_classes,
        input=input,
        privacy=PrivacyStatement(),
        weights=encode_weights(network),
    )
