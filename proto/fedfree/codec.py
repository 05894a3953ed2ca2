"""Models to bytes and back: a protobuf manifest, and weights as safetensors. Refuses what it does not know.

Nothing here executes or unpickles what another party sent: the receiver builds the network from
its own :mod:`fedfree.architectures` and takes tensors only by the names, shapes and types it expects.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import safetensors
import safetensors.torch
import torch
from google.protobuf.message import DecodeError, Message
from torch import Tensor

from fedfree import PROTOCOL_VERSION
from fedfree.adaptation import Recipe
from fedfree.architectures import Architecture, Classifier, InputSpec, build
from fedfree.errors import ContributionError
from fedfree.statement import (
    Composition,
    DifferentialPrivacy,
    DpSgd,
    InitialWeights,
    PrivacyStatement,
    PrivacyStatus,
    batch_coupled_layers,
)
from fedfree.v1 import contribution_pb2 as contribution_schema
from fedfree.v1 import meta_learner_pb2 as meta_learner_schema

MAX_MANIFEST_BYTES = 1 << 20
MAX_WEIGHTS_BYTES = 1 << 30

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
    """Tensors by name from safetensors bytes; raises ContributionError."""
    if len(data) > MAX_WEIGHTS_BYTES:
        raise ContributionError(f"{what} of {len(data)} bytes exceed the limit of {MAX_WEIGHTS_BYTES}")
    try:
        return safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise ContributionError(f"{what} are not valid safetensors: {error}") from error


def fill_network(
    network: torch.nn.Module,
    tensors: Mapping[str, Tensor],
    what: str,
    body: Mapping[str, Tensor] | None = None,
) -> None:
    """Check tensors and load them.

    Args:
        body: of a start, from which all comes that ``tensors`` do not hold.

    Raises:
        ContributionError: as :func:`check_tensors`, and from a start as :func:`check_trained`.
    """
    if body is not None:
        check_trained(tensors, network, what)
        tensors = {**body, **tensors}
    state = network.state_dict()
    check_tensors(tensors, state, what)
    # Into the network's own dict, whose version marks some torchvision networks insist on.
    state.update(tensors)
    network.load_state_dict(state)


def check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    """Compare tensors with the ones a network of our own has.

    Raises:
        ContributionError: a missing or extra tensor, a wrong shape or type, NaN or infinity,
            or a negative running variance.
    """
    missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or extra:
        raise ContributionError(
            f"{what} expects other tensors: missing {missing[:3] or 'none'}, "
            f"unexpected {extra[:3] or 'none'} "
            f"({len(missing)} and {len(extra)} in all)"
        )
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape or tensor.dtype != expected[name].dtype:
            raise ContributionError(
                f"tensor {name!r} of {what} must be {_describe(expected[name])}, got {_describe(tensor)}"
            )
        if not tensor.isfinite().all():
            raise ContributionError(f"tensor {name!r} holds NaN or infinity; retrain the model")
        if name.endswith("running_var") and (tensor < 0).any():
            raise ContributionError(f"tensor {name!r} holds a negative variance")


def is_body(name: str) -> bool:
    """Whether a tensor of a classifier's state dict belongs to the start: all but the head's do."""
    return not name.startswith("head.")


def check_trained(tensors: Mapping[str, Tensor], network: torch.nn.Module, what: str) -> None:
    """Check what a contribution from a start holds: the whole head, and any other parameters.

    Raises:
        ContributionError: a tensor that is not the contribution's to change, or as :func:`check_tensors`.
    """
    parameters = dict(network.named_parameters())
    if fixed := sorted(tensors.keys() & (network.state_dict().keys() - parameters.keys())):
        raise ContributionError(
            f"{what} takes {fixed[0]!r} from its start: running statistics stay frozen, and never travel"
        )
    expected = {name: each for name, each in parameters.items() if name in tensors or not is_body(name)}
    check_tensors(tensors, expected, what)


def _describe(tensor: Tensor) -> str:
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
    return contribution_schema.Contribution(
        protocol_version=PROTOCOL_VERSION,
        architecture=architecture_to_wire(contribution.architecture),
        num_classes=contribution.num_classes,
        input=input_to_wire(contribution.input),
        privacy=_privacy_to_wire(contribution.privacy),
        weights_sha256=bytes.fromhex(sha256(contribution.weights)),
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
    message = contribution_schema.Contribution()
    parse_manifest(message, manifest)
    check_envelope(message.protocol_version, message.weights_sha256, weights)
    contribution = _contribution_from_wire(message, weights)
    what = str(contribution.architecture)
    if contribution.start:
        network = build(
            contribution.architecture, num_classes=contribution.num_classes, input=contribution.input
        )
        check_trained(read_tensors(weights, "the weights"), network, what)
    else:
        network = contribution.network()
        if contribution.privacy.status is PrivacyStatus.DP:
            check_parameters_only(network, what)
    return contribution


def check_parameters_only(network: torch.nn.Module, what: str) -> None:
    """Refuse a network that no claim of differential privacy can cover.

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
    message = contribution_schema.Contribution()
    parse_manifest(message, manifest)
    return _contribution_from_wire(message, b"")


def stated_weights_sha256(manifest: bytes) -> str:
    """Hexadecimal hash that a contribution's manifest says its weights have; raises ContributionError."""
    message = contribution_schema.Contribution()
    parse_manifest(message, manifest)
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


def _identity_from_wire(start_sha256: bytes) -> str:
    if len(start_sha256) not in (0, hashlib.sha256().digest_size):
        raise ContributionError(f"a start's sha256 has 32 bytes, the manifest states {len(start_sha256)}")
    return start_sha256.hex()


def encode_meta_learner(meta_learner: MetaLearner) -> bytes:
    """The manifest of a meta-learner; its weights travel beside it."""
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
        ),
        provenance=meta_learner_schema.Provenance(
            contribution_sha256=[bytes.fromhex(identity) for identity in provenance.contributions],
            config_sha256=bytes.fromhex(provenance.config_sha256),
            seed=provenance.seed,
            software=provenance.software,
            start_sha256=bytes.fromhex(provenance.start),
        ),
        weights_sha256=bytes.fromhex(sha256(meta_learner.weights)),
    ).SerializeToString(deterministic=True)


def decode_meta_learner(manifest: bytes, weights: bytes) -> MetaLearner:
    """Check a manifest and its weights and return the meta-learner.

    Raises:
        ContributionError: anything that does not hold to the contract, with the reason.
    """
    message = meta_learner_schema.MetaLearner()
    parse_manifest(message, manifest)
    check_envelope(message.protocol_version, message.weights_sha256, weights)
    meta_learner = MetaLearner(
        architecture=architecture_from_wire(message.architecture),
        num_classes=message.num_classes,
        input=input_from_wire(message.input),
        recipe=Recipe(
            head=message.recipe.head,
            steps=message.recipe.steps,
            learning_rate=message.recipe.learning_rate,
            temperature=message.recipe.temperature,
            mirror=message.recipe.mirror,
        ),
        provenance=Provenance(
            contributions=tuple(identity.hex() for identity in message.provenance.contribution_sha256),
            config_sha256=message.provenance.config_sha256.hex(),
            seed=message.provenance.seed,
            software=message.provenance.software,
            start=_identity_from_wire(message.provenance.start_sha256),
        ),
        weights=weights,
    )
    meta_learner.network()
    return meta_learner


def parse_manifest(message: Message, manifest: bytes) -> None:
    """Fill a message from its bytes; raises ContributionError."""
    if len(manifest) > MAX_MANIFEST_BYTES:
        raise ContributionError(f"a manifest of {len(manifest)} bytes exceeds {MAX_MANIFEST_BYTES}")
    try:
        message.ParseFromString(manifest)
    except DecodeError as error:
        raise ContributionError(f"the manifest is not a valid {message.DESCRIPTOR.full_name}") from error


def check_envelope(protocol_version: int, expected_sha256: bytes, weights: bytes) -> None:
    """Refuse another protocol version, or weights of another hash; raises ContributionError."""
    if protocol_version != PROTOCOL_VERSION:
        raise ContributionError(
            f"protocol version {protocol_version} is not understood here (version {PROTOCOL_VERSION}); "
            "install the same release of fedfree on both sides"
        )
    check_sha256(sha256(weights), expected_sha256.hex())


def check_sha256(actual: str, stated: str) -> None:
    """Compare the weights' hash with what the manifest says, hexadecimal; raises ContributionError."""
    if actual != stated:
        raise ContributionError(f"the weights' sha256 is {actual[:16]}…, the manifest says {stated[:16]}…")


def architecture_to_wire(architecture: Architecture) -> contribution_schema.Architecture:
    """An architecture as every manifest has it."""
    return contribution_schema.Architecture(
        id=architecture.id, width=architecture.width, norm=architecture.norm
    )


def architecture_from_wire(message: contribution_schema.Architecture) -> Architecture:
    """And back; raises ContributionError for one that is not known here."""
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


def input_from_wire(message: contribution_schema.InputSpec) -> InputSpec:
    """And back; raises ContributionError."""
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


def _privacy_from_wire(message: contribution_schema.PrivacyStatement) -> PrivacyStatement:
    if message.status not in _STATUS_FROM_WIRE:
        raise ContributionError("the privacy statement is missing or its status is unknown")
    spent, initial = message.differential_privacy, message.initial_weights
    return PrivacyStatement(
        status=_STATUS_FROM_WIRE[message.status],
        differential_privacy=(
            _differential_privacy_from_wire(spent) if message.HasField("differential_privacy") else None
        ),
        initial_weights=(
            InitialWeights(initial.sha256.hex(), initial.public)
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
