"""gRPC service: contribute, fetch and status for organisations without a Flower node.

It receives, reports and hands out; learning is another process on the same run directory, so what came
through either door is one pool. Uploads are written to disk as they arrive. Coroutines rather than threads:
a hundred slow uploads hold no thread, so health and status always answer, and what is not read yet
waits at the sender, held back by HTTP/2's flow control.
"""

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, closing, suppress
from contextvars import ContextVar
from functools import partial
from typing import Any, NoReturn, TypeVar

import grpc

from fedfree.codec import (
    MAX_MANIFEST_BYTES,
    MAX_WEIGHTS_BYTES,
    check_sha256,
    contribution_id,
    sha256,
    stated_weights_sha256,
)
from fedfree.errors import AccessError, ContributionError, StorageError
from fedfree.grpc_status import MAX_DETAIL_CHARACTERS, TOLD, status_of
from fedfree.host.channel import AUTHORIZATION, BEARER, CHUNK_BYTES, RELEASE
from fedfree.release import require_same_release
from fedfree.v1 import service_pb2 as schema
from fedfree.v1.service_pb2_grpc import FedFREEServicer
from server.doors.limits import Open, Quota, RateLimit, ServiceConfig, Turns, address_of
from server.doors.status import RunStatus
from server.doors.tokens import Tokens
from server.events import Event, OnEvent
from server.storage.broadcast import Broadcast
from server.storage.run_directory import RunDirectory
from server.storage.store import ACCEPTED, QUARANTINED, RECEIVED, Store, Upload

log = logging.getLogger(__name__)

_PLACES = {
    None: schema.ContributionState.PLACE_UNSPECIFIED,
    RECEIVED: schema.ContributionState.PLACE_RECEIVED,
    ACCEPTED: schema.ContributionState.PLACE_ACCEPTED,
    QUARANTINED: schema.ContributionState.PLACE_QUARANTINED,
}
_CALLER: ContextVar[str] = ContextVar("organisation")
"""Who calls, from the moment that the gate has let it in."""
_RIGHT_LATELY = 1000
"""Pairs of address and token's hash that are remembered to have been right."""
_Result = TypeVar("_Result")
_Requests = AsyncIterator[schema.ContributeRequest]


class Service(FedFREEServicer):
    """The calls of ``fedfree/v1/service.proto`` on a run directory."""

    def __init__(self, run: RunDirectory, config: ServiceConfig, *, on_event: OnEvent) -> None:
        self._run = run
        self.config = config
        self._on_event = on_event
        self._store = run.store()
        self._tokens = Tokens(run.tokens)
        self._rate_limit = RateLimit(config.requests_per_minute)
        self._quota = Quota(config.max_contributions, _handed_over(self._store))
        self._turns = Turns(config.uploads_at_once, config.uploads_of_one)
        self._open = Open(config.calls_of_one)
        self._wrong_tokens = RateLimit(config.wrong_tokens_per_minute, "wrong tokens")
        self._right_lately: OrderedDict[tuple[str, str], None] = OrderedDict()

    async def Contribute(self, requests: _Requests, context: Any) -> schema.ContributeResponse:  # noqa: N802
        """Store a contribution, or say what became of one that is already here."""
        organisation = _CALLER.get()
        header = await within(self.config.request_seconds, _header(requests), "the upload's header")
        identity = contribution_id(header.manifest)
        if self._store.place_of(identity) is None:
            await self._receive(header, requests, organisation)
            who: dict[str, int | float | str] = {"contribution": identity, "organisation": organisation}
            self._on_event(Event("collect", "received", who))
        return schema.ContributeResponse(contribution=self._state(identity))

    async def FetchMetaLearner(  # noqa: N802
        self, request: schema.FetchRequest, context: Any
    ) -> AsyncIterator[schema.FetchResponse]:
        """Hand out the meta-learner, from where the caller's copy of the same weights ends."""
        async with aclosing(_hand_out(Broadcast.meta_learner, self._run, request)) as parts:
            async for part in parts:
                yield part

    async def FetchStart(  # noqa: N802
        self, request: schema.FetchRequest, context: Any
    ) -> AsyncIterator[schema.FetchResponse]:
        """Hand out a start likewise."""
        wanted = partial(Broadcast.start, sha256=request.start_sha256.hex())
        async with aclosing(_hand_out(wanted, self._run, request)) as parts:
            async for part in parts:
                yield part

    async def GetStatus(  # noqa: N802
        self, request: schema.GetStatusRequest, context: Any
    ) -> schema.GetStatusResponse:
        """How far the run is, and what became of one contribution."""
        return await _in_thread(self._status, request.contribution_sha256.hex(), _CALLER.get())

    def _status(self, identity: str, organisation: str) -> schema.GetStatusResponse:
        status = RunStatus.read(self._run)
        progress = None
        if (learning := status.learning) is not None:
            progress = schema.LearningProgress(iteration=learning.iteration, of=learning.of)
        return schema.GetStatusResponse(
            **status.contributions,
            contribution=self._told(identity, organisation) if identity else None,
            progress=progress,
            meta_learner_sha256=status.meta_learner_sha256,
            start_sha256=bytes.fromhex(status.start_sha256),
            further_start_sha256=[bytes.fromhex(each) for each in status.further_starts],
        )

    def _told(self, identity: str, organisation: str) -> schema.ContributionState:
        """What became of a contribution; of one that another organisation handed over here, nothing."""
        if self._store.organisation(identity) in (None, organisation):
            return self._state(identity)
        return schema.ContributionState(contribution_sha256=bytes.fromhex(identity))

    def _state(self, identity: str) -> schema.ContributionState:
        """The reason of a refusal goes to whoever presents the contribution's id."""
        place = self._store.place_of(identity)
        return schema.ContributionState(
            contribution_sha256=bytes.fromhex(identity),
            place=_PLACES[place],
            reason=self._store.reason(identity) if place == QUARANTINED else "",
        )

    async def _receive(
        self, header: schema.ContributionHeader, requests: _Requests, organisation: str
    ) -> None:
        stated = _check_header(header)
        with self._quota.one_more(organisation):
            async with asyncio.timeout(self.config.upload_seconds), self._turns.turn(organisation):
                upload = self._store.upload(header.manifest, organisation=organisation)
                try:
                    await _write(upload, requests, header.weights_bytes, self.config.progress_seconds)
                    check_sha256(upload.sha256(), stated)
                    await _in_thread(upload.commit)
                finally:
                    await _in_thread(upload.close)

    @asynccontextmanager
    async def caller(self, context: Any) -> AsyncIterator[None]:
        """Let an organisation in before anything of its call is read, or refuse it.

        Whatever goes wrong while it is served becomes a status.
        """
        try:
            metadata = dict(context.invocation_metadata())
            organisation = self._organisation_of(_token(metadata), address_of(context.peer()))
            self._rate_limit.take(organisation)
            if RELEASE in metadata:  # a program that is no FedFREE may call too
                require_same_release(metadata[RELEASE], "organisation")
            with self._open.one_more(organisation):
                _CALLER.set(organisation)
                yield
        except TOLD as error:
            await context.abort(status_of(error), str(error)[:MAX_DETAIL_CHARACTERS])
        except TimeoutError as error:
            limit = str(error) or f"the upload took longer than {self.config.upload_seconds:g} s"
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, limit)
        except (OSError, StorageError) as error:
            await _fail(context, grpc.StatusCode.UNAVAILABLE, "the server cannot use its disk", error)
        except Exception as error:
            await _fail(context, grpc.StatusCode.INTERNAL, "the server failed", error)

    def _organisation_of(self, token: str, address: str) -> str:
        """Whose token this is, looked at only so often from an address that has shown wrong ones.

        A token that was right from there is looked at all the same: whoever guesses beside an organisation,
        behind one address, does not shut it out.
        """
        shown = address, sha256(token.encode())
        if shown not in self._right_lately and self._wrong_tokens.is_empty(address):
            self._wrong_tokens.take(address)
        try:
            organisation = self._tokens.organisation_of(token)
        except AccessError:
            self._right_lately.pop(shown, None)
            self._wrong_tokens.take(address)
            raise
        self._right_lately[shown] = None
        if len(self._right_lately) > _RIGHT_LATELY:
            self._right_lately.popitem(last=False)
        return organisation


async def within(seconds: float, awaited: Awaitable[_Result], what: str) -> _Result:
    """What comes in time; raises TimeoutError in words otherwise."""
    try:
        async with asyncio.timeout(seconds):
            return await awaited
    except TimeoutError as error:
        raise TimeoutError(f"{what} did not arrive within {seconds:g} s") from error


async def _hand_out(
    open: Callable[[RunDirectory], Broadcast], run: RunDirectory, request: schema.FetchRequest
) -> AsyncGenerator[schema.FetchResponse, None]:
    """A header, then the weights from where the caller's copy of the same ones ends."""
    with closing(await _in_thread(open, run)) as broadcast:
        offset = broadcast.offset(request.weights_sha256, request.offset)
        header = schema.FetchHeader(
            manifest=broadcast.manifest,
            weights_bytes=broadcast.size,
            weights_sha256=broadcast.sha256,
            offset=offset,
            signature=broadcast.signature,
        )
        yield schema.FetchResponse(header=header)
        while chunk := await _in_thread(broadcast.read, offset, CHUNK_BYTES):
            yield schema.FetchResponse(chunk=chunk)
            offset += len(chunk)


async def _fail(context: Any, status: grpc.StatusCode, words: str, error: Exception) -> NoReturn:
    """The caller is told no more than ``words``; what happened goes to the server's own log."""
    log.error("%s", words, exc_info=error)
    await context.abort(status, f"{words}; its log says why")
    raise error


def _handed_over(store: Store) -> Counter[str]:
    """Contributions in the store by the organisation that handed them over here."""
    organisations = [store.organisation(identity) for identity in store.all_ids()]
    return Counter(organisation for organisation in organisations if organisation is not None)


def _token(metadata: Mapping[str, str | bytes]) -> str:
    value = metadata.get(AUTHORIZATION, "")
    if not isinstance(value, str) or not value.startswith(BEARER):
        raise AccessError("a token is needed: ask the coordinator for yours")
    return value.removeprefix(BEARER)


async def _header(requests: _Requests) -> schema.ContributionHeader:
    async for request in requests:
        if request.WhichOneof("part") == "header":
            return request.header
        break
    raise ContributionError("an upload must begin with a header")


def _check_header(header: schema.ContributionHeader) -> str:
    """Refuse what can be refused before any weights arrive; returns the hash they must have."""
    if len(header.manifest) > MAX_MANIFEST_BYTES:
        raise ContributionError(f"a manifest of {len(header.manifest)} bytes exceeds {MAX_MANIFEST_BYTES}")
    if not 0 < header.weights_bytes <= MAX_WEIGHTS_BYTES:
        raise ContributionError(
            f"weights must have between 1 and {MAX_WEIGHTS_BYTES} bytes, announced are {header.weights_bytes}"
        )
    return stated_weights_sha256(header.manifest)


async def _write(upload: Upload, requests: _Requests, size: int, progress_seconds: float) -> None:
    """Bring chunks to disk as they arrive; raises ContributionError unless they are ``size`` bytes.

    Raises:
        TimeoutError: the next one does not come.
    """
    arriving = aiter(requests)
    while request := await within(progress_seconds, anext(arriving, None), "the next piece of the upload"):
        if request.WhichOneof("part") != "chunk":
            raise ContributionError("after its header an upload must hold chunks of weights only")
        if upload.size + len(request.chunk) > size:
            raise ContributionError(f"the upload exceeds the {size} bytes that its header announced")
        await _in_thread(upload.write, request.chunk)
    if upload.size < size:
        raise ContributionError(f"the upload ended after {upload.size} of {size} bytes")


async def _in_thread(work: Callable[..., _Result], *arguments: Any) -> _Result:
    """Run ``work`` beside the event loop, and to its end however often the call is cancelled.

    So no file is closed while a thread writes to it, and none is left open.
    """
    future = asyncio.get_running_loop().run_in_executor(None, work, *arguments)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([future])
        raise
