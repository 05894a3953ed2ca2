"""Whatever bytes arrive: a FedFreeError and nothing else, or something valid that is encoded as it came.

FEDFREE_FUZZ_INPUTS changes how many inputs are tried, of all kinds together: 2,000 by default, a million in
the slow job. ``python tests/properties/test_hostile_bytes.py KIND COUNT`` tries one kind, and prints what it
took.
"""

import gc
import json
import os
import resource
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import hypothesis
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from google.protobuf.message import DecodeError
from hypothesis import strategies as st
from PIL import Image

from client.adapting.classifier import Description, FewShotClassifier, read_classifier, write_classifier
from client.config import ClientConfig
from client.data.loading import load_image, load_images
from client.doors.grpc_remote import Remote
from client.doors.trust import Trust
from fedfree.adaptation import Recipe
from fedfree.architectures import Architecture, InputSpec, build
from fedfree.codec import (
    Contribution,
    MetaLearner,
    Provenance,
    decode_contribution,
    decode_meta_learner,
    encode_contribution,
    encode_meta_learner,
    encode_weights,
    sha256,
)
from fedfree.errors import ContributionError, FedFreeError
from fedfree.flower_records import (
    accuracies_from_records,
    check_release,
    from_records,
    further_named,
    start_named,
)
from fedfree.host.images.decoding import MAX_PIXELS
from fedfree.signing import public_key, sign
from fedfree.start import Start, decode_start, encode_body, encode_start
from fedfree.statement import (
    Composition,
    DifferentialPrivacy,
    DpSgd,
    InitialWeights,
    PrivacyStatement,
    PrivacyStatus,
)
from fedfree.v1 import contribution_pb2, service_pb2
from server.config import ServerConfig
from server.doors.grpc_service import _check_header

ROOT = Path(__file__).parents[2]
DEFAULT_INPUTS, SLOW_INPUTS = 2_000, 1_000_000
CHUNK = 200
"""Inputs that hypothesis is given together: it remembers them all."""
SECONDS, SPARE_BYTES = 1.0, 100 << 20
CLAIMED_PIXELS_BYTES = 4 * MAX_PIXELS
"""A picture of some bytes may say that it is as large as a photograph may be; it is one of one's own."""

LAYOUT = "<5d3Q"
"""Of the numbers of a privacy statement."""
KEY = "42" * 32
SPEC = InputSpec(channels=1, height=16, width=16)
GROUPED = Architecture(norm="group")


@cache
def weights_of(architecture: Architecture = GROUPED) -> bytes:
    torch.manual_seed(0)
    return encode_weights(build(architecture, num_classes=3, input=SPEC))


def statement() -> PrivacyStatement:
    composition = Composition(3.5, 2, 1, 8.0)
    spent = DifferentialPrivacy(2.5, 1e-6, DpSgd(1.25, 0.125, 80), 0.5, 2400, 100, "prv", "x", composition)
    return PrivacyStatement(PrivacyStatus.DP, spent, InitialWeights("ab" * 32, public=True))


def contribution() -> bytes:
    return encode_contribution(Contribution(GROUPED, 3, SPEC, statement(), weights_of()))


def try_manifest(manifest: bytes) -> None:
    decoded = decode_contribution(manifest, weights_of())
    assert encode_contribution(decoded) == manifest


def try_weights(weights: bytes) -> None:
    """Under a manifest that names these very weights, so that their hash is no obstacle."""
    sent = Contribution(GROUPED, 3, SPEC, PrivacyStatement(), weights)
    decoded = decode_contribution(encode_contribution(sent), weights)
    assert encode_weights(decoded.network()) == weights


def meta_learner() -> bytes:
    provenance = Provenance(("ab" * 32, "cd" * 32), "ef" * 32, 7, "fedfree 0")
    return encode_meta_learner(MetaLearner(GROUPED, 3, SPEC, Recipe("ridge"), provenance, weights_of()))


def try_meta_learner(manifest: bytes) -> None:
    assert encode_meta_learner(decode_meta_learner(manifest, weights_of())) == manifest


@cache
def body() -> bytes:
    torch.manual_seed(0)
    return encode_body(build(GROUPED, num_classes=2, input=SPEC))


def start() -> bytes:
    return encode_start(Start(GROUPED, sha256(body()), SPEC, "a test", "MIT"))


def try_start(manifest: bytes) -> None:
    assert encode_start(decode_start(manifest, body())) == manifest


def try_start_weights(weights: bytes) -> None:
    named = Start(GROUPED, sha256(weights), SPEC, "a test", "MIT")
    assert decode_start(encode_start(named), weights) == named


def try_upload(frame: bytes) -> None:
    """What the server's gRPC door makes of a frame that begins an upload."""
    header = parsed(service_pb2.ContributeRequest(), frame).header
    assert len(_check_header(header)) == 64


def parsed(message: Any, frame: bytes) -> Any:
    """As gRPC parses a frame; what it cannot parse it refuses itself."""
    try:
        message.ParseFromString(frame)
    except DecodeError as error:
        raise ContributionError("no message") from error
    return message


class Coordinator:
    """Answers with the frames it is given."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def GetStatus(self, request: Any, **options: Any) -> Any:  # noqa: N802
        return self._answer

    def FetchMetaLearner(self, request: Any, **options: Any) -> Any:  # noqa: N802
        return Answers([self._answer])


class Answers(Iterator[Any]):
    """A stream that its receiver may end."""

    def __init__(self, answers: list[Any]) -> None:
        self._answers = iter(answers)

    def __next__(self) -> Any:
        return next(self._answers)

    def cancel(self) -> None:
        """Nobody waits."""


def remote(answer: Any) -> Remote:
    made = Remote.__new__(Remote)
    made._stub, made._metadata, made._blame = Coordinator(answer), (), None  # type: ignore[assignment]
    made._trust = Trust.at("localhost:1", public_key(KEY))
    return made


def try_status(frame: bytes) -> None:
    coordinator = remote(parsed(service_pb2.GetStatusResponse(), frame))
    coordinator.run()
    assert coordinator.contribution(b"a manifest").reason.isprintable()


def status() -> bytes:
    state = service_pb2.ContributionState(
        contribution_sha256=bytes.fromhex(sha256(b"a manifest")), place=3, reason="because"
    )
    return service_pb2.GetStatusResponse(
        received=1,
        contribution=state,
        meta_learner_sha256=bytes(32),
        start_sha256=bytes(32),
        further_start_sha256=[bytes(32)],
    ).SerializeToString()


def try_fetch(frame: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        answer = parsed(service_pb2.FetchResponse(), frame)
        remote(answer).fetch(Path(folder, "weights"), Path(folder, "manifest"))


def fetch() -> bytes:
    header = service_pb2.FetchHeader(
        manifest=meta_learner(),
        weights_bytes=len(weights_of()),
        weights_sha256=bytes.fromhex(sha256(weights_of())),
        signature=sign("meta-learner", meta_learner(), KEY, 1),
    )
    return service_pb2.FetchResponse(header=header).SerializeToString()


def try_records(text: bytes) -> None:
    """Flower's records hold whatever their sender put there; a line of JSON stands for it."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ContributionError("no records") from error
    records = RecordDict()
    for name, value in said.items() if isinstance(said, dict) else ():
        # Flower refuses what is no record, as its sender would see.
        with suppress(AttributeError, TypeError, ValueError, OverflowError):
            records[name] = record(value)
    readers = (from_records, accuracies_from_records, start_named, further_named)
    for read in (*readers, lambda each: check_release(each, "organisation")):
        with suppress(FedFreeError):
            read(records)


def record(value: Any) -> Any:
    if isinstance(value, list):
        data = json.dumps(value).encode()
        return ArrayRecord({"safetensors": Array(str(value[0]), tuple(value[1:]), "safetensors", data)})
    return ConfigRecord(value)


def in_a_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], None]:
    def attempt(content: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, name)
            path.write_bytes(content)
            read(path)

    return attempt


def picture(format: str) -> bytes:
    buffer = BytesIO()
    Image.effect_noise((24, 20), 50).save(buffer, format)
    return buffer.getvalue()


def zipped() -> bytes:
    buffer = BytesIO()
    with ZipFile(buffer, "w") as archive:
        for name in ("cat/0.png", "dog/0.png", "dog/1.jpg"):
            archive.writestr(name, picture("PNG" if name.endswith("png") else "JPEG"))
    return buffer.getvalue()


@cache
def classifier() -> bytes:
    torch.manual_seed(0)
    description = Description(
        architecture=GROUPED,
        input=SPEC,
        recipe=Recipe("gradient"),
        support={"cat": 1, "dog": 1},
        calibration=None,
        meta_learner="ab" * 32,
        provenance=Provenance((), "ef" * 32, 7, "fedfree 0"),
    )
    with tempfile.TemporaryDirectory() as folder:
        write_classifier(FewShotClassifier(description), Path(folder, "classifier"))
        return Path(folder, "classifier").read_bytes()


@dataclass(frozen=True)
class Kind:
    """One way in."""

    seeds: Callable[[], list[bytes]]
    """Valid ones, which are changed."""
    attempt: Callable[[bytes], None]


KINDS = {
    "manifest": Kind(lambda: [contribution()], try_manifest),
    "statement": Kind(
        lambda: [struct.pack(LAYOUT, 2.5, 1e-6, 1.25, 0.125, 0.5, 80, 2400, 100)],
        lambda each: try_manifest(with_statement(each)),
    ),
    "weights": Kind(lambda: [weights_of()], try_weights),
    "meta-learner": Kind(lambda: [meta_learner()], try_meta_learner),
    "start": Kind(lambda: [start()], try_start),
    "start-weights": Kind(lambda: [body()], try_start_weights),
    "upload": Kind(
        lambda: [
            service_pb2.ContributeRequest(
                header=service_pb2.ContributionHeader(manifest=contribution(), weights_bytes=9)
            ).SerializeToString()
        ],
        try_upload,
    ),
    "status": Kind(lambda: [status()], try_status),
    "fetch": Kind(lambda: [fetch()], try_fetch),
    "records": Kind(
        lambda: [
            b'{"weights": ["uint8", 9], "manifest": {"protobuf": "x"}, "release": {"release": "0.1"}, '
            b'"start": {"start": "ab", "wanted": true, "further": ["ab"]}, '
            b'"5-way": {"n_way": 5, "mean": 50.5}}'
        ],
        try_records,
    ),
    "image": Kind(
        lambda: [picture(each) for each in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")],
        in_a_file("image.png", lambda path: load_image(path, size=8, channels=3)),
    ),
    "image-zip": Kind(
        lambda: [zipped()], in_a_file("images.zip", lambda path: load_images(path, size=8, min_classes=1))
    ),
    "classifier": Kind(lambda: [classifier()], in_a_file("classifier.safetensors", read_classifier)),
    "client.toml": Kind(
        lambda: [b'[data]\nsource = "x"\n[training]\nepochs = 3\n[privacy]\nepsilon = 8.0\ndelta = 1e-5\n'],
        in_a_file("client.toml", ClientConfig.read),
    ),
    "server.toml": Kind(
        lambda: [ServerConfig().to_toml().encode()], in_a_file("server.toml", ServerConfig.read)
    ),
}


NUMBERS = ("epsilon", "delta", "noise_multiplier", "sampling_rate", "max_grad_norm")
WHOLE = ("steps", "images", "images_rounded_to")


def with_statement(packed: bytes) -> bytes:
    """A manifest whose statement holds the numbers that these bytes are."""
    message = contribution_pb2.Contribution.FromString(contribution())
    values = struct.unpack(LAYOUT, packed.ljust(struct.calcsize(LAYOUT), b"\0")[: struct.calcsize(LAYOUT)])
    for name, value in zip((*NUMBERS, *WHOLE), values, strict=True):
        setattr(message.privacy.differential_privacy, name, value)
    return message.SerializeToString(deterministic=True)


@dataclass(frozen=True)
class Edit:
    """One change of some bytes."""

    place: float
    """From 0, the beginning, to 1, the end; most of what matters lies near the beginning."""
    how: str
    data: bytes

    def apply(self, content: bytes) -> bytes:
        at = int(self.place**3 * len(content))
        if self.how == "insert":
            return content[:at] + self.data + content[at:]
        if self.how == "overwrite":
            return content[:at] + self.data + content[at + len(self.data) :]
        if self.how == "delete":
            return content[:at] + content[at + 1 + len(self.data) :]
        if self.how == "flip":
            return (
                content[:at] + bytes([content[at] ^ (1 << len(self.data) % 8)]) + content[at + 1 :]
                if content[at:]
                else b""
            )
        if self.how == "repeat":
            return content[:at] + content[at : at + 64] * (1 + len(self.data)) + content[at:]
        return content[:at]


EDITS = st.builds(
    Edit,
    st.floats(0, 1),
    st.sampled_from(["insert", "overwrite", "delete", "flip", "repeat", "cut"]),
    st.binary(max_size=12)
    | st.sampled_from([b"\xff" * 8, b"\0" * 8, b"[[[[", b'"', b"1e999", b"\x7f\xf0", b"-1"]),
)


def inputs_of(kind: Kind) -> st.SearchStrategy[bytes]:
    changed = st.builds(
        lambda seed, edits: apply_all(seed, edits),
        st.sampled_from(kind.seeds()),
        st.lists(EDITS, min_size=1, max_size=4),
    )
    return st.one_of(changed, changed, changed, st.binary(max_size=200))


def apply_all(content: bytes, edits: list[Edit]) -> bytes:
    for edit in edits:
        content = edit.apply(content)
    return content


def hammer(name: str, count: int, *, derandomize: bool, look: Callable[[bytes, float], object]) -> None:
    """Try so many inputs of one kind; ``look`` is given each with the processor's seconds that it took."""
    kind = KINDS[name]

    def check(content: bytes) -> None:
        before = time.process_time()
        try:
            kind.attempt(content)
        except FedFreeError as error:
            assert str(error)
        look(content, time.process_time() - before)

    for chunk in range(-(-count // CHUNK)):
        settings = hypothesis.settings(
            max_examples=min(CHUNK, count - chunk * CHUNK),
            derandomize=derandomize,
            database=None,
            deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
            phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
        )
        test = settings(hypothesis.given(inputs_of(kind))(check))
        (test if derandomize else hypothesis.seed(chunk)(test))()
        gc.collect()


def inputs_each(default: int) -> int:
    return -(-int(os.environ.get("FEDFREE_FUZZ_INPUTS", default)) // len(KINDS))


@pytest.mark.parametrize("name", KINDS)
def test_the_seeds_themselves_are_valid(name: str) -> None:
    for seed in KINDS[name].seeds():
        try:
            KINDS[name].attempt(seed)
        except FedFreeError as error:
            assert name == "fetch" and "sha256" in str(error)  # of weights that do not follow


@pytest.mark.parametrize("name", KINDS)
def test_whatever_arrives_is_refused_in_words_or_valid(name: str) -> None:
    hammer(name, inputs_each(DEFAULT_INPUTS), derandomize=True, look=lambda content, seconds: None)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", KINDS)
def test_a_million_inputs_take_neither_time_nor_memory(name: str) -> None:
    count = inputs_each(SLOW_INPUTS)
    command = [sys.executable, __file__, name, str(count)]
    path = os.pathsep.join([str(ROOT), str(ROOT / "proto")])
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert ended.returncode == 0, ended.stderr[-3000:]
    took = json.loads(ended.stdout)
    assert took["inputs"] >= count
    assert took["slowest_seconds"] < SECONDS
    spare = CLAIMED_PIXELS_BYTES if name.startswith("image") else SPARE_BYTES
    assert took["bytes"] <= 2 * took["largest_input"] + spare


def main(name: str, count: int) -> None:
    """What the slow job runs for one kind, in a process of its own: its memory is this kind's."""
    hammer(name, 200, derandomize=True, look=lambda content, seconds: None)  # imports and caches
    gc.freeze()  # what is here now is not looked through after every chunk
    before = peak_bytes()
    inputs, slowest, largest = 0, 0.0, 0

    def look(content: bytes, seconds: float) -> None:
        nonlocal inputs, slowest, largest
        inputs, slowest, largest = inputs + 1, max(slowest, seconds), max(largest, len(content))

    hammer(name, count, derandomize=False, look=look)
    gc.unfreeze()
    took = {
        "inputs": inputs,
        "slowest_seconds": slowest,
        "largest_input": largest,
        "bytes": peak_bytes() - before,
    }
    sys.stdout.write(json.dumps(took))


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
