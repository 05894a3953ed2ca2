"""Both ends of the gRPC door on loopback: what goes in comes out, and all else is refused with a word."""

import asyncio
import datetime
import errno
import hashlib
import ipaddress
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from client.doors.grpc_remote import PAUSES_SECONDS, Remote, connect
from client.doors.grpc_remote import credentials as client_tls
from fedfree.adaptation import Recipe
from fedfree.architectures import Architecture, InputSpec, build
from fedfree.codec import (
    MAX_WEIGHTS_BYTES,
    Contribution,
    MetaLearner,
    Provenance,
    contribution_id,
    encode_contribution,
    encode_weights,
    sha256,
)
from fedfree.errors import (
    AccessError,
    ConfigError,
    ContributionError,
    FederationError,
    LimitError,
    NotReadyError,
    StartError,
    StorageError,
    VersionError,
)
from fedfree.grpc_status import error_of
from fedfree.host.channel import CHUNK_BYTES, MAX_MESSAGE_BYTES, Address
from fedfree.host.files import open_stream
from fedfree.host.starts import MANIFEST, WEIGHTS, keep_start, load_start
from fedfree.release import this_release
from fedfree.start import LoadedStart, encode_start
from fedfree.statement import PrivacyStatement
from fedfree.v1 import contribution_pb2, service_pb2
from fedfree.v1.service_pb2_grpc import FedFREEStub
from server import pipeline
from server.config import CollectConfig, InvertConfig, MetaLearnConfig, ServerConfig
from server.doors import grpc_server as door
from server.doors.grpc_service import Service
from server.doors.limits import ServiceConfig
from server.doors.tokens import Tokens
from server.events import Event, ignore
from server.storage.run_directory import RunDirectory
from server.storage.store import RECEIVED, Store
from tests.doors import serving
from tests.programs import RunProgram

INPUT = InputSpec(channels=1, height=16, width=16)
Requests = Iterable[service_pb2.ContributeRequest]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A prepared run without contributions."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "server.toml").write_text(ServerConfig().to_toml())
    return RunDirectory(tmp_path / "run")


@pytest.fixture
def token(run: RunDirectory) -> str:
    return Tokens(run.tokens).add("org-1")


@contextmanager
def remote(address: Address, token: str, tls: Any = None) -> Iterator[Remote]:
    """A client's side that does not wait between attempts."""
    with connect(address, tls, token) as connected:
        connected._sleep = lambda seconds: None
        yield connected


@contextmanager
def stub(address: Address, token: str | None) -> Iterator[Callable[..., Any]]:
    """Raw calls by name, with whatever token and messages."""
    with grpc.insecure_channel(str(address)) as channel:
        methods = FedFREEStub(channel)
        metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        yield lambda name, request: getattr(methods, name)(request, metadata=metadata, timeout=30)


def model(seed: int = 0, *, classes: int = 3) -> tuple[bytes, bytes]:
    """A sound contribution."""
    torch.manual_seed(seed)
    network = build(Architecture(), num_classes=classes, input=INPUT)
    weights = encode_weights(network)
    contribution = Contribution(Architecture(), classes, INPUT, PrivacyStatement(), weights)
    return encode_contribution(contribution), weights


def blob(size: int) -> tuple[bytes, bytes]:
    """A contribution that only its hash holds together."""
    weights = bytes(range(256)) * (size // 256) + b"!" * (size % 256)
    digest = hashlib.sha256(weights).digest()
    return contribution_pb2.Contribution(weights_sha256=digest).SerializeToString(), weights


def header(manifest: bytes, size: int) -> service_pb2.ContributeRequest:
    part = service_pb2.ContributionHeader(manifest=manifest, weights_bytes=size)
    return service_pb2.ContributeRequest(header=part)


def chunk(data: bytes) -> service_pb2.ContributeRequest:
    return service_pb2.ContributeRequest(chunk=data)


def refusal(address: Address, token: str | None, requests: Requests) -> tuple[Any, str]:
    """Status and words with which an upload is refused."""
    with stub(address, token) as call, pytest.raises(grpc.RpcError) as failure:
        call("Contribute", iter(requests))
    return failure.value.code(), failure.value.details()


def assert_nothing_was_kept(run: RunDirectory) -> None:
    assert run.store().ids(RECEIVED) == []
    assert list((run.path / "store").glob(".staging-*")) == []


@pytest.mark.parametrize("size", [1, CHUNK_BYTES - 1, CHUNK_BYTES, 3 * CHUNK_BYTES + 1])
def test_what_arrives_is_what_a_direct_receive_stores(
    run: RunDirectory, token: str, tmp_path: Path, size: int
) -> None:
    direct = Store(tmp_path / "direct")
    identity = direct.receive(*blob(size))
    with serving(run) as address, remote(address, token) as coordinator:
        state = coordinator.contribute(*blob(size))
    assert (state.identity, state.place, state.reason) == (identity, "received", "")
    assert run.store().read(identity) == direct.read(identity) == blob(size)
    assert run.store().organisation(identity) == "org-1"
    (event,) = run.read_events()
    assert event == Event("collect", "received", {"contribution": identity, "organisation": "org-1"})
    assert list((run.path / "store").glob(".staging-*")) == []


def test_a_contribution_that_is_here_is_answered_before_its_weights_are_sent(
    run: RunDirectory, token: str
) -> None:
    manifest, weights = model()
    identity = run.store().receive(manifest, weights)
    answered = threading.Event()

    def upload() -> Iterator[service_pb2.ContributeRequest]:
        yield header(manifest, len(weights))
        assert answered.wait(30), "the server waits for the weights"

    with serving(run) as address, stub(address, token) as call:
        state = call("Contribute", upload()).contribution
        answered.set()
    assert state.contribution_sha256.hex() == identity
    assert state.place == service_pb2.ContributionState.PLACE_RECEIVED


def test_many_uploads_of_one_contribution_at_once_are_one(run: RunDirectory, token: str) -> None:
    message, states = blob(2 * CHUNK_BYTES), []

    def upload() -> None:
        with remote(address, token) as coordinator:
            states.append(coordinator.contribute(*message))

    with serving(run) as address:
        threads = [threading.Thread(target=upload) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [state.place for state in states] == ["received"] * 6
    assert run.store().ids(RECEIVED) == [contribution_id(message[0])]
    assert list((run.path / "store").glob(".staging-*")) == []


def uploads_to_refuse() -> dict[str, tuple[list[service_pb2.ContributeRequest], str]]:
    manifest, weights = blob(1000)
    of_no_hash = contribution_pb2.Contribution(num_classes=3).SerializeToString()
    return {
        "nothing": ([], "must begin with a header"),
        "an empty message": ([service_pb2.ContributeRequest()], "must begin with a header"),
        "a chunk first": ([chunk(weights)], "must begin with a header"),
        "a header twice": ([header(manifest, 1000), header(manifest, 1000)], "chunks of weights only"),
        "garbage as a manifest": ([header(b"\xff\xff", 1000)], "not a valid fedfree.v1.Contribution"),
        "a manifest without a hash": ([header(of_no_hash, 1000)], "does not state the sha256"),
        "a manifest too large": ([header(b"x" * (1 << 20) + b"x", 1000)], "exceeds 1048576"),
        "no weights at all": ([header(manifest, 0)], "announced are 0"),
        "more than may be": ([header(manifest, MAX_WEIGHTS_BYTES + 1)], str(MAX_WEIGHTS_BYTES)),
        "a truncated upload": ([header(manifest, 1000), chunk(weights[:999])], "after 999 of 1000 bytes"),
        "more than announced": (
            [header(manifest, 1000), chunk(weights), chunk(b"x")],
            "exceeds the 1000 bytes",
        ),
        "other weights": ([header(manifest, 1000), chunk(weights[::-1])], "the manifest says"),
    }


@pytest.mark.parametrize("name", uploads_to_refuse())
def test_an_upload_is_refused_with_the_reason_and_leaves_nothing(
    run: RunDirectory, token: str, name: str
) -> None:
    requests, words = uploads_to_refuse()[name]
    with serving(run) as address:
        code, details = refusal(address, token, requests)
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert words in details
    assert_nothing_was_kept(run)


def test_a_message_above_the_limit_is_refused(run: RunDirectory, token: str) -> None:
    manifest, weights = blob(MAX_MESSAGE_BYTES + 1)
    with serving(run) as address:
        code, _ = refusal(address, token, [header(manifest, len(weights)), chunk(weights)])
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert_nothing_was_kept(run)


def test_bytes_that_are_no_message_are_refused_and_the_server_goes_on(run: RunDirectory, token: str) -> None:
    with serving(run) as address:
        with grpc.insecure_channel(str(address)) as channel, pytest.raises(grpc.RpcError):
            channel.stream_unary("/fedfree.v1.FedFREE/Contribute")(
                iter([b"\xff\xff\xff"]), metadata=(("authorization", f"Bearer {token}"),), timeout=30
            )
        assert_nothing_was_kept(run)
        with remote(address, token) as coordinator:
            assert coordinator.contribute(*model()).place == "received"


def test_an_upload_whose_client_disappears_leaves_nothing(run: RunDirectory, token: str) -> None:
    manifest, weights = blob(3 * CHUNK_BYTES)
    sent, gone = threading.Event(), threading.Event()

    def upload() -> Iterator[service_pb2.ContributeRequest]:
        yield header(manifest, len(weights))
        yield chunk(weights[:CHUNK_BYTES])
        sent.set()
        gone.wait(30)

    with serving(run) as address, grpc.insecure_channel(str(address)) as channel:
        metadata = (("authorization", f"Bearer {token}"),)
        call = FedFREEStub(channel).Contribute.future(upload(), metadata=metadata)
        assert sent.wait(30)
        call.cancel()
        gone.set()
    assert_nothing_was_kept(run)


def test_an_upload_that_takes_too_long_is_ended(run: RunDirectory, token: str) -> None:
    manifest, weights = blob(1000)
    ended = threading.Event()

    def upload() -> Iterator[service_pb2.ContributeRequest]:
        yield header(manifest, len(weights))
        ended.wait(30)

    with serving(run, upload_seconds=0.1) as address:
        code, details = refusal(address, token, upload())
        ended.set()
    assert (code, details) == (grpc.StatusCode.DEADLINE_EXCEEDED, "the upload took longer than 0.1 s")
    assert_nothing_was_kept(run)


def test_a_server_that_cannot_write_says_so_without_a_path_and_may_be_asked_again(
    run: RunDirectory, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "/srv/secret")

    with serving(run) as address:
        monkeypatch.setattr(Store, "upload", is_full)
        with remote(address, token) as coordinator, pytest.raises(FederationError) as failure:
            coordinator.contribute(*model())
    assert str(failure.value) == "the server cannot use its disk; its log says why"


def test_who_has_no_token_or_a_wrong_or_a_revoked_one_is_refused(run: RunDirectory, token: str) -> None:
    with serving(run) as address:
        assert refusal(address, None, [])[0] == grpc.StatusCode.UNAUTHENTICATED
        with remote(address, "wrong") as stranger:
            for call in (lambda: stranger.contribute(*model()), stranger.run):
                with pytest.raises(AccessError, match="the token is wrong or was revoked"):
                    call()
            with pytest.raises(AccessError):
                stranger.fetch(run.path / "out", run.path / "out.pb")
        with remote(address, token) as coordinator:
            coordinator.run()
            Tokens(run.tokens).revoke("org-1")
            with pytest.raises(AccessError, match="revoked"):
                coordinator.run()
    assert_nothing_was_kept(run)


def test_an_organisation_hands_over_no_more_than_its_share_and_a_failed_upload_is_not_counted(
    run: RunDirectory, token: str
) -> None:
    other = Tokens(run.tokens).add("org-2")
    manifest, weights = blob(1000)
    with serving(run, max_contributions=2) as address, remote(address, token) as coordinator:
        for _ in range(3):
            refusal(address, token, [header(manifest, 1000), chunk(weights[:1])])
        assert [coordinator.contribute(*blob(size)).place for size in (1, 2, 1)] == ["received"] * 3
        with pytest.raises(LimitError, match="org-1 has handed over 2 contributions"):
            coordinator.contribute(*blob(3))
        with remote(address, other) as another:
            assert another.contribute(*blob(3)).place == "received"
    with (
        serving(run, max_contributions=2) as address,
        remote(address, token) as coordinator,
        pytest.raises(LimitError),
    ):
        coordinator.contribute(*blob(4))


def test_too_many_requests_are_refused_with_the_time_to_wait(run: RunDirectory, token: str) -> None:
    with serving(run, requests_per_minute=3) as address, remote(address, token) as coordinator:
        for _ in range(3):
            coordinator.run()
        with pytest.raises(LimitError, match=r"more than 3 requests a minute: try again in \d+ s"):
            coordinator.run()


def test_uploads_beyond_those_at_once_wait_for_their_turn(run: RunDirectory, token: str) -> None:
    manifest, weights = blob(CHUNK_BYTES)
    goes_on = threading.Event()

    def slowly() -> Iterator[service_pb2.ContributeRequest]:
        yield header(manifest, len(weights))
        assert goes_on.wait(60)
        yield chunk(weights)

    with (
        serving(run, uploads_at_once=1, requests_per_minute=10**9) as address,
        grpc.insecure_channel(str(address)) as channel,
        remote(address, token) as coordinator,
    ):
        calls, metadata = FedFREEStub(channel), (("authorization", f"Bearer {token}"),)
        first = calls.Contribute.future(slowly(), metadata=metadata)
        while not list((run.path / "store").glob(".staging-*")):
            coordinator.run()
        quick = iter([header(blob(1)[0], 1), chunk(blob(1)[1])])
        second = calls.Contribute.future(quick, metadata=metadata)
        assert {coordinator.run().received for _ in range(20)} == {0}
        goes_on.set()
        assert first.result(60) and second.result(60)
    assert len(run.store().ids(RECEIVED)) == 2


def test_the_state_of_a_contribution_is_told_with_its_reason(run: RunDirectory, token: str) -> None:
    store = run.store()
    kept, refused = model(0), model(1)
    with serving(run) as address, remote(address, token) as coordinator:
        assert coordinator.contribution(kept[0]).place == "unknown"
        for message in (kept, refused):
            coordinator.contribute(*message)
        store.accept(contribution_id(kept[0]))
        store.quarantine(contribution_id(refused[0]), "the same weights as another")
        assert coordinator.contribution(kept[0]).place == "accepted"
        state = coordinator.contribute(*refused)
        assert (state.place, state.reason) == ("quarantined", "the same weights as another")
        counts = coordinator.run()
    assert (counts.received, counts.accepted, counts.quarantined) == (0, 1, 1)
    assert (counts.iteration, counts.iterations, counts.meta_learner_sha256) == (0, 0, "")


def test_progress_is_the_latest_of_the_learning(run: RunDirectory, token: str) -> None:
    record = run.recorded(ignore)
    with serving(run) as address, remote(address, token) as coordinator:
        for iteration in (1, 2):
            record(Event("learn", "progress", {"iteration": iteration, "of": 60}))
            record(Event("learn", "recovered", {"images": 100}))
            with run.events.open("a") as file:
                file.write('{"time": "2026-')
            counts = coordinator.run()
            assert (counts.iteration, counts.iterations) == (iteration, 60)
            with run.events.open("a") as file:
                file.write("\n")


def meta_learner(seed: int = 0) -> MetaLearner:
    """One of more than three chunks."""
    torch.manual_seed(seed)
    architecture = Architecture.parse("resnet10")
    network = build(architecture, num_classes=2, input=INPUT)
    provenance = Provenance((), sha256(b""), 0, "fedfree")
    weights = encode_weights(network)
    return MetaLearner(architecture, 2, INPUT, Recipe(), provenance, weights)


def partial(out: Path, weights: bytes) -> Path:
    return out.with_name(f"{out.name}.{sha256(weights)}.partial")


def test_there_is_nothing_to_fetch_before_learning_has_ended(
    run: RunDirectory, token: str, tmp_path: Path
) -> None:
    with serving(run) as address, remote(address, token) as coordinator:
        with pytest.raises(NotReadyError, match="no meta-learner yet"):
            coordinator.fetch(tmp_path / "m", tmp_path / "m.pb")
        run.write_meta_learner(meta_learner())
        assert coordinator.fetch(tmp_path / "m", tmp_path / "m.pb") == meta_learner()


@pytest.mark.parametrize("missing", [0, 1, 1000, CHUNK_BYTES, CHUNK_BYTES + 1, None])
def test_a_fetch_goes_on_where_it_was_cut(
    run: RunDirectory, token: str, tmp_path: Path, missing: int | None
) -> None:
    sent = meta_learner()
    manifest = run.write_meta_learner(sent)
    have = 0 if missing is None else len(sent.weights) - missing
    out = tmp_path / "meta_learner.safetensors"
    partial(out, sent.weights).write_bytes(sent.weights[:have])
    with serving(run) as address:
        with stub(address, token) as call:
            request = service_pb2.FetchRequest(
                offset=have, weights_sha256=bytes.fromhex(sha256(sent.weights))
            )
            first, *rest = call("FetchMetaLearner", request)
            assert first.header.offset == have
            assert b"".join(each.chunk for each in rest) == sent.weights[have:]
        with remote(address, token) as coordinator:
            assert coordinator.fetch(out, tmp_path / "m.pb") == sent
    assert out.read_bytes() == sent.weights
    assert (tmp_path / "m.pb").read_bytes() == manifest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.pb", out.name, "run"]


def test_another_meta_learner_than_the_one_begun_is_fetched_from_its_start(
    run: RunDirectory, token: str, tmp_path: Path
) -> None:
    before, now = meta_learner(0), meta_learner(1)
    run.write_meta_learner(now)
    out = tmp_path / "m"
    partial(out, before.weights).write_bytes(before.weights[:5000])
    with serving(run) as address, remote(address, token) as coordinator:
        assert coordinator.fetch(out, tmp_path / "m.pb") == now
    assert not partial(out, before.weights).exists()


def test_a_partial_file_that_was_damaged_is_not_kept(run: RunDirectory, token: str, tmp_path: Path) -> None:
    sent, out = meta_learner(), tmp_path / "m"
    run.write_meta_learner(sent)
    partial(out, sent.weights).write_bytes(b"x" * 5000)
    with serving(run) as address, remote(address, token) as coordinator:
        with pytest.raises(ContributionError, match="sha256"):
            coordinator.fetch(out, tmp_path / "m.pb")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
        assert coordinator.fetch(out, tmp_path / "m.pb") == sent


def test_a_meta_learner_replaced_during_a_fetch_does_not_mix_with_the_one_before(
    run: RunDirectory, token: str
) -> None:
    before, after = meta_learner(0), meta_learner(1)
    run.write_meta_learner(before)
    with serving(run) as address, stub(address, token) as call:
        answers = call("FetchMetaLearner", service_pb2.FetchRequest())
        next(answers)
        run.write_meta_learner(after)
        assert b"".join(each.chunk for each in answers) == before.weights


def test_weights_whose_manifest_is_still_the_one_before_are_not_handed_out(
    run: RunDirectory, token: str
) -> None:
    run.write_meta_learner(meta_learner(0))
    run.weights.write_bytes(meta_learner(1).weights)
    with serving(run) as address, stub(address, token) as call, pytest.raises(grpc.RpcError) as failure:
        list(call("FetchMetaLearner", service_pb2.FetchRequest()))
    assert isinstance(error_of(failure.value), FederationError)
    assert "just being replaced" in failure.value.details()


@pytest.mark.parametrize("name", ["meta_learner.safetensors", "meta_learner.manifest.pb"])
def test_a_flipped_bit_in_what_was_published_is_not_handed_out(
    run: RunDirectory, token: str, name: str
) -> None:
    run.write_meta_learner(meta_learner(0))
    content = bytearray((run.path / name).read_bytes())
    content[-1] ^= 1
    (run.path / name).write_bytes(content)
    with serving(run) as address, stub(address, token) as call, pytest.raises(grpc.RpcError) as failure:
        list(call("FetchMetaLearner", service_pb2.FetchRequest()))
    assert "is damaged on the server's disk" in failure.value.details()


MakeStart = Callable[..., LoadedStart]


def give_start(run: RunDirectory, begun: LoadedStart) -> LoadedStart:
    keep_start(run.start_folder, begun.start, begun.weights)
    return begun


@pytest.mark.parametrize("missing", [0, 1, CHUNK_BYTES + 1, None])
def test_a_start_is_fetched_in_pieces_from_where_an_attempt_was_cut(
    run: RunDirectory, token: str, tmp_path: Path, make_start: MakeStart, missing: int | None
) -> None:
    sent = give_start(run, make_start(architecture="resnet10"))
    have, out = 0 if missing is None else len(sent.weights) - missing, tmp_path / "start"
    out.mkdir()
    partial(out / WEIGHTS, sent.weights).write_bytes(sent.weights[:have])
    with serving(run) as address:
        with stub(address, token) as call:
            digest = bytes.fromhex(sent.start.weights_sha256)
            first, *rest = call("FetchStart", service_pb2.FetchRequest(offset=have, weights_sha256=digest))
            assert (first.header.offset, first.header.manifest) == (have, encode_start(sent.start))
            assert b"".join(each.chunk for each in rest) == sent.weights[have:]
            assert all(len(each.chunk) <= CHUNK_BYTES for each in rest)
            assert bool(rest) == (missing != 0)
        with remote(address, token) as coordinator:
            assert coordinator.fetch_start(out) == sent.start
            assert coordinator.run().start_sha256 == sent.start.sha256
    assert load_start(out) == sent
    assert sorted(path.name for path in out.iterdir()) == [MANIFEST, WEIGHTS]


def test_of_several_starts_one_is_fetched_by_its_first_digits_and_else_the_first(
    run: RunDirectory, token: str, tmp_path: Path, make_start: MakeStart
) -> None:
    first, other = give_start(run, make_start(0)), make_start(1, architecture="resnet10")
    name = other.start.sha256
    keep_start(run.further_folder / name, other.start, other.weights)
    out = tmp_path / "other"
    out.mkdir()
    partial(out / WEIGHTS, first.weights).write_bytes(first.weights[:100])  # of an attempt at the first
    with serving(run) as address, remote(address, token) as coordinator:
        assert coordinator.run().starts == (first.start.sha256, name)
        assert coordinator.fetch_start(tmp_path / "first") == first.start
        assert coordinator.fetch_start(out, name[:9].upper()) == other.start
        assert coordinator.fetch_start(out) == other.start, "it is one of the federation's"
        names = f"name one of {first.start.sha256[:12]}…, {name[:12]}…"
        with pytest.raises(StartError, match=f"^none of the federation's starts begin with x: {names}"):
            coordinator.fetch_start(tmp_path / "none", "x")
        with pytest.raises(StartError, match="holds the start"):
            coordinator.fetch_start(out, first.start.sha256)
        with stub(address, token) as call, pytest.raises(grpc.RpcError, match=r"bring one of them"):
            list(call("FetchStart", service_pb2.FetchRequest(start_sha256=b"1" * 32)))
    assert load_start(out) == other
    assert sorted(path.name for path in out.iterdir()) == [MANIFEST, WEIGHTS]


def test_a_folder_with_a_start_is_compared_and_left_as_it_is(
    run: RunDirectory, token: str, tmp_path: Path, make_start: MakeStart
) -> None:
    federation, other = give_start(run, make_start(0)), make_start(1)
    for begun, name in ((federation, "same"), (other, "other")):
        keep_start(tmp_path / name, begun.start, begun.weights)
    (tmp_path / "edited").mkdir()
    (tmp_path / "edited" / MANIFEST).write_bytes(encode_start(federation.start))
    (tmp_path / "edited" / WEIGHTS).write_bytes(b"x" + federation.weights[1:])
    with serving(run) as address, remote(address, token) as coordinator:
        coordinator._stub.FetchStart = None  # nothing need be fetched
        assert coordinator.fetch_start(tmp_path / "same") == federation.start
        names = f"start {other.start.sha256[:12]}…, and the federation's is {federation.start.sha256[:12]}…"
        with pytest.raises(StartError, match=names):
            coordinator.fetch_start(tmp_path / "other")
        with pytest.raises(ContributionError, match=r"no start in .*edited: the weights' sha256"):
            coordinator.fetch_start(tmp_path / "edited")
    assert load_start(tmp_path / "other") == other


def test_a_licence_that_may_forbid_is_refused_before_any_weights_are_fetched(
    run: RunDirectory, token: str, tmp_path: Path, make_start: MakeStart
) -> None:
    begun, out = give_start(run, make_start(licence="CC-BY-NC-4.0")), tmp_path / "start"
    with serving(run) as address, remote(address, token) as coordinator:
        with pytest.raises(StartError, match=r"CC-BY-NC-4.0, which may forbid .* --accept-licence"):
            coordinator.fetch_start(out)
        assert list(out.iterdir()) == []
        assert coordinator.fetch_start(out, accepted=["CC-BY-NC-4.0"]) == begun.start


def test_where_there_is_no_start_the_caller_is_told_so(run: RunDirectory, token: str, tmp_path: Path) -> None:
    with serving(run) as address, remote(address, token) as coordinator:
        with pytest.raises(NotReadyError, match="no public start: train without one"):
            coordinator.fetch_start(tmp_path / "start")
        assert coordinator.run().start_sha256 == ""


def test_what_is_no_start_is_not_kept_and_not_overwritten(
    run: RunDirectory, token: str, tmp_path: Path, make_start: MakeStart
) -> None:
    begun, out = give_start(run, make_start(0)), tmp_path / "start"
    damaged = replace(begun.start, weights_sha256=sha256(begun.weights[:-8]))
    keep_start(run.start_folder, damaged, begun.weights[:-8])
    with serving(run) as address, remote(address, token) as coordinator:
        with pytest.raises(ContributionError, match="not valid safetensors"):
            coordinator.fetch_start(out)
        assert list(out.iterdir()) == []
        (out / WEIGHTS).write_bytes(b"a model of one's own")
        with pytest.raises(ConfigError, match="holds weights and no start: choose another folder"):
            coordinator.fetch_start(out)
    assert (out / WEIGHTS).read_bytes() == b"a model of one's own"


def test_a_contribution_from_another_start_is_refused_before_it_is_sent(
    run: RunDirectory,
    token: str,
    tmp_path: Path,
    make_start: MakeStart,
    contribute_from: Callable[..., tuple[bytes, bytes]],
    command: Callable[..., tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FEDFREE_TOKEN", token)
    give_start(run, make_start(0))
    for name, message in {
        "same": contribute_from(make_start(0)),
        "other": contribute_from(make_start(1)),
        "none": model(),
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.pb").write_bytes(message[0])
        (tmp_path / name / "weights.safetensors").write_bytes(message[1])
    with serving(run) as address:
        for name, words in (
            ("other", f"start {make_start(1).start.sha256[:12]}…"),
            ("none", "no public start"),
        ):
            status, line = command("client", "contribute", tmp_path / name, "--to", address, "--insecure")
            assert (status, f"{words}, this federation from the start" in line) == (2, True)
        assert_nothing_was_kept(run)
        status, line = command("client", "contribute", tmp_path / "same", "--to", address, "--insecure")
        assert (status, "received" in line) == (0, True)


def test_a_server_that_is_away_is_tried_again_with_growing_pauses(run: RunDirectory, token: str) -> None:
    with serving(run) as address:
        pass
    pauses: list[float] = []
    with connect(address, None, token) as coordinator:
        coordinator._sleep = pauses.append
        with pytest.raises(FederationError, match="failed to connect"):
            coordinator.run()
    assert pauses == list(PAUSES_SECONDS) == sorted(pauses)


def test_a_failure_that_passes_is_tried_again(
    run: RunDirectory, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = iter((OSError(5, "Input/output error"), OSError(5, "Input/output error")))
    upload = Store.upload

    def fail_twice(*arguments: Any, **options: Any) -> Any:
        for error in attempts:
            raise error
        return upload(*arguments, **options)

    monkeypatch.setattr(Store, "upload", fail_twice)
    with serving(run) as address, remote(address, token) as coordinator:
        assert coordinator.contribute(*model()).place == "received"


def test_a_port_that_is_taken_is_refused(run: RunDirectory) -> None:
    async def second(address: Address) -> None:
        opened = door.Door(Service(run, ServiceConfig(), on_event=ignore))
        with pytest.raises(ConfigError, match="cannot listen on"):
            await opened.open(address, None)
        await opened.close(0)

    with serving(run) as address:
        asyncio.run(second(address))


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7", "::", "coordinator.example"])
def test_nothing_is_said_in_clear_over_a_network(run: RunDirectory, host: str) -> None:
    async def listen() -> None:
        opened = door.Door(Service(run, ServiceConfig(), on_event=ignore))
        await opened.open(Address(host, 0), None)

    with pytest.raises(ConfigError, match=f"--insecure is for localhost, not for {host}"):
        asyncio.run(listen())
    with pytest.raises(ConfigError), connect(Address(host, 1), None, "token"):
        pass


def test_a_caller_of_another_release_is_refused_with_both_named(
    run: RunDirectory, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.doors.grpc_remote.this_release", lambda: "9.9.9 (protocol 2, contract 00)")
    with serving(run) as address, remote(address, token) as other:
        for call in (other.run, lambda: other.contribute(*model())):
            with pytest.raises(VersionError) as refused:
                call()
            for named in (
                f"the coordinator has FedFREE {this_release()}",
                "the organisation a FedFREE 9.9.9",
            ):
                assert named in str(refused.value)
    assert run.store().all_ids() == []


def test_a_fetch_into_a_full_disk_is_told_in_one_word_and_gone_on_with_later(
    run: RunDirectory, token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned = meta_learner()
    run.write_meta_learner(learned)
    weights, manifest = tmp_path / "m.safetensors", tmp_path / "m.manifest.pb"

    class Filling:
        """A file on a disk that has room for its beginning."""

        def __init__(self, path: Path, *, begun: bool) -> None:
            self._file = open_stream(path, begun=begun)

        def __enter__(self) -> "Filling":
            return self

        def __exit__(self, *raised: object) -> None:
            self._file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def write(self, data: bytes) -> None:
            self._file.write(data[:1000])
            raise OSError(errno.ENOSPC, "No space left on device")

    with serving(run) as address, remote(address, token) as fetching:
        with monkeypatch.context() as disk:
            disk.setattr("client.doors.grpc_remote.open_stream", Filling)
            with pytest.raises(StorageError, match=r"cannot write .*m\.safetensors: No space"):
                fetching.fetch(weights, manifest)
        (partial,) = tmp_path.glob("m.safetensors.*.partial")
        assert partial.stat().st_size == 1000
        assert fetching.fetch(weights, manifest) == learned
    assert weights.read_bytes() == learned.weights


def test_health_is_told_without_a_token(run: RunDirectory) -> None:
    with serving(run) as address, grpc.insecure_channel(str(address)) as channel:
        for service in ("", "fedfree.v1.FedFREE"):
            request = health_pb2.HealthCheckRequest(service=service)
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=30)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_the_server_describes_its_calls(run: RunDirectory) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    with serving(run) as address, grpc.insecure_channel(str(address)) as channel:
        calls = reflection_pb2_grpc.ServerReflectionStub(channel)
        (answer,) = calls.ServerReflectionInfo(iter([request]), timeout=30)
    names = {service.name for service in answer.list_services_response.service}
    assert {"fedfree.v1.FedFREE", "grpc.health.v1.Health"} <= names


class Authority:
    """A certificate authority of the test's own, and the files it writes."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = folder / f"{name}.ca.pem"
        certificate = self._sign(self._name, self._key.public_key(), days=30, is_authority=True)
        self.certificate.write_bytes(certificate)

    def issue(self, name: str, *, since: int = -60, days: int = 30) -> tuple[Path, Path]:
        """Certificate and key for 127.0.0.1, valid from ``since`` until ``days`` from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        files = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        files[0].write_bytes(
            self._sign(subject, key.public_key(), since=since, days=days, is_authority=False)
        )
        files[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return files

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        *,
        since: int = -60,
        days: int,
        is_authority: bool,
    ) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + datetime.timedelta(days=since))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        )
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "coordinator")


def test_a_contribution_crosses_an_encrypted_connection(
    run: RunDirectory, token: str, authority: Authority
) -> None:
    with (
        serving(run, tls=door.credentials(*authority.issue("server"))) as address,
        remote(address, token, client_tls(authority.certificate)) as coordinator,
    ):
        assert coordinator.contribute(*model()).place == "received"


def test_a_server_signed_by_someone_else_is_not_talked_to(
    run: RunDirectory, token: str, authority: Authority, tmp_path: Path
) -> None:
    other = Authority(tmp_path, "other")
    with (
        serving(run, tls=door.credentials(*other.issue("server"))) as address,
        remote(address, token, client_tls(authority.certificate)) as coordinator,
        pytest.raises(AccessError, match=r"not signed by the CA that is trusted here.*--ca"),
    ):
        coordinator.contribute(*model())
    assert_nothing_was_kept(run)


@pytest.mark.parametrize(("since", "days", "words"), [(-60, -1, "has expired"), (10, 20, "is not valid yet")])
def test_an_expired_certificate_is_refused_by_name_and_so_is_one_of_the_future(
    run: RunDirectory, token: str, authority: Authority, since: int, days: int, words: str
) -> None:
    with (
        serving(run, tls=door.credentials(*authority.issue("server", since=since, days=days))) as address,
        remote(address, token, client_tls(authority.certificate)) as coordinator,
        pytest.raises(AccessError, match=f"the server's certificate {words} by this machine's clock"),
    ):
        coordinator.run()


def test_a_certificate_for_another_name_is_refused(
    run: RunDirectory, token: str, authority: Authority
) -> None:
    with (
        serving(run, tls=door.credentials(*authority.issue("server"))) as address,
        remote(Address("localhost", address.port), token, client_tls(authority.certificate)) as coordinator,
        pytest.raises(AccessError, match="for another name"),
    ):
        coordinator.run()


def test_with_mutual_tls_a_client_needs_a_certificate_of_the_right_authority(
    run: RunDirectory, token: str, authority: Authority, tmp_path: Path
) -> None:
    ca = authority.certificate
    stranger = Authority(tmp_path, "other").issue("stranger")
    tls = door.credentials(*authority.issue("server"), client_ca=ca)
    with serving(run, tls=tls) as address:
        with remote(address, token, client_tls(ca, *authority.issue("org"))) as coordinator:
            assert coordinator.contribute(*model()).place == "received"
        for shown in ((), stranger):
            with (
                remote(address, token, client_tls(ca, *shown)) as coordinator,
                pytest.raises(AccessError, match="it may ask for a certificate"),
            ):
                coordinator.run()


def test_a_client_without_tls_is_told_what_the_server_may_want(
    run: RunDirectory, token: str, authority: Authority
) -> None:
    with (
        serving(run, tls=door.credentials(*authority.issue("server"))) as address,
        remote(address, token) as coordinator,
        pytest.raises(AccessError, match="for TLS"),
    ):
        coordinator.run()


def test_files_that_are_no_certificates_are_named_before_anything_is_sent(
    authority: Authority, tmp_path: Path
) -> None:
    certificate, key = authority.issue("server")
    _, other_key = authority.issue("other")
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("no certificate")
    for pair in ((certificate, other_key), (garbage, key), (certificate, garbage)):
        with pytest.raises(ConfigError, match="are not a certificate with its private key"):
            door.credentials(*pair)
    with pytest.raises(ConfigError, match=r"garbage\.pem holds no certificate"):
        client_tls(garbage)
    with pytest.raises(ConfigError, match="cannot read"):
        client_tls(tmp_path / "nowhere.pem")
    with pytest.raises(ConfigError, match="--certificate and --key, or --insecure"):
        door.credentials(certificate, None)


def test_the_pipeline_learns_from_what_came_through_either_door(
    run: RunDirectory, token: str, tmp_path: Path
) -> None:
    config = ServerConfig(
        collect=CollectConfig(quorum=2),
        threads=1,
        iterations=1,
        invert=InvertConfig(models_per_iteration=2, images_per_model=12, steps=1, generator_width=4),
        learn=MetaLearnConfig(batch_size=16, compositions=12, relational_tasks=2),
    )
    direct = run.store().receive(*model(0))
    with serving(run) as address, remote(address, token) as coordinator:
        through_grpc = coordinator.contribute(*model(1)).identity
        outcome = pipeline.run(run.store(), config)
        run.write_meta_learner(outcome.meta_learner)
        fetched = coordinator.fetch(tmp_path / "m.safetensors", tmp_path / "m.manifest.pb")
        assert coordinator.run().meta_learner_sha256 == sha256(fetched.weights)
    assert fetched == outcome.meta_learner
    assert set(fetched.provenance.contributions) == {direct, through_grpc}


@pytest.fixture
def command(run_program: RunProgram) -> Callable[..., tuple[int, str]]:
    """Run ``client`` or ``server``: exit status, and what it printed, to standard error where that is any."""

    def run_command(program: str, *arguments: object) -> tuple[int, str]:
        status, out, err = run_program(program, *arguments)
        return status, (err or out).strip()

    return run_command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A contribution as ``pretrain`` writes it."""
    (tmp_path / "contribution").mkdir()
    manifest, weights = model()
    (tmp_path / "contribution" / "manifest.pb").write_bytes(manifest)
    (tmp_path / "contribution" / "weights.safetensors").write_bytes(weights)
    return tmp_path / "contribution"


def test_an_organisation_contributes_and_fetches_from_the_command_line(
    run: RunDirectory,
    tmp_path: Path,
    folder: Path,
    authority: Authority,
    command: Callable[..., tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    status, token = command("server", "token", "add", "org-1", "--store", run.path)
    assert status == 0
    assert command("server", "token", "list", "--store", run.path) == (0, "org-1")
    identity = contribution_id(model()[0])
    (tmp_path / "token").write_text(token + "\n")
    with serving(run, tls=door.credentials(*authority.issue("server"))) as address:
        access = ("--ca", authority.certificate, "--token-file", tmp_path / "token")
        for model_files in (
            (folder,),
            (folder / "weights.safetensors", "--manifest", folder / "manifest.pb"),
        ):
            sent = command("client", "contribute", *model_files, "--to", address, *access)
            assert sent == (0, f"{identity}: received")
        run.store().quarantine(identity, "too good to be true")
        monkeypatch.setenv("FEDFREE_TOKEN", token)
        sent = command("client", "contribute", folder, "--to", address, "--ca", authority.certificate)
        assert sent == (0, f"{identity}: quarantined: too good to be true")
        status, line = command("client", "fetch", "--from", address, *access)
        assert (status, line) == (1, "error: there is no meta-learner yet: ask again later")
        run.write_meta_learner(meta_learner())
        out = tmp_path / "new" / "m.safetensors"
        status, line = command("client", "fetch", "--from", address, "--out", out, *access)
        assert (status, "resnet10" in line) == (0, True)
        assert out.read_bytes() == meta_learner().weights
        assert (tmp_path / "new" / "m.manifest.pb").read_bytes() == run.manifest.read_bytes()
        status, line = command("client", "status", "--from", address, *access)
        assert (status, "0 received, 0 accepted, 1 quarantined" in line) == (0, True)
        assert command("server", "token", "revoke", "org-1", "--store", run.path) == (0, "")
        status, line = command("client", "status", "--from", address, *access)
        assert (status, "revoked" in line) == (2, True)


def test_a_contribution_that_breaks_the_contract_does_not_leave(
    folder: Path, command: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDFREE_TOKEN", "any")
    (folder / "weights.safetensors").write_bytes(b"other weights")
    status, line = command("client", "contribute", folder, "--to", "localhost:1", "--insecure")
    assert (status, "the manifest says" in line) == (2, True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--to", "localhost"), "write HOST:PORT"),
        (("--to", "coordinator.example:9443", "--insecure"), "not for coordinator.example"),
        (("--to", "localhost:9443", "--cert", "mine.pem"), "--cert and --key belong together"),
        (("--to", "localhost:9443", "--insecure", "--ca", "ca.pem"), "leave out --ca"),
        (("--to", "localhost:9443", "--insecure", "--token-file", "nowhere"), "cannot read nowhere"),
        (("--to", "localhost:9443", "--manifest", "manifest.pb"), "leave out --manifest"),
    ],
)
def test_a_wrong_option_of_the_client_is_named(
    folder: Path,
    command: Callable[..., tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    words: str,
) -> None:
    monkeypatch.setenv("FEDFREE_TOKEN", "any")
    status, line = command("client", "contribute", folder, *options)
    assert (status, line.startswith("error: ")) == (2, True)
    assert words in line
    assert "\n" not in line


def test_without_a_token_the_client_says_where_it_looked(
    folder: Path, command: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FEDFREE_TOKEN", raising=False)
    status, line = command("client", "contribute", folder, "--to", "localhost:9443", "--insecure")
    assert (status, "$FEDFREE_TOKEN holds no token" in line) == (2, True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "--certificate and --key, or --insecure"),
        (("--insecure", "--listen", "0.0.0.0:0"), "not for 0.0.0.0"),
        (("--insecure", "--listen", "9443"), "write HOST:PORT"),
        (("--insecure", "--client-ca", "ca.pem"), "leave out --certificate"),
        (("--insecure", "--uploads-at-once", "0"), "uploads-at-once"),
        (("--certificate", "nowhere.pem", "--key", "nowhere.key"), "cannot read nowhere.pem"),
    ],
)
def test_a_wrong_option_of_the_server_is_named(
    tmp_path: Path, command: Callable[..., tuple[int, str]], options: tuple[str, ...], words: str
) -> None:
    status, line = command("server", "serve", "--store", tmp_path / "run", *options)
    assert status == 2
    assert words in line.splitlines()[-1]
