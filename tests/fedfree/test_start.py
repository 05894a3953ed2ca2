"""A start is its bytes: one manifest, one hash, the body's tensors, and a refusal for everything else."""

from dataclasses import replace

import pytest
import safetensors.torch
import torch

from fedfree.architectures import Architecture, Classifier, InputSpec, build
from fedfree.codec import (
    Contribution,
    decode_contribution,
    encode_contribution,
    encode_tensors,
    encode_weights,
    sha256,
)
from fedfree.errors import ContributionError, StartError
from fedfree.start import (
    LICENCES,
    LoadedStart,
    Start,
    check_licence,
    decode_start,
    describe_start,
    encode_body,
    encode_start,
    fill_body,
    find_start,
    read_body,
    require_start,
    trained_tensors,
)
from fedfree.statement import PrivacyStatement
from fedfree.v1 import contribution_pb2, start_pb2

SPEC = InputSpec(3, 16, 16, mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.3))


def make(architecture: str = "conv4", *, classes: int = 4) -> tuple[Start, bytes, Classifier]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(classes)
        network = build(Architecture.parse(architecture), num_classes=classes, input=SPEC)
    weights = encode_body(network)
    start = Start(Architecture.parse(architecture), sha256(weights), SPEC, "a paper, table 2", "MIT")
    return start, weights, network


def test_a_start_that_is_encoded_and_decoded_is_the_same_and_so_is_its_hash() -> None:
    start, weights, _ = make()
    decoded = decode_start(encode_start(start), weights)
    assert decoded == start == describe_start(encode_start(start))
    assert decoded.sha256 == sha256(encode_start(start))


def test_the_hash_depends_on_every_field() -> None:
    start = make()[0]
    others = [
        replace(start, architecture=Architecture("resnet10")),
        replace(start, weights_sha256="0" * 64),
        replace(start, input=replace(SPEC, mean=(0.4, 0.5, 0.5))),
        replace(start, source="another paper"),
        replace(start, licence="Apache-2.0"),
    ]
    assert len({each.sha256 for each in (start, *others)}) == 6


def test_the_body_begins_from_the_start_and_the_head_stays_ones_own() -> None:
    _, weights, public = make(classes=4)
    own = make(classes=7)[2]
    head = own.head.weight.clone()  # type: ignore[operator]
    fill_body(own, read_body(weights), "conv4")
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(own.features(images), public.features(images))
    assert torch.equal(own.head.weight, head)  # type: ignore[arg-type]


def test_a_counter_of_batches_does_not_change_the_hash() -> None:
    _, weights, network = make()
    network.train()(torch.rand(4, 3, 16, 16))
    state = network.state_dict()
    assert any(name.endswith("num_batches_tracked") and tensor == 1 for name, tensor in state.items())
    body = safetensors.torch.load(encode_body(network))
    assert all(not tensor for name, tensor in body.items() if name.endswith("num_batches_tracked"))
    assert body.keys() == safetensors.torch.load(weights).keys()


@pytest.mark.parametrize("cut", [0, 8, 1000, -1])
def test_truncated_weights_are_refused(cut: int) -> None:
    start, weights, _ = make()
    with pytest.raises(ContributionError, match="the weights' sha256 is"):
        decode_start(encode_start(start), weights[:cut])
    short = replace(start, weights_sha256=sha256(weights[:cut]))
    with pytest.raises(ContributionError, match="not valid safetensors"):
        decode_start(encode_start(short), weights[:cut])


def test_every_truncated_manifest_is_refused() -> None:
    start, weights, _ = make()
    manifest = encode_start(start)
    for cut in range(len(manifest)):
        with pytest.raises(ContributionError):
            decode_start(manifest[:cut], weights)


def test_a_start_with_a_head_is_refused() -> None:
    start, _, network = make()
    weights = encode_weights(network)
    with_head = replace(start, weights_sha256=sha256(weights))
    with pytest.raises(ContributionError, match=r"hold a head \(head.bias, head.weight\)"):
        decode_start(encode_start(with_head), weights)


def test_weights_of_another_architecture_are_refused() -> None:
    start, weights, _ = make()
    other = replace(start, architecture=Architecture("resnet10"))
    with pytest.raises(ContributionError, match="resnet10-batch expects other tensors"):
        decode_start(encode_start(other), weights)
    wider = replace(start, architecture=Architecture.parse("conv4-64"))
    with pytest.raises(ContributionError, match="of conv4-64-batch must be float32"):
        decode_start(encode_start(wider), weights)


@pytest.mark.parametrize(
    "field", ["protocol_version", "architecture", "weights_sha256", "input", "source", "licence"]
)
def test_a_missing_field_is_named(field: str) -> None:
    start, weights, _ = make()
    message = start_pb2.Start.FromString(encode_start(start))
    message.ClearField(field)  # type: ignore[arg-type]
    with pytest.raises(ContributionError, match=f"lacks its {field}"):
        decode_start(message.SerializeToString(), weights)


def test_what_another_release_understands_is_refused_by_its_version() -> None:
    start, weights, _ = make()
    message = start_pb2.Start.FromString(encode_start(start))
    message.protocol_version += 1
    with pytest.raises(ContributionError, match="protocol version"):
        decode_start(message.SerializeToString(), weights)


def test_two_manifests_never_mean_the_same_start() -> None:
    start, weights, _ = make()
    with pytest.raises(ContributionError, match="not encoded as"):
        decode_start(encode_start(start) + b"\x98\x06\x01", weights)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"weights_sha256": "abc"}, "sha256 of its weights"),
        ({"source": ""}, "where its weights come from"),
        ({"source": "two\nlines"}, "where its weights come from"),
        ({"licence": ""}, "such as Apache-2.0"),
        ({"licence": "do as you like"}, "such as Apache-2.0"),
    ],
)
def test_a_start_that_says_too_little_cannot_be_made(values: dict[str, str], word: str) -> None:
    with pytest.raises(ContributionError, match=word):
        replace(make()[0], **values)  # type: ignore[arg-type]


def test_licences_that_permit_this_use_are_known_however_they_are_written() -> None:
    for licence in LICENCES:
        check_licence(licence.lower())
        assert replace(make()[0], licence=licence.lower()).licence == licence


def test_any_other_licence_is_refused_until_a_person_accepts_it() -> None:
    with pytest.raises(ContributionError, match=r"--accept-licence CC-BY-NC-4\.0"):
        check_licence("CC-BY-NC-4.0")
    check_licence("CC-BY-NC-4.0", accepted=("cc-by-nc-4.0",))


def make_trained(*, classes: int = 3) -> tuple[LoadedStart, Classifier, Contribution]:
    """A start, a network of which one layer was trained from there, and what is contributed of it."""
    start, weights, _ = make()
    loaded, network = LoadedStart(start, weights), make(classes=classes)[2]
    fill_body(network, loaded.body, "conv4")
    with torch.no_grad():
        network.get_parameter("blocks.3.0.weight").mul_(2)
    return loaded, network, contribute(loaded, trained_tensors(network, loaded.body), classes=classes)


def contribute(loaded: LoadedStart, tensors: dict[str, torch.Tensor], *, classes: int = 3) -> Contribution:
    start = loaded.start
    statement = PrivacyStatement(initial_weights=start.initial_weights)
    weights = encode_tensors(tensors)
    return Contribution(start.architecture, classes, SPEC, statement, weights, start.sha256)


def decode(contribution: Contribution) -> Contribution:
    return decode_contribution(encode_contribution(contribution), contribution.weights)


def test_only_what_was_trained_travels_and_the_start_gives_the_rest() -> None:
    loaded, network, contribution = make_trained()
    sent = safetensors.torch.load(contribution.weights)
    assert sent.keys() == {"head.weight", "head.bias", "blocks.3.0.weight"}
    arrived = decode(contribution)
    assert arrived == contribution
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(arrived.network(loaded.body)(images), network(images))


def test_where_the_head_alone_was_trained_the_head_alone_travels() -> None:
    loaded, network, _ = make_trained()
    fill_body(network, loaded.body, "conv4")
    assert trained_tensors(network, loaded.body).keys() == {"head.weight", "head.bias"}


def test_without_its_start_a_contribution_is_no_network_and_the_start_is_named() -> None:
    loaded, _, contribution = make_trained()
    with pytest.raises(ContributionError, match=f"start {loaded.start.sha256[:12]}…: give that start"):
        contribution.network()


def test_a_contribution_without_a_start_is_whole_and_says_nothing_of_one() -> None:
    _, _, network = make()
    contribution = Contribution(Architecture(), 4, SPEC, PrivacyStatement(), encode_weights(network))
    manifest = encode_contribution(contribution)
    assert decode(contribution) == contribution and not contribution.start
    named = contribution_pb2.Contribution.FromString(manifest).ListFields()
    assert "start_sha256" not in {field.name for field, _ in named}
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(contribution.network()(images), network(images))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"head.bias": None}, r"missing \['head.bias'\]"),
        ({"backdoor": torch.zeros(1)}, r"unexpected \['backdoor'\]"),
        ({"blocks.0.1.running_mean": torch.zeros(32)}, "'blocks.0.1.running_mean' from its start"),
        ({"blocks.0.1.num_batches_tracked": torch.tensor(0)}, "never travel"),
        ({"blocks.0.0.weight": torch.zeros(32, 1, 3, 3)}, r"must be float32 \[32, 3, 3, 3\]"),
        ({"blocks.0.0.weight": torch.full((32, 3, 3, 3), torch.nan)}, "NaN or infinity"),
        ({"head.bias": torch.zeros(3, dtype=torch.float64)}, "got float64"),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_what_may_not_travel_from_a_start_is_refused_by_name(
    changes: dict[str, torch.Tensor | None], word: str
) -> None:
    loaded, network, _ = make_trained()
    tensors = trained_tensors(network, loaded.body) | changes
    sent = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    with pytest.raises(ContributionError, match=word):
        decode(contribute(loaded, sent))


def test_a_start_of_another_length_than_a_hash_is_refused() -> None:
    contribution = make_trained()[2]
    message = contribution_pb2.Contribution.FromString(encode_contribution(contribution))
    message.start_sha256 = b"short"
    with pytest.raises(ContributionError, match="has 32 bytes, the manifest states 5"):
        decode_contribution(message.SerializeToString(), contribution.weights)


def test_one_of_several_starts_is_found_by_its_first_digits_and_else_the_first() -> None:
    starts = ["ab1" + "0" * 61, "ab2" + "0" * 61, "c" * 64]
    assert find_start(starts) == find_start(starts, "ab1") == find_start(starts, starts[0]) == starts[0]
    assert find_start(starts, "C") == starts[2]
    assert find_start([*starts, starts[2]], "c") == starts[2], "one that is named twice is one"
    assert find_start([]) == ""


def test_digits_of_several_starts_or_of_none_are_refused_with_the_candidates() -> None:
    starts = ["ab1" + "0" * 61, "ab2" + "0" * 61, "c" * 64]
    for digits, named, words in (
        (
            "ab",
            starts,
            "2 of the federation's starts begin with ab: name one of ab1000000000…, ab2000000000…$",
        ),
        ("d", starts, "^none of .* with d: name one of ab1000000000…, ab2000000000…, cccccccccccc…$"),
        ("d", [], "^none of .* with d: it has none, so name none$"),
    ):
        with pytest.raises(StartError, match=words):
            find_start(named, digits)


def test_who_began_where_the_federation_begins_is_let_in_mirrored_or_not() -> None:
    loaded, _, contribution = make_trained()
    require_start(contribution, [loaded.start])
    require_start(replace(contribution, input=replace(SPEC, horizontal_flip=False)), [loaded.start])
    require_start(replace(contribution, start=""), [])
    require_start(contribution, [replace(loaded.start, source="elsewhere"), loaded.start])


def test_who_began_elsewhere_is_refused_with_both_starts_named() -> None:
    loaded, _, contribution = make_trained()
    start, other = loaded.start, replace(loaded.start, source="elsewhere")
    for wrong, federation, words in [
        (
            contribution,
            other,
            f"start {start.sha256[:12]}…, this federation from the start {other.sha256[:12]}…",
        ),
        (replace(contribution, start=""), start, f"no public start, .* from the start {start.sha256[:12]}"),
        (contribution, None, f"start {start.sha256[:12]}…, this federation from no public start"),
        (replace(contribution, architecture=Architecture("resnet10")), start, "resnet10.*its start a conv4"),
        (replace(contribution, input=replace(SPEC, height=32)), start, "size and normalisation are"),
        (replace(contribution, input=InputSpec(3, 16, 16)), start, "size and normalisation are"),
        (replace(contribution, privacy=PrivacyStatement()), start, "names other initial weights"),
    ]:
        with pytest.raises(ContributionError, match=words):
            require_start(wrong, [federation] if federation else [])
