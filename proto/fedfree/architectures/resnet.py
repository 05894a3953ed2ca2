"""ResNet-10 and ResNet-18 as few-shot learning has them: a 3x3 stem, no pooling before the stages."""

from torch import Tensor, nn

from fedfree.architectures.base import Classifier, InputSpec, make_norm


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
