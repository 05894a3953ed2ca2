"""What travels inside a Flower message, as both apps agree on it.

Models go as one array record (Flower sends arrays in chunks, which keeps large ones cheap) beside a
config record with the manifest. The array's bytes are safetensors as they are: Flower's own array
encoding would have the receiver hand another party's header to ``numpy.load``, which allocates what
that header claims.
"""

import math
import re
from collections.abc import Iterable

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedfree.codec import MAX_MANIFEST_BYTES, MAX_WEIGHTS_BYTES
from fedfree.episodes import Accuracy, EpisodeSpec
from fedfree.errors import ContributionError, FedFreeError
from fedfree.release import Side, require_same_release, this_release
from fedfree.start import LoadedStart, encode_start

CONTRIBUTE = "train.contribute"
"""Message type: the server asks an organisation for its contribution."""
ADAPT = "evaluate.adapt"
"""Message type: the server hands out the meta-learner; the reply may hold accuracies."""
ORGANISATION_FAILED = 1000
"""Code of an error reply whose text the organisation chose itself, so that it may be shown."""

_WEIGHTS, _MANIFEST, _RELEASE, _START = "weights", "manifest", "release", "start"
_WANTED, _FURTHER, _SIGNATURE = "wanted", "further", "signature"
_SAFETENSORS, _PROTOBUF = "safetensors", "protobuf"
_MAX_RESULTS = 16


def to_records(manifest: bytes, weights: bytes, signature: bytes = b"") -> RecordDict:
    """A contribution or a meta-learner as the content of a message.

    Args:
        signature: of what a coordinator hands out, over the manifest; see :mod:`fedfree.signing`.
    """
    signed = {_SIGNATURE: signature} if signature else {}
    array = Array(dtype="uint8", shape=(len(weights),), stype=_SAFETENSORS, data=weights)
    return RecordDict(
        {
            _WEIGHTS: ArrayRecord({_SAFETENSORS: array}),
            _MANIFEST: ConfigRecord({_PROTOBUF: manifest, **signed}),
            _RELEASE: _release(),
        }
    )


def question(start: str = "", *further: str) -> RecordDict:
    """The content of a message that asks for something: who is asking, and where training begins.

    Args:
        start: identity of the federation's start, hexadecimal; empty without one.
        further: of those that the organisation may begin from instead.
    """
    records = RecordDict({_RELEASE: _release()})
    if start:
        others = {_FURTHER: list(further)} if further else {}
        records[_START] = ConfigRecord({_START: start, **others})
    return records


def question_with_start(start: LoadedStart, signature: bytes) -> RecordDict:
    """The same to an organisation that lacks the start: with the start itself."""
    records = to_records(encode_start(start.start), start.weights, signature)
    records[_START] = question(start.start.sha256)[_START]
    return records


def start_named(records: RecordDict) -> str:
    """Identity of the start that a question names, hexadecimal; empty without one.

    Raises:
        ContributionError: it is no hash.
    """
    record = records.get(_START)
    return _identity(record.get(_START, "") if isinstance(record, ConfigRecord) else "")


def further_named(records: RecordDict) -> list[str]:
    """Identities of the starts that a question names besides; raises as :func:`start_named`."""
    record = records.get(_START)
    named = record.get(_FURTHER, []) if isinstance(record, ConfigRecord) else []
    return [_identity(each) for each in (named if isinstance(named, list) else [named])]


def _identity(named: object) -> str:
    if not isinstance(named, str) or not re.fullmatch("([0-9a-f]{64})?", named):
        raise ContributionError(f"expected the sha256 of a start, got {_short(named)}")
    return named


def start_wanted(start: str = "") -> RecordDict:
    """The reply of an organisation that lacks the start, or that one of several."""
    return RecordDict({_RELEASE: _release(), _START: ConfigRecord({_WANTED: True, _START: start})})


def wants_start(records: RecordDict) -> bool:
    """Whether a reply is :func:`start_wanted`."""
    record = records.get(_START)
    return isinstance(record, ConfigRecord) and record.get(_WANTED) is True


def brings_start(records: RecordDict) -> bool:
    """Whether a question is :func:`question_with_start`."""
    return _WEIGHTS in records


def _release() -> ConfigRecord:
    return ConfigRecord({_RELEASE: this_release()})


def check_release(records: RecordDict, who: Side) -> None:
    """Refuse a message of another FedFREE than this one; raises VersionError, which names both.

    Args:
        who: the sender.
    """
    record = records.get(_RELEASE)
    require_same_release(record.get(_RELEASE) if isinstance(record, ConfigRecord) else None, who)


def from_records(records: RecordDict) -> tuple[bytes, bytes]:
    """Manifest and weights out of a message; neither is looked into here.

    Raises:
        ContributionError: the message holds something else.
    """
    return _manifest(records), _weights(records)


def signature_of(records: RecordDict) -> bytes:
    """The signature over the manifest in a message, unchecked; empty where there is none."""
    record = records.get(_MANIFEST)
    signature = record.get(_SIGNATURE) if isinstance(record, ConfigRecord) else None
    return signature if isinstance(signature, bytes) else b""


def _manifest(records: RecordDict) -> bytes:
    record = records.get(_MANIFEST)
    manifest = record.get(_PROTOBUF) if isinstance(record, ConfigRecord) else None
    if not isinstance(manifest, bytes):
        raise ContributionError(
            f"expected a config record {_MANIFEST!r} with bytes {_PROTOBUF!r}, got {_kinds(records)}"
        )
    if len(manifest) > MAX_MANIFEST_BYTES:
        raise ContributionError(f"a manifest of {len(manifest)} bytes exceeds {MAX_MANIFEST_BYTES}")
    return manifest


def _weights(records: RecordDict) -> bytes:
    record = records.get(_WEIGHTS)
    array = record.get(_SAFETENSORS) if isinstance(record, ArrayRecord) else None
    if array is None:
        raise ContributionError(
            f"expected an array record {_WEIGHTS!r} with {_SAFETENSORS!r}, got {_kinds(records)}"
        )
    if (array.dtype, array.stype) != ("uint8", _SAFETENSORS) or array.shape != (len(array.data),):
        raise ContributionError(
            f"expected the weights as uint8 bytes of {_SAFETENSORS}, "
            f"got {array.dtype[:40]!r} {array.stype[:40]!r} of shape {array.shape[:8]}"
        )
    if len(array.data) > MAX_WEIGHTS_BYTES:
        raise ContributionError(f"weights of {len(array.data)} bytes exceed the limit of {MAX_WEIGHTS_BYTES}")
    return array.data


def _kinds(records: RecordDict) -> str:
    """The kinds of records, without the names that another party gave them."""
    return ", ".join(sorted(type(record).__name__ for record in records.values())[:8]) or "nothing"


def accuracies_to_records(accuracies: Iterable[tuple[EpisodeSpec, Accuracy]]) -> RecordDict:
    """Accuracies, one metric record a kind of episode; none at all is a plain acknowledgement."""
    return RecordDict({spec.name: _to_metrics(spec, accuracy) for spec, accuracy in accuracies})


def accuracies_from_records(records: RecordDict) -> list[tuple[EpisodeSpec, Accuracy]]:
    """Accuracies out of a reply, in the order of ways and shots; empty for an acknowledgement.

    Raises:
        ContributionError: anything but plausible accuracies.
    """
    if len(records) > _MAX_RESULTS or len(records.metric_records) < len(records):
        raise ContributionError(f"expected at most {_MAX_RESULTS} metric records, got {_kinds(records)}")
    accuracies = [_from_metrics(record) for record in records.metric_records.values()]
    return sorted(accuracies, key=lambda pair: (pair[0].n_way, pair[0].n_shot))


def _to_metrics(spec: EpisodeSpec, accuracy: Accuracy) -> MetricRecord:
    return MetricRecord(
        {
            "n_way": spec.n_way,
            "n_shot": spec.n_shot,
            "n_query": spec.n_query,
            "mean": accuracy.mean,
            "ci95": accuracy.ci95,
            "episodes": accuracy.episodes,
        }
    )


def _from_metrics(record: MetricRecord) -> tuple[EpisodeSpec, Accuracy]:
    try:
        spec = EpisodeSpec(*(_whole(record, key) for key in ("n_way", "n_shot", "n_query")))
    except FedFreeError as error:
        raise ContributionError(str(error)) from error
    accuracy = Accuracy(_percent(record, "mean"), _percent(record, "ci95"), _whole(record, "episodes"))
    return spec, accuracy


def _whole(record: MetricRecord, key: str) -> int:
    value = record.get(key)
    if not isinstance(value, int) or value < 1:
        raise ContributionError(
            f"{key!r} of a result must be a whole number of at least 1, got {_short(value)}"
        )
    return value


def _percent(record: MetricRecord, key: str) -> float:
    value = record.get(key)
    if not isinstance(value, float) or not math.isfinite(value) or not 0 <= value <= 100:
        raise ContributionError(f"{key!r} of a result must lie between 0.0 and 100.0, got {_short(value)}")
    return value


def _short(value: object) -> str:
    return repr(value)[:40]
