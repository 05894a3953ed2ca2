"""Who may begin a call: looked at when its headers are there, before a byte of its request is waited for.

gRPC's own handler of a call with one request waits for that request first, for ever: a thousand calls
without a token and without a request would fill the house. So every call is taken as a stream here, which
is the same on the wire.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc

from fedfree.errors import ContributionError, LimitError
from fedfree.grpc_status import status_of
from fedfree.v1 import service_pb2
from server.doors.grpc_service import Service, within
from server.doors.limits import Open, address_of

_OURS = f"/{service_pb2.DESCRIPTOR.services_by_name['FedFREE'].full_name}/"


class Gate(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Organisations by their token, visitors (health, reflection) by their address."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._config = service.config
        self._visitors = Open(self._config.visitors_of_one, self._config.visitors)

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        """The handler of a call, behind the gate; None for a call that nobody answers."""
        handler = await continuation(details)
        if handler is None:
            return None
        enter = self._service.caller if details.method.startswith(_OURS) else self._visitor
        answer = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream

        async def behind(requests: AsyncIterator[Any], context: Any) -> Any:
            async with enter(context):
                given = requests if handler.request_streaming else await self._first(requests)
                if not handler.response_streaming:
                    return await answer(given, context)
                return await _write(answer(given, context), context)

        streaming = grpc.stream_stream_rpc_method_handler
        make = streaming if handler.response_streaming else grpc.stream_unary_rpc_method_handler
        return make(behind, handler.request_deserializer, handler.response_serializer)

    async def _first(self, requests: AsyncIterator[Any]) -> Any:
        request = await within(self._config.request_seconds, anext(aiter(requests), None), "the request")
        if request is None:
            raise ContributionError("the call ended before its request")
        return request

    @asynccontextmanager
    async def _visitor(self, context: Any) -> AsyncIterator[None]:
        """Whoever needs no token: so many at once, and so long."""
        try:
            with self._visitors.one_more(address_of(context.peer())):
                async with asyncio.timeout(self._config.visit_seconds):
                    yield
        except (LimitError, ContributionError) as error:
            await context.abort(status_of(error), str(error))
        except TimeoutError as error:
            ended = str(error) or f"ended after {self._config.visit_seconds:g} s: call again"
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, ended)


async def _write(answers: Any, context: Any) -> None:
    """Send what a handler yields, or let it write by itself."""
    if not inspect.isasyncgen(answers):
        await answers
        return
    async with aclosing(answers):
        async for answer in answers:
            await context.write(answer)
