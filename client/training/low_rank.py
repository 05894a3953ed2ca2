"""Training changes of low rank to linear layers, by the library peft (LoRA, Hu et al., ICLR 2022)."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fedfree.architectures import Classifier
from fedfree.codec import is_body
from fedfree.errors import ConfigError
from fedfree.low_rank import DOWN, UP, changed_weights
from fedfree.seeding import derive_seed

REQUIRED = "peft"
ALPHA = 16
"""The factors' product counts ALPHA / rank times in training, so that one learning rate fits all ranks."""


@dataclass(frozen=True)
class LowRank:
    """How a network's linear layers are to be changed, and after :meth:`learning` by what."""

    rank: int = 0
    """0 changes none."""
    seed: int = 0
    factors: dict[str, Tensor] = field(default_factory=dict)
    """Of every weight that was changed, named as they travel (:mod:`fedfree.low_rank`)."""

    @contextmanager
    def learning(self, network: Classifier) -> Iterator[None]:
        """Let the layers learn such changes beside the head, and nothing else; add them at the end.

        The network has its own modules and names again afterwards, and the very weights that a receiver
        computes from the factors. Where training fails its weights are as before.
        """
        if not self.rank:
            yield
            return
        names = layers_to_change(network, self.rank)
        self._begin(network, names)
        learned: dict[str, Tensor] = {}
        try:
            yield
            learned = self._factors(network, names)
        finally:
            for name in names:
                network.set_submodule(name, network.get_submodule(name).get_submodule("base_layer"))
        weights = {f"{name}.weight": network.get_parameter(f"{name}.weight").detach() for name in names}
        for name, changed in changed_weights({n: each.cpu() for n, each in weights.items()}, learned).items():
            weights[name].copy_(changed)
        self.factors.update(learned)

    def _begin(self, network: Classifier, names: list[str]) -> None:
        import peft  # takes seconds to import, and few trainings need it

        config = peft.LoraConfig(r=self.rank, lora_alpha=ALPHA, target_modules=names)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, "low rank"))
            peft.inject_adapter_in_model(config, network)
        network.head.requires_grad_(True)  # which peft has frozen as all the rest

    @torch.no_grad()
    def _factors(self, network: Classifier, names: list[str]) -> dict[str, Tensor]:
        """Of the layers that have changed, with the scaling in ``up``."""
        factors = {}
        for name in names:
            down, up = (
                network.get_parameter(f"{name}.lora_{each}.default.weight").cpu() for each in ("A", "B")
            )
            if up.any():
                factors[f"{name}.weight{DOWN}"] = down.clone()
                factors[f"{name}.weight{UP}"] = up * (ALPHA / self.rank)
        return factors


def layers_to_change(network: Classifier, rank: int) -> list[str]:
    """Names of the body's linear layers to which a change of this rank is smaller than their weights."""
    return [
        name
        for name, module in network.named_modules()
        # Of a subclass torch's attention reads the weight, and never calls the layer.
        if type(module) is nn.Linear
        and is_body(f"{name}.weight")
        and rank * (module.in_features + module.out_features) < module.weight.numel()
    ]


def check_low_rank(network: Classifier, rank: int, what: str) -> None:
    """Refuse what cannot be trained so; raises ConfigError."""
    if not layers_to_change(network, rank):
        raise ConfigError(
            f"{what} has no linear layers larger than a change of rank {rank}, as transformers such as "
            'timm/vit_tiny_patch16_224 have: set training.trained to "all", "last", "scales" or "head"'
        )
    if importlib.util.find_spec(REQUIRED) is None:
        raise ConfigError(
            f'training.trained "low-rank" needs {REQUIRED}, not installed here: '
            "pip install 'fedfree[adapters]'"
        )
