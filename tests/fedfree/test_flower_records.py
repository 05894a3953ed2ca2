"""The contents of Flower messages: what goes in comes out, and nothing else gets in."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedfree.codec import MAX_MANIFEST_BYTES
from fedfree.episodes import Accuracy, EpisodeSpec
from fedfree.errors import ContributionError
from fedfree.flower_records import (
    accuracies_from_records,
    accuracies_to_records,
    brings_start,
    from_records,
    further_named,
    question,
    start_named,
    start_wanted,
    to_records,
    wants_start,
)

METRICS = {"n_way": 5, "n_shot": 1, "n_query": 15, "mean": 41.5, "ci95": 0.8, "episodes": 600}


@pytest.mark.parametrize("weights", [b"", b"\x00\xff" * 1000])
def test_a_model_comes_out_as_it_went_in(weights: bytes) -> None:
    assert from_records(to_records(b"manifest", weights)) == (b"manifest", weights)


def test_a_model_survives_flowers_own_serialisation() -> None:
    records = to_records(b"manifest", b"weights")
    inflated = ArrayRecord.inflate(
        records.array_records["weights"].deflate(), records.array_records["weights"].children
    )
    records["weights"] = inflated
    assert from_records(records) == (b"manifest", b"weights")


def _with(**changes: ArrayRecord | ConfigRecord | MetricRecord) -> RecordDict:
    return RecordDict({**to_records(b"manifest", b"weights"), **changes})


def _array(dtype: str, shape: tuple[int, ...], stype: str) -> ArrayRecord:
    return ArrayRecord({"safetensors": Array(dtype=dtype, shape=shape, stype=stype, data=b"weights")})


@pytest.mark.parametrize(
    "records",
    [
        RecordDict(),
        RecordDict({"weights": to_records(b"manifest", b"weights")["weights"]}),
        RecordDict({"manifest": ConfigRecord({"protobuf": b"manifest"})}),
        _with(manifest=MetricRecord({"protobuf": 1})),
        _with(manifest=ConfigRecord({"protobuf": "text"})),
        _with(manifest=ConfigRecord({"protobuf": b"x" * (MAX_MANIFEST_BYTES + 1)})),
        _with(weights=ConfigRecord({"safetensors": b"weights"})),
        _with(weights=ArrayRecord({"other": Array(np.zeros(3, np.uint8))})),
        _with(weights=ArrayRecord({"safetensors": Array(np.zeros(3, np.uint8))})),
        _with(weights=_array("float32", (7,), "safetensors")),
        _with(weights=_array("uint8", (8,), "safetensors")),
        _with(weights=_array("uint8", (7, 1), "safetensors")),
        _with(weights=_array("uint8", (7,), "pickle")),
    ],
)
def test_a_malformed_message_is_refused(records: RecordDict) -> None:
    with pytest.raises(ContributionError):
        from_records(records)


def test_a_refusal_does_not_repeat_the_names_another_party_chose() -> None:
    with pytest.raises(ContributionError) as refusal:
        from_records(RecordDict({"patient records": ConfigRecord({})}))
    assert "patient" not in str(refusal.value)


def test_accuracies_come_out_in_the_order_of_ways_and_shots() -> None:
    one = (EpisodeSpec(5, 1, 15), Accuracy(41.5, 0.8, 600))
    five = (EpisodeSpec(5, 5, 15), Accuracy(53.75, 0.5, 600))
    assert accuracies_from_records(accuracies_to_records([five, one])) == [one, five]


def test_a_question_without_a_start_says_nothing_of_one() -> None:
    assert start_named(question()) == "" and question().keys() == {"release"}
    assert start_named(question("ab" * 32)) == "ab" * 32
    assert not brings_start(question("ab" * 32))
    assert wants_start(start_wanted()) and not wants_start(question("ab" * 32))
    several = question("ab" * 32, "cd" * 32)
    assert (start_named(several), further_named(several)) == ("ab" * 32, ["cd" * 32])
    assert further_named(question("ab" * 32)) == further_named(question()) == []
    assert start_named(start_wanted("cd" * 32)) == "cd" * 32 and start_named(start_wanted()) == ""


@pytest.mark.parametrize("named", ["ab", "../" * 22, "AB" * 32, 3])
def test_a_start_that_is_named_by_no_hash_is_refused(named: str | int) -> None:
    with pytest.raises(ContributionError, match="expected the sha256 of a start"):
        start_named(RecordDict({"start": ConfigRecord({"start": named})}))
    for further in (named, [named]):
        with pytest.raises(ContributionError, match="expected the sha256 of a start"):
            further_named(RecordDict({"start": ConfigRecord({"start": "ab" * 32, "further": further})}))


def test_an_acknowledgement_holds_no_accuracy() -> None:
    assert accuracies_from_records(accuracies_to_records([])) == []


@pytest.mark.parametrize(
    "change",
    [
        {"mean": float("nan")},
        {"mean": 100.5},
        {"mean": 41},
        {"ci95": -0.1},
        {"episodes": 0},
        {"episodes": 1.5},
        {"n_way": 1},
        {"n_shot": [1, 2]},
    ],
)
def test_an_implausible_accuracy_is_refused(change: dict[str, int | float | list[int]]) -> None:
    with pytest.raises(ContributionError):
        accuracies_from_records(RecordDict({"5way1shot": MetricRecord(METRICS | change)}))


def test_a_result_that_lacks_a_number_is_refused() -> None:
    with pytest.raises(ContributionError, match="episodes"):
        accuracies_from_records(
            RecordDict({"5way1shot": MetricRecord({k: v for k, v in METRICS.items() if k != "episodes"})})
        )


def test_anything_but_metrics_is_refused() -> None:
    with pytest.raises(ContributionError, match="ConfigRecord"):
        accuracies_from_records(RecordDict({"notes": ConfigRecord({"text": "hello"})}))
