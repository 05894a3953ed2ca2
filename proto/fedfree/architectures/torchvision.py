"""torchvision's classification models by name, built without weights."""

import inspect
from collections.abc import Collection
from functools import cache

from torch import Tensor, nn

from fedfree.architectures.base import Classifier, InputSpec
from fedfree.architectures.blueprint import MAX_PARAMETERS


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


@cache
def torchvision_names() -> Collection[str]:
    """Every classification model that may be contributed; the import takes as long as torch itself.

    Those too large for that are known by what torchvision says of their weights.
    """
    from torchvision import models

    return frozenset(
        name
        for name in models.list_models(module=models)
        if models.get_model_weights(name).DEFAULT.meta["num_params"] <= MAX_PARAMETERS
    )
