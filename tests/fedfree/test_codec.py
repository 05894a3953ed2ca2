"""The contract: what goes in comes out, and what breaks it is refused with the reason."""

import dataclasses
import math

import pytest
import safetensors.torch
import torch

from fedfree.adaptation import Recipe
from fedfree.architectures import Architecture, InputSpec, build
from fedfree.codec import (
    Contribution,
    MetaLearner,
    Provenance,
    contribution_id,
    decode_contribution,
    decode_meta_learner,
    describe_meta_learner,
    encode_contribution,
    encode_meta_learner,
    encode_tensors,
    encode_weights,
    load_network,
    read_tensors,
)
from fedfree.errors import ContributionError
from fedfree.statement import (
    Composition,
    DifferentialPrivacy,
    DpSgd,
    InitialWeights,
    PrivacyStatement,
    PrivacyStatus,
)
from fedfree.v1 import contribution_pb2, meta_learner_pb2

INPUT = InputSpec(channels=1, height=16, width=16, mean=(0.25,), std=(0.5,), horizontal_flip=False)

SPENT = DifferentialPrivacy(
    epsilon=2.5,
    delta=1e-6,
    run=DpSgd(noise_multiplier=1.25, sampling_rate=0.125, steps=80),
    max_grad_norm=0.5,
    images=2400,
    images_rounded_to=100,
    accountant="prv",
    software="fedfree 0",
    composition=Composition(3.5, 2, 1, 8.0),
)


def make_contribution(name: str = "conv4") -> Contribution:
    torch.manual_seed(0)
    architecture = Architecture.parse(name)
    network = build(architecture, num_classes=3, input=INPUT)
    return Contribution(architecture, 3, INPUT, PrivacyStatement(), encode_weights(network))


def with_tensors(contribution: Contribution, **changes: torch.Tensor | None) -> Contribution:
    tensors = safetensors.torch.load(contribution.weights)
    for name, tensor in changes.items():
        name = name.replace("__", ".")
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    return dataclasses.replace(contribution, weights=safetensors.torch.save(tensors))


def refusal(contribution: Contribution) -> str:
    with pytest.raises(ContributionError) as caught:
        decode_contribution(encode_contribution(contribution), contribution.weights)
    return str(caught.value)


@pytest.mark.parametrize("name", ["conv4", "conv4-64-group", "resnet10-group", "torchvision/mobilenet_v2"])
def test_a_contribution_survives_the_round_trip(name: str) -> None:
    contribution = make_contribution(name)
    decoded = decode_contribution(encode_contribution(contribution), contribution.weights)
    assert decoded == contribution
    images = torch.rand(2, 1, 16, 16)
    assert torch.equal(decoded.network()(images), contribution.network()(images))


def test_tensors_are_read_in_the_order_of_their_names() -> None:
    names = [f"{number:02}" for number in range(30)]
    data = encode_tensors({name: torch.zeros(1) for name in reversed(names)})
    assert list(read_tensors(data, "the weights")) == names


@pytest.mark.parametrize(
    "recipe", [Recipe("gradient", 10, 0.25, 0.5), Recipe(mirror=True), Recipe(levels=True)], ids=str
)
def test_a_meta_learner_survives_the_round_trip(recipe: Recipe) -> None:
    contribution = make_contribution()
    provenance = Provenance(("ab" * 32, "cd" * 32), "ef" * 32, 7, "fedfree 0")
    sent = MetaLearner(contribution.architecture, 3, INPUT, recipe, provenance, contribution.weights)
    assert decode_meta_learner(encode_meta_learner(sent), sent.weights) == sent
    begun = dataclasses.replace(sent, provenance=dataclasses.replace(provenance, start="12" * 32))
    assert decode_meta_learner(encode_meta_learner(begun), sent.weights) == begun


def test_the_manifest_of_a_meta_learner_says_everything_but_its_weights() -> None:
    contribution = make_contribution()
    provenance = Provenance(("ab" * 32,), "ef" * 32, 7, "fedfree 0")
    sent = MetaLearner(contribution.architecture, 3, INPUT, Recipe(), provenance, contribution.weights)
    manifest = encode_meta_learner(sent)
    assert describe_meta_learner(manifest) == dataclasses.replace(sent, weights=b"")
    message = meta_learner_pb2.MetaLearner.FromString(manifest)
    message.weights_sha256 = b"short"
    with pytest.raises(ContributionError, match="has 32 bytes, the manifest states 5"):
        describe_meta_learner(message.SerializeToString(deterministic=True))
    message.protocol_version += 1
    with pytest.raises(ContributionError, match="install the same release"):
        describe_meta_learner(message.SerializeToString(deterministic=True))
    with pytest.raises(ContributionError, match=r"not a valid fedfree\.v1\.MetaLearner"):
        describe_meta_learner(manifest[:-1])


def test_the_same_contribution_has_the_same_id_and_another_has_not() -> None:
    contribution = make_contribution()
    changed = dataclasses.replace(contribution, privacy=PrivacyStatement(PrivacyStatus.EMPIRICAL_ONLY))
    identity = contribution_id(encode_contribution(contribution))
    assert identity == contribution_id(encode_contribution(make_contribution()))
    assert identity != contribution_id(encode_contribution(changed))


def test_an_unknown_architecture_is_refused() -> None:
    manifest = contribution_pb2.Contribution.FromString(encode_contribution(make_contribution()))
    manifest.architecture.id = "transformer9000"
    with pytest.raises(ContributionError, match="unknown architecture 'transformer9000'"):
        decode_contribution(manifest.SerializeToString(), make_contribution().weights)


def test_a_missing_tensor_is_refused_by_name() -> None:
    assert "missing ['head.bias']" in refusal(with_tensors(make_contribution(), head__bias=None))


def test_an_extra_tensor_is_refused_by_name() -> None:
    assert "unexpected ['backdoor']" in refusal(with_tensors(make_contribution(), backdoor=torch.zeros(1)))


def test_a_wrong_shape_is_refused_with_both_shapes() -> None:
    reason = refusal(with_tensors(make_contribution(), head__bias=torch.zeros(4)))
    assert "'head.bias'" in reason
    assert "must be float32 [3], got float32 [4]" in reason


def test_a_wrong_type_is_refused() -> None:
    reason = refusal(with_tensors(make_contribution(), head__bias=torch.zeros(3, dtype=torch.float64)))
    assert "must be float32 [3], got float64 [3]" in reason


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(value: float) -> None:
    bias = torch.tensor([0.0, value, 0.0])
    assert "'head.bias' holds NaN or infinity" in refusal(with_tensors(make_contribution(), head__bias=bias))


def test_a_negative_running_variance_is_refused() -> None:
    variance = {"blocks__0__1__running_var": -torch.ones(32)}
    assert "negative variance" in refusal(with_tensors(make_contribution(), **variance))


def test_weights_that_do_not_match_their_hash_are_refused() -> None:
    contribution = make_contribution()
    with pytest.raises(ContributionError, match="sha256"):
        decode_contribution(encode_contribution(contribution), contribution.weights + b"\0")


def test_weights_that_are_no_safetensors_are_refused() -> None:
    assert "not valid safetensors" in refusal(dataclasses.replace(make_contribution(), weights=b"pickle"))


def test_a_manifest_that_is_no_protobuf_is_refused() -> None:
    with pytest.raises(ContributionError, match="not a valid fedfree"):
        decode_contribution(b"\xff\xff\xff", b"")


def test_another_protocol_version_is_refused_with_the_remedy() -> None:
    manifest = contribution_pb2.Contribution.FromString(encode_contribution(make_contribution()))
    manifest.protocol_version = 99
    with pytest.raises(ContributionError, match="install the same release"):
        decode_contribution(manifest.SerializeToString(), make_contribution().weights)


def test_a_contribution_without_privacy_statement_is_refused() -> None:
    manifest = contribution_pb2.Contribution.FromString(encode_contribution(make_contribution()))
    manifest.ClearField("privacy")
    with pytest.raises(ContributionError, match="privacy statement is missing"):
        decode_contribution(manifest.SerializeToString(), make_contribution().weights)


def test_the_manifest_holds_no_class_name_and_no_sample_count() -> None:
    fields = {field.name for field in contribution_pb2.Contribution.DESCRIPTOR.fields}
    assert fields == {
        "protocol_version", "architecture", "num_classes", "input", "privacy", "weights_sha256",
        "start_sha256",
    }  # fmt: skip


def test_counters_of_batches_which_tell_the_number_of_images_are_not_sent() -> None:
    network = build(Architecture(), num_classes=3, input=InputSpec()).train()
    network(torch.rand(4, 3, 32, 32))
    sent = safetensors.torch.load(encode_weights(network))
    counters = [tensor for name, tensor in sent.items() if name.endswith("num_batches_tracked")]
    assert counters and all(int(counter) == 0 for counter in counters)


def test_a_torchvision_network_that_insists_on_its_version_marks_is_read_back() -> None:
    spec, architecture = InputSpec(), Architecture("torchvision/mnasnet0_5")
    network = build(architecture, num_classes=3, input=spec)
    read = load_network(architecture, 3, spec, encode_weights(network))
    assert encode_weights(read) == encode_weights(network)


def under_privacy(name: str = "conv4-group") -> Contribution:
    privacy = PrivacyStatement(PrivacyStatus.DP, SPENT, InitialWeights("ab" * 32, public=True))
    return dataclasses.replace(make_contribution(name), privacy=privacy)


def test_a_privacy_statement_survives_the_round_trip() -> None:
    contribution = under_privacy()
    assert decode_contribution(encode_contribution(contribution), contribution.weights) == contribution


@pytest.mark.parametrize("name", ["conv4", "resnet10", "torchvision/mobilenet_v2"])
def test_batch_norm_under_differential_privacy_is_refused_by_name(name: str) -> None:
    assert "(BatchNorm2d) couples the images of a batch" in refusal(under_privacy(name))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epsilon", 0.0),
        ("epsilon", math.nan),
        ("epsilon", math.inf),
        ("delta", 0.0),
        ("delta", 1.0),
        ("delta", 1e-3),
        ("noise_multiplier", 0.0),
        ("noise_multiplier", math.nan),
        ("sampling_rate", 0.0),
        ("sampling_rate", 1.5),
        ("steps", 0),
        ("steps", 10**12),
        ("max_grad_norm", 0.0),
        ("mechanism", 0),
        ("composition", None),
    ],
)
def test_a_statement_out_of_range_is_refused(field: str, value: float | None) -> None:
    contribution = under_privacy()
    manifest = contribution_pb2.Contribution.FromString(encode_contribution(contribution))
    spent = manifest.privacy.differential_privacy
    if value is None:
        spent.ClearField("composition")
    else:
        setattr(spent, field, value)
    with pytest.raises(ContributionError):
        decode_contribution(manifest.SerializeToString(), contribution.weights)


def test_a_status_that_its_numbers_contradict_is_refused() -> None:
    contribution = under_privacy()
    manifest = contribution_pb2.Contribution.FromString(encode_contribution(contribution))
    manifest.privacy.status = contribution_pb2.PrivacyStatement.STATUS_NONE
    with pytest.raises(ContributionError, match="must not say what was spent"):
        decode_contribution(manifest.SerializeToString(), contribution.weights)


def test_a_meta_learner_says_which_public_images_there_were_and_nothing_where_there_were_none() -> None:
    network = build(Architecture(), num_classes=3, input=InputSpec())
    plain = Provenance(("ab" * 32,), "cd" * 32, 7, "fedfree")
    told = dataclasses.replace(plain, public_images=5, public_images_sha256="ef" * 32)
    for provenance in (plain, told):
        sent = MetaLearner(Architecture(), 3, InputSpec(), Recipe(), provenance, encode_weights(network))
        manifest = encode_meta_learner(sent)
        assert decode_meta_learner(manifest, sent.weights) == sent
        assert (bytes.fromhex("ef" * 32) in manifest) == (provenance is told)
    message = meta_learner_pb2.MetaLearner.FromString(manifest)
    message.provenance.public_images_sha256 = b"short"
    with pytest.raises(ContributionError, match=r"a sha256 has 32 bytes, .* states 5 \(rule hashes\)"):
        decode_meta_learner(message.SerializeToString(), sent.weights)
