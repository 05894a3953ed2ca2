"""What a Flower node executes: its own installation's client app, whatever a coordinator sends."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.app.metadata import Metadata
from flwr.cli.build import build_fab_from_disk, build_fab_from_files
from flwr.supercore.fab import Fab
from flwr.supercore.run import Run
from flwr.supernode.runtime import run_clientapp as runtime

from client.doors import flower_app, own_app
from client.doors.flower_node import REPLACED, replace_program
from client.doors.own_app import OwnApp
from fedfree.codec import sha256
from fedfree.flower_records import ORGANISATION_FAILED
from fedfree.host.flower_bundle import bundle_files, write_bundle

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")


def fab(**changes: str) -> bytes:
    """The bundle of this installation, with the sources of some modules changed."""
    files = dict(bundle_files())
    for name, source in changes.items():
        files[f"client/doors/{name}.py"] = source.encode()
    return build_fab_from_files(files)[0]


def asked() -> Message:
    metadata = Metadata(1, "question", 1, 7, "", "", 0.0, 1e12, "train.contribute")
    return Message(RecordDict(), metadata=metadata)  # type: ignore[call-overload]


def loaded(bundle: bytes) -> Callable[..., Any]:
    own = OwnApp()
    own.install(bundle, skip_prompt=True)
    return own.load("fedfree/fedfree", "1.0.0", "ab")


def test_the_bundle_of_this_release_is_answered_by_the_installations_own_app(tmp_path: Path) -> None:
    assert loaded(build_fab_from_disk(write_bundle(tmp_path))) is flower_app.app


@pytest.mark.parametrize(
    "make",
    [
        lambda: fab(flower_app="app = None\n"),
        lambda: fab(additional="x = 1\n"),
        lambda: b"",
        lambda: b"PK\3\4",
    ],
    ids=["another app", "one file more", "nothing", "half a zip"],
)
def test_another_bundle_is_refused_with_both_hashes(make: Callable[[], bytes]) -> None:
    bundle = make()
    answer = loaded(bundle)(message=asked(), context=None)
    assert answer.error.code == ORGANISATION_FAILED
    for each in (bundle, fab()):
        assert sha256(each)[:12] in answer.error.reason
    assert "install the same release" in answer.error.reason


@pytest.fixture
def flowers_program(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Flower's functions as they were, after what stands in for them."""
    for name in ("install_from_fab", "install_app_dependencies", "get_load_client_app_fn"):
        monkeypatch.setattr(runtime, name, getattr(runtime, name))
    monkeypatch.setattr(
        "sys.argv", [REPLACED, "--runtime-api-address", "127.0.0.1:1", "--insecure", "--token", "t"]
    )
    yield


def test_flowers_own_program_executes_nothing_of_a_bundle_that_writes_a_marker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flowers_program: None
) -> None:
    marker = tmp_path / "marker"
    bundle = fab(flower_app=f"open({str(marker)!r}, 'w').close()\napp = None\n")
    message = asked()
    run = Run.create_empty(7)
    run.fab_id, run.fab_version = "fedfree/fedfree", "1.0.0"
    sent = Fab(sha256(bundle), bundle, {})
    context = Context(7, 1, {}, RecordDict(), {})
    answers: list[Message] = []
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    monkeypatch.setattr(runtime, "pull_task_input", lambda client: (message, context, run, sent))
    monkeypatch.setattr(runtime, "push_message", lambda client, answer, context: answers.append(answer))
    monkeypatch.setattr(runtime, "push_task_output", lambda **_: None)
    monkeypatch.setattr(runtime, "register_signal_handlers", lambda **_: None)
    monkeypatch.setattr(runtime, "flwr_exit", lambda **_: None)
    monkeypatch.setattr(runtime.HeartbeatSender, "start", lambda self: None)

    own_app.main()

    assert len(answers) == 1 and "the coordinator's app bundle is" in answers[0].error.reason
    assert not marker.exists() and not list(tmp_path.glob("flwr/apps/*"))


def test_a_flower_that_calls_something_else_is_not_run(
    monkeypatch: pytest.MonkeyPatch, flowers_program: None
) -> None:
    monkeypatch.delattr(runtime, "install_from_fab")
    with pytest.raises(RuntimeError, match="no install_from_fab to stand in for"):
        own_app.main()


def test_a_node_finds_it_before_flowers_own(tmp_path: Path) -> None:
    folder = replace_program(tmp_path / "a folder's bin")
    environment = os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (Path.cwd(), Path.cwd() / "proto")))
    told = subprocess.run([REPLACED, "--help"], env=environment, capture_output=True, text=True, check=True)
    assert "--runtime-api-address" in told.stdout
