"""A coordinator's directory: certificates that hold for the names given, keys that are admitted, refusals."""

import ipaddress
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509

from client.doors.flower_node import make_key
from fedfree.errors import AccessError
from fedfree.host.channel import Address
from fedfree.host.starts import write_start
from fedfree.host.tls import check_server, read_certificate
from fedfree.start import LoadedStart
from server.config import ServerConfig
from server.doors.deployment import Deployment, DeploymentConfig
from tests.programs import RunProgram


@pytest.fixture
def run(run_program: RunProgram) -> RunProgram:
    """``fedfree-server`` with arguments: its exit status, output and errors."""
    return partial(run_program, "server")


@pytest.fixture
def coordinator(tmp_path: Path, run: RunProgram) -> Path:
    path = tmp_path / "coordinator"
    names = ("--name", "fed.example.org", "--name", "192.0.2.7")
    assert run("init", path, *names, "--organisations", 4, "--deadline-hours", 2)[0] == 0
    return path


@pytest.fixture
def public_key(tmp_path: Path) -> Path:
    path = tmp_path / "node.key.pub"
    path.write_bytes(make_key()[1])
    return path


@contextmanager
def listening(certificate: Path, key: Path) -> Iterator[Address]:
    """A server that shakes hands once."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def answer(server: socket.socket) -> None:
        connection, _ = server.accept()
        try:
            context.wrap_socket(connection, server_side=True).close()
        except OSError:
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer, args=(server,))
        thread.start()
        yield Address("127.0.0.1", server.getsockname()[1])
        thread.join()


def test_the_certificate_holds_for_the_names_given_and_for_this_machine(coordinator: Path) -> None:
    certificate = x509.load_pem_x509_certificate((coordinator / "server.crt").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fed.example.org", "localhost"]
    addresses = [str(each) for each in names.get_values_for_type(x509.IPAddress)]
    assert addresses == ["192.0.2.7", "127.0.0.1", str(ipaddress.IPv6Address("::1"))]
    read_certificate(coordinator / "server.crt", coordinator / "server.key")


def test_private_keys_are_for_their_owners_eyes(coordinator: Path) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in coordinator.glob("*.key")}
    assert modes == {"ca.key": 0o600, "server.key": 0o600}


def test_the_commented_configurations_say_what_was_asked_for(coordinator: Path) -> None:
    deployment = Deployment(coordinator)
    config = deployment.run.config()
    assert (config.collect.organisations, config.collect.deadline_hours) == (4, 2)
    assert config == ServerConfig(collect=config.collect)
    assert deployment.config() == DeploymentConfig()
    assert (
        "# How many are expected to contribute.\norganisations = 4"
        in (coordinator / "server.toml").read_text()
    )


def test_nothing_is_overwritten(coordinator: Path, run: RunProgram) -> None:
    before = (coordinator / "ca.key").read_bytes()
    status, _, error = run("init", coordinator, "--name", "fed.example.org")
    assert (status, error.count("\n")) == (2, 1)
    assert "nothing is overwritten" in error
    assert (coordinator / "ca.key").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--name", "not a host"), "neither a host name nor an IP address"),
        (("--name", "a", "--listen", "8000"), "HOST:PORT"),
        (("--name", "a", "--organisations", "0"), "organisations"),
    ],
)
def test_wrong_options_are_refused_and_leave_nothing(
    tmp_path: Path, run: RunProgram, options: tuple[str, ...], word: str
) -> None:
    status, _, error = run("init", tmp_path / "new", *options)
    assert (status, error.count("\n")) == (2, 1)
    assert word in error
    assert not (tmp_path / "new").exists()


def test_a_key_is_enrolled_once(coordinator: Path, run: RunProgram, public_key: Path) -> None:
    assert run("enroll", "org-1", public_key, "--in", coordinator)[0] == 0
    assert list(Deployment(coordinator).enrolled()) == ["org-1"]
    for name, word in (
        ("org-1", "org-1 is enrolled"),
        ("org-2", "is the key of org-1"),
        ("../x", "not a name"),
    ):
        status, _, error = run("enroll", name, public_key, "--in", coordinator)
        assert (status, error.count("\n")) == (2, 1)
        assert word in error


def test_what_is_no_public_key_is_refused(coordinator: Path, run: RunProgram, tmp_path: Path) -> None:
    (tmp_path / "private").write_bytes(make_key()[0])
    (tmp_path / "noise").write_bytes(b"noise")
    (tmp_path / "certificate").write_bytes((coordinator / "ca.crt").read_bytes())
    for name, word in (
        ("private", "must not leave"),
        ("noise", "format of ssh"),
        ("certificate", "format of ssh"),
        ("none", "cannot read"),
    ):
        status, _, error = run("enroll", "org-1", tmp_path / name, "--in", coordinator)
        assert (status, error.count("\n")) == (2, 1)
        assert word in error


def test_up_is_refused_where_another_process_learns(coordinator: Path, run: RunProgram) -> None:
    with Deployment(coordinator).run.held():
        status, _, error = run("up", coordinator)
    assert status == 2
    assert f"another process runs in {coordinator}: process {os.getpid()} on " in error
    assert not (coordinator / ".flwr" / "superlink.log").exists()


def test_a_folder_that_is_no_coordinators_is_refused(
    tmp_path: Path, run: RunProgram, public_key: Path
) -> None:
    for arguments in (("up", tmp_path), ("enroll", "org-1", public_key, "--in", tmp_path)):
        status, _, error = run(*arguments)
        assert (status, error.count("\n")) == (2, 1)
        assert "fedfree-server init" in error


def test_a_server_is_known_by_its_own_authority_alone(
    coordinator: Path, tmp_path: Path, run: RunProgram
) -> None:
    run("init", tmp_path / "other", "--name", "other.example.org")
    with listening(coordinator / "server.crt", coordinator / "server.key") as address:
        assert check_server(address, coordinator / "ca.crt") == ""
    with (
        listening(coordinator / "server.crt", coordinator / "server.key") as address,
        pytest.raises(AccessError, match="is refused: unable to get local issuer"),
    ):
        check_server(address, tmp_path / "other" / "ca.crt")
    assert "does not answer" in check_server(address, coordinator / "ca.crt")


def test_a_coordinator_is_made_for_a_start_or_not_at_all(
    tmp_path: Path, run: RunProgram, make_start: Callable[..., LoadedStart]
) -> None:
    begun, path = make_start(), tmp_path / "begun"
    write_start(tmp_path / "start", begun.start, begun.weights)
    assert run("init", path, "--name", "localhost", "--start", tmp_path / "start")[0] == 0
    directory = Deployment(path).run
    assert (directory.start(), directory.config().preset) == (begun, "start")
    status, _, err = run("init", tmp_path / "other", "--name", "localhost", "--start", tmp_path)
    assert (status, "cannot read" in err) == (2, True), err
    assert not (tmp_path / "other").exists()


def test_a_coordinator_is_made_for_several_starts_the_first_first(
    tmp_path: Path, run: RunProgram, make_start: Callable[..., LoadedStart]
) -> None:
    words: list[object] = ["init", tmp_path / "begun", "--name", "localhost"]
    for seed in (1, 0):
        write_start(tmp_path / str(seed), make_start(seed).start, make_start(seed).weights)
        words += ["--start", tmp_path / str(seed)]
    assert run(*words)[0] == 0
    directory = Deployment(tmp_path / "begun").run
    assert (directory.start(), directory.further_starts()) == (make_start(1), [make_start(0)])


@pytest.mark.parametrize("command", [("up",), ("serve", "--insecure", "--listen", "127.0.0.1:0", "--store")])
def test_no_door_opens_for_a_run_whose_preset_cannot_end_it(
    coordinator: Path, run: RunProgram, command: Sequence[str]
) -> None:
    (coordinator / "server.toml").write_text('preset = "start"\n')
    status, _, err = run(*command, coordinator)
    assert status == 2
    assert "began from random weights, and the server is configured with preset start" in " ".join(
        err.split()
    )
