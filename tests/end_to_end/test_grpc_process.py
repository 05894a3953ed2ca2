"""The gRPC door as a process of its own: stopped, killed in mid-upload, under a hundred uploads at once."""

import asyncio
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from client.doors.grpc_remote import connect
from fedfree.codec import contribution_id
from fedfree.host.channel import CHUNK_BYTES, Address, chunks
from fedfree.v1 import service_pb2
from fedfree.v1.contribution_pb2 import Contribution
from fedfree.v1.service_pb2_grpc import FedFREEServicer, FedFREEStub, add_FedFREEServicer_to_server
from server.doors.tokens import Tokens
from server.storage.store import RECEIVED, Store

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}", "PYTHONUNBUFFERED": "1"}
SERVE = "import sys; from server.commands.main import main; sys.argv[0] = 'fedfree-server'; main()"


class Process:
    """``fedfree-server serve`` on a run directory."""

    def __init__(self, run: Path, *options: str) -> None:
        where = ("--store", str(run), "--listen", "127.0.0.1:0", "--insecure")
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, "serve", *where, *options],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        self.output = self.process.stdout
        line = self.output.readline()
        assert line.startswith("listening on "), line + self.output.read()
        self.address = Address.parse(line.removeprefix("listening on ").strip())

    def end(self, number: signal.Signals) -> tuple[int, str]:
        """Exit status and what else was printed, after a signal."""
        self.process.send_signal(number)
        return self.process.wait(60), self.output.read()

    def memory(self, field: str) -> int:
        """VmRSS or VmHWM of the process, in bytes."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
        raise AssertionError(field)


@contextmanager
def process(run: Path, *options: str) -> Iterator[Process]:
    running = Process(run, *options)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait()
        running.output.close()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture
def token(run: Path) -> str:
    return Tokens(run / "tokens.json").add("org-1")


def blob(size: int, tag: int = 0) -> tuple[bytes, bytes]:
    """A contribution that only its hash holds together."""
    weights = bytes(size)
    digest = hashlib.sha256(weights).digest()
    return Contribution(num_classes=tag, weights_sha256=digest).SerializeToString(), weights


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


class HalfUpload:
    """An upload that stays under way until :meth:`go_on`."""

    def __init__(self, address: Address, token: str, manifest: bytes, weights: bytes) -> None:
        self._parts = manifest, weights
        self._going_on = threading.Event()
        self._channel = grpc.insecure_channel(str(address))
        self.call = FedFREEStub(self._channel).Contribute.future(
            self._requests(), metadata=bearer(token), timeout=60
        )

    def _requests(self) -> Iterator[service_pb2.ContributeRequest]:
        manifest, weights = self._parts
        header = service_pb2.ContributionHeader(manifest=manifest, weights_bytes=len(weights))
        yield service_pb2.ContributeRequest(header=header)
        first, *rest = chunks(weights)
        yield service_pb2.ContributeRequest(chunk=first)
        self._going_on.wait(60)
        for chunk in rest:
            yield service_pb2.ContributeRequest(chunk=chunk)

    def go_on(self) -> None:
        self._going_on.set()

    def close(self) -> None:
        self.go_on()
        self._channel.close()


def wait_until_on_disk(store: Path, size: int, running: Process) -> Path:
    """The staging folder, once so many bytes of an upload are in it."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for weights in store.glob(".staging-*/weights.safetensors"):
            if weights.stat().st_size >= size:
                return weights.parent
        with pytest.raises(subprocess.TimeoutExpired):
            running.process.wait(0.02)
    raise AssertionError("the upload did not reach the disk")


def wait_until_refusing(address: Address, token: str, running: Process) -> None:
    """Return once no new call gets through."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with grpc.insecure_channel(str(address)) as channel:
            try:
                FedFREEStub(channel).GetStatus(
                    service_pb2.GetStatusRequest(), metadata=bearer(token), timeout=5
                )
            except grpc.RpcError as error:
                assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
                return
        with pytest.raises(subprocess.TimeoutExpired):
            running.process.wait(0.02)
    raise AssertionError("the server still takes calls")


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_told_to_end_the_server_finishes_uploads_under_way_and_takes_no_others(
    run: Path, token: str, number: signal.Signals
) -> None:
    message = blob(3 * CHUNK_BYTES)
    with process(run) as running:
        upload = HalfUpload(running.address, token, *message)
        wait_until_on_disk(run / "store", CHUNK_BYTES // 2, running)
        running.process.send_signal(number)
        wait_until_refusing(running.address, token, running)
        upload.go_on()
        place = upload.call.result(60).contribution.place
        assert place == service_pb2.ContributionState.PLACE_RECEIVED
        assert running.process.wait(60) == 0
        assert "Traceback" not in running.output.read()
        upload.close()
    assert Store(run / "store").read(contribution_id(message[0])) == message


@pytest.mark.slow
def test_an_upload_that_outlasts_the_grace_is_ended_and_leaves_nothing(run: Path, token: str) -> None:
    with process(run, "--grace-seconds", "0.2") as running:
        upload = HalfUpload(running.address, token, *blob(3 * CHUNK_BYTES))
        wait_until_on_disk(run / "store", CHUNK_BYTES // 2, running)
        status, printed = running.end(signal.SIGTERM)
        upload.close()
    assert (status, "Traceback" in printed) == (0, False)
    assert list((run / "store").glob(".staging-*")) == []
    assert Store(run / "store").ids(RECEIVED) == []


@pytest.mark.slow
def test_a_server_killed_in_mid_upload_loses_nothing_that_it_had_taken(run: Path, token: str) -> None:
    taken, cut = blob(1000, tag=1), blob(3 * CHUNK_BYTES, tag=2)
    with process(run) as running:
        with connect(running.address, None, token) as remote:
            remote.contribute(*taken)
        upload = HalfUpload(running.address, token, *cut)
        staging = wait_until_on_disk(run / "store", CHUNK_BYTES // 2, running)
        running.end(signal.SIGKILL)
        upload.close()
    store = Store(run / "store")
    assert store.ids(RECEIVED) == [contribution_id(taken[0])]
    assert store.read(contribution_id(taken[0])) == taken
    assert staging.is_dir()
    with process(run) as again, connect(again.address, None, token) as remote:
        assert not staging.exists()
        assert remote.contribute(*cut).place == "received"
        assert again.end(signal.SIGTERM)[0] == 0
    assert store.read(contribution_id(cut[0])) == cut


ORGANISATIONS, MODEL_BYTES = 100, 20 << 20


class Discard(FedFREEServicer):
    """The same stream with nobody behind it: what gRPC itself costs."""

    async def Contribute(self, requests: Any, context: Any) -> service_pb2.ContributeResponse:  # noqa: N802
        async for _ in requests:
            pass
        return service_pb2.ContributeResponse()


FORGET = (
    f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); "
    f"from {Path(__file__).stem} import discard; discard()"
)


def discard() -> None:
    """Run :class:`Discard` as a process that prints its port."""

    async def serve() -> None:
        server = grpc.aio.server()
        add_FedFREEServicer_to_server(Discard(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        sys.stdout.write(f"{port}\n")
        sys.stdout.flush()
        await server.wait_for_termination()

    asyncio.run(serve())


def seconds_for_a_plain_stream(size: int) -> float:
    """Time that one gRPC stream takes to bring ``size`` bytes to a process that forgets them."""
    plain = subprocess.Popen(
        [sys.executable, "-c", FORGET], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    assert plain.stdout is not None
    try:
        address = Address("127.0.0.1", int(plain.stdout.readline()))
        with connect(address, None, "none") as remote:
            message = blob(MODEL_BYTES)
            remote._stub.Contribute(remote_upload(message, 1), timeout=60)
            started = time.monotonic()
            remote._stub.Contribute(remote_upload(message, size // MODEL_BYTES), timeout=600)
            return time.monotonic() - started
    finally:
        plain.kill()
        plain.wait()
        plain.stdout.close()


def remote_upload(message: tuple[bytes, bytes], times: int) -> Iterator[service_pb2.ContributeRequest]:
    for _ in range(times):
        for chunk in chunks(message[1]):
            yield service_pb2.ContributeRequest(chunk=chunk)


@pytest.mark.slow
def test_a_hundred_uploads_at_once_arrive_whole_in_bounded_memory(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = [Tokens(run / "tokens.json").add(f"org-{index}") for index in range(ORGANISATIONS)]
    weights = os.urandom(MODEL_BYTES)
    digest = hashlib.sha256(weights).digest()
    manifests = [
        Contribution(num_classes=index, weights_sha256=digest).SerializeToString()
        for index in range(1, ORGANISATIONS + 1)
    ]
    together = threading.Barrier(ORGANISATIONS + 1)
    with process(run) as running:

        def contribute(index: int) -> str:
            with connect(running.address, None, tokens[index]) as remote:
                remote.run()
                together.wait()
                return remote.contribute(manifests[index], weights).identity

        with ThreadPoolExecutor(ORGANISATIONS) as pool:
            uploads: list[Future[str]] = [pool.submit(contribute, index) for index in range(ORGANISATIONS)]
            together.wait()
            idle = running.memory("VmRSS")
            started = time.monotonic()
            received = [upload.result(600) for upload in uploads]
            seconds = time.monotonic() - started
        above_idle = running.memory("VmHWM") - idle
        assert running.end(signal.SIGTERM)[0] == 0
    store = Store(run / "store")
    assert sorted(received) == store.ids(RECEIVED) == sorted(map(contribution_id, manifests))
    for identity in received:
        assert store.read(identity)[1] == weights
    shutil.rmtree(run / "store")
    plain = seconds_for_a_plain_stream(ORGANISATIONS * MODEL_BYTES)
    megabytes = ORGANISATIONS * MODEL_BYTES / 1e6
    with capsys.disabled():
        sys.stdout.write(
            f"\n{ORGANISATIONS} uploads of {MODEL_BYTES >> 20} MiB at once: {seconds:.1f} s, "
            f"{megabytes / seconds:.0f} MB/s, {above_idle / 1e6:.0f} MB above idle; "
            f"one plain stream: {megabytes / plain:.0f} MB/s; ratio {plain / seconds:.2f}\n"
        )
    assert above_idle < 1e9
