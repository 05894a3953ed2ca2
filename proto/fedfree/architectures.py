"""Architecture id to network: the server builds from here, never from anything a client sends."""

import inspect
import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedfree.errors import ContributionError

GROUP_NORM_GROUPS = 8
TORCHVISION_PREFIX = "torchvision/"
MIN_IMAGE_SIZE = 16
MAX_IMAGE_SIZE = 512


@dataclass(frozen=True)
class Architecture:
    """Which network; together with classes and input it fixes every tensor's name and shape."""

    id: str = "conv4"
    """``conv4``, ``resnet10``, ``resnet18`` or ``torchvision/<name>``."""
    width: int = 0
    """Filters a layer, conv4 only: 32 (default) or 64."""
    norm: str = ""
    """``batch`` (default) or ``group`` (what DP-SGD needs); empty for torchvision networks."""

    def __post_init__(self) -> None:
        if self.id == "conv4":
            object.__setattr__(self, "width", self.width or 32)
        if self.id in ("conv4", "resnet10", "resnet18"):
            object.__setattr__(self, "norm", self.norm or "batch")
        elif not (
            self.id.startswith(TORCHVISION_PREFIX) and self._torchvision_name() in _torchvision_names()
        ):
            raise ContributionError(
                f"unknown architecture {self.id!r}: use conv4, resnet10, resnet18 or torchvision/<name> "
                "with a torchvision classification model such as torchvision/mobilenet_v2"
            )
        if self.id == "conv4" and self.width not in (32, 64):
            raise ContributionError(f"conv4 comes in width 32 and 64, got {self.width}")
        if self.id != "conv4" and self.width:
            raise ContributionError(f"{self.id} has no width option, got width {self.width}")
        if self.norm not in (("",) if self._torchvision_name() else ("batch", "group")):
            raise ContributionError(f"{self.id} cannot be built with norm {self.norm!r}: use batch or group")

    def _torchvision_name(self) -> str:
        return self.id.removeprefix(TORCHVISION_PREFIX) if self.id.startswith(TORCHVISION_PREFIX) else ""

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


@dataclass(frozen=True)
class InputSpec:
    """What a network expects of an image; pixels are in [0, 1] before normalisation."""

    channels: int = 3
    height: int = 32
    width: int = 32
    mean: tuple[float, ...] = ()
    """One a channel; 0.5 by default, which says nothing about anyone's images."""
    std: tuple[float, ...] = ()
    """One a channel, above zero; 0.5 by default."""
    horizontal_flip: bool = True
    """Whether a mirrored image still shows the same class."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(self.mean) or (0.5,) * self.channels)
        object.__setattr__(self, "std", tuple(self.std) or (0.5,) * self.channels)
        if self.channels not in (1, 3):
            raise ContributionError(f"images have 1 or 3 channels, got {self.channels}")
        if not all(MIN_IMAGE_SIZE <= side <= MAX_IMAGE_SIZE for side in (self.height, self.width)):
            raise ContributionError(
                f"images are {MIN_IMAGE_SIZE} to {MAX_IMAGE_SIZE} pixels a side, "
                f"got {self.height}x{self.width}"
            )
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ContributionError(
                f"expected {self.channels} means and deviations, got {self.mean}, {self.std}"
            )
        if not all(-10 < m < 10 for m in self.mean) or not all(1e-3 < s < 100 for s in self.std):
            raise ContributionError(f"normalisation out of range: mean {self.mean}, std {self.std}")

    def normalise(self, images: Tensor) -> Tensor:
        """[batch, channels, height, width] in [0, 1] to the network's scale, same shape."""
        return (images - _one_a_channel(self.mean, images)) / _one_a_channel(self.std, images)

    def resize(self, images: Tensor) -> Tensor:
        """Bring [batch, 1 or 3, h, w] images to this spec's channels and size, still in [0, 1]."""
        if images.shape[1] != self.channels:
            images = images.mean(1, keepdim=True) if self.channels == 1 else images.expand(-1, 3, -1, -1)
        if images.shape[2:] != (self.height, self.width):
            images = nn.functional.interpolate(
                images, size=(self.height, self.width), mode="bilinear", antialias=True, align_corners=False
            )
        return images


def _one_a_channel(values: tuple[float, ...], like: Tensor) -> Tensor | float:
    """[1, channels, 1, 1]; a number where it is the same for all, since a copy to a GPU waits for the GPU."""
    if len(set(values)) == 1:
        return values[0]
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, 1, 1)


class Classifier(nn.Module):
    """A network with named features: ``forward`` is ``head(features(images))``."""

    head: nn.Module
    feature_size: int

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def features(self, images: Tensor) -> Tensor:
        """[batch, channels, height, width], normalised, to [batch, feature_size]."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """[batch, channels, height, width], normalised, to logits [batch, num_classes]."""
        logits: Tensor = self.head(self.features(images))
        return logits


def make_norm(norm: str, channels: int) -> nn.Module:
    """BatchNorm, or GroupNorm with 8 groups (what DP-SGD allows)."""
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(GROUP_NORM_GROUPS, channels)


class Conv4(Classifier):
    """Four blocks of convolution, norm, ReLU and 2x2 max-pooling (Vinyals et al. 2016; Snell et al. 2017)."""

    def __init__(self, *, width: int, norm: str, num_classes: int, input: InputSpec) -> None:
        super().__init__()
        channels = [input.channels, width, width, width, width]
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(before, after, 3, padding=1, bias=False),
                    make_norm(norm, after),
                    nn.ReLU(),
                    nn.MaxPool2d(2),
                )
                for before, after in itertools.pairwise(channels)
            )
        )
        self.feature_size = width * (input.height // 16) * (input.width // 16)
        self.head = nn.Linear(self.feature_size, num_classes)

    def features(self, images: Tensor) -> Tensor:
        hidden: Tensor = self.blocks(images)
        return hidden.flatten(1)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a 1x1 shortcut; halves the resolution (He et al. 2016, no in-place ops)."""

    def __init__(self, before: int, after: int, *, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.norm1 = make_norm(norm, after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = make_norm(norm, after)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or before != after:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, stride=stride, bias=False), make_norm(norm, after)
            )

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.norm1(self.conv1(images)).relu()
        residual: Tensor = self.norm2(self.conv2(hidden)) + self.shortcut(images)
        return residual.relu()


class ResNet(Classifier):
    """The few-shot ResNet: a 3x3 stem without pooling, four halving stages, global average pooling."""

    def __init__(self, *, blocks_a_stage: int, norm: str, num_classes: int, input: InputSpec) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(input.channels, 64, 3, padding=1, bias=False),
            make_norm(norm, 64),
            nn.ReLU(),
        ]
        before = 64
        for after in (64, 128, 256, 512):
            for block in range(blocks_a_stage):
                layers.append(ResidualBlock(before, after, stride=2 if block == 0 else 1, norm=norm))
                before = after
        self.blocks = nn.Sequential(*layers)
        self.feature_size = 512
        self.head = nn.Linear(512, num_classes)

    def features(self, images: Tensor) -> Tensor:
        hidden: Tensor = self.blocks(images)
        return hidden.mean((2, 3))


class TorchvisionClassifier(Classifier):
    """A torchvision classification model; its features are what enters its last layer."""

    head_name: str
    """What torchvision calls that layer, for instance ``fc``."""

    def __init__(self, *, name: str, num_classes: int, input: InputSpec) -> None:
        import torchvision  # takes as long to import as torch itself, and few networks need it

        super().__init__()
        builder = torchvision.models.get_model_builder(name)
        options: dict[str, object] = {"weights": None, "num_classes": num_classes}
        accepted = inspect.signature(builder).parameters
        if name in ("googlenet", "inception_v3"):
            options |= {"aux_logits": False, "init_weights": False}
        if name.startswith("vit_") and "kwargs" in accepted:
            options["image_size"] = input.height
        self.network = builder(**options)
        head_name = [
            name
            for name, module in self.network.named_modules()
            if getattr(module, "out_features", getattr(module, "out_channels", None)) == num_classes
        ][-1]
        self.head_name = head_name
        last = self.network.get_submodule(head_name)
        self.network.set_submodule(head_name, nn.Identity())
        self.feature_size = getattr(last, "in_features", getattr(last, "in_channels", 0))
        self.head = nn.Linear(self.feature_size, num_classes)

    def features(self, images: Tensor) -> Tensor:
        hidden: Tensor = self.network(images if images.shape[1] == 3 else images.expand(-1, 3, -1, -1))
        return hidden.flatten(1)


def _torchvision_names() -> list[str]:
    import torchvision

    return list(torchvision.models.list_models(module=torchvision.models))


def use_channels_last(network: nn.Module) -> None:
    """Lay out the convolution weights so that a CPU runs Conv4 about twice as fast."""
    network.to(memory_format=torch.channels_last)


def build(architecture: Architecture, *, num_classes: int, input: InputSpec) -> Classifier:
    """A freshly initialised network in evaluation mode.

    Raises:
        ContributionError: fewer than two classes, or a torchvision network that cannot take this input.
    """
    if not 2 <= num_classes <= 10_000:
        raise ContributionError(f"a classifier has 2 to 10000 classes, got {num_classes}")
    if architecture.id == "conv4":
        return Conv4(
            width=architecture.width, norm=architecture.norm, num_classes=num_classes, input=input
        ).eval()
    if architecture.id in ("resnet10", "resnet18"):
        blocks = 1 if architecture.id == "resnet10" else 2
        return ResNet(
            blocks_a_stage=blocks, norm=architecture.norm, num_classes=num_classes, input=input
        ).eval()
    name = architecture.id.removeprefix(TORCHVISION_PREFIX)
    try:
        network = TorchvisionClassifier(name=name, num_classes=num_classes, input=input).eval()
        with torch.no_grad():
            network(torch.zeros(1, input.channels, input.height, input.width))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ContributionError(
            f"{architecture.id} cannot take {input.channels}x{input.height}x{input.width} images: {error}"
        ) from error
    return network
