"""What training from a start may change, by name."""

from collections.abc import Callable, Mapping

from torch import nn

from fedfree.architectures import Classifier
from fedfree.codec import is_body


def train_only(network: Classifier, trained: str) -> list[nn.Parameter]:
    """Let the head and the chosen part of the body be trained, nothing else; returns those parameters.

    Args:
        trained: one of ``SCOPES``.
    """
    chosen = SCOPES[trained](network)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in chosen or not is_body(name))
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def _body(network: Classifier) -> list[str]:
    return [name for name, _ in network.named_parameters() if is_body(name)]


def _last_quarter(network: Classifier) -> set[str]:
    names = _body(network)
    return set(names[len(names) * 3 // 4 :])


def _scales(network: Classifier) -> set[str]:
    """Vectors: scales and shifts of the norms, and biases (BiTFiT, Ben Zaken et al., ACL 2022)."""
    return {name for name in _body(network) if network.get_parameter(name).ndim == 1}


SCOPES: Mapping[str, Callable[[Classifier], set[str]]] = {
    "all": lambda network: set(_body(network)),
    "last": _last_quarter,
    "scales": _scales,
    "head": lambda network: set(),
    "low-rank": lambda network: set(),  # its linear layers are changed by what is trained beside them
}
"""From the choice to the body's parameters that are trained."""
