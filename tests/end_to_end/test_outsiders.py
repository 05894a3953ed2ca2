"""Outsiders and one greedy organisation at the gRPC door: everyone else is served all the same."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from fedfree.codec import sha256
from fedfree.host.channel import Address
from fedfree.host.files import write_file
from fedfree.v1 import contribution_pb2, service_pb2
from fedfree.v1.service_pb2_grpc import FedFREEStub
from server.config import ServerConfig
from server.doors import grpc_server as door
from server.doors.tokens import Tokens
from server.storage.run_directory import RunDirectory
from server.storage.store import RECEIVED
from tests.doors import serving

EXHAUSTED, LATE = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED
DESCRIBE = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
WATCH, CHECK = "/grpc.health.v1.Health/Watch", "/grpc.health.v1.Health/Check"
STATUS, FETCH = "/fedfree.v1.FedFREE/GetStatus", "/fedfree.v1.FedFREE/FetchMetaLearner"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    write_file(tmp_path / "server.toml", ServerConfig().to_toml().encode())
    return RunDirectory(tmp_path)


@pytest.fixture
def token(run: RunDirectory) -> str:
    return Tokens(run.tokens).add("org-1")


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


class Silent:
    """Requests of a call whose headers are sent, and nothing more, until :meth:`end`."""

    def __init__(self, *first: bytes) -> None:
        self._first = first
        self._ended = threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        yield from self._first
        self._ended.wait(60)

    def end(self) -> None:
        self._ended.set()


def begin(channel: grpc.Channel, method: str, requests: Any, token: str | None = None) -> Any:
    """A call by raw bytes; its answers in an iterator."""
    return channel.stream_stream(method)(iter(requests), metadata=bearer(token) if token else ())


def ending(call: Any) -> Any:
    """With which status a call ends."""
    with pytest.raises(grpc.RpcError):
        for _ in call:
            pass
    return call.code()


def ask(address: Address, token: str) -> service_pb2.GetStatusResponse:
    """An ordinary call of an organisation, over a connection of its own."""
    with grpc.insecure_channel(str(address), options=(("grpc.use_local_subchannel_pool", 1),)) as channel:
        call = FedFREEStub(channel).GetStatus
        return call(service_pb2.GetStatusRequest(), metadata=bearer(token), timeout=20)


def blob(size: int) -> tuple[bytes, bytes]:
    """A contribution that only its hash holds together."""
    digest = bytes.fromhex(sha256(bytes(size)))
    return contribution_pb2.Contribution(weights_sha256=digest).SerializeToString(), bytes(size)


def header(size: int) -> bytes:
    part = service_pb2.ContributionHeader(manifest=blob(size)[0], weights_bytes=size)
    return service_pb2.ContributeRequest(header=part).SerializeToString()


@contextmanager
def channels(address: Address, count: int) -> Iterator[list[grpc.Channel]]:
    """Connections of their own each."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                grpc.insecure_channel(str(address), options=(("grpc.use_local_subchannel_pool", 1),))
            )
            for _ in range(count)
        ]


@pytest.mark.parametrize("method", [WATCH, DESCRIBE])
def test_eleven_hundred_streams_without_a_token_keep_nobody_out(
    run: RunDirectory, token: str, method: str
) -> None:
    silent = Silent(b"")
    with serving(run) as address, channels(address, 20) as many:
        calls = [begin(channel, method, silent) for channel in many for _ in range(55)]
        assert ask(address, token).received == 0
        for call in calls:
            call.cancel()
        silent.end()


def test_of_one_address_only_so_many_streams_without_a_token_are_open(run: RunDirectory) -> None:
    silent = Silent(b"")
    with serving(run, visitors_of_one=2) as address, channels(address, 1) as (channel,):
        watching = [begin(channel, WATCH, silent) for _ in range(2)]
        assert [health_pb2.HealthCheckResponse.FromString(next(call)).status for call in watching] == [1, 1]
        assert ending(begin(channel, WATCH, silent)) == EXHAUSTED
        watching[0].cancel()
        silent.end()


@pytest.mark.parametrize("method", [WATCH, DESCRIBE])
def test_a_stream_without_a_token_is_ended_in_time(run: RunDirectory, method: str) -> None:
    silent = Silent(b"")
    with serving(run, visit_seconds=0.1) as address, channels(address, 1) as (channel,):
        assert ending(begin(channel, method, silent)) == LATE
        silent.end()


@pytest.mark.parametrize("method", [CHECK, WATCH, STATUS, FETCH, "/fedfree.v1.FedFREE/Contribute"])
def test_a_call_without_its_request_is_ended_in_time(run: RunDirectory, token: str, method: str) -> None:
    silent = Silent()
    with serving(run, request_seconds=0.1) as address, channels(address, 1) as (channel,):
        assert ending(begin(channel, method, silent, token)) == LATE
        silent.end()


@pytest.mark.parametrize("method", [STATUS, FETCH, "/fedfree.v1.FedFREE/Contribute"])
@pytest.mark.parametrize("shown", [None, "wrong"])
def test_without_a_right_token_nothing_is_waited_for(
    run: RunDirectory, token: str, method: str, shown: str | None
) -> None:
    silent = Silent()
    with serving(run, request_seconds=600) as address, channels(address, 1) as (channel,):
        assert ending(begin(channel, method, silent, shown)) == grpc.StatusCode.UNAUTHENTICATED
        silent.end()


def test_a_call_that_ends_before_its_request_is_refused_in_words(run: RunDirectory, token: str) -> None:
    with serving(run) as address, channels(address, 1) as (channel,):
        for method in (CHECK, STATUS):
            call = begin(channel, method, [], token)
            assert ending(call) == grpc.StatusCode.INVALID_ARGUMENT
            assert "before its request" in call.details()


def test_an_upload_that_does_not_go_on_is_ended_and_leaves_nothing(run: RunDirectory, token: str) -> None:
    silent = Silent(header(1000))
    with serving(run, progress_seconds=0.1) as address, channels(address, 1) as (channel,):
        call = begin(channel, "/fedfree.v1.FedFREE/Contribute", silent, token)
        assert ending(call) == LATE
        assert "the next piece of the upload did not arrive within 0.1 s" in call.details()
        silent.end()
    assert list((run.path / "store").glob(".staging-*")) == [] == run.store().ids(RECEIVED)


def test_one_organisation_holds_its_share_of_the_turns_and_another_has_one_at_once(
    run: RunDirectory, token: str
) -> None:
    other, silent = Tokens(run.tokens).add("org-2"), [Silent(header(size)) for size in range(1, 7)]
    with serving(run, uploads_at_once=3, uploads_of_one=2) as address, channels(address, 1) as (channel,):
        calls = [begin(channel, "/fedfree.v1.FedFREE/Contribute", each, token) for each in silent]
        while len(list((run.path / "store").glob(".staging-*"))) < 2:
            ask(address, other)
        piece = service_pb2.ContributeRequest(chunk=bytes(100)).SerializeToString()
        answer = begin(channel, "/fedfree.v1.FedFREE/Contribute", [header(100), piece], other)
        place = service_pb2.ContributeResponse.FromString(next(answer)).contribution.place
        assert place == service_pb2.ContributionState.PLACE_RECEIVED
        assert len(list((run.path / "store").glob(".staging-*"))) == 2
        for call, each in zip(calls, silent, strict=True):
            call.cancel()
            each.end()


def test_one_organisation_has_only_so_many_calls_open(run: RunDirectory, token: str) -> None:
    other, silent = Tokens(run.tokens).add("org-2"), Silent()
    with serving(run, calls_of_one=3) as address, channels(address, 1) as (channel,):
        calls = [begin(channel, "/fedfree.v1.FedFREE/Contribute", silent, token) for _ in range(20)]
        ended = [call for call in calls if _ends_at_once(call)]
        assert len(ended) == 17 and {call.code() for call in ended} == {EXHAUSTED}
        assert ask(address, other).received == 0
        for call in calls:
            call.cancel()
        silent.end()


def _ends_at_once(call: Any) -> bool:
    """Whether a call that is either refused or waited for is refused."""
    deadline = time.monotonic() + 2
    while call.is_active() and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    return not call.is_active()


def wrong_attempts(address: Address, count: int) -> list[Any]:
    with channels(address, 1) as (channel,):
        return [ending(begin(channel, STATUS, [b""], f"wrong-{turn}")) for turn in range(count)]


def test_a_thousand_wrong_tokens_are_looked_at_thirty_times_and_whoever_was_right_goes_on(
    run: RunDirectory, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[str] = []
    original: Callable[[Tokens, str], str] = Tokens.organisation_of

    def counted(tokens: Tokens, shown: str) -> str:
        looked_at.append(shown)
        return original(tokens, shown)

    monkeypatch.setattr(Tokens, "organisation_of", counted)
    with serving(run) as address:
        ask(address, token)
        codes = wrong_attempts(address, 1000)
        assert codes[:30] == [grpc.StatusCode.UNAUTHENTICATED] * 30
        assert set(codes[60:]) <= {EXHAUSTED, grpc.StatusCode.UNAUTHENTICATED}
        assert len(looked_at) < 100
        assert ask(address, token).received == 0


def test_a_revoked_token_that_was_right_before_is_limited_like_any_other(
    run: RunDirectory, token: str
) -> None:
    with serving(run, wrong_tokens_per_minute=1) as address:
        ask(address, token)
        Tokens(run.tokens).rotate("org-1")
        codes = []
        for _ in range(3):
            with pytest.raises(grpc.RpcError) as refused:
                ask(address, token)
            codes.append(refused.value.code())  # type: ignore[attr-defined]
    assert codes == [grpc.StatusCode.UNAUTHENTICATED, EXHAUSTED, EXHAUSTED]


def test_what_another_organisation_handed_over_is_unknown_here(run: RunDirectory, token: str) -> None:
    other = Tokens(run.tokens).add("org-2")
    with serving(run) as address, channels(address, 1) as (channel,):
        piece = service_pb2.ContributeRequest(chunk=bytes(100)).SerializeToString()
        next(begin(channel, "/fedfree.v1.FedFREE/Contribute", [header(100), piece], token))
        (identity,) = run.store().ids(RECEIVED)
        question = service_pb2.GetStatusRequest(contribution_sha256=bytes.fromhex(identity))
        told = {
            each: FedFREEStub(channel).GetStatus(question, metadata=bearer(each)).contribution.place
            for each in (token, other)
        }
    state = service_pb2.ContributionState
    assert told == {token: state.PLACE_RECEIVED, other: state.PLACE_UNSPECIFIED}


@pytest.mark.parametrize("said", [b"", b"PRI * HTTP/2.0\r\n\r\nSM"])
def test_connections_that_do_not_greet_are_closed_and_keep_nobody_out(
    run: RunDirectory, token: str, said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = [(name, 300) if "handshake" in name else (name, value) for name, value in door._OPTIONS]
    monkeypatch.setattr(door, "_OPTIONS", quick)
    with serving(run) as address, ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection((address.host, address.port), timeout=30))
            for _ in range(300)
        ]
        for connection in silent:
            connection.sendall(said)
        assert ask(address, token).received == 0
        for connection in silent:
            try:
                while connection.recv(4096):
                    pass
            except ConnectionResetError:
                pass


def test_of_connections_there_are_only_so_many(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    few = [(name, 5) if "incoming" in name else (name, value) for name, value in door._OPTIONS]
    monkeypatch.setattr(door, "_OPTIONS", few)
    with serving(run) as address, ExitStack() as stack:
        opened = [
            stack.enter_context(socket.create_connection((address.host, address.port), timeout=5))
            for _ in range(10)
        ]
        closed = 0
        for connection in opened[5:]:
            try:
                while connection.recv(4096):
                    pass
                closed += 1
            except ConnectionResetError:
                closed += 1
            except TimeoutError:
                pass
    assert closed == 5
