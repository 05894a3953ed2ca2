"""Which connections go through a proxy: none to this machine, others as the environment says."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from client.doors.grpc_remote import Remote, connect, credentials
from fedfree.errors import ConfigError, FederationError
from fedfree.host.channel import Address
from fedfree.host.flower_process import environment, free_port
from fedfree.host.proxy import Proxy, without_proxy_to_loopback
from fedfree.host.tls import check_server
from server.doors.authority import certificate_pem, make_authority

ELSEWHERE = Address("coordinator.example", 9443)
TOKEN = "a-token"
EVERY_VARIABLE = ("grpc_proxy", "https_proxy", "http_proxy", "all_proxy", "HTTPS_PROXY", "HTTP_PROXY")
EXEMPTING = ("no_proxy", "NO_PROXY", "no_grpc_proxy")


class Recorder:
    """A proxy on this machine that keeps what it is told, and hangs up."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._told_to_end = threading.Event()
        self._thread = threading.Thread(target=self._answer)
        self._thread.start()

    def _answer(self) -> None:
        while not self._told_to_end.is_set():
            connection, _ = self._listening.accept()
            with connection, suppress(OSError):
                if heard := connection.recv(4096):
                    self.heard.append(heard)

    def close(self) -> None:
        self._told_to_end.set()
        socket.create_connection(self._listening.getsockname()).close()
        self._thread.join()
        self._listening.close()


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """The proxy that every variable of the environment names."""
    recorder = Recorder()
    for variable in EVERY_VARIABLE:
        monkeypatch.setenv(variable, recorder.url)
    for variable in EXEMPTING:
        monkeypatch.delenv(variable, raising=False)
    yield recorder
    recorder.close()


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    path = tmp_path / "ca.crt"
    path.write_bytes(certificate_pem(make_authority()[0]))
    return path


@contextmanager
def encrypted(address: Address, authority: Path) -> Iterator[Remote]:
    """A coordinator's door that is tried again without a pause."""
    with connect(address, credentials(authority), TOKEN) as remote:
        remote._sleep = lambda seconds: None
        yield remote


def failure(address: Address) -> str:
    """What a call to a coordinator that cannot be reached says."""
    with connect(address, None, TOKEN) as remote, pytest.raises(FederationError) as failed:
        remote._sleep = lambda seconds: None
        remote.run()
    return str(failed.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.2"])
def test_what_is_said_in_clear_to_this_machine_goes_through_no_proxy(proxy: Recorder, host: str) -> None:
    assert "proxy" not in failure(Address(host, free_port()))
    assert proxy.heard == []


def test_a_certificate_of_this_machine_is_looked_at_without_a_proxy(proxy: Recorder, authority: Path) -> None:
    assert "does not answer" in check_server(Address("127.0.0.1", free_port()), authority)
    assert proxy.heard == []


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost"])
def test_flowers_programs_reach_this_machine_without_a_proxy(
    proxy: Recorder, tmp_path: Path, host: str
) -> None:
    address = Address(host, free_port())
    code = (
        "import httpx, sys, contextlib\n"
        "with contextlib.suppress(httpx.ConnectError): httpx.Client().get(sys.argv[1])"
    )
    for url in (f"http://{address}", f"https://{address}"):
        subprocess.run(
            [sys.executable, "-c", code, url], env=environment(tmp_path, address), check=True, timeout=60
        )
    assert proxy.heard == []


def test_what_the_environment_exempts_already_stays_exempt() -> None:
    before = {"no_proxy": "a.example", "NO_PROXY": "b.example,a.example", "PATH": "/bin"}
    after = without_proxy_to_loopback(before, Address("127.0.0.7", 1), ELSEWHERE)
    assert after["no_proxy"] == after["NO_PROXY"] == "a.example,b.example,localhost,127.0.0.1,::1,127.0.0.7"
    assert after["PATH"] == "/bin"


def test_a_dead_proxy_is_named_with_its_variable_and_without_its_password(
    monkeypatch: pytest.MonkeyPatch, authority: Path
) -> None:
    for variable in (*EVERY_VARIABLE, *EXEMPTING):
        monkeypatch.delenv(variable, raising=False)
    dead = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("https_proxy", f"http://someone:secret@{dead}")
    expected = f"{ELSEWHERE} cannot be reached through the proxy http://{dead} named by https_proxy: "
    assert check_server(ELSEWHERE, authority).startswith(expected)
    with encrypted(ELSEWHERE, authority) as remote, pytest.raises(FederationError) as failed:
        remote.run()
    assert str(failed.value).startswith(expected)
    assert "secret" not in str(failed.value)


def test_a_proxy_that_refuses_is_named(proxy: Recorder, authority: Path) -> None:
    expected = f"cannot be reached through the proxy {proxy.url} named by grpc_proxy: "
    assert expected in check_server(ELSEWHERE, authority)
    with encrypted(ELSEWHERE, authority) as remote, pytest.raises(FederationError, match=expected):
        remote.run()
    assert {heard.split()[1] for heard in proxy.heard} == {str(ELSEWHERE).encode()}


@pytest.mark.parametrize(
    ("exempt", "host", "is_direct"),
    [
        ("coordinator.example", "coordinator.example", True),
        (".example", "coordinator.example", True),
        ("*.example", "coordinator.example", True),
        ("other, EXAMPLE", "Coordinator.Example", True),
        ("coordinator.example:9443", "coordinator.example", True),
        ("coordinator.example:443", "coordinator.example", False),
        ("ordinator.example", "coordinator.example", False),
        ("*", "coordinator.example", True),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("2001:db8::/32", "2001:db8::1", True),
        ("", "coordinator.example", False),
        (" , ", "coordinator.example", False),
    ],
)
@pytest.mark.parametrize("variable", ["no_proxy", "NO_PROXY"])
def test_others_are_reached_directly_where_the_environment_says_so(
    variable: str, exempt: str, host: str, is_direct: bool
) -> None:
    environment = {"https_proxy": "http://proxy.example:3128", variable: exempt}
    assert (Proxy.towards(Address(host, 9443), environment) is None) == is_direct


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"http_proxy": "http://a:1", "https_proxy": "http://b:1", "grpc_proxy": "http://c:1"}, "http://c:1"),
        ({"http_proxy": "http://a:1", "https_proxy": "http://b:1"}, "http://b:1"),
        ({"http_proxy": "a:1"}, "http://a:1"),
        ({"HTTP_PROXY": "http://a:1"}, None),
        ({"https_proxy": "socks5://a:1"}, None),
    ],
)
def test_the_proxy_is_the_one_that_grpc_would_take(environment: dict[str, str], expected: str | None) -> None:
    found = Proxy.towards(ELSEWHERE, environment)
    assert (found and found.url) == expected


@pytest.mark.parametrize("leads_to", ["192.0.2.7", None])
def test_a_localhost_that_leads_elsewhere_is_not_this_machine(
    monkeypatch: pytest.MonkeyPatch, leads_to: str | None
) -> None:
    def resolve(host: str, port: int) -> list[tuple[object, ...]]:
        if leads_to is None:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [(0, 0, 0, "", ("127.0.0.1", port)), (0, 0, 0, "", (leads_to, port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    address = Address("localhost", 9443)
    assert not address.is_loopback
    with pytest.raises(ConfigError, match=leads_to or "leads to nothing"):
        address.require_loopback()
