"""An organisation's directory: its key, its configurations, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from client.config import ClientConfig
from client.doors.flower_node import Node, NodeConfig, init, up
from server.doors.authority import certificate_pem, make_authority


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    path = tmp_path / "ca.crt"
    path.write_bytes(certificate_pem(make_authority()[0]))
    return path


@pytest.fixture
def images(tmp_path: Path, write_images: Callable[[Path, dict[str, int]], Path]) -> Path:
    return write_images(tmp_path / "images", {"a": 1, "b": 1})


def test_the_key_opens_and_the_configurations_can_be_read(
    tmp_path: Path, run_client: Callable[..., tuple[int, str, str]], authority: Path, images: Path
) -> None:
    options = ("--server", "fed.example.org:8443", "--ca", authority, "--data", images)
    assert run_client("init", tmp_path / "org", *options)[0] == 0
    node = Node(tmp_path / "org")
    private = serialization.load_ssh_private_key(node.key.read_bytes(), password=None)
    public = serialization.load_ssh_public_key((tmp_path / "org" / "node.key.pub").read_bytes())
    assert private.public_key() == public
    assert node.key.stat().st_mode & 0o777 == 0o600
    assert ClientConfig.read(node.client_toml).data.source == images.resolve()
    assert node.config().server == "fed.example.org:8443"
    status, _, error = run_client("init", tmp_path / "org", *options)
    assert status == 2
    assert "nothing is overwritten" in error


def test_wrong_options_are_refused_in_one_line(
    tmp_path: Path, run_client: Callable[..., tuple[int, str, str]], authority: Path, images: Path
) -> None:
    right = {"--server": "localhost:8443", "--ca": authority, "--data": images}
    for option, value, word in (
        ("--server", "localhost", "HOST:PORT"),
        ("--ca", images / "a" / "0.png", "authority"),
        ("--data", tmp_path / "none", "no images"),
    ):
        options = [each for pair in (right | {option: value}).items() for each in pair]
        status, _, error = run_client("init", tmp_path / "org", *options)
        assert (status, error.count("\n")) == (2, 1)
        assert word in error
    assert not (tmp_path / "org").exists()


def test_a_folder_that_is_no_organisations_is_refused(
    tmp_path: Path, run_client: Callable[..., tuple[int, str, str]]
) -> None:
    status, _, error = run_client("up", tmp_path)
    assert status == 2
    assert "fedfree-client init" in error


def test_a_node_says_its_limits_and_what_it_knows_of_the_coordinators_key(
    tmp_path: Path,
    authority: Path,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("client.doors.flower_node.persist", lambda *_, **__: None)
    key = "ab" * 32
    node = init(tmp_path / "org", NodeConfig(server="localhost:1"), authority, images, coordinator_key=key)
    text = node.client_toml.read_text().replace("recipe_steps = 1000", "recipe_steps = 7")
    node.client_toml.write_text(text)
    with caplog.at_level("INFO"):
        up(node)
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith("limits: a coordinator may ask for") and "of at most 7 steps" in said[0]
    assert said[1] == f"the coordinator's key is {key} (pinned)"
