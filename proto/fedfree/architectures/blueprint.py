"""What a network is made of and what it costs, known without making it: built on torch's ``meta`` device.

Tensors there have a name, a shape and a type, and hold nothing.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from fedfree.architectures.base import Classifier, InputSpec
from fedfree.errors import ContributionError
from fedfree.rule import rule

MAX_PARAMETERS = 150_000_000
"""More than torchvision's largest VGG has; 600 MB as they travel."""
MAX_MULTIPLICATIONS = 40_000_000_000
"""For one image: the most that a network of ours takes is 36 thousand million, ResNet-18 at 512 pixels."""


class _NumbersOnCpu(TorchFunctionMode):
    """torchvision's RegNet reads its widths out of tensors, which must hold something then."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        if function in (torch.arange, torch.tensor):
            options["device"] = "cpu"
        return function(*args, **options)


def draw(make: Callable[[], Classifier]) -> Classifier:
    """The network that ``make`` makes, in evaluation mode, with nothing in its tensors."""
    try:
        with torch.device("meta"):
            return make().eval()
    except NotImplementedError:
        with torch.device("meta"), _NumbersOnCpu():
            return make().eval()


@rule("cost")
def check_cost(network: Classifier, what: str, input: InputSpec | None = None) -> None:
    """At most 150 million parameters, and 40 thousand million multiplications for one image.

    Args:
        network: of :func:`draw`.
        input: what to count multiplications for, which brings torch's compiler along: one second, or two;
            None where the network is known to take fewer.

    Raises:
        ContributionError: it has more; and whatever its own code raises of images that it cannot take.
    """
    parameters = sum(parameter.numel() for parameter in network.parameters())
    if parameters > MAX_PARAMETERS:
        raise ContributionError(
            f"{what} has {parameters:,} parameters, and {MAX_PARAMETERS:,} are the most: use a smaller "
            "network, smaller images or fewer classes"
        )
    multiplications = _multiplications(network, input) if input else 0
    if multiplications > MAX_MULTIPLICATIONS:
        raise ContributionError(
            f"{what} takes {multiplications:,} multiplications for one image, and {MAX_MULTIPLICATIONS:,} "
            "are the most: use a smaller network or smaller images"
        )


@torch.no_grad()
def _multiplications(network: Classifier, input: InputSpec) -> int:
    from torch.utils.flop_counter import FlopCounterMode  # a tenth of a second, and only builders need it

    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, input.channels, input.height, input.width, device="meta"))
    return int(counter.get_total_flops()) // 2
