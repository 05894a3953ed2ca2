"""Conv4, the few-shot literature's small network."""

import itertools

from torch import Tensor, nn

from fedfree.architectures.base import Classifier, InputSpec, make_norm


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
