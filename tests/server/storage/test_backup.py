"""A run directory that was copied with tar is the run, in another folder too: docs/operate.md."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fedfree.architectures import Architecture, InputSpec, build
from fedfree.codec import Contribution, encode_contribution, encode_weights, sha256
from fedfree.host.files import PRIVATE, write_file
from fedfree.statement import PrivacyStatement
from server.config import ServerConfig
from server.doors.tokens import Tokens
from server.events import Event, ignore
from server.run import learn
from server.storage.run_directory import RunDirectory
from server.storage.store import ACCEPTED, RECEIVED
from server.verify.verify import verify_received
from tests.programs import RunProgram

SMALL = {
    "iterations": 3,
    "checkpoint_iterations": 1,
    "threads": 1,
    "device": "cpu",
    "collect": {"quorum": 2},
    "invert": {
        "models_per_iteration": 2,
        "images_per_model": 12,
        "steps": 1,
        "latent_size": 8,
        "generator_width": 4,
    },
    "learn": {"batch_size": 8, "compositions": 4, "relational_tasks": 1},
}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A prepared run that two models have reached."""
    path = tmp_path / "coordinator"
    write_file(path / "server.toml", ServerConfig.checked(SMALL).to_commented_toml().encode())
    run = RunDirectory(path)
    for seed in range(2):
        torch.manual_seed(seed)
        spec = InputSpec(channels=1, height=16, width=16)
        weights = encode_weights(build(Architecture(), num_classes=3, input=spec))
        contribution = Contribution(Architecture(), 3, spec, PrivacyStatement(), weights)
        run.store().receive(encode_contribution(contribution), weights)
    return run


def tar(*words: object) -> None:
    subprocess.run(["tar", *map(str, words)], check=True)


def back_up(run: RunDirectory, archive: Path) -> None:
    """As the document shows it."""
    tar("-cpf", archive, "--exclude=.flwr", "--exclude=superlink.db*", "-C", run.path.parent, run.path.name)


def restored(archive: Path, into: Path) -> RunDirectory:
    into.mkdir()
    tar("-xpf", archive, "-C", into)
    return RunDirectory(into / "coordinator")


def copying(run: RunDirectory, archive: Path, *, at: int) -> Callable[[Event], None]:
    """An observer of learning that backs the run up after so many iterations, while learning goes on."""

    def observe(event: Event) -> None:
        if event.kind == "progress" and event.values["iteration"] == at:
            back_up(run, archive)

    return observe


def test_a_copy_taken_while_a_run_learns_goes_on_elsewhere_to_the_same_bytes(
    run: RunDirectory, tmp_path: Path, run_program: RunProgram
) -> None:
    learn(run, on_event=copying(run, tmp_path / "backup.tar", at=2))
    copy = restored(tmp_path / "backup.tar", tmp_path / "elsewhere")
    assert copy.checkpoint.exists() and not copy.weights.exists()
    assert run_program("server", "resume", copy.path)[0] == 0
    started = [event.values["done"] for event in copy.read_events() if event.kind == "started"]
    assert started == [0, 1]
    for file in ("weights", "manifest"):
        assert sha256(getattr(copy, file).read_bytes()) == sha256(getattr(run, file).read_bytes())


def test_tokens_and_the_key_of_a_copy_hold_and_are_for_their_owner_alone(
    run: RunDirectory, tmp_path: Path
) -> None:
    token, key = Tokens(run.tokens).add("clinic"), run.signing_key.public
    back_up(run, tmp_path / "backup.tar")
    copy = restored(tmp_path / "backup.tar", tmp_path / "elsewhere")
    assert Tokens(copy.tokens).organisation_of(token) == "clinic"
    assert copy.signing_key.public == key
    modes = {each.stat().st_mode & 0o777 for each in (copy.tokens, copy.signing_key.path)}
    assert modes == {PRIVATE}


def test_a_contribution_that_was_moved_while_it_was_copied_and_is_there_twice_counts_once(
    run: RunDirectory,
) -> None:
    store = run.store()
    verify_received(store, ignore)
    accepted = store.ids(ACCEPTED)
    shutil.copytree(store.path / ACCEPTED / accepted[0], store.path / RECEIVED / accepted[0])
    verify_received(store, ignore)
    assert (store.ids(ACCEPTED), store.ids(RECEIVED)) == (accepted, [])


def test_of_another_protocol_what_was_accepted_is_used_and_what_was_received_is_refused_by_name(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = run.store()
    accepted, received = store.ids(RECEIVED)
    store.accept(accepted)
    monkeypatch.setattr("fedfree.codec.PROTOCOL_VERSION", 2)
    verify_received(store, ignore)
    assert store.network(accepted)[0].num_classes == 3
    assert "protocol version 1 is not understood here" in store.reason(received)
