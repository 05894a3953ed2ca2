"""Every rule of the contract refuses exactly what it is there for, by name, and no more."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
import safetensors.torch
import torch

from fedfree import codec
from fedfree.architectures import MAX_IMAGE_SIZE, Architecture, InputSpec, blueprint, build
from fedfree.architectures.blueprint import check_cost
from fedfree.codec import (
    MIN_VARIANCE,
    Contribution,
    decode_contribution,
    encode_contribution,
    encode_weights,
    raise_variances,
)
from fedfree.errors import ContributionError, printable
from fedfree.rule import RULES
from fedfree.start import LoadedStart
from fedfree.statement import (
    MAX_DELTA,
    Composition,
    DifferentialPrivacy,
    DpSgd,
    InitialWeights,
    PrivacyStatement,
    PrivacyStatus,
)
from fedfree.tensors import MAX_HEADER_BYTES, read_header
from fedfree.v1 import contribution_pb2 as schema

INPUT = InputSpec(channels=1, height=16, width=16)
SPENT = DifferentialPrivacy(
    epsilon=2.5,
    delta=1e-6,
    run=DpSgd(noise_multiplier=1.25, sampling_rate=0.125, steps=80),
    max_grad_norm=0.5,
    images=2400,
    images_rounded_to=100,
    accountant="prv",
    software="a test",
    composition=Composition(3.5, 2, 1, 8.0),
)


def contribution(name: str = "conv4", **changes: Any) -> Contribution:
    torch.manual_seed(0)
    architecture = Architecture.parse(name)
    weights = encode_weights(build(architecture, num_classes=3, input=INPUT))
    made = Contribution(architecture, 3, INPUT, PrivacyStatement(), weights)
    return dataclasses.replace(made, **changes)


def private(**changes: Any) -> Contribution:
    spent = dataclasses.replace(SPENT, **changes)
    initial = InitialWeights("ab" * 32, public=True)
    return contribution("conv4-group", privacy=PrivacyStatement(PrivacyStatus.DP, spent, initial))


def manifest_of(sent: Contribution, change: Callable[[Any], object] = lambda message: None) -> bytes:
    message = schema.Contribution.FromString(encode_contribution(sent))
    change(message)
    return message.SerializeToString(deterministic=True)


def with_weights(sent: Contribution, weights: bytes) -> tuple[bytes, bytes]:
    return encode_contribution(dataclasses.replace(sent, weights=weights)), weights


def with_header(
    sent: Contribution, change: Callable[[dict[str, Any]], object], **how: Any
) -> tuple[bytes, bytes]:
    """The weights under another header, padded as safetensors pads it."""
    length = int.from_bytes(sent.weights[:8], "little")
    header = json.loads(sent.weights[8 : 8 + length])
    change(header)
    text = json.dumps(header, **({"separators": (",", ":")} | how)).encode()
    text += b" " * (-len(text) % 8)
    return with_weights(sent, len(text).to_bytes(8, "little") + text + sent.weights[8 + length :])


def with_tensor(
    sent: Contribution, name: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[bytes, bytes]:
    tensors = safetensors.torch.load(sent.weights)
    tensors[name] = change(tensors[name])
    return with_weights(sent, safetensors.torch.save(tensors))


def changed(sent: Contribution, change: Callable[[Any], object]) -> tuple[bytes, bytes]:
    return manifest_of(sent, change), sent.weights


def set_spent(name: str, value: float) -> Callable[[Any], object]:
    return lambda message: setattr(message.privacy.differential_privacy, name, value)


def filled(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tensor: torch.full_like(tensor, value)


def nan_first(tensor: torch.Tensor) -> torch.Tensor:
    tensor.flatten()[0] = torch.nan
    return tensor


VARIANCE = "blocks.1.1.running_var"
CASES: dict[str, tuple[str, Callable[[], tuple[bytes, bytes]]]] = {
    "a manifest of 2 MB": ("manifest-size", lambda: (b"\0" * (2 << 20), b"")),
    "no protobuf": ("manifest-form", lambda: (b"\xff\xff", b"")),
    "a field nobody knows": (
        "manifest-form",
        lambda: (encode_contribution(contribution()) + b"\xa2\x06\x03abc", contribution().weights),
    ),
    "a field nobody knows, further in": (
        "manifest-form",
        lambda: changed(contribution(), lambda m: m.input.MergeFromString(b"\xa2\x06\x03abc")),
    ),
    "a default that is left out": (
        "manifest-form",
        lambda: changed(contribution(), lambda m: m.architecture.ClearField("width")),
    ),
    "another protocol": (
        "protocol",
        lambda: changed(contribution(), lambda m: setattr(m, "protocol_version", 9)),
    ),
    "an unknown architecture": (
        "architecture",
        lambda: changed(contribution(), lambda m: setattr(m.architecture, "id", "transformer9000")),
    ),
    "the 141 bytes that took 19 seconds": (
        "architecture",
        lambda: changed(
            contribution(num_classes=10_000),
            lambda m: m.architecture.CopyFrom(schema.Architecture(id="torchvision/vit_h_14")),
        ),
    ),
    "an image of 8 pixels": (
        "input",
        lambda: changed(contribution(), lambda m: setattr(m.input, "height", 8)),
    ),
    "one class": ("classes", lambda: changed(contribution(), lambda m: setattr(m, "num_classes", 1))),
    "10,001 classes": (
        "classes",
        lambda: changed(contribution(), lambda m: setattr(m, "num_classes", 10_001)),
    ),
    "too many parameters": (
        "cost",
        lambda: changed(contribution(num_classes=10_000, input=InputSpec(3, 512, 512)), lambda m: None),
    ),
    "too many multiplications": (
        "cost",
        lambda: (
            encode_contribution(
                contribution(architecture=Architecture("torchvision/vgg13"), input=InputSpec(3, 512, 512))
            ),
            contribution().weights,
        ),
    ),
    "no statement": ("statement", lambda: changed(contribution(), lambda m: m.ClearField("privacy"))),
    "a delta that promises nothing": (
        "statement",
        lambda: changed(private(images=0), set_spent("delta", 0.999)),
    ),
    "an epsilon that nobody reaches": ("statement", lambda: changed(private(), set_spent("epsilon", 1e-9))),
    "batches that are empty": ("statement", lambda: changed(private(), set_spent("sampling_rate", 1e-6))),
    "images that are not rounded": ("statement", lambda: changed(private(), set_spent("images", 2401))),
    "software of two lines": ("statement", lambda: changed(private(), set_spent("software", "a\nb"))),  # type: ignore[arg-type]
    "initial weights without a hash": (
        "hashes",
        lambda: changed(private(), lambda m: setattr(m.privacy.initial_weights, "sha256", b"x" * 900_000)),
    ),
    "BatchNorm under differential privacy": (
        "private-layers",
        lambda: changed(contribution(privacy=private().privacy), lambda m: None),
    ),
    "other weights": (
        "weights-hash",
        lambda: (encode_contribution(contribution()), contribution().weights + b"\0"),
    ),
    "metadata": (
        "weights-header",
        lambda: with_header(contribution(), lambda h: h.update(__metadata__={"path": "/home/someone"})),
    ),
    "a header with room for more": (
        "weights-header",
        lambda: with_header(contribution(), lambda h: None, indent=1),
    ),
    "more than the network holds": ("weights-size", lambda: with_weights(contribution(), bytes(2 << 20))),
    "a type with an escape sequence": (
        "weights-header",
        lambda: with_header(contribution(), lambda h: h["head.bias"].update(dtype="\x1b[31mF32\n")),
    ),
    "a shape without end": (
        "weights-header",
        lambda: with_header(contribution(), lambda h: h["head.bias"].update(shape=[0, 2**63])),
    ),
    "tensors that share bytes": (
        "weights-header",
        lambda: with_header(
            contribution(), lambda h: h["head.bias"].update(data_offsets=h[VARIANCE]["data_offsets"])
        ),
    ),
    "a name of another": (
        "tensor-names",
        lambda: with_header(contribution(), lambda h: h.update({"head.bios": h.pop("head.bias")})),
    ),
    "another type": ("tensor-shapes", lambda: with_tensor(contribution(), "head.bias", lambda t: t.int())),
    "another shape": ("tensor-shapes", lambda: with_tensor(contribution(), "head.bias", lambda t: t[None])),
    "NaN": ("tensor-values", lambda: with_tensor(contribution(), "head.bias", nan_first)),
    "a negative variance": ("tensor-values", lambda: with_tensor(contribution(), VARIANCE, filled(-1.0))),
    "a variance of 0": ("variances", lambda: with_tensor(contribution(), VARIANCE, filled(0.0))),
    "a variance of 1e-38": ("variances", lambda: with_tensor(contribution(), VARIANCE, filled(1e-38))),
}


@pytest.mark.parametrize("case", CASES)
def test_what_breaks_a_rule_is_refused_by_its_name(case: str) -> None:
    name, make = CASES[case]
    with pytest.raises(ContributionError) as caught:
        decode_contribution(*make())
    assert caught.value.rule == name
    assert str(caught.value).endswith(f"(rule {name})")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1100


NEAREST: dict[str, Callable[[], tuple[bytes, bytes]]] = {
    "as it is": lambda: changed(contribution(), lambda m: None),
    "under differential privacy": lambda: changed(private(), lambda m: None),
    "the largest delta": lambda: changed(private(images=0), set_spent("delta", MAX_DELTA)),
    "batches of one image": lambda: changed(private(), set_spent("sampling_rate", 1 / 2500)),
    "the smallest variance": lambda: with_tensor(contribution(), VARIANCE, filled(MIN_VARIANCE)),
    "a header in another order": lambda: with_header(
        contribution(), lambda h: h.update({VARIANCE: h.pop(VARIANCE)})
    ),
    "two classes": lambda: with_weights(
        contribution(num_classes=2), encode_weights(build(Architecture(), num_classes=2, input=INPUT))
    ),
}


@pytest.mark.parametrize("case", NEAREST)
def test_the_nearest_thing_that_breaks_no_rule_is_accepted_and_encoded_as_it_came(case: str) -> None:
    manifest, weights = NEAREST[case]()
    assert encode_contribution(decode_contribution(manifest, weights)) == manifest


def test_every_rule_of_the_contract_is_broken_by_some_case() -> None:
    broken = {name for name, _ in CASES.values()}
    assert RULES.keys() - broken == {"trained"}  # which has a test of its own


def test_running_statistics_that_belong_to_the_start_break_a_rule(
    make_start: Callable[..., LoadedStart], contribute_from: Callable[..., tuple[bytes, bytes]]
) -> None:
    tensors = safetensors.torch.load(contribute_from(make_start())[1])
    tensors["blocks.0.1.running_mean"] = torch.zeros(32)
    weights = safetensors.torch.save(tensors)
    with pytest.raises(ContributionError) as caught:
        decode_contribution(*contribute_from(make_start(), weights=weights))
    assert caught.value.rule == "trained"


def test_weights_beyond_the_limit_are_refused_before_they_are_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = contribution()
    monkeypatch.setattr(codec, "MAX_WEIGHTS_BYTES", len(sent.weights))
    assert decode_contribution(encode_contribution(sent), sent.weights) == sent
    monkeypatch.setattr(codec, "MAX_WEIGHTS_BYTES", len(sent.weights) - 1)
    with pytest.raises(ContributionError) as caught:
        decode_contribution(encode_contribution(sent), sent.weights)
    assert caught.value.rule == "weights-size"


def test_a_header_says_no_more_than_its_limit() -> None:
    with pytest.raises(ContributionError, match=f"header of {MAX_HEADER_BYTES + 1}"):
        read_header((MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b" " * (2 << 20), "the weights")


def test_a_blueprint_allocates_nothing_and_is_what_is_built() -> None:
    for name in (
        "conv4",
        "resnet18-group",
        "torchvision/regnet_y_400mf",
        "torchvision/swin_v2_t",
        "timm/convnext_atto",
    ):
        architecture, spec = Architecture.parse(name), InputSpec(height=64, width=64)
        drawn, built = (
            network.state_dict()
            for network in (blueprint(architecture, 4, spec), build(architecture, num_classes=4, input=spec))
        )
        assert {tensor.device.type for tensor in blueprint(architecture, 4, spec).parameters()} == {"meta"}
        assert [(k, v.shape, v.dtype) for k, v in drawn.items()] == [
            (k, v.shape, v.dtype) for k, v in built.items()
        ]


def test_a_blueprint_draws_no_random_number() -> None:
    before = torch.get_rng_state()
    blueprint.__wrapped__(Architecture("timm/mobilenetv3_small_050"), 3, INPUT)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_library_that_cannot_take_a_size_is_a_refusal_whatever_it_raises() -> None:
    with pytest.raises(ContributionError, match="torchvision/vit_b_16 cannot take 3x33x33 images"):
        build(Architecture("torchvision/vit_b_16"), num_classes=2, input=InputSpec(3, 33, 33))


def test_every_network_of_ours_at_every_size_costs_less_than_the_most() -> None:
    for name in ("conv4-64", "resnet18"):
        largest = InputSpec(3, MAX_IMAGE_SIZE, MAX_IMAGE_SIZE)
        check_cost(blueprint(Architecture.parse(name), 100, largest), name, largest)


def test_raised_variances_change_no_output() -> None:
    torch.manual_seed(0)
    network = build(Architecture(), num_classes=3, input=INPUT)
    images = torch.rand(8, 1, 16, 16)
    network.get_buffer(VARIANCE)[:5] = torch.tensor([0.0, 1e-45, 1e-38, 1e-20, 1e-13])
    with torch.no_grad():
        before = network(images)
        assert raise_variances(network) == 5
        assert torch.equal(network(images), before)
    weights = encode_weights(network)
    decode_contribution(encode_contribution(contribution(weights=weights)), weights)


@pytest.mark.parametrize("text", ["a\nb", "\x1b[2J", "\u202e", "x" * 5000, "\r", "\x00"])
def test_words_of_others_become_one_short_printable_line(text: str) -> None:
    shown = printable(f"before {text} after")
    assert shown.isprintable() and len(shown) <= 1000
    assert str(ContributionError(text)) == printable(text)


@pytest.mark.parametrize("length", [1000, 5000, 1_000_000])
def test_of_words_too_long_the_middle_is_left_out_not_what_to_do(length: int) -> None:
    shown = printable(f"cannot open {'x' * length}: take it out")
    assert shown.startswith("cannot open x") and shown.endswith("x: take it out")
    assert len(shown) <= 1000 and "x…x" in shown
