"""Factors travel in the place of a matrix of the start; what is no pair of factors is refused."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fedfree.codec import Contribution, decode_contribution, encode_contribution, encode_tensors
from fedfree.errors import ContributionError
from fedfree.low_rank import DOWN, UP, changed_weights
from fedfree.start import LoadedStart
from fedfree.statement import PrivacyStatement

VIT = "timm/vit_tiny_patch16_224"
QKV = "network.blocks.0.attn.qkv.weight"
"""[576, 192]."""
Tensors = dict[str, Tensor]


@pytest.fixture
def start(make_start: Callable[..., LoadedStart]) -> LoadedStart:
    return make_start(architecture=VIT, channels=3)


def pair(rank: int = 2, scale: float = 0.1) -> Tensors:
    generator = torch.Generator().manual_seed(rank)
    draw = {QKV + DOWN: (rank, 192), QKV + UP: (576, rank)}
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in draw.items()}


def contribution_of(start: LoadedStart, factors: Tensors) -> Contribution:
    head = {"head.weight": torch.ones(3, 192), "head.bias": torch.zeros(3)}
    return Contribution(
        architecture=start.start.architecture,
        num_classes=3,
        input=start.start.input,
        privacy=PrivacyStatement(initial_weights=start.start.initial_weights),
        weights=encode_tensors(head | factors),
        start=start.start.sha256,
    )


def test_a_network_has_its_starts_weight_and_the_product_of_the_factors(start: LoadedStart) -> None:
    factors = pair()
    sent = contribution_of(start, factors)
    state = decode_contribution(encode_contribution(sent), sent.weights).network(start.body).state_dict()
    expected = start.body[QKV] + torch.einsum("or,ri->oi", factors[QKV + UP], factors[QKV + DOWN])
    torch.testing.assert_close(state[QKV], expected)
    assert all(state[name].equal(tensor) for name, tensor in start.body.items() if name != QKV)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({QKV + UP: None}, rf"missing \['{QKV}.up'\]"),
        ({QKV + DOWN: None}, rf"missing \['{QKV}.down'\]"),
        ({QKV + UP: torch.ones(576, 3)}, r"weight.up' .* must be float32 \[576, 2\], got float32 \[576, 3\]"),
        ({QKV + UP: torch.ones(192, 2)}, r"must be float32 \[576, 2\], got float32 \[192, 2\]"),
        ({QKV + DOWN: torch.ones(2, 191)}, r"must be float32 \[2, 192\], got float32 \[2, 191\]"),
        ({QKV + DOWN: torch.tensor(2.0)}, r"must be float32 \[(1, 192|576, 1)\], got float32"),
        ({QKV + DOWN: torch.ones(2, 192).double()}, r"must be float32 \[2, 192\], got float64"),
        ({QKV + DOWN: torch.ones(0, 192), QKV + UP: torch.ones(576, 0)}, "rank 0: .* takes 1 to 192"),
        ({QKV + DOWN: torch.ones(193, 192), QKV + UP: torch.ones(576, 193)}, "have rank 193"),
        ({QKV + DOWN: torch.full((2, 192), torch.nan)}, "qkv.weight.down' holds NaN"),
        ({QKV: torch.ones(576, 192)}, f"'{QKV}' and with factors of it: send one"),
        ({"head.weight.down": torch.ones(1, 192)}, "unexpected .'head.weight.down"),
        ({"network.norm.weight.down": torch.ones(1, 1)}, "unexpected .'network.norm.weight.down"),
        ({"network.cls_token.up": torch.ones(1, 1)}, "unexpected .'network.cls_token.up"),
        ({"network.nothing.weight.up": torch.ones(1, 1)}, "unexpected .'network.nothing.weight.up"),
    ],
)  # fmt: skip
def test_what_is_no_pair_of_factors_of_a_matrix_is_refused_by_name(
    start: LoadedStart, changes: dict[str, Tensor | None], words: str
) -> None:
    changed = {name: tensor for name, tensor in (pair() | changes).items() if tensor is not None}
    sent = contribution_of(start, changed)
    with pytest.raises(ContributionError, match=words):
        decode_contribution(encode_contribution(sent), sent.weights)


def test_factors_whose_product_no_number_holds_are_refused(start: LoadedStart) -> None:
    sent = contribution_of(start, pair(scale=1e30))
    decode_contribution(encode_contribution(sent), sent.weights)
    with pytest.raises(ContributionError, match=f"factors of '{QKV}' change it to NaN or infinity"):
        sent.network(start.body)


def test_factors_of_another_start_are_an_error_of_the_contribution(
    start: LoadedStart, make_start: Callable[..., LoadedStart]
) -> None:
    with pytest.raises(ContributionError, match="expects other tensors"):
        contribution_of(start, pair()).network(make_start().body)


def test_factors_without_a_start_are_refused(start: LoadedStart) -> None:
    sent = contribution_of(start, pair())
    with pytest.raises(ContributionError, match="expects other tensors"):
        Contribution(sent.architecture, 3, sent.input, PrivacyStatement(), sent.weights).network()


def test_one_rank_is_an_outer_product() -> None:
    factors = {"w" + UP: torch.tensor([[1.0], [2.0]]), "w" + DOWN: torch.tensor([[3.0, 5.0]])}
    weights = {"w": torch.ones(2, 2), "v": torch.ones(1)}
    assert changed_weights(weights, factors)["w"].tolist() == [[4.0, 6.0], [7.0, 11.0]]
    assert changed_weights(weights, {}) == {}
