"""Adam whose state is there from the start, so that it can be saved and restored in place."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn


def make_adam(
    parameters: Iterable[nn.Parameter], learning_rate: float, betas: tuple[float, float] = (0.9, 0.999)
) -> torch.optim.Adam:
    """As ``torch.optim.Adam``, its moments at zero already."""
    optimizer = torch.optim.Adam(parameters, lr=learning_rate, betas=betas)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.tensor(0.0),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }
    return optimizer


def state_tensors(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Names and live tensors of an optimizer's state."""
    for index, state in enumerate(optimizer.state.values()):
        for name, tensor in state.items():
            yield f"{index}.{name}", tensor
