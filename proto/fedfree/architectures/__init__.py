"""Architecture id to network, one small file each: nothing is built from what another party sends."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache, partial
from threading import Lock
from typing import Annotated

import torch
from pydantic import BeforeValidator, PlainSerializer
from torch import Tensor

from fedfree.architectures.base import (
    MAX_IMAGE_SIZE,
    MIN_IMAGE_SIZE,
    Classifier,
    InputSpec,
    freeze_statistics,
    make_norm,
    use_channels_last,
)
from fedfree.architectures.blueprint import check_cost, draw
from fedfree.architectures.conv4 import Conv4
from fedfree.architectures.resnet import ResNet
from fedfree.architectures.timm import FAMILIES, TimmClassifier, timm_names
from fedfree.architectures.torchvision import TorchvisionClassifier, torchvision_names
from fedfree.errors import ContributionError, ExtensionError, printable
from fedfree.extension import Table, described, extending, is_ours
from fedfree.rule import rule

__all__ = [
    "ARCHITECTURES",
    "MAX_IMAGE_SIZE",
    "MIN_IMAGE_SIZE",
    "Architecture",
    "ArchitectureId",
    "Classifier",
    "Family",
    "InputSpec",
    "TimmClassifier",
    "TorchvisionClassifier",
    "blueprint",
    "build",
    "freeze_statistics",
    "make_norm",
    "use_channels_last",
]


@dataclass(frozen=True)
class Architecture:
    """Which network; together with classes and input it fixes every tensor's name and shape."""

    id: str = "conv4"
    """``conv4``, ``resnet10``, ``resnet18``, ``torchvision/<name>`` or ``timm/<name>``."""
    width: int = 0
    """Filters a layer; 0 for the default (conv4: 32), or where there is no choice."""
    norm: str = ""
    """``batch`` (default) or ``group`` (what DP-SGD needs); empty where there is no choice."""

    def __post_init__(self) -> None:
        family = _family(self.id)
        object.__setattr__(self, "width", self.width or next(iter(family.widths), 0))
        object.__setattr__(self, "norm", self.norm or next(iter(family.norms), ""))
        if self.width and not family.widths:
            raise ContributionError(f"{self.id} has no width option, got width {self.width}")
        if family.widths and self.width not in family.widths:
            widths = " and ".join(map(str, family.widths))
            raise ContributionError(f"{self.id} comes in width {widths}, got {self.width}")
        if self.norm and self.norm not in family.norms:
            remedy = f"use {' or '.join(family.norms)}" if family.norms else "leave it out"
            raise ContributionError(f"{self.id} cannot be built with norm {self.norm!r}: {remedy}")

    @classmethod
    def parse(cls, text: str) -> "Architecture":
        """Read what ``str`` writes, for instance ``conv4``, ``conv4-64`` or ``resnet10-group``."""
        id, *options = text.split("-")
        width = [option for option in options if option.isdecimal()]
        norm = [option for option in options if not option.isdecimal()]
        if len(width) > 1 or len(norm) > 1:
            raise ContributionError(f"expected <id>[-<width>][-<norm>], got {text!r}")
        return cls(id, int(width[0]) if width else 0, norm[0] if norm else "")

    def __str__(self) -> str:
        return "-".join(str(part) for part in (self.id, self.width, self.norm) if part)


def _parsed(value: object) -> object:
    return Architecture.parse(value) if isinstance(value, str) else value


ArchitectureId = Annotated[
    Architecture, BeforeValidator(_parsed), PlainSerializer(str, return_type=str, when_used="json")
]
"""In a configuration, ``conv4-64-group`` rather than a table."""


def build(architecture: Architecture, *, num_classes: int, input: InputSpec) -> Classifier:
    """A freshly initialised network in evaluation mode.

    Raises:
        ContributionError: as :func:`blueprint`, before anything is allocated.
    """
    blueprint(architecture, num_classes, input)
    return _family(architecture.id).build(architecture, num_classes, input).eval()


_one_at_a_time = Lock()
"""torch counts multiplications by hooks on every module of the process."""


@lru_cache(maxsize=16)
def blueprint(architecture: Architecture, num_classes: int, input: InputSpec) -> Classifier:
    """The network's layers and its tensors' names, shapes and types, on torch's ``meta`` device.

    It is shared by all who ask: not to be changed.

    Raises:
        ContributionError: a number of classes out of range, a library's network that cannot take this input,
            or one that costs more than the limits.
        ExtensionError: an architecture of somebody's own that fails, or gives what is no classifier.
    """
    check_classes(num_classes)
    family, of_library = _family(architecture.id), "/" in architecture.id
    try:
        with _one_at_a_time:
            with extending(f"the architecture {architecture.id!r}", family.build):
                network = draw(lambda: _built(family, architecture, num_classes, input))
            what = f"{architecture} with {num_classes} classes at {input.height}x{input.width}"
            # At no size does one of ours take too many multiplications.
            check_cost(network, what, input if of_library else None)
            if not is_ours(family.build):
                _try_out(family, architecture, num_classes, input)
    except ContributionError:
        raise
    except Exception as error:
        if not of_library:
            raise
        # Whatever a library's code raises of a size that it was not made for.
        raise ContributionError(
            f"{architecture.id} cannot take {input.channels}x{input.height}x{input.width} images: "
            f"{printable(str(error), 200)}"
        ) from error
    return network


@rule("classes")
def check_classes(num_classes: int) -> None:
    """2 to 10,000 classes."""
    if not 2 <= num_classes <= 10_000:
        raise ContributionError(f"a classifier has 2 to 10000 classes, got {num_classes}")


@dataclass(frozen=True)
class Family:
    """How the networks of one id are built, and in which variants they come."""

    build: Callable[[Architecture, int, InputSpec], Classifier]
    """From an architecture, the number of classes and the input to the network, freshly initialised."""
    widths: tuple[int, ...] = ()
    """Filters a layer to choose from, the default first; empty where there is no choice."""
    norms: tuple[str, ...] = ()
    """Of ``batch`` and ``group``, likewise."""
    names: Callable[[], Collection[str]] = tuple
    """What an id ``library/<name>`` may have for its name."""
    offers: str = ""
    """The same for people, where there are names."""


def _built(family: Family, architecture: Architecture, num_classes: int, input: InputSpec) -> Classifier:
    network = family.build(architecture, num_classes, input)
    if not isinstance(network, Classifier):
        raise ExtensionError(
            f"the architecture {architecture.id!r} gave {described(network)}, where a Classifier is expected"
        )
    return network


def _try_out(family: Family, architecture: Architecture, num_classes: int, input: InputSpec) -> None:
    """Let an architecture of somebody's own say of two images what it would in training."""
    what = f"the architecture {architecture.id!r}"
    images = torch.zeros(2, input.channels, input.height, input.width)
    with extending(what, family.build), torch.no_grad(), torch.random.fork_rng(devices=[]):
        network = family.build(architecture, num_classes, input).eval()
        _check_shape(f"features of {what}", network.features(images), (2, network.feature_size))
        _check_shape(what, network(images), (2, num_classes))


def _check_shape(what: str, given: object, expected: tuple[int, int]) -> None:
    if not isinstance(given, Tensor) or given.shape != expected:
        raise ExtensionError(
            f"{what} gave {described(given)} for 2 images, where {list(expected)} is expected"
        )


def _conv4(architecture: Architecture, num_classes: int, input: InputSpec) -> Classifier:
    return Conv4(width=architecture.width, norm=architecture.norm, num_classes=num_classes, input=input)


def _resnet(architecture: Architecture, num_classes: int, input: InputSpec, *, blocks: int) -> Classifier:
    return ResNet(blocks_a_stage=blocks, norm=architecture.norm, num_classes=num_classes, input=input)


def _of_library(
    architecture: Architecture,
    num_classes: int,
    input: InputSpec,
    *,
    make: type[TorchvisionClassifier] | type[TimmClassifier],
) -> Classifier:
    name = architecture.id.partition("/")[2]
    return make(name=name, num_classes=num_classes, input=input)


ARCHITECTURES: Table[Family] = Table(
    "architecture",
    {
        "conv4": Family(_conv4, widths=(32, 64), norms=("batch", "group")),
        "resnet10": Family(partial(_resnet, blocks=1), norms=("batch", "group")),
        "resnet18": Family(partial(_resnet, blocks=2), norms=("batch", "group")),
        "torchvision/<name>": Family(
            partial(_of_library, make=TorchvisionClassifier),
            names=torchvision_names,
            offers="any classification model of torchvision up to 150 million parameters, such as "
            "mobilenet_v2",
        ),
        "timm/<name>": Family(
            partial(_of_library, make=TimmClassifier),
            names=timm_names,
            offers="; ".join(f"{name}: {', '.join(family.names)}" for name, family in FAMILIES.items()),
        ),
    },
)
"""From id to what builds it; ``<name>`` stands for any name that the family knows."""


def _family(id: str) -> Family:
    library, slash, name = id.partition("/")
    family = ARCHITECTURES.get(f"{library}/<name>" if slash else id)
    if family is None:
        raise ContributionError(f"unknown architecture {id!r}: use one of {', '.join(ARCHITECTURES)}")
    if slash and name not in family.names():
        raise ContributionError(f"unknown architecture {id!r}: {library}/<name> is one of {family.offers}")
    return family
