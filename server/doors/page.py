"""The coordinator's page: how a run stands, over HTTP, to be read and nothing else, on this machine alone.

It has no accounts, so it listens where nobody else comes. Three things can be had: the page, the same as
JSON, and the picture of what was recovered; no path leads to a file. A browser is told to load nothing from
elsewhere, and whoever calls this machine by another name (DNS rebinding) is turned away.
"""

import base64
import hashlib
import json
import logging
import re
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from fedfree.errors import ConfigError
from fedfree.host.channel import LOOPBACK, Address
from server.doors import curves
from server.doors.overview import Overview, read_overview, version
from server.doors.picture import recovered_picture
from server.storage.run_directory import RunDirectory

log = logging.getLogger(__name__)

CONNECTIONS = 16
"""At once; whoever comes beyond them is turned away."""
CONNECTION_SECONDS = 20.0
"""After which a connection is ended, however slowly somebody speaks or reads."""
_BUSY = b"HTTP/1.0 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_HERE = Path(__file__).parent
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(:\d+)?")


@dataclass(frozen=True)
class Answer:
    """What is sent."""

    content: bytes
    kind: str = "text/plain; charset=utf-8"
    status: HTTPStatus = HTTPStatus.OK

    @classmethod
    def words(cls, status: HTTPStatus, text: str) -> "Answer":
        """One line."""
        return cls(f"{text}\n".encode(), status=status)


class Pages:
    """What can be had of a run, by path; made anew for everyone who asks, one after the other."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._one_at_a_time = threading.Lock()
        self._picture = ("", b"")
        self._paths: Mapping[str, Callable[[], Answer]] = {
            "/": self.page,
            "/status.json": self.status,
            "/picture.png": self.picture,
        }

    def answer(self, path: str) -> Answer:
        """What lies at a path; a query counts for nothing."""
        asked = self._paths.get(path.partition("?")[0])
        if asked is None:
            return Answer.words(HTTPStatus.NOT_FOUND, f"there is {', '.join(self._paths)}")
        with self._one_at_a_time:
            return asked()

    def page(self) -> Answer:
        """For people."""
        overview = read_overview(self._run)
        html = _template().render(
            overview=overview,
            style=_text("page.css"),
            script=_text("page.js"),
            now=_now(),
            width=curves.WIDTH,
            height=curves.HEIGHT,
        )
        return Answer(html.encode(errors="replace"), "text/html; charset=utf-8", _status(overview))

    def status(self) -> Answer:
        """For programs, the page's own among them."""
        overview = read_overview(self._run)
        values = {"digest": overview.digest, "time": _now(), **asdict(overview)}
        return Answer(json.dumps(values).encode(), "application/json", _status(overview))

    def picture(self) -> Answer:
        """Of recovered images, drawn once for each time they are written."""
        try:
            file = RunDirectory(self._run).recovered
            current = version(file)
            if current != self._picture[0]:
                self._picture = (current, recovered_picture(file) if current else b"")
        except Exception:
            # A damaged file may bring up anything; the page says that there is none.
            log.debug("cannot draw what was recovered", exc_info=True)
            self._picture = ("", b"")
        if not self._picture[1]:
            return Answer.words(HTTPStatus.NOT_FOUND, "there is no picture of recovered images")
        return Answer(self._picture[1], "image/png")


def _status(overview: Overview) -> HTTPStatus:
    return HTTPStatus.OK if overview.is_readable else HTTPStatus.SERVICE_UNAVAILABLE


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@cache
def _text(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2")


@cache
def security_headers() -> Mapping[str, str]:
    """What a browser may do with the page: run its own script, show its own picture, and nothing else."""
    policy = {
        "default-src": "'none'",
        "style-src": _hash(_text("page.css")),
        "script-src": _hash(_text("page.js")),
        "img-src": "'self' data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cache-Control": "no-store",
    }


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


class _Server(ThreadingHTTPServer):
    """A few connections at once, none of them for long."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_port = False

    def __init__(self, address: Address, pages: Pages, seconds: float) -> None:
        self.pages = pages
        self.names = {*LOOPBACK, address.host.lower()}
        self._seconds = seconds
        self._begun: dict[socket.socket, float] = {}
        self.address_family, place = _place(address)
        super().__init__(place, _Handler)

    def server_bind(self) -> None:
        # HTTPServer's own asks the name service how the address is called, which may take long.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, if there are not too many."""
        if len(self._begun) >= CONNECTIONS:
            with suppress(OSError):
                request.send(_BUSY)
            self.shutdown_request(request)
            return
        self._begun[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """End a connection, and forget it."""
        self._begun.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """End what takes too long; called every half second."""
        until = time.monotonic() - self._seconds
        for request, begun in list(self._begun.items()):
            if begun < until:
                with suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller who hung up is no fault."""
        log.debug("a connection to the page broke off", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    """One request, then the connection ends."""

    server: _Server
    timeout = CONNECTION_SECONDS

    def do_GET(self) -> None:
        self._send(self._answer())

    def do_HEAD(self) -> None:
        self._send(self._answer(), with_content=False)

    def _answer(self) -> Answer:
        if not self._is_called_rightly():
            words = "call this page by localhost or the address that it is served on"
            return Answer.words(HTTPStatus.FORBIDDEN, words)
        return self.server.pages.answer(self.path)

    def _is_called_rightly(self) -> bool:
        """Whether the browser was led here by a name of this machine; a tunnel may have another port."""
        hosts = self.headers.get_all("Host") or []
        called = _HOST.fullmatch(hosts[0].strip()) if len(hosts) == 1 else None
        return called is not None and called[1].strip("[]").lower() in self.server.names

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What this class's own code refuses: a request that is none, or another method."""
        if code == HTTPStatus.NOT_IMPLEMENTED:
            words = "this page can be read (GET, HEAD), and nothing else"
            self._send(Answer.words(HTTPStatus.METHOD_NOT_ALLOWED, words), {"Allow": "GET, HEAD"})
        else:
            status = HTTPStatus(code)
            self._send(Answer.words(status, status.phrase))
        self.close_connection = True

    def _send(
        self, answer: Answer, further: Mapping[str, str] | None = None, *, with_content: bool = True
    ) -> None:
        self.send_response(answer.status)
        own = {"Content-Type": answer.kind, "Content-Length": str(len(answer.content))}
        for name, value in {**own, **security_headers(), **(further or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_content and self.command != "HEAD":
            self.wfile.write(answer.content)

    def version_string(self) -> str:
        """Without the release of Python."""
        return "FedFREE"

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are nobody's concern."""


def _place(address: Address) -> tuple[int, Any]:
    """Family and socket address; of several that a name has, the IPv4 one."""
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    family, *_, place = min(found, key=lambda each: each[0] != socket.AF_INET)
    return family, place


@contextmanager
def served(run: Path, listen: Address, *, seconds: float = CONNECTION_SECONDS) -> Iterator[Address]:
    """Serve a run's page while the block runs; port 0 takes a free one, which is handed out.

    Args:
        seconds: a connection's, at most.

    Raises:
        ConfigError: an address that others reach, or that cannot be had.
    """
    if not listen.is_loopback:
        raise ConfigError(
            f"{listen} can be reached by others, and this page asks nobody who they are: serve it on "
            f"localhost, and see it from elsewhere with `ssh -L {listen.port}:localhost:{listen.port} HOST`"
        )
    try:
        server = _Server(listen, Pages(run), seconds)
    except OSError as error:
        raise ConfigError(f"cannot serve the page on {listen}: {error.strerror or error}") from error
    thread = threading.Thread(target=server.serve_forever, name="page")
    thread.start()
    try:
        yield Address(listen.host, server.server_port)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
