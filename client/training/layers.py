"""A network from a public start as DP-SGD can train it: layers of which each image has a gradient of its own.

A BatchNorm whose statistics are the start's is a scale and a shift a channel, and couples no images. Nothing
in torch's BatchNorm holds it to that, and Opacus has no gradients for it, so none is left while training.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class FrozenNorm(nn.Module):
    """A BatchNorm in evaluation mode, whose scale and shift are its own parameters; it holds no buffer."""

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self._statistics = (norm.running_mean, norm.running_var)
        self._eps = norm.eps

    def forward(self, inputs: Tensor) -> Tensor:
        """[batch, channels, ...] to the same shape."""
        return F.batch_norm(inputs, *self._statistics, self.weight, self.bias, eps=self._eps)

    def gradients(self, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
        """[batch, channels] for scale and shift, as Opacus asks for them."""
        normalised = F.batch_norm(activations[0], *self._statistics, eps=self._eps)
        both = {self.weight: normalised * backprops, self.bias: backprops}
        return {each: gradient.flatten(2).sum(2) for each, gradient in both.items() if each.requires_grad}


class _Copy(nn.Module):
    """Residual networks add to a norm's result where it lies, and Opacus' hooks forbid that."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.clone()


@contextmanager
def separate_images(network: nn.Module) -> Iterator[None]:
    """Replace every BatchNorm by a :class:`FrozenNorm`, and write over no layer's result; undone at the end.

    The parameters are the network's own throughout; their names, and its buffers, are away meanwhile.
    """
    norms = {
        name: each for name, each in network.named_modules() if isinstance(each, _BatchNorm | nn.GroupNorm)
    }
    overwriting = [each for each in network.modules() if getattr(each, "inplace", False)]
    for name, norm in norms.items():
        network.set_submodule(name, nn.Sequential(*_without_statistics(norm), _Copy()))
    _set_inplace(overwriting, False)
    try:
        yield
    finally:
        _set_inplace(overwriting, True)
        for name, norm in norms.items():
            network.set_submodule(name, norm)


def _without_statistics(norm: nn.Module) -> list[nn.Module]:
    """timm's BatchNorms end in an activation, their last child."""
    return [FrozenNorm(norm), *norm.children()] if isinstance(norm, _BatchNorm) else [norm]


def _set_inplace(modules: list[Any], value: bool) -> None:
    for module in modules:
        module.inplace = value


def leave_what_no_layer_holds(network: nn.Module) -> None:
    """Do not train parameters that a module has beside layers of its own, such as a transformer's tokens.

    Gradients an image are taken layer by layer, and that module's would be those of all within it.
    """
    for module in network.modules():
        if any(True for child in module.children() for _ in child.parameters()):
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
