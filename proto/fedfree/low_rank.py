"""Changes of low rank: two factors that travel in the place of a weight (LoRA, Hu et al., ICLR 2022).

Of a matrix W [out, in] of the start a contribution holds ``<name>.down`` [rank, in] and ``<name>.up``
[out, rank], and its network has W + up @ down.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from fedfree.errors import ContributionError
from fedfree.tensors import Described

DOWN, UP = ".down", ".up"


def expected_factors(
    found: Mapping[str, Tensor | Described], body: Mapping[str, Tensor], what: str
) -> dict[str, Tensor]:
    """What the factors among ``found`` must be: by name, shape and type, with no memory behind them.

    Args:
        body: the parameters that may be changed; factors of no matrix among them are not expected.

    Raises:
        ContributionError: a weight that is there beside its factors, or a rank out of its range.
    """
    expected = {}
    for name, weight in body.items():
        if weight.ndim != 2 or not {name + DOWN, name + UP} & found.keys():
            continue
        if name in found:
            raise ContributionError(f"{what} comes with {name!r} and with factors of it: send one of them")
        rank = _stated_rank(found, name)
        if not 1 <= rank <= min(weight.shape):
            raise ContributionError(
                f"the factors of {name!r} in {what} have rank {rank}: a matrix {list(weight.shape)} takes "
                f"1 to {min(weight.shape)}"
            )
        out, inputs = weight.shape
        expected[name + DOWN] = weight.new_empty(rank, inputs, device="meta")
        expected[name + UP] = weight.new_empty(out, rank, device="meta")
    return expected


def _stated_rank(found: Mapping[str, Tensor | Described], name: str) -> int:
    """By the first factor; 1 where there is none, or none with rows: then it is refused for that."""
    down = found.get(name + DOWN)
    return 1 if down is None or not down.shape else down.shape[0]


def changed_weights(weights: Mapping[str, Tensor], factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The matrices W + up @ down of all ``factors``, by name; in double precision, so alike everywhere.

    Args:
        weights: W by name, whatever else there is among them.
        factors: checked against them, on a CPU as they are.

    Raises:
        ContributionError: NaN or infinity came of it.
    """
    changed = {}
    for name in sorted(each.removesuffix(DOWN) for each in factors if each.endswith(DOWN)):
        product = factors[name + UP].double() @ factors[name + DOWN].double()
        changed[name] = (weights[name].double() + product).to(weights[name].dtype)
        if not torch.isfinite(changed[name]).all():
            raise ContributionError(
                f"the factors of {name!r} change it to NaN or infinity; retrain the model"
            )
    return changed
