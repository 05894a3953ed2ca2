"""A run's ending, in one place; and two processes that share a run get what one process gets."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image

from fedfree.adaptation import Recipe
from fedfree.architectures import Architecture, InputSpec, build
from fedfree.codec import Contribution, MetaLearner, Provenance, encode_contribution, encode_weights
from fedfree.errors import ConfigError
from fedfree.host.files import write_file
from fedfree.statement import PrivacyStatement
from server import pipeline
from server.config import ServerConfig
from server.events import Event
from server.learning.outcome import Outcome
from server.run import learn, learn_held, main
from server.storage.run_directory import RunDirectory
from server.storage.store import Store

INPUT = InputSpec(channels=1, height=16, width=16)
INVERT = {"models_per_iteration": 3, "images_per_model": 12, "steps": 2, "generator_width": 2}
PAPER = ServerConfig(preset="paper")
LEARN = {"batch_size": 8, "compositions": 7, "relational_tasks": 4, "own_tasks": True}
REPLAY = {"replay_episodes": 3, "replay_ways": 2, "replay_queries": 2, "outer_rate": 0.5}


def prepare(path: Path, models_per_iteration: int = 3) -> None:
    """A run directory with four models; paths, replay and adversarial term switched on."""
    for seed in range(4):
        torch.manual_seed(seed)
        network = build(Architecture(), num_classes=3, input=INPUT)
        contribution = Contribution(Architecture(), 3, INPUT, PrivacyStatement(), encode_weights(network))
        Store(path / "store").receive(encode_contribution(contribution), contribution.weights)
    config = ServerConfig(
        precision="float64",
        threads=1,
        device="cpu",
        iterations=3,
        recipe=Recipe(head="gradient", steps=2),
        invert=PAPER.invert.model_copy(
            update=INVERT | {"batch_norm_weight": 0.1, "models_per_iteration": models_per_iteration}
        ),
        learn=PAPER.learn.model_copy(update=LEARN | REPLAY | {"paths": 2}),
    )
    write_file(path / "server.toml", config.model_copy(update={"warmup_iterations": 0}).to_toml().encode())


def share(path: Path, processes: int) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    command = [*launcher, str(processes), "-m", "server.run", str(path)]
    environment = {"PYTHONPATH": ":".join(sys.path), "PATH": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)


def test_two_processes_publish_the_meta_learner_of_one(tmp_path: Path) -> None:
    paths = tmp_path / "one", tmp_path / "two"
    for path in paths:
        path.mkdir()
        prepare(path)
    learn(RunDirectory(paths[0]))
    shared = share(paths[1], 2)
    assert shared.returncode == 0, shared.stderr
    weights = [safetensors.torch.load_file(RunDirectory(path).weights) for path in paths]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-5, atol=1e-5)
    started = build(Architecture(), num_classes=3, input=INPUT).state_dict()
    assert any(not torch.equal(tensor, started[name]) for name, tensor in weights[0].items())


def public_photos(folder: Path) -> Path:
    folder.mkdir()
    for index in range(5):
        generator = torch.Generator().manual_seed(index)
        pixels = torch.randint(0, 256, (20, 24), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{index}.png")
    return folder


def learned(path: Path) -> tuple[bytes, bytes]:
    return RunDirectory(path).manifest.read_bytes(), RunDirectory(path).weights.read_bytes()


def test_a_killed_run_with_public_images_goes_on_to_the_same_bytes_and_its_events_name_them(
    tmp_path: Path,
) -> None:
    def kill(event: Event) -> None:
        if event.kind == "progress" and event.values["iteration"] == 2:
            raise KeyboardInterrupt

    photos = public_photos(tmp_path / "photos")
    for name in ("plain", "whole", "killed"):
        (tmp_path / name).mkdir()
        prepare(tmp_path / name)
        toml = tmp_path / name / "server.toml"
        text = toml.read_text().replace("checkpoint_iterations = 10", "checkpoint_iterations = 1")
        toml.write_text(text.replace("public_images = 100", "public_images = 2"))
        if name != "plain":
            RunDirectory(tmp_path / name).adopt_public_images(photos)
    learn(RunDirectory(tmp_path / "plain"))
    learn(RunDirectory(tmp_path / "whole"))
    killed = RunDirectory(tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        learn(killed, on_event=kill)
    shutil.rmtree(photos)
    learn(killed)
    assert learned(tmp_path / "whole") == learned(tmp_path / "killed")
    assert learned(tmp_path / "whole")[1] != learned(tmp_path / "plain")[1]
    started = [event.values for event in killed.read_events() if event.kind == "started"]
    kept = killed.public_images()
    assert kept and [each["done"] for each in started] == [0, 1]
    assert {(each["public_images"], each["public_images_sha256"]) for each in started} == {(5, kept.sha256)}
    (begun,) = [
        event.values for event in RunDirectory(tmp_path / "plain").read_events() if event.kind == "started"
    ]
    assert begun.keys() == {"models", "of", "done"}


def test_a_process_of_a_team_says_everything_and_ends_before_the_interpreter_unwinds() -> None:
    code = "import atexit, server.run as r; atexit.register(print, 'unwound'); print('said'); r.end_process()"
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "said\n"), ended.stderr


def test_a_folder_in_which_another_process_learns_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    prepare(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with RunDirectory(tmp_path).held(), pytest.raises(ConfigError, match="another process runs in"):
        learn(RunDirectory(tmp_path))
    assert sorted(path for path in tmp_path.rglob("*") if path.name != ".lock") == before


def test_more_processes_than_models_in_a_meta_batch_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tmp_path, models_per_iteration=1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="2 processes cannot share a meta-batch of 1 models"):
        main(tmp_path)


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """A run that has been learned, up to its last checkpoint."""
    weights = encode_weights(build(Architecture(), num_classes=2, input=INPUT))
    provenance = Provenance((), "", 0, "test")
    meta_learner = MetaLearner(Architecture(), 2, INPUT, Recipe(), provenance, weights)
    outcome = Outcome(meta_learner, {"id": torch.zeros(2, 1, 16, 16, dtype=torch.uint8)}, 24)
    monkeypatch.setattr(pipeline, "run", lambda *_, **__: outcome)
    write_file(tmp_path / "server.toml", ServerConfig().to_toml().encode())
    directory = RunDirectory(tmp_path)
    write_file(directory.checkpoint, b"the last")
    return directory


def test_what_is_broadcast_is_on_disk_by_then_and_the_checkpoint_goes_after_it(
    directory: RunDirectory,
) -> None:
    seen = []

    def broadcast(manifest: bytes, meta_learner: MetaLearner) -> None:
        assert directory.manifest.read_bytes() == manifest
        assert directory.weights.read_bytes() == meta_learner.weights
        assert directory.read_recovered().keys() == {"id"}
        seen.append(directory.checkpoint.exists())

    learn_held(directory, broadcast=broadcast)
    assert seen == [True] and not directory.checkpoint.exists()


def test_whoever_is_killed_while_broadcasting_need_not_learn_again(directory: RunDirectory) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn_held(directory, broadcast=killed)
    assert directory.checkpoint.exists()


def lose(path: Path) -> None:
    path.write_bytes(b"")


def block(path: Path) -> None:
    path.mkdir(parents=True)


@pytest.mark.parametrize(
    ("damage", "name", "words"),
    [
        (lose, "server.toml", "is empty, and was not when it was written"),
        (lose, "signing.json", "is no signing key: restore it"),
        (block, "signing.json", "signing.json is a folder where a file is expected"),
        (lose, "published", "is a file where a folder is expected: move it away"),
        (block, "published/current", "is a folder where a file is expected: move it away"),
        (block, "meta_learner.safetensors", "is a folder where a file is expected: move it away"),
        (block, "recovered.safetensors", "is a folder where a file is expected: move it away"),
    ],
)
def test_what_could_not_be_published_is_refused_before_anything_is_learned(
    directory: RunDirectory,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], None],
    name: str,
    words: str,
) -> None:
    monkeypatch.setattr(pipeline, "run", lambda *_, **__: pytest.fail("it has learned"))
    damage(directory.path / name)
    with pytest.raises(ConfigError, match=words):
        learn_held(directory)


def test_without_a_broadcast_the_checkpoint_goes_once_all_is_written(directory: RunDirectory) -> None:
    learn(directory)
    assert directory.weights.exists() and not directory.checkpoint.exists()
