"""Models to bytes and back: a protobuf manifest, and weights as safetensors. Refuses what it does not know.

Nothing here executes or unpickles what another party sent: the receiver builds the network from
its own :mod:`fedfree.architectures` and takes tensors only by the names, shapes and types it expects.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import safetensors
import safetensors.torch
import torch
from google.protobuf.message import DecodeError, Message
from torch import Tensor

from fedfree import PROTOCOL_VERSION
from fedfree.adaptation import Recipe
from fedfree.architectures import Architecture, Classifier, InputSpec, blueprint, build
from fedfree.errors import ContributionError, printable
from fedfree.low_rank import changed_weights, expected_factors
from fedfree.rule import rule
from fedfree.statement import (
    Composition,
    DifferentialPrivacy,
    DpSgd,
    InitialWeights,
    PrivacyStatement,
    PrivacyStatus,
    batch_coupled_layers,
    check_text,
)
from fedfree.tensors import MAX_HEADER_BYTES, Described, read_header
from fedfree.v1 import contribution_pb2 as contribution_schema
from fedfree.v1 import meta_learner_pb2 as meta_learner_schema

MAX_MANIFEST_BYTES = 1 << 20
MAX_WEIGHTS_BYTES = 1 << 30
MIN_VARIANCE = 2.0**-43
"""1.1e-13. Of BatchNorm's running variances, where a contribution brings its own. The layer adds at least
1e-5 to them, and a float32 of that size does not notice less than 4e-13: what is smaller, such as a dead
filter's 0, may be raised to this, and no output changes."""

_VARIANCE = "running_var"
_STATUS_TO_WIRE = {
    PrivacyStatus.NONE: contribution_schema.PrivacyStatement.STATUS_NONE,
    PrivacyStatus.EMPIRICAL_ONLY: contribution_schema.PrivacyStatement.STATUS_EMPIRICAL_ONLY,
    PrivacyStatus.DP: contribution_schema.PrivacyStatement.STATUS_DP,
}
_STATUS_FROM_WIRE = {wire: status for status, wire in _STATUS_TO_WIRE.items()}


@dataclass(frozen=True)
class Contribution:
    """One classifier as an organisation hands it over."""

    architecture: Architecture
    num_classes: int
    """Outputs of the classifier; the classes have no names here."""
    input: InputSpec
    privacy: PrivacyStatement
    weights: bytes
    """safetensors; from a start, only of what was trained."""
    start: str = ""
    """Identity of the start that training began from, hexadecimal; empty where it began elsewhere."""

    def network(self, body: Mapping[str, Tensor] | None = None) -> Classifier:
        """The classifier, built from our own code, in evaluation mode.

        Args:
            body: of the start, where the contribution names one: what was not trained is taken from it.

        Raises:
            ContributionError: the start is not given, or tensors that do not fit.
        """
        if not self.start:
            return load_network(self.architecture, self.num_classes, self.input, self.weights)
        if body is None:
            raise ContributionError(
                f"the contribution holds only what was trained from the start {short(self.start)}: give that "
                "start too (fedfree-client start fetch brings the federation's)"
            )
        return load_network(self.architecture, self.num_classes, self.input, self.weights, body)


@dataclass(frozen=True)
class Provenance:
    """Where a meta-learner comes from, as hashes only."""

    contributions: tuple[str, ...]
    """Contribution ids, hexadecimal, in the order in which they were learned from."""
    config_sha256: str
    """Of the server's resolved configuration."""
    seed: int
    software: str
    """For instance ``fedfree 0.1.0``."""
    start: str = ""
    """Identity of the start that the meta-learner began from, hexadecimal; empty where there was none."""
    public_images: int = 0
    """How many images the server had that its coordinator named as public; it never has others."""
    public_images_sha256: str = ""
    """Over their pixels, hexadecimal; empty where there were none."""


@dataclass(frozen=True)
class MetaLearner:
    """The network that goes back to everyone, with the recipe it was trained to be adapted by."""

    architecture: Architecture
    num_classes: int
    """Outputs of its meta-learned linear head."""
    input: InputSpec
    recipe: Recipe
    provenance: Provenance
    weights: bytes
    """safetensors."""

    def network(self) -> Classifier:
        """The network, built from our own code, in evaluation mode."""
        return load_network(self.architecture, self.num_classes, self.input, self.weights)


def encode_weights(network: torch.nn.Module) -> bytes:
    """A network's state dict as safetensors bytes, without metadata.

    BatchNorm's counters of batches are zero: they would tell how many images it was trained on.
    """
    return encode_tensors(network.state_dict())


def encode_tensors(state: Mapping[str, Tensor]) -> bytes:
    """Part of a state dict as :func:`encode_weights` has the whole."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    for name, tensor in tensors.items():
        if name.endswith("num_batches_tracked"):
            tensors[name] = torch.zeros_like(tensor)
    return safetensors.torch.save(tensors)


def load_network(
    architecture: Architecture,
    num_classes: int,
    input: InputSpec,
    weights: bytes,
    body: Mapping[str, Tensor] | None = None,
) -> Classifier:
    """Build the network and fill it with ``weights``; see :func:`fill_network` for what is refused."""
    network = build(architecture, num_classes=num_classes, input=input)
    tensors = read_tensors(weights, "the weights")
    fill_network(network, tensors, f"{architecture} with {num_classes} classes", body)
    return network


def read_tensors(data: bytes, what: str) -> dict[str, Tensor]:
    """Tensors by name, in the order of their names, from safetensors bytes; raises ContributionError."""
    check_weights_size(len(data), what)
    try:
        # safetensors gives them in another order in each process, and sums over them to other last digits.
        return dict(sorted(safetensors.torch.load(data).items()))
    except (safetensors.SafetensorError, ValueError, LookupError, TypeError, OverflowError) as error:
        raise ContributionError(f"{what} are not valid safetensors: {error}") from error


@rule("weights-size")
def check_weights_size(size: int, what: str = "the weights", network: torch.nn.Module | None = None) -> None:
    """The weights are at most 1 GiB, and no more than the architecture holds."""
    if size > MAX_WEIGHTS_BYTES:
        raise ContributionError(f"{what} of {size} bytes exceed the limit of {MAX_WEIGHTS_BYTES}")
    if network is None:
        return
    most = MAX_HEADER_BYTES + sum(tensor.nbytes for tensor in network.state_dict().values())
    if size > most:
        raise ContributionError(f"{what} of {size} bytes are more than the {most} that such a network takes")


def read_received(weights: bytes, expected: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """Tensors that another party sent: their names, shapes and types are compared before they are allocated.

    Args:
        expected: with the shapes and types that they must have, such as those of a blueprint.

    Raises:
        ContributionError: as :func:`fedfree.tensors.read_header` and :func:`check_tensors`.
    """
    header = read_header(weights, "the weights")
    check_names(header, expected, what)
    check_shapes(header, expected, what)
    tensors = read_tensors(weights, "the weights")
    check_values(tensors)
    return tensors


def fill_network(
    network: torch.nn.Module,
    tensors: Mapping[str, Tensor],
    what: str,
    body: Mapping[str, Tensor] | None = None,
) -> None:
    """Check tensors and load them, as :func:`complete` does."""
    network.load_state_dict(complete(network, tensors, what, body))


def complete(
    network: torch.nn.Module,
    tensors: Mapping[str, Tensor],
    what: str,
    body: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Check tensors, and give all that the network's state dict holds.

    Args:
        network: or its blueprint, which stays as it is.
        body: of a start, from which all comes that ``tensors`` do not hold.

    Raises:
        ContributionError: as :func:`check_tensors`, and from a start as :func:`check_trained`.
    """
    state, factors = network.state_dict(), dict[str, Tensor]()
    if body is not None:
        check_trained(tensors, network, what)
        factors = {name: each for name, each in tensors.items() if name not in state}
        tensors = {**body, **{name: each for name, each in tensors.items() if name in state}}
    check_tensors(tensors, state, what)
    # Into the network's own dict, whose version marks some torchvision networks insist on.
    state.update(tensors)
    state.update(changed_weights(state, factors))
    return state


def check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    """Compare tensors with the ones a network of our own has.

    Raises:
        ContributionError: a missing or extra tensor, a wrong shape or type, NaN or infinity,
            or a negative running variance.
    """
    check_names(tensors, expected, what)
    check_shapes(tensors, expected, what)
    check_values(tensors)


@rule("tensor-names")
def check_names(found: Mapping[str, Tensor | Described], expected: Mapping[str, Tensor], what: str) -> None:
    """There is every tensor of the architecture, and no other."""
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or extra:
        raise ContributionError(
            f"{what} expects other tensors: missing {_shown(missing)}, unexpected {_shown(extra)} "
            f"({len(missing)} and {len(extra)} in all)"
        )


def _shown(names: list[str]) -> object:
    return [printable(name, 100) for name in names[:3]] or "none"


@rule("tensor-shapes")
def check_shapes(found: Mapping[str, Tensor | Described], expected: Mapping[str, Tensor], what: str) -> None:
    """Every tensor has the shape and the type that the architecture gives it."""
    for name, tensor in sorted(found.items(), key=lambda item: item[0]):
        if tuple(tensor.shape) != tuple(expected[name].shape) or tensor.dtype != expected[name].dtype:
            raise ContributionError(
                f"tensor {name!r} of {what} must be {_describe(expected[name])}, got {_describe(tensor)}"
            )


@rule("tensor-values")
def check_values(tensors: Mapping[str, Tensor]) -> None:
    """Every number is finite, and no running variance negative."""
    for name, tensor in sorted(tensors.items(), key=lambda item: item[0]):
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        low, high = (float(end) for end in tensor.detach().aminmax())  # NaN where there is one
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ContributionError(f"tensor {name!r} holds NaN or infinity; retrain the model")
        if name.endswith(_VARIANCE) and low < 0:
            raise ContributionError(f"tensor {name!r} holds a negative variance")


@rule("variances")
def check_variances(tensors: Mapping[str, Tensor]) -> None:
    """BatchNorm's running variances are at least 1.1e-13; smaller ones can be raised to it, unnoticed."""
    for name, tensor in sorted(tensors.items(), key=lambda item: item[0]):
        if name.endswith(_VARIANCE) and (lowest := float(tensor.detach().min())) < MIN_VARIANCE:
            raise ContributionError(
                f"tensor {name!r} holds a variance of {lowest:g}, and {MIN_VARIANCE:g} is the least: raise "
                "what is smaller, which changes no output (fedfree-client pack does)"
            )


def raise_variances(network: torch.nn.Module) -> int:
    """Bring running variances to what VERIFY takes, which changes no output; returns how many were raised."""
    raised = 0
    for name, buffer in network.named_buffers():
        if name.endswith(_VARIANCE):
            raised += int((buffer < MIN_VARIANCE).sum())
            buffer.clamp_(min=MIN_VARIANCE)
    return raised


def is_body(name: str) -> bool:
    """Whether a tensor of a classifier's state dict belongs to the start: all but the head's do."""
    return not name.startswith("head.")


def check_trained(tensors: Mapping[str, Tensor], network: torch.nn.Module, what: str) -> None:
    """Check what a contribution from a start holds: the whole head, and any other parameters or factors.

    Raises:
        ContributionError: a tensor that is not the contribution's to change, or as :func:`check_tensors`.
    """
    check_tensors(tensors, trained_of(network, tensors, what), what)


@rule("trained")
def trained_of(
    network: torch.nn.Module, found: Mapping[str, Tensor | Described], what: str
) -> dict[str, Tensor]:
    """From a start comes the whole head, and parameters; running statistics stay the start's.

    Returns:
        What is expected to be among ``found``: of the network's own, or factors of it.
    """
    parameters = dict(network.named_parameters())
    if fixed := sorted(found.keys() & (network.state_dict().keys() - parameters.keys())):
        raise ContributionError(
            f"{what} takes {fixed[0]!r} from its start: running statistics stay frozen, and never travel"
        )
    expected = {name: each for name, each in parameters.items() if name in found or not is_body(name)}
    body = {name: each for name, each in parameters.items() if is_body(name)}
    return expected | expected_factors(found, body, what)


def _describe(tensor: Tensor | Described) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def sha256(data: bytes) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(data).hexdigest()


def short(identity: str) -> str:
    """A hash as people are shown it."""
    return f"{identity[:12]}…"


def contribution_id(manifest: bytes) -> str:
    """The identity of a contribution: the hash of its manifest, which holds the hash of the weights."""
    return sha256(manifest)


def encode_contribution(contribution: Contribution) -> bytes:
    """The manifest of a contribution; its weights travel beside it."""
    return _contribution_manifest(contribution, bytes.fromhex(sha256(contribution.weights)))


def _contribution_manifest(contribution: Contribution, weights_sha256: bytes) -> bytes:
    return contribution_schema.Contribution(
        protocol_version=PROTOCOL_VERSION,
        architecture=architecture_to_wire(contribution.architecture),
        num_classes=contribution.num_classes,
        input=input_to_wire(contribution.input),
        privacy=_privacy_to_wire(contribution.privacy),
        weights_sha256=weights_sha256,
        start_sha256=bytes.fromhex(contribution.start),
    ).SerializeToString(deterministic=True)


def decode_contribution(manifest: bytes, weights: bytes) -> Contribution:
    """Check a manifest and its weights, tensor by tensor, and return the contribution.

    Of one from a start what travelled is checked; whether that start is the right one tells
    :func:`fedfree.start.require_start`. Under differential privacy its ε covers all that travelled: with
    statistics that stay the start's, a BatchNorm couples no images, and its scales are parameters as others.

    Raises:
        ContributionError: anything that does not hold to the contract, with the reason.
    """
    message = _parsed_contribution(manifest)
    check_protocol(message.protocol_version)
    contribution = _contribution_from_wire(message, weights)
    check_same(_contribution_manifest(contribution, message.weights_sha256), manifest)
    network = blueprint(contribution.architecture, contribution.num_classes, contribution.input)
    what = str(contribution.architecture)
    if not contribution.start and contribution.privacy.status is PrivacyStatus.DP:
        check_parameters_only(network, what)
    check_weights_size(len(weights), network=network)
    check_sha256(sha256(weights), message.weights_sha256.hex())
    if contribution.start:
        expected = trained_of(network, read_header(weights, "the weights"), what)
    else:
        expected = network.state_dict()
    tensors = read_received(weights, expected, what)
    check_variances(tensors)
    return contribution


def _parsed_contribution(manifest: bytes) -> contribution_schema.Contribution:
    message = contribution_schema.Contribution()
    parse_manifest(message, manifest)
    return message


@rule("private-layers")
def check_parameters_only(network: torch.nn.Module, what: str) -> None:
    """Under differential privacy no layer couples the images of a batch or stores statistics of them.

    Raises:
        ContributionError: a layer that couples the images of a batch, or a buffer, by name.
    """
    layers, buffers = batch_coupled_layers(network), [name for name, _ in network.named_buffers()]
    if layers or buffers:
        raise ContributionError(
            f"{what} cannot be contributed under differential privacy: {(layers or buffers)[0]} "
            f"{'couples the images of a batch' if layers else 'is a buffer'}; use conv4-group"
        )


def describe_contribution(manifest: bytes) -> Contribution:
    """What a manifest says, with empty weights: for contributions that were checked before."""
    return _contribution_from_wire(_parsed_contribution(manifest), b"")


@rule("weights-hash")
def stated_weights_sha256(manifest: bytes) -> str:
    """The weights have the SHA-256 that the manifest states.

    Returns:
        The latter, hexadecimal.
    """
    message = _parsed_contribution(manifest)
    if len(message.weights_sha256) != hashlib.sha256().digest_size:
        raise ContributionError("the manifest does not state the sha256 of its weights")
    return message.weights_sha256.hex()


def _contribution_from_wire(message: contribution_schema.Contribution, weights: bytes) -> Contribution:
    return Contribution(
        architecture=architecture_from_wire(message.architecture),
        num_classes=message.num_classes,
        input=input_from_wire(message.input),
        privacy=_privacy_from_wire(message.privacy),
        weights=weights,
        start=_identity_from_wire(message.start_sha256),
    )


def _identity_from_wire(identity: bytes) -> str:
    return hash_from_wire(identity) if identity else ""


@rule("hashes")
def hash_from_wire(value: bytes) -> str:
    """Every hash that a manifest names is a SHA-256, 32 bytes."""
    if len(value) != hashlib.sha256().digest_size:
        raise ContributionError(f"a sha256 has 32 bytes, the manifest states {len(value)}")
    return value.hex()


def encode_meta_learner(meta_learner: MetaLearner) -> bytes:
    """The manifest of a meta-learner; its weights travel beside it."""
    return _meta_learner_manifest(meta_learner, bytes.fromhex(sha256(meta_learner.weights)))


def _meta_learner_manifest(meta_learner: MetaLearner, weights_sha256: bytes) -> bytes:
    recipe, provenance = meta_learner.recipe, meta_learner.provenance
    return meta_learner_schema.MetaLearner(
        protocol_version=PROTOCOL_VERSION,
        architecture=architecture_to_wire(meta_learner.architecture),
        num_classes=meta_learner.num_classes,
        input=input_to_wire(meta_learner.input),
        recipe=meta_learner_schema.Recipe(
            head=recipe.head,
            steps=recipe.steps,
            learning_rate=recipe.learning_rate,
            temperature=recipe.temperature,
            mirror=recipe.mirror,
            levels=recipe.levels,
        ),
        provenance=meta_learner_schema.Provenance(
            contribution_sha256=[bytes.fromhex(identity) for identity in provenance.contributions],
            config_sha256=bytes.fromhex(provenance.config_sha256),
            seed=provenance.seed,
            software=provenance.software,
            start_sha256=bytes.fromhex(provenance.start),
            public_images=provenance.public_images,
            public_images_sha256=bytes.fromhex(provenance.public_images_sha256),
        ),
        weights_sha256=weights_sha256,
    ).SerializeToString(deterministic=True)


def decode_meta_learner(manifest: bytes, weights: bytes) -> MetaLearner:
    """Check a manifest and its weights and return the meta-learner.

    Raises:
        ContributionError: anything that does not hold to the contract, with the reason.
    """
    message = _parsed_meta_learner(manifest)
    check_envelope(message.protocol_version, message.weights_sha256, weights)
    meta_learner = _meta_learner_from_wire(message, weights)
    check_same(encode_meta_learner(meta_learner), manifest)
    network = blueprint(meta_learner.architecture, meta_learner.num_classes, meta_learner.input)
    read_received(weights, network.state_dict(), str(meta_learner.architecture))
    return meta_learner


def describe_meta_learner(manifest: bytes) -> MetaLearner:
    """What a manifest says, with empty weights; raises ContributionError where it breaks the contract."""
    message = _parsed_meta_learner(manifest)
    check_protocol(message.protocol_version)
    hash_from_wire(message.weights_sha256)
    meta_learner = _meta_learner_from_wire(message, b"")
    check_same(_meta_learner_manifest(meta_learner, message.weights_sha256), manifest)
    return meta_learner


def _parsed_meta_learner(manifest: bytes) -> meta_learner_schema.MetaLearner:
    message = meta_learner_schema.MetaLearner()
    parse_manifest(message, manifest)
    return message


def _meta_learner_from_wire(message: meta_learner_schema.MetaLearner, weights: bytes) -> MetaLearner:
    provenance = message.provenance
    return MetaLearner(
        architecture=architecture_from_wire(message.architecture),
        num_classes=message.num_classes,
        input=input_from_wire(message.input),
        recipe=Recipe(
            head=message.recipe.head,
            steps=message.recipe.steps,
            learning_rate=message.recipe.learning_rate,
            temperature=message.recipe.temperature,
            mirror=message.recipe.mirror,
            levels=message.recipe.levels,
        ),
        provenance=Provenance(
            contributions=tuple(map(hash_from_wire, provenance.contribution_sha256)),
            config_sha256=hash_from_wire(provenance.config_sha256),
            seed=provenance.seed,
            software=check_text(provenance.software),
            start=_identity_from_wire(provenance.start_sha256),
            public_images=provenance.public_images,
            public_images_sha256=_identity_from_wire(provenance.public_images_sha256),
        ),
        weights=weights,
    )


@rule("manifest-size")
def check_manifest_size(size: int) -> None:
    """The manifest is at most 1 MiB."""
    if size > MAX_MANIFEST_BYTES:
        raise ContributionError(f"a manifest of {size} bytes exceeds {MAX_MANIFEST_BYTES}")


@rule("manifest-form")
def parse_manifest(message: Message, manifest: bytes) -> None:
    """The manifest is the protobuf message that it should be, encoded as here: no field that is not known.

    Raises:
        ContributionError: it is not; the message is filled otherwise.
    """
    check_manifest_size(len(manifest))
    try:
        message.ParseFromString(manifest)
    except DecodeError as error:
        raise ContributionError(f"the manifest is not a valid {message.DESCRIPTOR.full_name}") from error
    message.DiscardUnknownFields()
    check_same(message.SerializeToString(deterministic=True), manifest)


@rule("manifest-form")
def check_same(encoded: bytes, manifest: bytes) -> None:
    """The manifest is the protobuf message that it should be, encoded as here: no field that is not known."""
    if encoded != manifest:
        raise ContributionError(
            "the manifest is not encoded as it would be here, so that something in it is not understood: "
            "install the same release of fedfree on both sides"
        )


def check_envelope(protocol_version: int, expected_sha256: bytes, weights: bytes) -> None:
    """Refuse another protocol version, or weights of another hash; raises ContributionError."""
    check_protocol(protocol_version)
    check_weights_size(len(weights))
    check_sha256(sha256(weights), expected_sha256.hex())


@rule("protocol")
def check_protocol(protocol_version: int) -> None:
    """Both sides speak the same version of the protocol."""
    if protocol_version != PROTOCOL_VERSION:
        raise ContributionError(
            f"protocol version {protocol_version} is not understood here (version {PROTOCOL_VERSION}); "
            "install the same release of fedfree on both sides"
        )


@rule("weights-hash")
def check_sha256(actual: str, stated: str) -> None:
    """The weights have the SHA-256 that the manifest states."""
    if actual != stated:
        raise ContributionError(
            f"the weights' sha256 is {actual[:16]}…, the manifest says {stated[:16]}…: one is damaged, "
            "or older than the other; make or fetch both anew"
        )


def architecture_to_wire(architecture: Architecture) -> contribution_schema.Architecture:
    """An architecture as every manifest has it."""
    return contribution_schema.Architecture(
        id=architecture.id, width=architecture.width, norm=architecture.norm
    )


@rule("architecture")
def architecture_from_wire(message: contribution_schema.Architecture) -> Architecture:
    """The architecture is one of those that are built here, in a width and norm that it comes in."""
    return Architecture(id=message.id, width=message.width, norm=message.norm)


def input_to_wire(input: InputSpec) -> contribution_schema.InputSpec:
    """An input specification as every manifest has it."""
    return contribution_schema.InputSpec(
        channels=input.channels,
        height=input.height,
        width=input.width,
        mean=input.mean,
        std=input.std,
        horizontal_flip=input.horizontal_flip,
    )


@rule("input")
def input_from_wire(message: contribution_schema.InputSpec) -> InputSpec:
    """Images have 1 or 3 channels, 16 to 512 pixels a side, and a normalisation in range."""
    return InputSpec(
        channels=message.channels,
        height=message.height,
        width=message.width,
        mean=tuple(message.mean),
        std=tuple(message.std),
        horizontal_flip=message.horizontal_flip,
    )


def _privacy_to_wire(privacy: PrivacyStatement) -> contribution_schema.PrivacyStatement:
    message = contribution_schema.PrivacyStatement(status=_STATUS_TO_WIRE[privacy.status])
    if privacy.differential_privacy:
        message.differential_privacy.CopyFrom(_differential_privacy_to_wire(privacy.differential_privacy))
    if privacy.initial_weights:
        message.initial_weights.sha256 = bytes.fromhex(privacy.initial_weights.sha256)
        message.initial_weights.public = privacy.initial_weights.public
    return message


@rule("statement")
def _privacy_from_wire(message: contribution_schema.PrivacyStatement) -> PrivacyStatement:
    """The privacy statement is whole, consistent with itself, and its numbers are in range."""
    if message.status not in _STATUS_FROM_WIRE:
        raise ContributionError("the privacy statement is missing or its status is unknown")
    spent, initial = message.differential_privacy, message.initial_weights
    return PrivacyStatement(
        status=_STATUS_FROM_WIRE[message.status],
        differential_privacy=(
            _differential_privacy_from_wire(spent) if message.HasField("differential_privacy") else None
        ),
        initial_weights=(
            InitialWeights(hash_from_wire(initial.sha256), initial.public)
            if message.HasField("initial_weights")
            else None
        ),
    )


def _differential_privacy_to_wire(spent: DifferentialPrivacy) -> contribution_schema.DifferentialPrivacy:
    return contribution_schema.DifferentialPrivacy(
        mechanism=contribution_schema.DifferentialPrivacy.MECHANISM_DP_SGD_POISSON,
        epsilon=spent.epsilon,
        delta=spent.delta,
        noise_multiplier=spent.run.noise_multiplier,
        sampling_rate=spent.run.sampling_rate,
        steps=spent.run.steps,
        max_grad_norm=spent.max_grad_norm,
        images=spent.images,
        images_rounded_to=spent.images_rounded_to,
        accountant=spent.accountant,
        software=spent.software,
        composition=contribution_schema.Composition(
            epsilon=spent.composition.epsilon,
            contributions=spent.composition.contributions,
            without_differential_privacy=spent.composition.without_differential_privacy,
            epsilon_budget=spent.composition.epsilon_budget or 0,
        ),
    )


def _differential_privacy_from_wire(message: contribution_schema.DifferentialPrivacy) -> DifferentialPrivacy:
    if message.mechanism != contribution_schema.DifferentialPrivacy.MECHANISM_DP_SGD_POISSON:
        raise ContributionError(f"mechanism {message.mechanism} of differential privacy is unknown")
    return DifferentialPrivacy(
        epsilon=message.epsilon,
        delta=message.delta,
        run=DpSgd(message.noise_multiplier, message.sampling_rate, message.steps),
        max_grad_norm=message.max_grad_norm,
        images=message.images,
        images_rounded_to=message.images_rounded_to,
        accountant=message.accountant,
        software=message.software,
        composition=Composition(
            epsilon=message.composition.epsilon,
            contributions=message.composition.contributions,
            without_differential_privacy=message.composition.without_differential_privacy,
            epsilon_budget=message.composition.epsilon_budget or None,
        ),
    )
