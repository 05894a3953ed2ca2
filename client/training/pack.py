"""PACK: a classifier that was trained elsewhere, turned into a contribution on its owner's machine.

The only place where a pickled checkpoint is opened: the owner's own, and as plain tensors.
"""

import random
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeGuard

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from client.data.image_set import to_input
from client.data.loading import load_images
from fedfree.architectures import Architecture, Classifier, InputSpec, TorchvisionClassifier, build
from fedfree.codec import Contribution, encode_weights, fill_network, raise_variances, sha256
from fedfree.errors import ContributionError, DataError, StorageError
from fedfree.host.files import named, open_file
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
HEAD_BYTES = 1 << 16
"""Of a file, to see what it is."""
ZIP, PICKLE = b"PK\x03\x04", b"\x80"

Tensors = Mapping[str, Tensor]


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The state dict in a safetensors file, or in a checkpoint that ``torch.save`` wrote.

    Raises:
        StorageError: the file cannot be read.
        ContributionError: it holds no state dict, or more than tensors; nothing in it is executed.
    """
    with open_file(path) as file, named(f"cannot read {path}"):
        head, size = file.read(HEAD_BYTES), path.stat().st_size
    if wrong := _mistaken(path, head, size):
        raise ContributionError(wrong)
    found = _read_safetensors(path, head, size) if _is_safetensors(path, head) else _read_pickled(path)
    for key in NESTED_UNDER:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not _holds_tensors(found):
        raise ContributionError(_no_state_dict(path, found))
    tensors = {}
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.layout is not torch.strided:
            raise ContributionError(f"the state dict in {path} holds {name!r}, which is no dense tensor")
        tensors[WRAPPERS.sub("", name)] = value
    return tensors


def _mistaken(path: Path, head: bytes, size: int) -> str | None:
    """Files that people take for a checkpoint: what each is, and what to do; None for any other."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if not head:
        return f"{path} is empty: copy or download it again"
    if head.startswith(b"version https://git-lfs"):
        return (
            f"{path} is a pointer of {size} bytes to a file that Git LFS keeps, not the file: fetch it with "
            "`git lfs pull`"
        )
    if text[:15].lower().startswith((b"<!doctype html", b"<html")):
        return f"{path} is a web page: download the file itself, not the page that shows it"
    if text.startswith(b"{") and b'"weight_map"' in text:
        return (
            f"{path} lists the parts of a checkpoint in several files, and holds no tensor: put the parts "
            "into one file with safetensors.torch.load_file and save_file, and pack that"
        )
    if text.startswith(b"{"):
        return f"{path} is text, such as a configuration: name the file of the weights beside it"
    if head.startswith(ZIP) and not zipfile.is_zipfile(path):
        return f"{path} is cut off after {size} bytes: copy or download it again"
    return None


def _is_safetensors(path: Path, head: bytes) -> bool:
    """By what it holds; by its name where that says nothing."""
    if head.startswith((ZIP, PICKLE)):
        return False
    return path.suffix == ".safetensors" or head[8:9] == b"{"


def _read_safetensors(path: Path, head: bytes, size: int) -> object:
    try:
        return safetensors.torch.load_file(path)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    except safetensors.SafetensorError as error:
        cut = head[8:9] == b"{" and re.search("incomplete|invalid header length|too small", str(error), re.I)
        if cut or size < 8:
            raise ContributionError(
                f"{path} is cut off after {size} bytes: copy or download it again"
            ) from error
        raise ContributionError(f"{path} is not valid safetensors: {error}") from error


def _read_pickled(path: Path) -> object:
    if _is_torchscript(path):
        raise ContributionError(
            f"{path} is TorchScript, a program and no checkpoint of plain tensors, so it is not opened: where"
            " you made it, save the tensors alone, torch.save(torch.jit.load(path).state_dict(), another)"
        )
    try:
        # As an open file: torch would choose another reader by the ending of a name.
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on formats: a file is opened or refused
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # a broken pickle may raise anything
        raise ContributionError(_not_plain(path, error)) from error


def _is_torchscript(path: Path) -> bool:
    """Whether it is an archive with a program in it; its names are read, and nothing else."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def _not_plain(path: Path, error: Exception) -> str:
    """Why a pickle was not opened, and what to do."""
    remedy = "save the tensors alone, torch.save(model.state_dict(), path)"
    if unsafe := re.search(r"GLOBAL (\S+)", str(error)):
        return f"{path} holds more than tensors ({unsafe[1]}), so it is not opened: {remedy}"
    if isinstance(error, EOFError) or re.search(
        "truncated|unexpected EOF|failed finding central", str(error)
    ):
        return f"{path} is cut off after {path.stat().st_size} bytes: copy or download it again"
    return f"{path} is no checkpoint of plain tensors, so it is not opened: {remedy}"


def _holds_tensors(found: object) -> TypeGuard[dict[object, object]]:
    return isinstance(found, dict) and any(isinstance(value, Tensor) for value in found.values())


def _no_state_dict(path: Path, found: object) -> str:
    """What a checkpoint holds in the place of one, and what to save."""
    content = found if isinstance(found, dict) else {}
    remedy = "save one with torch.save(model.state_dict(), path)"
    if "param_groups" in content:
        return f"{path} holds the state of an optimizer and no state dict of a network: {remedy}"
    if elsewhere := [key for key, value in content.items() if _holds_tensors(value)]:
        remedy = f"if {elsewhere[0]!r} is yours, torch.save(torch.load(path)[{elsewhere[0]!r}], another)"
    return f"no state dict in {path}, nor under {', '.join(NESTED_UNDER)}: {remedy}"


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
    if raised := raise_variances(network):
        notes.append(f"raised {raised} running variances of dead filters, which changes no output")
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
    if extra and not missing and len(extra) < len(expected) / 2:
        remedy = (
            f"it has more than a {architecture}: leave out what no prediction uses, del state[{extra[0]!r}], "
            f"or {remedy}"
        )
    elif missing and not extra and all(name.startswith("head.") for name in expected.keys() - found.keys()):
        remedy = "it was saved without its last layer, and only a whole classifier can be contributed"
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


def identify(network: Classifier) -> str:
    """What stays the same when the same checkpoint is packed again: the hash of its tensors as they came."""
    return sha256(encode_weights(network))


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
