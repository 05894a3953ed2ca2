"""timm's networks, built without weights: those of the families whose ways are known here."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedfree.architectures.base import Classifier, InputSpec


@dataclass(frozen=True)
class TimmFamily:
    """Networks that train, invert, travel and export alike."""

    names: tuple[str, ...]
    """As timm has them, without the tag that names their weights; the smallest first."""
    norm: Literal["BatchNorm", "GroupNorm", "LayerNorm"]
    patch_size: int = 0
    """Pixels a side of what a transformer reads as one token; position embeddings fix the images' size."""
    levels: Mapping[int, float] = field(default_factory=dict)
    """Stages of ``network.blocks`` whose means help to tell new classes apart, with their lengths beside
    features of length one (docs/log.md)."""


FAMILIES: dict[str, TimmFamily] = {
    "efficientnet-lite": TimmFamily(
        tuple(f"tf_efficientnet_lite{n}" for n in range(5)), "BatchNorm", levels={4: 0.5, 5: 1.5}
    ),
    "mobilenetv3": TimmFamily(
        (
            "mobilenetv3_small_050",
            "mobilenetv3_small_075",
            "mobilenetv3_small_100",
            "mobilenetv3_large_075",
            "mobilenetv3_large_100",
        ),
        "BatchNorm",
    ),
    "resnet": TimmFamily(("resnet18", "resnet26", "resnet34", "resnet50"), "BatchNorm"),
    "resnet-gn": TimmFamily(("resnet50_gn",), "GroupNorm"),
    "regnety": TimmFamily(("regnety_002", "regnety_004", "regnety_006", "regnety_008"), "BatchNorm"),
    "convnext": TimmFamily(
        ("convnext_atto", "convnext_femto", "convnext_pico", "convnext_nano", "convnext_tiny"), "LayerNorm"
    ),
    "vit": TimmFamily(("vit_tiny_patch16_224", "vit_small_patch16_224"), "LayerNorm", patch_size=16),
}
"""Which of timm's networks may be contributed; tests/fedfree/test_timm.py holds each family to all four."""


class TimmClassifier(Classifier):
    """One of timm's networks up to its pooled features, with a linear head of ours."""

    head_name: str
    """What timm calls its own head, for instance ``classifier``."""

    def __init__(self, *, name: str, num_classes: int, input: InputSpec) -> None:
        import timm  # takes longer to import than torch itself, and few networks need it

        super().__init__()
        # Without classes it ends in pooled features; MobileNetV3 widens them first, to head_hidden_size.
        network: Any = timm.create_model(name, num_classes=0, **options_for(name, input))
        self.network = network
        self.head_name = str(network.pretrained_cfg["classifier"])
        self.feature_size = int(network.head_hidden_size)
        self.head = nn.Linear(self.feature_size, num_classes)
        self.lengths = family_of(name).levels
        if self.lengths:
            ends = [network.blocks[stage][-1] for stage in self.lengths]
            self.level_size = self.feature_size + sum(end.conv_pwl.out_channels for end in ends)

    def features(self, images: Tensor) -> Tensor:
        hidden: Tensor = self.network(_coloured(images))
        return hidden

    def levels(self, images: Tensor) -> Tensor:
        if not self.lengths:
            return self.features(images)
        network: Any = self.network
        hidden, taken = network.bn1(network.conv_stem(_coloured(images))), []
        for number, stage in enumerate(network.blocks):
            hidden = stage(hidden)
            if number in self.lengths:
                taken.append(self.lengths[number] * F.normalize(hidden.mean((2, 3)), dim=1))
        hidden = network.forward_head(network.bn2(network.conv_head(hidden)))
        return torch.cat([F.normalize(hidden, dim=1), *taken], dim=1)


def _coloured(images: Tensor) -> Tensor:
    return images if images.shape[1] == 3 else images.expand(-1, 3, -1, -1)


def options_for(name: str, input: InputSpec) -> dict[str, Any]:
    """What timm must be told of the images; raises ValueError for a size that it would see only in part."""
    patch_size = family_of(name).patch_size
    if not patch_size:
        return {}
    if input.height % patch_size or input.width % patch_size:
        raise ValueError(f"its sides are multiples of {patch_size}, and it would not see the rest")
    return {"img_size": (input.height, input.width)}


def family_of(name: str) -> TimmFamily:
    """The family of one of :func:`timm_names`."""
    return next(family for family in FAMILIES.values() if name in family.names)


def timm_names() -> Collection[str]:
    """Every name that may follow ``timm/``."""
    return [name for family in FAMILIES.values() for name in family.names]
