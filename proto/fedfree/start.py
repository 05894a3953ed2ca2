"""The start: the public weights that every organisation's training begins from, named by hash.

Only the body of a network belongs to it; its head is each organisation's own, since the classes are.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor, nn

from fedfree import PROTOCOL_VERSION
from fedfree.architectures import Architecture, Classifier, InputSpec, blueprint
from fedfree.codec import (
    Contribution,
    architecture_from_wire,
    architecture_to_wire,
    check_envelope,
    check_tensors,
    encode_tensors,
    input_from_wire,
    input_to_wire,
    is_body,
    parse_manifest,
    read_tensors,
    sha256,
    short,
)
from fedfree.errors import ContributionError, StartError
from fedfree.low_rank import DOWN
from fedfree.statement import InitialWeights
from fedfree.tensors import read_header
from fedfree.v1 import start_pb2 as schema

LICENCES = ("Apache-2.0", "MIT", "BSD-3-Clause", "BSD-2-Clause", "CC0-1.0", "CC-BY-4.0")
"""SPDX identifiers that permit training from weights, handing them on and using what came of them."""
MAX_SOURCE_CHARACTERS = 300
_LICENCE = re.compile(r"[A-Za-z0-9.+-]{1,64}")


@dataclass(frozen=True)
class Start:
    """What a federation begins from."""

    architecture: Architecture
    weights_sha256: str
    """Of the body's safetensors, hexadecimal."""
    input: InputSpec
    source: str
    """For people: who published the weights, and under which name; one line."""
    licence: str
    """SPDX identifier; written as in ``LICENCES`` where it is one of them."""

    def __post_init__(self) -> None:
        known = {licence.casefold(): licence for licence in LICENCES}
        object.__setattr__(self, "licence", known.get(self.licence.casefold(), self.licence))
        if not re.fullmatch("[0-9a-f]{64}", self.weights_sha256):
            raise ContributionError(f"a start states the sha256 of its weights, got {self.weights_sha256!r}")
        if not self.source or len(self.source) > MAX_SOURCE_CHARACTERS or not self.source.isprintable():
            raise ContributionError(
                f"a start says in one line of at most {MAX_SOURCE_CHARACTERS} characters where its weights "
                f"come from, got {self.source[:60]!r}"
            )
        if not _LICENCE.fullmatch(self.licence):
            raise ContributionError(
                f"a start states its licence as SPDX has it, such as Apache-2.0, got {self.licence[:60]!r}"
            )

    @property
    def sha256(self) -> str:
        """The start's identity, hexadecimal: of its manifest, which holds the hash of the weights."""
        return sha256(encode_start(self))

    @property
    def initial_weights(self) -> InitialWeights:
        """What the privacy statement of a contribution from here says; a start is public by definition."""
        return InitialWeights(self.weights_sha256, public=True)


@dataclass(frozen=True)
class LoadedStart:
    """A start with its weights, checked by :func:`decode_start`."""

    start: Start
    weights: bytes
    """safetensors of the body."""

    @cached_property
    def body(self) -> dict[str, Tensor]:
        """The body's tensors by name, for :meth:`fedfree.codec.Contribution.network`."""
        return read_body(self.weights)


def encode_start(start: Start) -> bytes:
    """The manifest of a start; its weights travel beside it."""
    return schema.Start(
        protocol_version=PROTOCOL_VERSION,
        architecture=architecture_to_wire(start.architecture),
        weights_sha256=bytes.fromhex(start.weights_sha256),
        input=input_to_wire(start.input),
        source=start.source,
        licence=start.licence,
    ).SerializeToString(deterministic=True)


def decode_start(manifest: bytes, weights: bytes) -> Start:
    """Check a manifest and its weights, tensor by tensor, and return the start.

    Raises:
        ContributionError: anything that does not hold to the contract, with the reason.
    """
    start, stated = _described(manifest)
    check_envelope(stated.protocol_version, stated.weights_sha256, weights)
    read_header(weights, "the start's weights")
    expected = blueprint(start.architecture, 2, start.input).state_dict()
    check_tensors(read_body(weights), body_of(expected), str(start.architecture))
    return start


def describe_start(manifest: bytes) -> Start:
    """What a manifest says, its weights unseen; raises ContributionError."""
    return _described(manifest)[0]


def _described(manifest: bytes) -> tuple[Start, schema.Start]:
    message = schema.Start()
    parse_manifest(message, manifest)
    fields = ("protocol_version", "architecture", "weights_sha256", "input", "source", "licence")
    set_here = {field.name for field, _ in message.ListFields()}
    if missing := [name for name in fields if name not in set_here]:
        raise ContributionError(
            f"the start lacks its {', '.join(missing)}: it is cut off, or was made by hand"
        )
    start = Start(
        architecture=architecture_from_wire(message.architecture),
        weights_sha256=message.weights_sha256.hex(),
        input=input_from_wire(message.input),
        source=message.source,
        licence=message.licence,
    )
    if message.protocol_version == PROTOCOL_VERSION and encode_start(start) != manifest:
        raise ContributionError("the start is not encoded as it would be here, so its hash names nothing")
    return start, message


def check_licence(licence: str, *, accepted: Sequence[str] = ()) -> None:
    """Refuse a licence that may forbid this use.

    Args:
        accepted: further identifiers that a person has read and takes responsibility for.

    Raises:
        StartError: it is neither one of ``LICENCES`` nor accepted.
    """
    if licence.casefold() not in {each.casefold() for each in (*LICENCES, *accepted)}:
        raise StartError(
            f"the weights' licence is {licence}, which may forbid this use: choose weights under "
            f"{', '.join(LICENCES)}, or read it and fetch or make the start with --accept-licence {licence}"
        )


def body_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What of a classifier's state dict belongs to the start."""
    return {name: tensor for name, tensor in tensors.items() if is_body(name)}


def encode_body(network: nn.Module) -> bytes:
    """The body of a network as safetensors; the same bytes on every machine."""
    return encode_tensors(body_of(network.state_dict()))


def read_body(weights: bytes) -> dict[str, Tensor]:
    """The tensors of a start's weights; raises ContributionError where there is a head among them."""
    tensors = read_tensors(weights, "the start's weights")
    if heads := sorted(tensors.keys() - body_of(tensors).keys()):
        raise ContributionError(
            f"the start's weights hold a head ({', '.join(heads)}), and that is each organisation's own: "
            "make the start anew, fedfree-server start make"
        )
    return tensors


def fill_body(network: Classifier, tensors: Mapping[str, Tensor], what: str) -> None:
    """Let a network begin from a start's tensors; its head stays as it is.

    Raises:
        ContributionError: what :func:`fedfree.codec.check_tensors` refuses.
    """
    state = network.state_dict()
    check_tensors(tensors, body_of(state), what)
    state.update(tensors)
    network.load_state_dict(state)


def trained_tensors(
    network: Classifier, body: Mapping[str, Tensor], factors: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """What of a network that began from a start travels: the head, and the parameters that differ from it.

    Args:
        factors: of weights that differ by their product, and that they stand for (:mod:`fedfree.low_rank`).
    """
    factors = factors or {}
    whole = {
        name: parameter.detach()
        for name, parameter in network.named_parameters()
        if not is_body(name) or not (name + DOWN in factors or parameter.detach().cpu().equal(body[name]))
    }
    return {**whole, **factors}


def body_for(contribution: Contribution, starts: Iterable[LoadedStart]) -> Mapping[str, Tensor] | None:
    """The body of that start which a contribution names; None where it names none of these."""
    return next((each.body for each in starts if each.start.sha256 == contribution.start), None)


def find_start(starts: Sequence[str], digits: str = "") -> str:
    """That one of a federation's starts whose identity begins so, in either case.

    Args:
        starts: identities, hexadecimal; none for random weights.
        digits: none for the first.

    Returns:
        Its identity; empty where there are neither starts nor digits.

    Raises:
        StartError: none of them begins so, or several do, which are named.
    """
    if not digits:
        return next(iter(starts), "")
    found = [each for each in dict.fromkeys(starts) if each.startswith(digits.lower())]
    if len(found) == 1:
        return found[0]
    candidates = ", ".join(map(short, found or starts))
    remedy = f"name one of {candidates}" if candidates else "it has none, so name none"
    raise StartError(f"{len(found) or 'none'} of the federation's starts begin with {digits}: {remedy}")


def require_start(contribution: Contribution, starts: Iterable[Start]) -> None:
    """Refuse a contribution that began at none of the federation's starts.

    Args:
        starts: the federation's; none where it begins from random weights.

    Raises:
        StartError: it began elsewhere; all are named.
        ContributionError: what of the contribution is not as its start has it.
    """
    known = {each.sha256: each for each in starts}
    require_same_start(contribution.start, list(known))
    if not known:
        return
    start = known[contribution.start]
    if contribution.architecture != start.architecture:
        raise ContributionError(
            f"the contribution is a {contribution.architecture}, its start a {start.architecture}"
        )
    if replace(contribution.input, horizontal_flip=start.input.horizontal_flip) != start.input:
        raise ContributionError(
            f"the contribution takes {contribution.input}, its start {start.input}: channels, size and "
            "normalisation are the start's"
        )
    if contribution.privacy.initial_weights != start.initial_weights:
        raise ContributionError(
            "the privacy statement names other initial weights than the start's: "
            f"{short(start.weights_sha256)}, which are public"
        )


def require_same_start(began: str, starts: Sequence[str]) -> None:
    """Refuse one start in the place of another; each by its identity.

    Args:
        began: where the organisation begins, or its contribution began; empty for no start.
        starts: where the federation does, one as good as another; none for random weights.

    Raises:
        StartError: it is none of the federation's; all are named.
    """
    if began in (starts or [""]):
        return
    own = f"the start {short(began)}" if began else "no public start"
    theirs, remedy = "no public start", "train without one"
    if starts:
        theirs = f"the start {' or '.join(map(short, starts))}"
        which = "one of them" if len(starts) > 1 else "that one"
        remedy = f"bring {which} with fedfree-client start fetch, and train from it"
    raise StartError(f"the organisation begins from {own}, this federation from {theirs}: {remedy}")
