"""The gRPC door, opened for a test."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from fedfree.host.channel import Address
from server.doors.grpc_server import Door
from server.doors.grpc_service import Service
from server.doors.limits import ServiceConfig
from server.events import ignore
from server.storage.run_directory import RunDirectory


@contextmanager
def serving(run: RunDirectory, *, tls: Any = None, **limits: float) -> Iterator[Address]:
    """A server in a thread of its own, at the address that is handed out; its events are recorded."""
    ready: Future[tuple[Address, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def serve() -> None:
        service = Service(run, ServiceConfig.parse(limits, origin="test"), on_event=run.recorded(ignore))
        door, end = Door(service), asyncio.Event()
        address = await door.open(Address("127.0.0.1", 0), tls)
        ready.set_result((address, asyncio.get_running_loop(), end))
        await end.wait()
        await door.close(0)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    address, loop, end = ready.result(30)
    try:
        yield address
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join()
